"""index.json, which says what is served at the root of an index, and how well it searches."""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from dataclasses import dataclass, field

import fsspec

from recsys_ray.bundle.manifest import BundleFile
from recsys_ray.files.json_text import json_text
from recsys_ray.serving.index.recall import RECALL_AT

INDEX_FILE = "index.json"
TABLE_NAME = re.compile(r"items_[\w.-]+_[0-9a-f]{8}")
"""The names that this package gives to tables."""


@dataclass(frozen=True)
class IndexManifest:
    """The content of index.json."""

    table: str
    """The table, or the folder, that is served."""
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
    written: tuple[str, ...] = ()
    """Earlier tables of this index, which may still exist."""
    backend: str = "lance"
    """The name in INDEXES of the backend that wrote it."""
    candidates: int = 0
    """faiss: approximate neighbours, for each item wanted, whose exact scores are compared."""
    files: dict[str, BundleFile] = field(default_factory=dict)
    """faiss: size and checksum of each file in the folder."""

    def __str__(self) -> str:
        how = f"{self.probes} lists a search" if self.probes else "searched exactly"
        recall = f"recall@{RECALL_AT} {self.recall:.4f} against exact search ({self.recall_queries} queries)"
        return f"{self.items:,} items of {self.dim} numbers, {how}; {recall}"

    def superseded(self) -> list[str]:
        """Returns the earlier tables of this index that nobody needs any more; never one that another program wrote."""
        return [table for table in self.written if table not in (self.table, self.previous) and TABLE_NAME.fullmatch(table)]


def table_name(model_version: str) -> str:
    """Returns a new name for a table, which no other build chooses."""
    return f"items_{model_version}_{uuid.uuid4().hex[:8]}"


def read_manifest(uri: str) -> IndexManifest | None:
    """Reads index.json; None where there is none. Raises ValueError for one that is damaged."""
    files, root = fsspec.core.url_to_fs(uri)
    if not files.exists(f"{root}/{INDEX_FILE}"):
        return None
    try:
        values = json.loads(files.cat_file(f"{root}/{INDEX_FILE}"))
        parts = {name: BundleFile(**part) for name, part in values.pop("files", {}).items()}
        manifest = IndexManifest(**{**values, "written": tuple(values.pop("written", ())), "files": parts})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{uri}/{INDEX_FILE} is damaged ({error}): build the index again with jobs/build_index.py") from error
    return manifest


def served_manifest(uri: str, backend: str, model_version: str) -> IndexManifest:
    """Reads the manifest of an index that one backend wrote for one model.

    Raises FileNotFoundError where there is no index, and ValueError where another model or backend built it.
    """
    manifest = read_manifest(uri)
    if manifest is None:
        raise FileNotFoundError(f"no index at {uri}: build one with jobs/build_index.py")
    if not TABLE_NAME.fullmatch(manifest.table):
        raise ValueError(f"{uri}/{INDEX_FILE} names {manifest.table!r}, which is no table of an index")
    if manifest.backend != backend:
        raise ValueError(f"the index at {uri} was built by the backend {manifest.backend}, and is opened by {backend}")
    if manifest.model_version != model_version:
        raise ValueError(
            f"the index at {uri} was built by model {manifest.model_version}, and this is model {model_version}: their vectors "
            "do not belong together. Build it again with jobs/build_index.py"
        )
    return manifest


def write_manifest(uri: str, manifest: IndexManifest) -> None:
    """Writes index.json under another name, then renames it."""
    files, root = fsspec.core.url_to_fs(uri)
    partial = f"{root}/.{INDEX_FILE}.{uuid.uuid4().hex[:8]}"
    files.pipe_file(partial, json_text(dataclasses.asdict(manifest)).encode())
    files.mv(partial, f"{root}/{INDEX_FILE}")
