"""Nearest vectors by dot product: the one module that imports faiss.

Exact search multiplies queries with vectors. Approximate search scans some of the inverted lists, which hold a 4-bit code for
each dimension that faiss compares in registers ("fast scan", André et al. 2017), and ranks the best candidates by their exact
scores. Unlike HNSW graphs such lists rank by dot product, are built in seconds, and gain from many queries in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recsys_ray.environment import environment
from recsys_ray.serving.index.recall import EXACT_BELOW, RECALL_AT, VECTORS_PER_LIST

try:
    # Read when faiss is loaded: threads that wait in busy loops make training 50 times as slow on cores that others use too.
    with environment({"OMP_WAIT_POLICY": "PASSIVE"}):
        import faiss
except ModuleNotFoundError as error:
    raise ValueError("--index faiss:... wants faiss-cpu: pip install 'recsys-ray[faiss]'") from error

VECTORS_FILE, LISTS_FILE = "vectors.faiss", "lists.faiss"
COST_OF_EXACT = 7
"""An exact score takes about as long as this many approximate ones."""


class NearestVectors(NamedTuple):
    """The nearest vectors of Q queries, best first."""

    scores: np.ndarray
    """float32 [Q, limit]"""
    positions: np.ndarray
    """int64 [Q, limit]; -1 where nothing more was found."""
    exact: bool


class SearchEffort(NamedTuple):
    """The settings of an approximate search, as they suit RECALL_AT neighbours of all vectors."""

    probes: int
    """Inverted lists that are scanned; 0 searches exactly."""
    candidates: int
    """Approximate neighbours, for each one wanted, whose exact scores are compared."""


@dataclass(frozen=True)
class AllowedVectors:
    """The vectors that a search may return."""

    positions: np.ndarray
    """int64, ascending"""
    vectors: int
    """The number of all vectors."""

    @cached_property
    def bitmap(self) -> np.ndarray:
        """Returns one bit for each of all vectors, uint8 [vectors / 8]."""
        allowed = np.zeros(self.vectors, bool)
        allowed[self.positions] = True
        return np.packbits(allowed, bitorder="little")


@dataclass(frozen=True)
class VectorFiles:
    """The opened vectors, mapped into memory."""

    vectors: Any
    """faiss.IndexFlatIP"""
    lists: Any = None
    """faiss.IndexIVFPQFastScan; None where every search is exact."""

    def nearest(self, queries: np.ndarray, limit: int, effort: SearchEffort, allowed: AllowedVectors | None) -> NearestVectors:
        """Searches all vectors, or only the allowed ones, by whichever way is cheaper."""
        queries = np.ascontiguousarray(queries, np.float32)
        if not effort.probes:
            return self._exact(queries, limit, allowed)
        matching, lists = len(allowed.positions) if allowed else self.vectors.ntotal, self.lists.nlist
        found = max(limit, RECALL_AT)  # codes rank few candidates worse than many
        # The neighbours of a larger part of all vectors are in more lists; a square root keeps the recall (index_recall.py).
        part = max(1.0, found / RECALL_AT * self.vectors.ntotal / max(matching, 1))
        probes = min(round(effort.probes * part**0.5), lists)
        cost = self.vectors.ntotal * probes / lists / COST_OF_EXACT + found * effort.candidates
        if cost >= matching:
            return self._exact(queries, limit, allowed)
        scores, positions = self._approximate(queries, found, SearchEffort(probes, effort.candidates), allowed)
        return NearestVectors(scores[:, :limit], positions[:, :limit], exact=False)

    def _exact(self, queries: np.ndarray, limit: int, allowed: AllowedVectors | None) -> NearestVectors:
        if allowed is None:
            scores, found = self.vectors.search(queries, limit)
            return NearestVectors(scores, found, exact=True)
        places = allowed.positions
        if not len(places):
            return NearestVectors(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), exact=True)
        dim = self.vectors.d
        matrix = faiss.rev_swig_ptr(self.vectors.get_xb(), self.vectors.ntotal * dim).reshape(-1, dim)
        scores, found = faiss.knn(queries, matrix[places], min(limit, len(places)), metric=faiss.METRIC_INNER_PRODUCT)
        return NearestVectors(scores, np.where(found < 0, -1, places[found]), exact=True)

    def _approximate(self, queries: np.ndarray, limit: int, effort: SearchEffort, allowed: AllowedVectors | None) -> Any:
        selector = faiss.IDSelectorBitmap(allowed.bitmap) if allowed else None
        scan = faiss.SearchParametersIVF(nprobe=effort.probes, sel=selector)
        parameters = faiss.IndexRefineSearchParameters(k_factor=effort.candidates, base_index_params=scan)
        return faiss.IndexRefine(self.lists, self.vectors).search(queries, limit, params=parameters)


def write_vectors(folder: Path, vectors: np.ndarray) -> None:
    """Writes VECTORS_FILE of float32 [items, dim], and from EXACT_BELOW items on LISTS_FILE, built on all cores."""
    items, dim = vectors.shape
    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors)
    faiss.write_index(flat, str(folder / VECTORS_FILE))
    if items >= EXACT_BELOW:
        lists = faiss.index_factory(dim, f"IVF{items // VECTORS_PER_LIST},PQ{dim}x4fsr", faiss.METRIC_INNER_PRODUCT)
        lists.train(vectors)
        lists.add(vectors)
        faiss.write_index(lists, str(folder / LISTS_FILE))


def open_vectors(folder: Path) -> VectorFiles:
    """Maps the files of `write_vectors` into memory."""
    vectors = faiss.read_index(str(folder / VECTORS_FILE), faiss.IO_FLAG_MMAP_IFC)
    if not (folder / LISTS_FILE).exists():
        return VectorFiles(vectors)
    lists = faiss.read_index(str(folder / LISTS_FILE), faiss.IO_FLAG_MMAP_IFC)
    return VectorFiles(vectors, lists)
