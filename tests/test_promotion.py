"""Promotion: the metrics and the bootstrap it decides by, rows encoded for a model of another dataset, and aliases that move."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_ray.data.dataset.directory import SUMMARY, DatasetDirectory
from recsys_ray.data.dataset.tables import write_vocabularies
from recsys_ray.data.vocabulary import Vocabularies, build_lookups
from recsys_ray.models.evaluation.binary_metrics import binary_metrics
from recsys_ray.schema import Categorical, Dense, Schema
from recsys_ray.serving.encoder import Encoder
from recsys_ray.serving.promotion.bootstrap import paired_bootstrap
from recsys_ray.serving.promotion.measurement import per_unit_mean
from recsys_ray.serving.promotion.ranking import LabelledRows, measure_scores
from recsys_ray.serving.promotion.row_mapping import RowMapping

ROWS = 4000


def clicks(seed: int = 0, users: int = 0) -> LabelledRows:
    """Rows with random labels and weights; of `users` users, or each of its own."""
    random = np.random.default_rng(seed)
    units = np.unique(random.integers(users, size=ROWS), return_inverse=True)[1] if users else np.arange(ROWS)
    return LabelledRows((random.random(ROWS) < 0.3).astype(np.float64), random.random(ROWS) + 0.5, units, "users")


def guesses(rows: LabelledRows, noise: float, seed: int) -> np.ndarray:
    """Probabilities that know the labels, but for noise; in steps, so that many are equal."""
    random = np.random.default_rng(seed)
    logits = np.round(2 * (rows.labels - 0.3) + noise * random.normal(size=len(rows.labels)), 1)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


@pytest.mark.unit
def test_metrics_of_a_sample_are_those_of_the_evaluation_with_the_counts_as_weights() -> None:
    rows = clicks(users=500)
    scores = guesses(rows, 2.0, 1)
    measured = measure_scores(rows, scores)
    counts = np.random.default_rng(2).integers(0, 4, measured.units).astype(np.float64)
    for drawn in (np.ones(measured.units), counts):
        expected = binary_metrics(scores, rows.labels, rows.weights * drawn[rows.unit_of_row])
        found = measured.of_counts(drawn)
        assert found == {name: pytest.approx(expected[name], abs=1e-9) for name in ("auc", "ne", "logloss")}


@pytest.mark.unit
def test_a_better_model_is_told_from_an_equal_one_and_chance_is_not_taken_for_skill() -> None:
    rows = clicks()
    good, bad = (measure_scores(rows, guesses(rows, noise, seed)) for noise, seed in ((1.0, 1), (3.0, 2)))
    found = {one.metric: one for one in paired_bootstrap(good, bad, draws=200, confidence=0.95)}
    assert all(one.candidate_is_better and one.low < one.difference < one.high for one in found.values())
    assert not any(one.candidate_is_better for one in paired_bootstrap(bad, good, draws=200, confidence=0.95))
    same = paired_bootstrap(good, good, draws=200, confidence=0.95)
    assert not any(one.candidate_is_better for one in same) and {one.difference for one in same} == {0.0}
    better = 0
    for seed in range(20):  # two models that are equally good, but differ in every row
        rows = clicks(seed)
        left, right = (measure_scores(rows, guesses(rows, 2.0, 100 * seed + model)) for model in (1, 2))
        better += paired_bootstrap(left, right, draws=100, confidence=0.95)[0].candidate_is_better
    assert better <= 3


@pytest.mark.unit
def test_rows_of_one_user_are_drawn_together() -> None:
    """A difference that a few users decide is less sure than the number of rows suggests."""
    units = np.repeat(np.arange(20), 200)
    by_user = np.random.default_rng(0).normal(0.1, 1.0, 20)[units]
    together, alone = per_unit_mean({"value": by_user[::200]}, "users", ROWS), per_unit_mean({"value": by_user}, "rows", ROWS)
    zero = [per_unit_mean({"value": np.zeros(one.units)}, one.unit, ROWS) for one in (together, alone)]
    pairs = zip((together, alone), zero, strict=True)
    (wide,), (narrow,) = (paired_bootstrap(one, other, draws=300, confidence=0.95) for one, other in pairs)
    assert wide.difference == pytest.approx(narrow.difference) and wide.high - wide.low > 5 * (narrow.high - narrow.low)


def directory(folder: Path, columns: tuple[Categorical | Dense, ...], vocabularies: Vocabularies) -> DatasetDirectory:
    """A dataset directory without rows."""
    folder.mkdir()
    (folder / "schema.json").write_text(Schema(columns).to_json())
    write_vocabularies(folder, vocabularies)
    (folder / SUMMARY).write_text(json.dumps({}))
    return DatasetDirectory.open(folder)


@pytest.mark.unit
def test_rows_of_another_dataset_are_encoded_as_the_model_would_encode_their_raw_values(tmp_path: Path) -> None:
    """Vocabularies in another order, of another size and of another encoding; numbers of another scale; lists."""
    old = (
        Categorical("user", "user", encoding="vocabulary", num_embeddings=6),
        Categorical("city", dtype="string", encoding="vocabulary", num_embeddings=4),
        Categorical("tags", "item", "string", "vocabulary", 4, multi=True, table="city"),
        Categorical("hour", encoding="identity", num_embeddings=25),
        Categorical("shop", dtype="string", num_embeddings=50),
        Dense("price", scale="standard", mean=50, std=10),
        Dense("age", scale="log1p", fill=-1.0),
        Dense("width"),
    )
    new = (
        dataclasses.replace(old[0], encoding="hash", num_embeddings=40),
        dataclasses.replace(old[1], num_embeddings=5),
        dataclasses.replace(old[2], num_embeddings=5),
        dataclasses.replace(old[3], num_embeddings=13),
        old[4],
        dataclasses.replace(old[5], mean=40, std=20),
        dataclasses.replace(old[6], scale="standard", mean=3, std=2, fill=0.5),
        old[7],
    )
    values = {"user": pa.array([11, 7, 5, 3, 2]), "city": pa.array(["Rome", "Oslo", "Bern"])}
    model = Encoder(Schema(new), build_lookups({"city": pa.array(["Bern", "Kyiv", "Oslo", "Rome"])}))
    raw = pa.table(
        {
            "user": [3, None, 11, 2, 5], "city": ["Oslo", "Rome", None, "Bern", "Oslo"], "hour": [0, 5, 11, None, 7],
            "tags": [["Bern", "Rome"], None, ["Oslo"], ["Rome", "Rome", "Bern"], []],
            "shop": ["a", None, "b", "c", "d"], "price": [60.0, 45.5, None, 50.25, 20.0],
            "age": [10.0, 20.5, None, 0.25, -4.0], "width": [1.0, None, 2.5, 3.0, 0.5],
        }
    )  # fmt: skip
    dataset = directory(tmp_path / "old", old, values)
    stored = Encoder(dataset.schema, build_lookups(values)).encode(raw, dataset.schema.features)
    mapping = RowMapping.of(dataset, model, model.schema.features)
    assert sorted(mapping.translated) == ["age", "city", "hour", "price", "tags", "user"]
    found, expected = mapping(stored), model.encode(raw, model.schema.features)
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        torch.testing.assert_close(found[name], column, atol=1e-5, rtol=1e-5)
        assert found[name].dtype == column.dtype
    beyond = Encoder(dataset.schema, build_lookups(values)).encode(raw.set_column(2, "hour", pa.array([13, 23, 11, 0, 12])), old)
    assert mapping(beyond)["hour"].tolist() == [0, 0, 12, 1, 0], "ids beyond the model's table are unknown to it"
    other = dataclasses.replace(old[4], num_embeddings=60)
    with pytest.raises(ValueError, match="column 'shop' is hashed in the dataset"):
        RowMapping.of(dataset, Encoder(Schema((other,)), {}), (other,))
    with pytest.raises(ValueError, match="column 'colour', which the model reads, is not in the dataset"):
        RowMapping.of(dataset, model, (Dense("colour"),))
