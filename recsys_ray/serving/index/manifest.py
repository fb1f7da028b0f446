"""index.json, which says what is served at the root of an index, and how well it searches."""

from __future__ import annotations

import dataclasses
import json
import uuid
from dataclasses import dataclass

import fsspec

from recsys_ray.serving.index.recall import RECALL_AT

INDEX_FILE = "index.json"


@dataclass(frozen=True)
class IndexManifest:
    """The content of index.json."""

    table: str
    model_version: str
    key: str
    """The column that tells items apart."""
    items: int
    dim: int
    probes: int
    """Inverted lists that a search scans; 0 means all vectors."""
    recall: float = 1.0
    """Recall at RECALL_AT of `recall_queries` queries against exact search."""
    recall_queries: int = 0
    previous: str = ""
    """The table that was served before."""

    def __str__(self) -> str:
        how = f"{self.probes} lists a search" if self.probes else "searched exactly"
        recall = f"recall@{RECALL_AT} {self.recall:.4f} against exact search ({self.recall_queries} queries)"
        return f"{self.items:,} items of {self.dim} numbers, {how}; {recall}"


def read_manifest(uri: str) -> IndexManifest | None:
    """Reads index.json; None where there is none."""
    files, root = fsspec.core.url_to_fs(uri)
    if not files.exists(f"{root}/{INDEX_FILE}"):
        return None
    return IndexManifest(**json.loads(files.cat_file(f"{root}/{INDEX_FILE}")))


def write_manifest(uri: str, manifest: IndexManifest) -> None:
    """Writes index.json under another name, then renames it."""
    files, root = fsspec.core.url_to_fs(uri)
    partial = f"{root}/.{INDEX_FILE}.{uuid.uuid4().hex[:8]}"
    files.pipe_file(partial, (json.dumps(dataclasses.asdict(manifest), indent=2) + "\n").encode())
    files.mv(partial, f"{root}/{INDEX_FILE}")
