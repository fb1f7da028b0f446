"""Keeps checkpoints in a folder or an object store, by fsspec: lists, commits, verifies and removes them."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import xxhash
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from recsys_ray.files.json_text import finite_or_null

log = logging.getLogger(__name__)
MARKER = "committed.json"
STORE_ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.5
CHECKSUM_CHUNK_BYTES = 1 << 23
Result = TypeVar("Result")


def with_retries(what: str, action: Callable[[], Result]) -> Result:
    """Returns what `action` does, and tries again when it fails: a store that is away for some seconds must not end a run.

    Waits 0.5, 1, 2 and 4 s between attempts. A FileNotFoundError is raised at once.

    Args:
        what: names the action in warnings.
    """
    for attempt in range(1, STORE_ATTEMPTS):
        try:
            return action()
        except FileNotFoundError:
            raise
        except Exception as error:  # every store has exceptions of its own
            wait = FIRST_WAIT_SECONDS * 2 ** (attempt - 1)
            log.warning("%s failed (%s: %s): trying again in %g s", what, type(error).__name__, error, wait)
            time.sleep(wait)
    return action()


class CheckpointStore:
    """The checkpoints of one run. One worker calls a method, unless it says otherwise."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = url_to_fs(self.url)
        self.local = isinstance(self._fs, LocalFileSystem)

    def folder(self, step: int) -> str:
        """Returns the URL of a checkpoint. Any worker may call it."""
        return f"{self.url}/{_name(step)}"

    def committed(self) -> list[int]:
        """Returns the steps of the checkpoints that have a marker, newest first."""
        return with_retries(f"listing {self.url}", self._committed)

    def _committed(self) -> list[int]:
        return sorted((step for step in self._steps() if self._fs.exists(self._path(step, MARKER))), reverse=True)

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, committed or not."""
        return with_retries(f"listing {self.url}", self._steps)

    def _steps(self) -> list[int]:
        self._fs.invalidate_cache()
        found = self._fs.ls(self._root, detail=False) if self._fs.isdir(self._root) else []
        return [int(match[1]) for name in found if (match := re.search(r"/step_(\d+)/?$", name))]

    def marker(self, step: int) -> dict[str, Any]:
        """Returns what `commit` was given. Raises ValueError if the marker is damaged."""
        text = with_retries(f"reading {self.folder(step)}/{MARKER}", lambda: self._fs.cat_file(self._path(step, MARKER)))
        try:
            marker = json.loads(text)
            body = marker["body"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{MARKER} cannot be read: {error}") from error
        if marker.get("checksum") != _checksum(body):
            raise ValueError(f"{MARKER} does not fit its checksum")
        return body

    def commit(self, step: int, body: dict[str, Any]) -> None:
        """Writes the marker, or replaces an earlier one, in one step. A number that is not finite becomes null."""
        body = finite_or_null(body)
        text = json.dumps({"checksum": _checksum(body), "body": body}, allow_nan=False).encode()
        with_retries(f"writing {self.folder(step)}/{MARKER}", lambda: self._replace(self._path(step, MARKER), text))

    def _replace(self, path: str, text: bytes) -> None:
        if not self.local:  # an object appears whole, or not at all
            self._fs.pipe_file(path, text)
            return
        partial = f"{path}.partial"
        with self._fs.open(partial, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)  # noqa: PTH105

    def copy(self, step: int, folder: str) -> None:
        """Copies a whole checkpoint into another folder on this machine."""
        root = self._path(step, "")
        for file in self._fs.find(root):  # one by one: a recursive `get` takes brackets in a folder's name for a glob
            target = Path(folder, _name(step), file.removeprefix(f"{root}/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(file, str(target))

    def remove(self, step: int) -> None:
        """Removes a checkpoint, its marker first: what is half removed must not look like a checkpoint."""

        def remove() -> None:
            for path in (self._path(step, MARKER), self._path(step, "")):
                if self._fs.exists(path):
                    self._remove_tree(path)

        with_retries(f"removing {self.folder(step)}", remove)

    def _remove_tree(self, path: str) -> None:
        if self.local or glob.escape(path) == path:
            self._fs.rm(path, recursive=True)
        else:  # which `rm` of an object store would take for a glob, and remove what else it matches
            for file in self._fs.find(path):
                self._fs.rm_file(file)

    def fault(self, step: int, file: str, size: int, checksum: str) -> str:
        """Returns what is wrong with a file of a checkpoint, or "" if nothing is. Any worker may call it."""
        try:
            found_size, found = with_retries(f"reading {self.folder(step)}/{file}", lambda: self._read(self._path(step, file)))
        except FileNotFoundError:
            return f"{file} is missing"
        if found_size != size:
            return f"{file} has {found_size:,} bytes and not {size:,}"
        return "" if found == checksum else f"{file} does not fit its checksum"

    def _read(self, path: str) -> tuple[int, str]:
        digest, size = xxhash.xxh3_128(), 0
        with self._fs.open(path, "rb") as stream:
            while chunk := stream.read(CHECKSUM_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def _path(self, step: int, file: str) -> str:
        return f"{self._root}/{_name(step)}/{file}".rstrip("/")


def _name(step: int) -> str:
    return f"step_{step}"


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
