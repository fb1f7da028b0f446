"""Tests the vector index on a real LanceDB and in faiss, and the Databricks adapter on a stand-in for a workspace."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.serving.index import databricks, open_index
from recsys_ray.serving.index.lance import LanceIndex, with_probes, write_index
from recsys_ray.serving.index.lance_tables import lance_tables
from recsys_ray.serving.index.recall import EXACT_BELOW, RECALL_WANTED, VECTORS_PER_LIST, mean_recall, nearest_keys
from recsys_ray.serving.index.vector_index import INDEXES, VECTOR, IndexBackend, IndexSource, VectorIndex, index_backend

ITEMS, DIM = 300, 16
SCHEMA = pa.schema([("item_id", pa.int64()), ("kind", pa.string()), (VECTOR, pa.list_(pa.float32(), DIM))])


def vectors(rows: int, seed: int = 0, latent: int = 6) -> np.ndarray:
    """Returns vectors in fewer directions than they have dimensions, like a trained tower's."""
    random = np.random.default_rng(seed)
    spread = np.random.default_rng(9).standard_normal((latent, DIM), np.float32)
    return random.standard_normal((rows, latent), np.float32) @ spread + 0.1 * random.standard_normal((rows, DIM), np.float32)


def batches(values: np.ndarray) -> Iterator[pa.RecordBatch]:
    columns = {
        "item_id": np.arange(len(values)),
        "kind": [f"kind {number % 3}" for number in range(len(values))],
        VECTOR: pa.FixedSizeListArray.from_arrays(values.reshape(-1), DIM),
    }
    yield from pa.table(columns, SCHEMA).to_batches(max_chunksize=100)


def source(values: np.ndarray, version: str = "v1") -> IndexSource:
    return IndexSource(version, "item_id", SCHEMA, batches(values), lambda limit: vectors(min(limit, 50), seed=8))


def build(uri: Path, values: np.ndarray, version: str = "v1") -> LanceIndex:
    write_index(str(uri), source(values, version))
    index = open_index(str(uri), version)
    assert isinstance(index, LanceIndex)
    return index


