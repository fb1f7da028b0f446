"""Building the vector index in faiss, and replacing the one that is served."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys_ray.bundle.manifest import BundleFile, file_entry
from recsys_ray.serving.index.faiss.catalogue import write_raw_columns
from recsys_ray.serving.index.faiss.index import BACKEND, FaissIndex, index_folder, opened
from recsys_ray.serving.index.faiss.vectors import SearchEffort, write_vectors
from recsys_ray.serving.index.manifest import IndexManifest
from recsys_ray.serving.index.recall import EXACT_BELOW, PROBED_SHARES, RECALL_QUERIES, VECTORS_PER_LIST, SearchCalibration
from recsys_ray.serving.index.replacement import replacement
from recsys_ray.serving.index.vector_index import VECTOR, IndexSource

CANDIDATES = (2, 3, 4, 6, 10)
"""Candidates for each item wanted that calibration tries."""
COST_OF_ALL_LISTS = 160
"""Scanning all lists takes about as long as comparing this many candidates for each item wanted."""


def write_index(uri: str, source: IndexSource) -> str:
    """Replaces the index at `uri`. Whatever fails, the served version stays. All vectors are held in memory meanwhile.

    Raises ValueError where the URI is no folder, and LockHeldError while another build of this index runs.
    """
    root = index_folder(uri)
    with replacement(str(root), source.model_version, lambda name: shutil.rmtree(root / name, ignore_errors=True)) as build:
        started = time.perf_counter()
        rows = pa.Table.from_batches(source.batches, source.schema)
        print(f"index: {len(rows):,} items embedded in {time.perf_counter() - started:.1f} s", flush=True)
        folder = root / build.table
        folder.mkdir()
        dim = source.schema.field(VECTOR).type.list_size
        write_raw_columns(folder, rows.drop_columns([VECTOR]))
        write_vectors(folder, vector_matrix(rows, dim))
        manifest = IndexManifest(build.table, source.model_version, source.key, len(rows), dim, probes=0)
        manifest = dataclasses.replace(manifest, backend=BACKEND, files=stored_files(folder))
        print(f"index: written in {time.perf_counter() - started:.1f} s", flush=True)
        return str(build.publish(calibrated_effort(opened(folder, manifest), source.sample_queries(RECALL_QUERIES))))


def vector_matrix(rows: pa.Table, dim: int) -> np.ndarray:
    """Returns the vectors, float32 [items, dim]."""
    parts = [chunk.flatten().to_numpy().reshape(-1, dim) for chunk in rows[VECTOR].chunks]
    return np.concatenate([np.empty((0, dim), np.float32), *parts])


def stored_files(folder: Path) -> dict[str, BundleFile]:
    """Returns size and checksum of every file in a folder, by its path there, once they are on the disk."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
    return {path.relative_to(folder).as_posix(): file_entry(path) for path in paths}


def calibrated_effort(index: FaissIndex, queries: np.ndarray) -> IndexManifest:
    """Returns the manifest with the least effort by which searches find RECALL_WANTED of the exact results. 0 probes: exact."""
    lists = index.manifest.items // VECTORS_PER_LIST
    shares = PROBED_SHARES if index.manifest.items >= EXACT_BELOW else ()
    choices = sorted(product(shares, CANDIDATES), key=lambda choice: COST_OF_ALL_LISTS * choice[0] + choice[1])
    settings = [SearchEffort(max(1, round(share * lists)), candidates) for share, candidates in choices]
    calibration = SearchCalibration(with_effort(index, SearchEffort(0, 0)), queries)
    effort, recall = calibration.first(settings, partial(with_effort, index)) or (SearchEffort(0, 0), 1.0)
    return dataclasses.replace(
        index.manifest,
        probes=effort.probes,
        candidates=effort.candidates,
        recall=recall,
        recall_queries=len(queries),
    )


def with_effort(index: FaissIndex, effort: SearchEffort) -> FaissIndex:
    """Returns the same index, searched with another effort."""
    manifest = dataclasses.replace(index.manifest, probes=effort.probes, candidates=effort.candidates)
    return dataclasses.replace(index, manifest=manifest)
