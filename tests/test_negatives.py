"""Training rows for a ranker: a positive row gets items that the retriever found for its user, who has no row with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.schema import Schema
from recsys_ray.serving.bundle import load_retriever
from recsys_ray.serving.recommender.candidates import NONE, exact_candidates
from recsys_ray.serving.recommender.negatives import NegativeSampling, write_ranking_rows
from recsys_ray.serving.recommender.recommender import Recommender
from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue
from tests.support.two_stages import TwoStages

AMONG, NEGATIVES = 20, 3


def test_negatives_are_retrieved_and_not_chosen(two_stages: TwoStages, tmp_path: Path) -> None:
    raw, out = two_stages.raw, tmp_path / "ranking"
    sampling = NegativeSampling(negatives=NEGATIVES, among=AMONG)
    sources = [str(raw / f"{name}.parquet") for name in ("interactions", "users")]
    told = write_ranking_rows(str(two_stages.retriever), *sources, out, sampling=sampling)
    made, given = pq.read_table(out / "interactions.parquet"), pq.read_table(raw / "interactions.parquet")
    positive = np.flatnonzero(given["click"].to_numpy() == 1)
    assert len(made) == len(given) + NEGATIVES * len(positive)
    assert told == f"{out}: {len(positive):,} positive rows and {len(made) - len(positive):,} negative ones"
    kept, drawn = made.slice(0, len(given)), made.slice(len(given))
    assert (
        kept.select(given.column_names).to_pydict()
        == given.set_column(given.column_names.index("click"), "click", given["click"].cast("float"))
        .select(given.column_names)
        .to_pydict()
    )
    assert set(drawn["click"].to_pylist()) == {0.0} and "country" in made.column_names
    own = set(zip(given["user_id"].to_pylist(), given["item_id"].to_pylist(), strict=True))
    assert not own & set(zip(drawn["user_id"].to_pylist(), drawn["item_id"].to_pylist(), strict=True))
    assert drawn["user_id"].to_pylist() == np.repeat(given["user_id"].to_numpy()[positive], NEGATIVES).tolist()
    assert "click" in Schema.load(out / "schema.json").label.name

    retriever = load_retriever(two_stages.retriever)
    catalogue = ServedCatalogue.load(DatasetDirectory.open(retriever.dataset), retriever.item_key)
    recommender, vectors = Recommender(retriever, None, catalogue), torch.from_numpy(retriever.embed_candidates(catalogue.raw))
    exclude = [catalogue.positions([item for user, item in own if user == one]) for one in drawn["user_id"].to_pylist()[:60]]
    found = exact_candidates(recommender.queries(drawn.slice(0, 60)), vectors, AMONG, exclude)
    places = catalogue.positions(drawn["item_id"].combine_chunks())[:60]
    assert all(place in row for place, row in zip(places, found.positions, strict=True)), "each is among the best candidates"
    assert len(set(places.tolist())) > 10


@pytest.mark.unit
def test_candidates_are_the_best_that_may_be_recommended() -> None:
    random = np.random.default_rng(0)
    queries, items = random.normal(size=(7, 4)).astype(np.float32), random.normal(size=(30, 4)).astype(np.float32)
    exclude = [random.permutation(30)[:seen] for seen in (0, 3, 29, 30, 5, 1, 2)]
    eligible = random.random(30) < 0.8
    found = exact_candidates(queries, torch.from_numpy(items), 6, exclude, eligible=eligible)
    for row, (query, seen) in enumerate(zip(queries, exclude, strict=True)):
        allowed = [place for place in np.argsort(-(items @ query)) if eligible[place] and place not in seen][:6]
        assert found.positions[row].tolist() == allowed + [NONE] * (6 - len(allowed))
        np.testing.assert_allclose(found.scores[row][: len(allowed)], (items @ query)[allowed], rtol=1e-5)
