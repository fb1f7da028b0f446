"""Every input row ends in exactly one of train, validation, test and rejected: on a million rows, with a writer killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.columns import SPLITS
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.schema import Categorical, Dense, Label, Timestamp
from tests.support.faulty_engine import one_writer_killed
from tests.support.preparing import config_for, read_split, write_input

ROWS = 1_000_000
SCHEMA = (Label("click"), Dense("price"), Categorical("user", num_embeddings=1000), Timestamp("number"))


@pytest.mark.long
def test_a_million_rows_and_a_killed_writer(ray_session, tmp_path):
    numbers = np.arange(ROWS)
    labels = np.where(numbers % 97 == 0, 2.0, numbers % 2)
    columns = {"click": labels, "price": numbers / ROWS, "user": numbers % 999, "number": numbers}
    source = write_input(tmp_path / "in", columns, SCHEMA, files=8)
    killed = tmp_path / "killed"
    dataset = prepare(config_for(source, block_rows=256), one_writer_killed("ray", killed))

    assert killed.exists(), "no writer was killed"
    found = []
    for split in SPLITS:
        rows, blocks = read_split(dataset.root, split)
        assert sorted(blocks, reverse=True) == [256] * (len(rows) // 256) + [len(rows) % 256], (
            "a block other than the last is short"
        )
        assert (rows["price"].to_numpy() == (rows["number"] / ROWS).to_numpy(np.float32)).all(), "rows were torn apart"
        assert dataset.summary["rows"][split] == len(rows)
        found.append(rows["number"].to_numpy())
    rejected = pq.read_table(dataset.root / "rejected")
    found.append(rejected["number"].to_numpy())
    assert np.array_equal(np.sort(np.concatenate(found)), numbers), "a row is lost or there twice"
    assert (found[-1] % 97 == 0).all() and set(rejected["reason"].to_pylist()) == {"click: not 0 or 1"}
    assert len(found[0]) / ROWS == pytest.approx(0.8 * 96 / 97, abs=0.003) and len(found[1]) == pytest.approx(
        len(found[2]), rel=0.02
    )
    parts = [folder.name for folder in (dataset.root / "train").glob("part-*")]
    assert len(parts) >= 5 and killed.read_text() not in parts, "what the killed attempt wrote is still there"
    train = found[0][: len(found[0]) // 2]
    assert abs(np.corrcoef(train, np.arange(len(train)))[0, 1]) < 0.01, "rows are not shuffled globally"


READER = """
import sys
from types import ModuleType
for part in ("vision", "text", "multimodal"):  # torchvision is not installed; see recsys_ray/compat/streaming_compat.py
    sys.modules[f"streaming.{part}"] = ModuleType(part)
import numpy as np, pandas as pd
from streaming import StreamingDataset

def to_frame(block):  # a multi-valued column is two arrays: its values end to end, and how many each row has
    sizes = {name.removesuffix(".lengths"): sizes for name, sizes in block.items() if name.endswith(".lengths")}
    lists = {name: np.split(block[name], np.cumsum(sizes[name])[:-1]) for name in sizes}
    return pd.DataFrame({name: values for name, values in (block | lists).items() if not name.endswith(".lengths")})

frame = pd.concat(to_frame(block) for block in StreamingDataset(remote=sys.argv[1], local=sys.argv[2], batch_size=1))

assert not [name for name in sys.modules if name.startswith("recsys_ray")]
frame["tags"] = frame["tags"].map(list)
frame.to_pickle(sys.argv[3])
"""


def test_plain_streaming_reads_it_without_this_package(ray_session, tmp_path):
    import pandas as pd

    dataset = prepare(config_for(write_input(tmp_path / "in")))
    before = sorted(Path(dataset.root).rglob("*"))
    places = [str(dataset.root / "train"), str(tmp_path / "cache"), str(tmp_path / "frame.pickle")]
    subprocess.run([sys.executable, "-c", READER, *places], check=True, cwd=tmp_path)
    frame = pd.read_pickle(places[2])
    assert sorted(Path(dataset.root).rglob("*")) == before, "reading through a cache must leave the dataset as it was"
    raw = pq.read_table(tmp_path / "in" / "0.parquet").to_pandas().set_index("at").loc[frame["at"]]
    assert len(frame) == dataset.summary["rows"]["train"]
    assert (frame["user"].to_numpy() == raw["user"].to_numpy() + 1).all() and (frame["click"].to_numpy() == raw["click"]).all()
    assert [len(tags) for tags in frame["tags"]] == [max(1, len(tags)) for tags in raw["tags"]]
    pairs = zip(frame["tags"], raw["tags"], strict=True)
    rows_of = {tag: row for rows, tags in pairs for row, tag in zip(rows, tags, strict=False)}
    assert all([rows_of[tag] for tag in tags] == rows for rows, tags in zip(frame["tags"], raw["tags"], strict=True) if len(tags))
    assert pa.array(frame["price"]).type == pa.float32() and frame["price"].mean() == pytest.approx(0, abs=1e-5)
