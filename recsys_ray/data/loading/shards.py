"""The copies of shards in a node's cache: checked when they are made, and made once more when they were damaged on their way.

What cannot be read is an error that names the file in the dataset directory.
"""

from __future__ import annotations

import os
from pathlib import Path

from recsys_ray.compat.streaming_compat import Reader, Stream, World
from recsys_ray.data.blocks.reader import BlockReader

CHECKSUM = "xxh64"
ATTEMPTS = 5
"""To copy a file from a store that fails: 1, 2, 4 and 8 s apart."""
RESTORE = "Restore it from a copy, or prepare the dataset again with jobs/prepare_data.py --overwrite"
MAKE_ROOM = "there must be room in the cache (--data.cache moves it)"


class ShardError(RuntimeError):
    """A shard cannot be read: which file, what is wrong, and what helps."""


class DamagedShard(ShardError):
    """Its copy is not what was written, or cannot be unpacked."""


class CheckedStream(Stream):
    """Mosaic Streaming's copies of the shards of `folder` (or its URL) in `cache`."""

    def __init__(self, folder: str, cache: Path) -> None:
        super().__init__(remote=folder, local=str(cache), validate_hash=CHECKSUM, download_retry=ATTEMPTS)
        self._folder = folder

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        return [BlockReader.of(shard) for shard in super().get_shards(world, allow_unsafe_types)]

    def prepare_shard(self, shard: Reader) -> int:
        """Copies and unpacks it, where that is not done yet. Raises ShardError."""
        try:
            return self._prepare(shard)
        except DamagedShard:  # perhaps only its copy is
            return self._prepare(shard)

    def _prepare(self, shard: Reader) -> int:
        try:
            return super().prepare_shard(shard)
        except ShardError:
            raise
        except Exception as error:
            # Else the next attempt would find the copy, and make do with it.
            shard.evict()
            raw, packed = shard.file_pairs[0]
            source = self._source((packed or raw).basename)
            if isinstance(error, OSError):
                raise DamagedShard(f"{source} cannot be unpacked in {self.local}: {error}; {MAKE_ROOM}") from error
            raise DamagedShard(f"{source} is damaged, its checksum is not that in index.json ({error}). {RESTORE}") from error

    def _download_file(self, from_basename: str, to_basename: str | None = None) -> str:
        source = self._source(from_basename)
        # Trying again is for a store that is away as a whole.
        if not Path(source).exists() and Path(self._source("index.json")).exists():
            raise ShardError(f"{source} is missing. {RESTORE}")
        try:
            return super()._download_file(from_basename, to_basename)
        except Exception as error:
            failed = f"{source} cannot be copied to {self.local}, {ATTEMPTS} attempts failed: {error}"
            raise ShardError(f"{failed}; its store must answer, and {MAKE_ROOM}") from error

    def _source(self, basename: str) -> str:
        return os.path.join(self._folder, basename)  # noqa: PTH118 (it may be a URL)
