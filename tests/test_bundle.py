"""The model bundle: what a run leaves is what its checkpoint held, and is checked before use."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from recsys_ray.bundle import writer
from recsys_ray.bundle.manifest import MANIFEST, BundleError
from recsys_ray.bundle.reader import Rectangle, open_bundle
from recsys_ray.checkpoint.restore import restore
from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.data.vocabulary import ValueLookup
from recsys_ray.serving.bundle import load_bundle, load_ranker
from recsys_ray.training.finishing import export
from recsys_ray.training.train import train
from tests.support.runs import dlrm_config, outcome, weights
from tests.support.workers import run_workers

SMALL_PART = 3000
"""Bytes: every table of the test's model is written in several parts."""


def train_in_small_parts(config):
    writer.WEIGHTS_FILE_BYTES = SMALL_PART
    train(config)


def train_with_a_full_disk(config):
    """Rank 1 cannot write its part; rank 0 can."""

    def failing(*_: object) -> None:
        raise OSError("the disk is full")

    if os.environ["RANK"] == "1":
        export.write_parts = failing
    train(config)


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two workers whose tables are row-wise, stored in many parts."""
    run_dir = tmp_path_factory.mktemp("bundle") / "run"
    run_workers(train_in_small_parts, 2, dlrm_config(dataset, run_dir))
    return run_dir


def raw_rows(ranker, rows: int, seed: int = 0) -> pa.Table:
    """Rows with values that the model knows, values it has never seen, and missing ones, for any schema."""
    random, columns = np.random.default_rng(seed), {}
    for column in ranker.schema.features:
        if not hasattr(column, "encoding"):
            values = random.normal(size=rows)
            columns[column.name] = pa.array(values, mask=random.random(rows) < 0.1)
            continue
        ids = random.integers(0, max(2, column.num_embeddings - 1), rows)
        values = [f"value {one}" if column.dtype == "string" else int(one) for one in ids]
        missing = random.random(rows) < 0.1
        values = [None if gone else [one] if column.multi else one for one, gone in zip(values, missing, strict=True)]
        item = pa.string() if column.dtype == "string" else pa.int64()
        columns[column.name] = pa.array(values, pa.list_(item) if column.multi else item)
    return pa.table(columns)


def test_bundle_holds_the_bits_of_the_checkpoint_in_parts_of_both_ranks(run: Path) -> None:
    bundle = open_bundle(run)
    bundle.verify()
    parts = {part.file.split("/")[1].split("_")[1] for one in bundle.manifest.tensors.values() for part in one.parts}
    assert parts == {"0", "1"} and any(len(one.parts) > 4 for one in bundle.manifest.tensors.values())
    assert bundle.manifest.step == int(outcome(run)["best_checkpoint"].removeprefix("step_"))
    found = weights(run)
    expected = {name: torch.full_like(one, torch.nan) for name, one in found.items()}
    restore(CheckpointStore(str(run / "checkpoints")), bundle.manifest.step, {"model": expected}, alone=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert bundle.manifest.metrics["test_auc"] == outcome(run)["test_auc"]


def test_any_rectangle_of_a_tensor_is_read_from_its_parts(run: Path) -> None:
    bundle = open_bundle(run)
    name, stored = max(bundle.manifest.tensors.items(), key=lambda one: len(one[1].parts))
    whole = bundle.read_tensor(name)
    rows = torch.randint(0, stored.shape[0], (500,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(bundle.gather_rows(name, rows, slice(2, 7)), whole[rows, 2:7])
    assert bundle.tensor_bytes() == sum(one.nbytes for one in weights(run).values())


def test_rows_are_scored_alike_one_by_one_in_any_table_and_from_a_url(run: Path) -> None:
    ranker = load_ranker(run)
    rows = raw_rows(ranker, 300)
    scores = ranker.predict(rows)
    assert scores.shape == (300,) and scores.dtype == np.float32 and len(np.unique(scores)) > 200
    alone = np.concatenate([ranker.predict(rows.slice(row, 1)) for row in range(50)])
    np.testing.assert_allclose(alone, scores[:50], atol=1e-6)
    with_index = rows.to_pandas().set_axis(range(7, 307))
    np.testing.assert_allclose(ranker.predict(with_index.assign(stranger=1)), scores, atol=1e-6)
    np.testing.assert_allclose(load_ranker(f"file://{run}").predict(rows), scores, atol=0)
    assert len(ranker.predict(rows.slice(0, 0))) == 0


def test_rows_that_cannot_be_scored_are_named(run: Path) -> None:
    ranker = load_ranker(run)
    rows = raw_rows(ranker, 3)
    (dense, *_), (categorical, *_) = ranker.schema.dense, ranker.schema.categorical
    with pytest.raises(ValueError, match=f"column '{dense.name}' is missing: the model reads it; null stands for unknown"):
        ranker.predict(rows.drop_columns([dense.name]))
    infinite = rows.set_column(rows.column_names.index(dense.name), dense.name, pa.array([1.0, np.inf, None]))
    with pytest.raises(ValueError, match=rf"row 1: {dense.name}: infinite, or too large for float32 \('inf'\)"):
        ranker.predict(infinite)
    texts = rows.to_pandas().assign(**{categorical.name: ["a", "b", "c"]})
    with pytest.raises(ValueError, match=f"column '{categorical.name}' cannot be read as int ids"):
        ranker.predict(pd.DataFrame(texts))


def flipped(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1
    file.write_bytes(content)


def test_a_flipped_byte_anywhere_is_found(run: Path, tmp_path: Path) -> None:
    """Every kind of file, the manifest included, at its beginning, in its middle and at its end."""
    files = [file.relative_to(run / "model") for file in sorted((run / "model").rglob("*")) if file.is_file()]
    kinds = {file.suffix + str(file == Path(MANIFEST)): file for file in files}
    assert len(kinds) >= 3
    for file in kinds.values():
        size = (run / "model" / file).stat().st_size
        for place in (0, 9, size // 2, size - 1):
            shutil.copytree(run / "model", tmp_path / "copy")
            flipped(tmp_path / "copy" / file, place)
            with pytest.raises(BundleError):
                load_bundle(tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy")


def test_a_slice_of_a_tensor_needs_only_its_own_files(run: Path, tmp_path: Path) -> None:
    """A rank of sharded tables verifies the files that it reads: damage in them is found, and elsewhere not its business."""
    bundle = open_bundle(shutil.copytree(run / "model", tmp_path / "copy"))
    name, stored = max(bundle.manifest.tensors.items(), key=lambda one: len(one[1].parts))
    rows, width = stored.shape
    top = bundle.files_with(name, Rectangle((0, 0), (rows // 2, width)))
    bottom = bundle.files_with(name, Rectangle((rows // 2, 0), (rows - rows // 2, width)))
    assert top | bottom == {part.file for part in stored.parts} and top - bottom and bottom - top
    flipped(bundle.folder / min(bottom - top), -9)
    bundle.verify(top)
    with pytest.raises(BundleError, match="does not fit its checksum"):
        bundle.verify(bottom)


def with_manifest(folder: Path, change) -> None:
    """Changes the manifest and gives it a fitting checksum, as somebody who forges a bundle would."""
    bundle = open_bundle(folder)
    values = json.loads(bundle.manifest.to_json())["manifest"]
    change(values)
    manifest = type(bundle.manifest)(**values)
    (folder / MANIFEST).write_text(manifest.to_json())


def entry(file: Path) -> dict[str, object]:
    return {"bytes": file.stat().st_size, "sha256": "0" * 64}


def test_forged_bundles_are_refused(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.json"
    outside.write_text("{}")

    def refused(pattern: str, forge) -> None:
        shutil.copytree(run / "model", tmp_path / "copy")
        forge(tmp_path / "copy")
        with pytest.raises(BundleError, match=pattern):
            load_bundle(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")

    def listing(name: str):
        return lambda folder: with_manifest(folder, lambda values: values["files"].update({name: entry(outside)}))

    for path in ("../secret.json", str(outside), "a/../../secret.json", "./schema.json", "a//b.json"):
        refused("which is no path inside the bundle", listing(path))
    refused("a bundle holds .json, .parquet, .safetensors alone", listing("model.pkl"))
    refused(
        r"holds model.pkl, which manifest.json does not list", lambda folder: (folder / "model.pkl").write_bytes(b"\x80\x04.")
    )

    def linked(folder: Path) -> None:
        (folder / "link.json").symlink_to(outside)
        listing("link.json")(folder)

    refused("leads out of the bundle's folder", linked)

    def overlapping(folder: Path) -> None:
        def change(values) -> None:
            parts = next(one["parts"] for one in values["tensors"].values() if len(one["parts"]) > 1)
            parts[1]["offsets"] = parts[0]["offsets"]

        with_manifest(folder, change)

    refused("do not fit together", overlapping)
    refused("has no schema.json", lambda folder: (folder / "schema.json").unlink())


def test_a_failed_export_keeps_the_outcome_and_running_again_exports_only(dataset: Path, tmp_path: Path) -> None:
    config = dlrm_config(dataset, tmp_path / "run")
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="rank 1: OSError: the disk is full"):
        run_workers(train_with_a_full_disk, 2, config)
    before = (tmp_path / "run" / "outcome.json").stat().st_mtime_ns
    assert not (tmp_path / "run" / "model").exists() and outcome(tmp_path / "run")["test_auc"] > 0.5
    run_workers(train, 2, config)
    assert (tmp_path / "run" / "outcome.json").stat().st_mtime_ns == before
    load_bundle(tmp_path / "run")
    exported = (tmp_path / "run" / "model" / MANIFEST).stat().st_mtime_ns
    run_workers(train, 1, config)
    assert (tmp_path / "run" / "model" / MANIFEST).stat().st_mtime_ns == exported, "a whole bundle is not written again"


@pytest.mark.unit
def test_a_vocabulary_of_a_million_is_looked_up_at_once() -> None:
    """Equal to Arrow's own search, nulls, strangers and repeated values included; built once."""
    random = np.random.default_rng(0)
    numbers = pa.array(random.permutation(3 * 10**6)[: 10**6] - 10**6)
    asked = pa.array(random.integers(-(10**6), 2 * 10**6, 1000), mask=random.random(1000) < 0.1)
    words, asked_words = numbers.cast(pa.string()), asked.cast(pa.string())
    for values, wanted in ((numbers, asked), (words, asked_words), (pa.array(["b", "a", "b"]), pa.array(["b", None, "c"]))):
        lookup = ValueLookup.of(values)
        expected = pa.compute.index_in(wanted, value_set=values, skip_nulls=True).fill_null(-1).to_numpy() + 1
        assert lookup.rows(wanted).tolist() == expected.tolist()
        began = time.perf_counter()
        for _ in range(100):
            lookup.rows(wanted[:1])
        assert time.perf_counter() - began < 1.0, "a hundred look-ups without building anything: Arrow's search takes 16 s"
    clash = ValueLookup(pa.array(["a", "b"]), np.array([7, 7], np.uint64), np.array([0, 1], np.int32), 2)
    assert clash.longest_run == 2


def test_every_way_to_score_a_row_agrees(run: Path) -> None:
    """PyTorch, ONNX Runtime, and numbers of fewer bits, for values seen, unseen and missing."""
    ranker, onnx = load_ranker(run), load_ranker(run, engine="onnx")
    columns = ranker.encoder.encode(raw_rows(ranker, 200), ranker.schema.features)
    scores = ranker.predict_encoded(columns)
    np.testing.assert_allclose(onnx.predict_encoded(columns), scores, atol=1e-6)
    np.testing.assert_allclose(load_ranker(run, engine="onnx-int8").predict_encoded(columns), scores, atol=1e-2)
    whole = open_bundle(run).tensor_bytes()
    for precision, tolerance in (("fp16", 1e-3), ("int8", 1e-2)):
        small = load_ranker(run, tables=precision)
        np.testing.assert_allclose(small.predict_encoded(columns), scores, atol=tolerance)
        assert sum(one.nbytes for one in small.task.module.state_dict().values()) < whole
