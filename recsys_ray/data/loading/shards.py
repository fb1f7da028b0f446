"""Copies shards into a node's cache: each copy is checked, and made once more if it was damaged on the way.

What cannot be read is an error that names the file in the dataset directory.
"""

from __future__ import annotations

import os
from pathlib import Path

from recsys_ray.compat.streaming_compat import ExtensibleStream, Reader, StreamingWorld
from recsys_ray.data.blocks.reader import BlockReader

CHECKSUM = "xxh64"
COPY_ATTEMPTS = 5
"""For a file of a store that fails: 1, 2, 4 and 8 s apart."""
RESTORE = "Restore it from a copy, or prepare the dataset again with jobs/prepare_data.py --overwrite"
MAKE_ROOM = "there must be room in the cache (--data.cache moves it)"


class ShardError(RuntimeError):
    """A shard that cannot be read: which file, what is wrong, and what helps."""


class DamagedShard(ShardError):
    """A shard whose copy differs from what was written, or cannot be unpacked."""


class CheckedStream(ExtensibleStream):
    """The shards of `folder` (or its URL), copied into `cache` with their checksums verified."""

    def __init__(self, folder: str, cache: Path) -> None:
        super().__init__(remote=folder, local=str(cache), validate_hash=CHECKSUM, download_retry=COPY_ATTEMPTS)
        self._folder = folder

    def get_shards(self, world: StreamingWorld, allow_unsafe_types: bool) -> list[Reader]:
        """Returns the readers of all shards, ours in place of Mosaic Streaming's."""
        return [BlockReader.of(shard) for shard in super().get_shards(world, allow_unsafe_types)]

    def prepare_shard(self, shard: Reader) -> int:
        """Copies and unpacks a shard, unless that is done. Returns how many bytes the cache has grown by. Raises ShardError."""
        try:
            return self._prepare(shard)
        except DamagedShard:  # perhaps only the copy is
            return self._prepare(shard)

    def _prepare(self, shard: Reader) -> int:
        try:
            return super().prepare_shard(shard)
        except ShardError:
            raise
        except Exception as error:
            # Otherwise the next attempt would find this copy and use it.
            shard.evict()
            raw, packed = shard.file_pairs[0]
            source = self._source((packed or raw).basename)
            if isinstance(error, OSError):
                raise DamagedShard(f"{source} cannot be unpacked in {self.local}: {error}; {MAKE_ROOM}") from error
            raise DamagedShard(f"{source} is damaged, its checksum is not that in index.json ({error}). {RESTORE}") from error

    def copy_file(self, from_basename: str, to_basename: str | None = None) -> str:
        """Copies a file into the cache, and tries again while the store fails. Raises ShardError.

        A file that is missing from a folder with an index.json is an error at once: waiting is for a store that is away as a
        whole.
        """
        source = self._source(from_basename)
        if not Path(source).exists() and Path(self._source("index.json")).exists():
            raise ShardError(f"{source} is missing. {RESTORE}")
        try:
            return super().copy_file(from_basename, to_basename)
        except Exception as error:
            failed = f"{source} cannot be copied to {self.local}, {COPY_ATTEMPTS} attempts failed: {error}"
            raise ShardError(f"{failed}; its store must answer, and {MAKE_ROOM}") from error

    def _source(self, basename: str) -> str:
        return os.path.join(self._folder, basename)  # noqa: PTH118 (it may be a URL)