@pytest.fixture(scope="module", params=["", "faiss:"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VectorIndex:
    uri = f"{request.param}{tmp_path_factory.mktemp('index')}"
    index_backend(uri).write_index(uri, source(vectors(ITEMS)))
    return open_index(uri, "v1")


def ids(found: pa.Table) -> list[int]:
    return found["item_id"].to_pylist()


@pytest.mark.unit
def test_best_items_come_first_with_their_columns_and_scores(index: VectorIndex) -> None:
    queries = vectors(5, seed=1)
    scores = queries @ vectors(ITEMS).T
    for row, found in zip(scores, index.search(queries, 7), strict=True):
        assert ids(found) == np.argsort(-row)[:7].tolist()
        assert found["score"].to_pylist() == pytest.approx(np.sort(row)[::-1][:7].tolist(), abs=1e-4)
        assert found.column_names == ["item_id", "kind", "score"]
    assert index.search(queries[:1], 3, columns=[])[0].column_names == ["item_id", "score"]


@pytest.mark.unit
def test_filters_and_exclusions(index: VectorIndex) -> None:
    query = vectors(2, seed=2)
    plain = [ids(found) for found in index.search(query, ITEMS)]
    found = index.search(query, 5, where="kind = 'kind 1'", exclude=[plain[0][:50], []])
    assert ids(found[0]) == [item for item in plain[0][50:] if item % 3 == 1][:5]
    assert ids(found[1]) == [item for item in plain[1] if item % 3 == 1][:5]


@pytest.mark.unit
def test_many_queries_at_once_find_what_each_finds_alone(index: VectorIndex) -> None:
    """More than a batch of them, with exclusion lists of all lengths."""
    random, queries = np.random.default_rng(3), vectors(300, seed=7)
    exclude = [random.choice(ITEMS, length) for length in random.integers(0, 60, len(queries))]
    together = index.search(queries, 8, where="item_id > 20", exclude=exclude)
    for number in range(0, len(queries), 25):
        (alone,) = index.search(queries[[number]], 8, where="item_id > 20", exclude=exclude[number : number + 1])
        assert ids(together[number]) == ids(alone) and not {*exclude[number].tolist(), *range(21)} & set(ids(alone))
        assert together[number]["score"].to_pylist() == pytest.approx(alone["score"].to_pylist(), abs=1e-4)
    assert index.search(queries[:0], 8) == []


@pytest.mark.unit
def test_no_items_after_a_filter_and_more_wanted_than_there_are(index: VectorIndex) -> None:
    query = vectors(1, seed=3)
    (nothing,) = index.search(query, 5, where="kind = 'none of them'")
    assert nothing.num_rows == 0 and nothing.column_names == ["item_id", "kind", "score"]
    assert sorted(ids(index.search(query, 10 * ITEMS)[0])) == list(range(ITEMS))
    assert index.search(query, 5, exclude=[range(ITEMS)])[0].num_rows == 0


@pytest.mark.unit
def test_a_search_that_cannot_be_is_refused(index: VectorIndex) -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3\); this index wants \[any, 16\]"):
        index.search(np.zeros((1, 3), np.float32), 5)
    with pytest.raises(ValueError, match=r"cannot search where 'colour = 1'.*colour"):
        index.search(vectors(1), 5, where="colour = 1")
    with pytest.raises(ValueError, match=r"1 exclusion lists for 2 queries"):
        index.search(vectors(2), 5, exclude=[[1]])
    with pytest.raises(ValueError, match=r"cannot search where {'kind': 'kind 1'}: LanceDB takes an SQL condition"):
        index.search(vectors(1), 5, where={"kind": "kind 1"})


@pytest.mark.unit
def test_index_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no index at .*build_index"):
        open_index(str(tmp_path), "v1")
    build(tmp_path, vectors(10))
    with pytest.raises(ValueError, match=r"built by model v1, and this is model v2.*Build it again"):
        open_index(str(tmp_path), "v2")


@pytest.mark.unit
def test_rebuilt_index_is_served_whole_or_not_at_all(tmp_path: Path) -> None:
    """The old index is served while the next one is written and after that fails; an open reader keeps the old one."""
    old, query = build(tmp_path, vectors(20)), vectors(1, seed=4)

    def failing() -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(batches(vectors(250, seed=5))):
            assert open_index(str(tmp_path), "v1").manifest == old.manifest
            if number == 2:
                raise OSError("the disk is full")
            yield batch

    with pytest.raises((OSError, ValueError, RuntimeError), match="disk is full"):
        write_index(str(tmp_path), dataclasses.replace(source(vectors(1), "v2"), batches=failing()))
    assert open_index(str(tmp_path), "v1").manifest == old.manifest
    assert lance_tables(str(tmp_path)).names() == [old.manifest.table]

    new = build(tmp_path, vectors(30, seed=6), "v2")
    assert len(ids(old.search(query, 100)[0])) == 20 and len(ids(new.search(query, 100)[0])) == 30
    newest = build(tmp_path, vectors(40, seed=7), "v2")
    assert set(lance_tables(str(tmp_path)).names()) == {new.manifest.table, newest.manifest.table}
    assert not [*tmp_path.glob(".index.json*"), *tmp_path.glob("build.lock*")]


def test_large_catalogue_is_searched_by_as_many_lists_as_recall_wants(tmp_path: Path) -> None:
    index = build(tmp_path, vectors(EXACT_BELOW))
    lists = EXACT_BELOW // VECTORS_PER_LIST
    assert 1 < index.manifest.probes < lists
    queries = vectors(50, seed=9)
    scores = queries @ vectors(EXACT_BELOW).T
    exact = [set(row.tolist()) for row in np.argpartition(-scores, 100, axis=1)[:, :100]]
    assert mean_recall(nearest_keys(with_probes(index, 0), queries), exact) == 1
    found = mean_recall(nearest_keys(index, queries), exact)
    assert index.manifest.recall >= RECALL_WANTED and found > 0.98
    assert mean_recall(nearest_keys(with_probes(index, 1), queries), exact) < 0.9
    (rare,) = index.search(queries[:1], 5, where="item_id % 10000 = 7")
    assert rare.num_rows == 5, "lists beyond those of a search are scanned where a condition leaves too few"


@pytest.mark.unit
@pytest.mark.parametrize("name", INDEXES)
def test_every_backend_provides_what_the_table_promises(name: str) -> None:
    backend = index_backend(f"{name}:anything")
    for function in ("write_index", "open_index"):
        promised = list(inspect.signature(getattr(IndexBackend, function)).parameters)
        assert list(inspect.signature(getattr(backend, function)).parameters) == promised[1:], "but self"
    opened = typing.get_type_hints(backend.open_index)["return"]
    promised_search = inspect.signature(VectorIndex.search)
    assert list(inspect.signature(opened.search).parameters.values()) == list(promised_search.parameters.values())


@pytest.mark.unit
@pytest.mark.parametrize("uri", ["runs/x/index", "/databricks/index", "databricks", "s3://bucket/items", "C:/index"])
def test_every_other_uri_is_a_place_of_lance(uri: str) -> None:
    assert index_backend(uri) is importlib.import_module(INDEXES["lance"])


def test_a_backend_is_imported_only_when_a_uri_asks_for_it() -> None:
    code = "import sys; from recsys_ray.serving.index import open_index; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"lancedb", "torch", *INDEXES.values()} & set(imported)


class Workspace:
    """A stand-in for AISearchClient with the calls that the adapter makes."""

    def __init__(self) -> None:
        self.indexes: dict[str, WorkspaceIndex] = {}

    def create_direct_access_index(
        self, endpoint_name: str, index_name: str, primary_key: str, schema: dict[str, str], **_: Any
    ) -> WorkspaceIndex:
        self.indexes[index_name] = WorkspaceIndex(primary_key, schema)
        return self.indexes[index_name]

    def index_exists(self, endpoint_name: str, index_name: str) -> bool:
        return index_name in self.indexes

    def get_index(self, endpoint_name: str, index_name: str) -> WorkspaceIndex:
        return self.indexes[index_name]

    def delete_index(self, endpoint_name: str, index_name: str) -> None:
        del self.indexes[index_name]


class WorkspaceIndex:
    """A stand-in for AISearchIndex: a list of rows."""

    def __init__(self, key: str, schema: dict[str, str]) -> None:
        self.key, self.schema, self.rows = key, schema, list[dict[str, Any]]()

    def describe(self) -> dict[str, Any]:
        return {"primary_key": self.key, "direct_access_index_spec": {"schema_json": json.dumps(self.schema)}}

    def wait_until_ready(self) -> None:
        """Returns at once."""

    def upsert(self, rows: list[dict[str, Any]]) -> None:
        self.rows += rows

    def similarity_search(self, columns: list[str], query_vector: list[float], filters: Any, num_results: int, **_: Any) -> Any:
        kept = [row for row in self.rows if not filters or all(row[name] == value for name, value in filters.items())]
        scored = sorted(((float(np.dot(row[VECTOR], query_vector)), row) for row in kept), key=lambda pair: -pair[0])
        return {"result": {"data_array": [[*(row[name] for name in columns), score] for score, row in scored[:num_results]]}}


FILMS = "databricks:endpoint/main.x.films"


@pytest.mark.unit
def test_databricks_adapter_searches_as_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the adapter's own logic is tested: there is no workspace to run against."""
    workspace, query = Workspace(), vectors(1, seed=2)
    monkeypatch.setattr(databricks, "workspace_client", lambda: workspace)
    unit = vectors(50) / np.linalg.norm(vectors(50), axis=1, keepdims=True)
    assert index_backend(FILMS).write_index(FILMS, source(unit)) == "50 items of 16 numbers, model v1"
    index = open_index(FILMS, "v1")
    order = np.argsort(-(query @ unit.T)[0]).tolist()
    (found,) = index.search(query, 5, exclude=[order[:2]])
    assert ids(found) == order[2:7] and found.column_names == ["item_id", "kind", "score"]
    assert index.search(query, 5, columns=[])[0].column_names == ["item_id", "score"]
    assert ids(index.search(query, 5, where={"kind": "kind 0"})[0]) == [item for item in order if item % 3 == 0][:5]
    assert index.search(query, 5, where={"kind": "none"})[0].column_names == ["item_id", "kind", "score"]
    with pytest.raises(ValueError, match=r"no index main\.x\.films_v2"):
        open_index(FILMS, "v2")
    with pytest.raises(ValueError, match="of length 1"):
        index_backend(FILMS).write_index(FILMS, source(2 * unit, "v3"))
    with pytest.raises(ValueError, match="wants databricks:endpoint/catalog"):
        open_index("databricks:films", "v1")
    assert list(workspace.indexes) == ["main.x.films_v1"]
