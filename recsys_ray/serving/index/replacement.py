"""Replacing a served index: one build at a time, the manifest last, and only tables of this index are dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from recsys_ray.locks import StorageLock, storage_lock
from recsys_ray.serving.index.manifest import TABLE_NAME, IndexManifest, read_manifest, table_name, write_manifest

BUILD_LOCK = "build.lock"


@dataclass(frozen=True)
class Replacement:
    """A build that has begun: it may write `table`, and nothing else, until `publish`."""

    uri: str
    table: str
    """The name of the table or folder to write."""
    served: IndexManifest | None
    """What is served meanwhile."""
    lock: StorageLock
    drop: Callable[[str], None]
    """Deletes a table, if it exists."""

    def publish(self, manifest: IndexManifest) -> IndexManifest:
        """Serves the table from now on, and drops the table before the one that was served until now.

        Raises LockLostError, and leaves the served index as it was, where another build took over meanwhile.
        """
        if self.served:
            earlier = tuple(filter(None, (self.served.table, self.served.previous)))
            manifest = dataclasses.replace(manifest, previous=self.served.table, written=earlier)
        self.lock.check()
        write_manifest(self.uri, manifest)
        for table in manifest.superseded():
            self.drop(table)
        return manifest


@contextmanager
def replacement(uri: str, model_version: str, drop: Callable[[str], None]) -> Iterator[Replacement]:
    """Begins a build of the index at `uri`; where the body fails, its table is dropped.

    What an interrupted build left behind is dropped too. Raises LockHeldError while another build runs.
    """
    table = table_name(model_version)
    with storage_lock(f"{uri}/{BUILD_LOCK}", holding=table) as lock:
        served = read_manifest(uri)
        left_behind = [lock.taken_over.holding] if lock.taken_over else []
        for name in [*left_behind, *(served.superseded() if served else [])]:
            if TABLE_NAME.fullmatch(name) and (served is None or name not in (served.table, served.previous)):
                drop(name)
        try:
            yield Replacement(uri, table, served, lock, drop)
        except BaseException:
            now = read_manifest(uri)
            if now is None or now.table != table:
                drop(table)
            raise
