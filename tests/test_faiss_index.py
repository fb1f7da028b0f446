"""Tests what only the faiss index does: inverted lists of codes, files that are mapped and verified, folders replaced."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.serving.index import open_index
from recsys_ray.serving.index.faiss.index import FaissIndex
from recsys_ray.serving.index.faiss.vectors import SearchEffort
from recsys_ray.serving.index.faiss.writer import with_effort
from recsys_ray.serving.index.recall import EXACT_BELOW, RECALL_WANTED, mean_recall, nearest_keys
from recsys_ray.serving.index.vector_index import IndexSource, index_backend
from tests.test_index import DIM, ITEMS, ids, source, vectors


def build(folder: Path, values: np.ndarray, version: str = "v1") -> FaissIndex:
    uri = f"faiss:{folder}"
    index_backend(uri).write_index(uri, source(values, version))
    index = open_index(uri, version)
    assert isinstance(index, FaissIndex)
    return index


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> FaissIndex:
    return build(tmp_path_factory.mktemp("large"), vectors(EXACT_BELOW))


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    """The scores of 50 queries and all items of `large`."""
    return vectors(50, seed=9) @ vectors(EXACT_BELOW).T


def best(scores: np.ndarray, k: int, kept: np.ndarray | None = None) -> list[set[int]]:
    """Returns the k items of each query that score highest, among those kept."""
    masked = scores if kept is None else np.where(kept, scores, -np.inf)
    return [set(row.tolist()) for row in np.argpartition(-masked, k, axis=1)[:, :k]]


def test_large_catalogue_is_searched_by_lists_with_the_recall_that_is_wanted(large: FaissIndex, scores: np.ndarray) -> None:
    lists, queries = large.vectors.lists.nlist, vectors(50, seed=9)
    assert 1 <= large.manifest.probes < lists and large.manifest.recall >= RECALL_WANTED
    assert mean_recall(nearest_keys(large, queries), best(scores, 100)) > 0.98
    (found,) = large.search(queries[:1], 10)
    assert found["score"].to_pylist() == pytest.approx(np.sort(scores[0])[::-1][:10].tolist(), abs=1e-3)
    deep = [set(ids(found)) for found in large.search(queries, 1000, columns=[])]
    assert mean_recall(deep, best(scores, 1000)) >= RECALL_WANTED, "more lists are scanned where more items are wanted"


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("kind = 'kind 1'", lambda item: item % 3 == 1),
        ("item_id % 2 = 0 OR kind = 'kind 1'", lambda item: (item % 2 == 0) | (item % 3 == 1)),
        ("item_id BETWEEN 1000 AND 3999", lambda item: (item >= 1000) & (item < 4000)),
        ("item_id % 400 = 7", lambda item: item % 400 == 7),
    ],
)
def test_filters_of_any_width_keep_the_recall(large: FaissIndex, scores: np.ndarray, condition: str, kept: object) -> None:
    found = large.search(vectors(50, seed=9), 100, where=condition, columns=[])
    allowed = kept(np.arange(EXACT_BELOW))  # type: ignore[operator]
    assert {len(table) for table in found} == {100} and all(allowed[ids(table)].all() for table in found)
    assert mean_recall([set(ids(table)) for table in found], best(scores, 100, allowed)) >= RECALL_WANTED


def test_a_search_never_falls_short_while_items_match(large: FaissIndex, scores: np.ndarray) -> None:
    """The lists near the query hold none of the items that match: an exact search follows."""
    queries, order = vectors(50, seed=9)[:1], np.argsort(-scores[0])
    far = order[30_000:]
    narrow = with_effort(large, SearchEffort(probes=1, candidates=1))
    (found,) = narrow.search(queries, 5, where=f"item_id IN ({', '.join(map(str, far))})", columns=[])
    assert ids(found) == far[:5].tolist()
    (found,) = large.search(queries, 5, exclude=[order[:2000]], columns=[])
    assert ids(found) == order[2000:2005].tolist()
    (found,) = large.search(queries, 50, where="item_id IN (5, 17, 40000)", columns=[])
    assert set(ids(found)) == {5, 17, 40000}


@pytest.mark.unit
def test_both_backends_understand_the_same_conditions(tmp_path: Path) -> None:
    values = vectors(ITEMS)
    index_backend("").write_index(str(tmp_path / "lance"), source(values))
    lance, faiss = open_index(str(tmp_path / "lance"), "v1"), build(tmp_path / "faiss", values)
    conditions = ["kind IN ('kind 0', 'kind 2') AND item_id < 100", "kind LIKE '%1' OR item_id = 3", "NOT (kind = 'kind 0')"]
    for condition in [*conditions, "item_id IS NULL", "CAST(item_id AS STRING) = '12'", "lower(kind) = 'kind 2'"]:
        expected = lance.search(vectors(4, seed=5), 20, where=condition)
        for ours, theirs in zip(faiss.search(vectors(4, seed=5), 20, where=condition), expected, strict=True):
            assert ours.drop_columns(["score"]).to_pylist() == theirs.drop_columns(["score"]).to_pylist(), condition
            assert ours.schema.equals(theirs.schema)
    for index in (lance, faiss):
        with pytest.raises(ValueError, match="cannot search where 'kind ='"):
            index.search(vectors(1), 5, where="kind =")


@pytest.mark.unit
def test_keys_are_text_and_columns_are_lists_or_missing(tmp_path: Path) -> None:
    values, uri = vectors(50), f"faiss:{tmp_path}"
    columns = {
        "name": [f"item {number}" for number in range(50)],
        "tags": [[f"tag {number % 4}"] if number % 5 else None for number in range(50)],
        "vector": pa.FixedSizeListArray.from_arrays(values.reshape(-1), DIM),
    }
    table = pa.table(columns)
    items = IndexSource("v1", "name", table.schema, table.to_batches(7), lambda limit: values[:limit])
    index_backend(uri).write_index(uri, items)
    index = open_index(uri, "v1")
    order = [f"item {number}" for number in np.argsort(-(values[3] @ values.T))]
    (found,) = index.search(values[3:4], 4, exclude=[order[:2]])
    expected = table.take([int(name[5:]) for name in order[2:6]]).drop_columns(["vector"])
    assert found.drop_columns(["score"]).to_pylist() == expected.to_pylist()
    (found,) = index.search(values[3:4], 50, where="array_has(tags, 'tag 2')", columns=[])
    assert found["name"].to_pylist() == [name for name in order if int(name[5:]) % 4 == 2 and int(name[5:]) % 5]
    with pytest.raises(ValueError, match="no columns colour in the index; it has name, tags"):
        index.search(values[:1], 5, columns=["colour"])


@pytest.mark.unit
def test_readers_are_answered_while_the_index_is_replaced(tmp_path: Path) -> None:
    """A reader sees one version whole; folders that this index did not write stay."""
    old, query, ended, answers = build(tmp_path, vectors(200)), vectors(1, seed=4), threading.Event(), []
    foreign = tmp_path / "items_v1_0123abcd"
    foreign.mkdir()

    def read() -> None:
        while not ended.is_set():
            served = open_index(f"faiss:{tmp_path}", "v1").search(query, 1000)[0]
            answers.append((ids(old.search(query, 1000)[0]), len(served)))

    reader = threading.Thread(target=read)
    reader.start()
    new = build(tmp_path, vectors(300, seed=6))
    ended.set()
    reader.join()
    expected = np.argsort(-(query @ vectors(200).T)[0]).tolist()
    assert answers and all(own == expected and served in (200, 300) for own, served in answers)
    newest = build(tmp_path, vectors(400, seed=7))
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {foreign.name, new.manifest.table, newest.manifest.table}
    assert ids(old.search(query, 1000)[0]) == expected, "its files stay mapped"


@pytest.mark.unit
def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    index = build(tmp_path, vectors(100))
    files = [tmp_path / index.manifest.table / name for name in index.manifest.files]
    assert {file.name for file in files} >= {"vectors.faiss", "catalogue.arrow"} and len(files) > 3
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match=rf"{file.name} is damaged or missing: build the index again"):
            open_index(f"faiss:{tmp_path}", "v1")
        file.unlink()
        with pytest.raises(ValueError, match=rf"{file.name} is damaged or missing"):
            open_index(f"faiss:{tmp_path}", "v1")
        file.write_bytes(whole)
    open_index(f"faiss:{tmp_path}", "v1")
    good = (tmp_path / "index.json").read_text()
    (tmp_path / "index.json").write_text(good.replace(index.manifest.table, "../elsewhere"))
    with pytest.raises(ValueError, match=r"index\.json names '\.\./elsewhere', which is no table"):
        open_index(f"faiss:{tmp_path}", "v1")
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index\.json is damaged .*build the index again"):
        open_index(f"faiss:{tmp_path}", "v1")


@pytest.mark.unit
def test_places_that_it_cannot_serve_are_refused(tmp_path: Path) -> None:
    uri = "faiss:s3://bucket/items"
    with pytest.raises(ValueError, match=r"faiss maps its files.*For an object store leave out 'faiss:': LanceDB"):
        index_backend(uri).write_index(uri, source(vectors(3)))
    with pytest.raises(FileNotFoundError, match="no index at"):
        open_index(f"faiss:{tmp_path}", "v1")
    build(tmp_path, vectors(3))
    with pytest.raises(ValueError, match="built by model v1, and this is model v2"):
        open_index(f"faiss:{tmp_path}", "v2")
    with pytest.raises(ValueError, match="was built by the backend faiss, and is opened by lance"):
        open_index(str(tmp_path), "v1")


def test_a_machine_without_faiss_is_told_what_to_install() -> None:
    code = "import sys; sys.modules['faiss'] = None; from recsys_ray.serving.index import open_index; open_index('faiss:x', 'v1')"
    said = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True).stderr
    assert "ValueError: --index faiss:... wants faiss-cpu: pip install 'recsys-ray[faiss]'" in said
