"""A lock on a place in storage, for processes on any machines: local disks, shared file systems and object stores, by fsspec.

The lock `url` is the object `url.N` with the highest N. It says who holds it, and its holder renews it while it works. Taking it
over from a holder that has died means creating the next number exclusively, which only one of several can do. A holder that was
only paused finds that out in `check`, which belongs right before whatever it makes visible to others.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
from fsspec.core import url_to_fs

HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 120.0
"""A lock that was not renewed for so long is stale. Clocks of different machines may differ by less."""
READ_ATTEMPTS, READ_PAUSE_SECONDS = 10, 0.1
"""Attempts to read a lock, and the pause between them: on a disk a lock is empty for a moment while it is written."""


class LockHeldError(OSError):
    """A lock that another process holds."""


class LockLostError(OSError):
    """A lock that another process took over from this one, because it was not renewed in time."""


@dataclass(frozen=True)
class LockOwner:
    """The content of a lock."""

    token: str
    host: str
    process: int
    holding: str
    """The name of what the owner works on, for whoever has to clean up after it."""
    renewed_at: float
    """Seconds since 1970, by the owner's clock."""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, last sign of life {max(0.0, time.time() - self.renewed_at):.0f} s ago"

    def is_stale(self) -> bool:
        """Returns whether the owner has not renewed the lock in time, or was a process of this host that has ended."""
        if self.host == socket.gethostname() and not psutil.pid_exists(self.process):
            return True
        return time.time() - self.renewed_at > EXPIRY_SECONDS


@dataclass
class StorageLock:
    """A lock that this process holds, as `storage_lock` returns it."""

    url: str
    owner: LockOwner
    taken_over: LockOwner | None = None
    """The owner that this lock was taken over from."""
    number: int = 0

    def check(self) -> None:
        """Raises LockLostError unless the lock still belongs to this process."""
        number = self._newest()
        found = self._read(number) if number == self.number else None
        if found is None or found.token != self.owner.token:
            raise LockLostError(f"{self.url} was taken over from this process, which did not renew it in {EXPIRY_SECONDS:.0f} s")

    def acquire(self) -> None:
        """Takes the lock. Raises LockHeldError where another process holds it."""
        files, root = url_to_fs(self.url)
        files.makedirs(root.rpartition("/")[0], exist_ok=True)
        newest = self._newest()
        found = self._read(newest) if newest else None
        if found and not found.is_stale():
            raise LockHeldError(f"{self.url} is held by {found}: wait until it ends, or {EXPIRY_SECONDS:.0f} s if it has died")
        if found:
            print(f"lock     {self.url} is taken over from {found}", flush=True)
        self.taken_over, self.number = found, newest + 1
        try:
            with files.open(self._path(self.number), "xb") as stream:
                stream.write(_content(self.owner))
        except FileExistsError as error:
            raise LockHeldError(f"another process has just taken {self.url}: wait until it ends") from error
        if self._newest() != self.number:
            files.rm_file(self._path(self.number))
            raise LockHeldError(f"another process has just taken {self.url}: wait until it ends")
        for number in range(1, self.number):
            with suppress(FileNotFoundError):
                files.rm_file(self._path(number))

    def renew(self) -> None:
        """Tells others that this process is alive. Raises LockLostError like `check`."""
        self.check()
        files, _ = url_to_fs(self.url)
        self.owner = dataclasses.replace(self.owner, renewed_at=time.time())
        files.pipe_file(self._path(self.number), _content(self.owner))

    def release(self) -> None:
        """Gives the lock back; nothing where it was lost."""
        with suppress(LockLostError, FileNotFoundError):
            self.check()
            url_to_fs(self.url)[0].rm_file(self._path(self.number))

    def _path(self, number: int) -> str:
        return f"{url_to_fs(self.url)[1]}.{number}"

    def _newest(self) -> int:
        """Returns the highest number, 0 where there is no lock."""
        files, root = url_to_fs(self.url)
        folder, _, name = root.rpartition("/")
        files.invalidate_cache()
        try:
            paths = files.ls(folder, detail=False)
        except FileNotFoundError:
            return 0
        numbers = (path.rpartition("/")[2].removeprefix(f"{name}.") for path in paths)
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def _read(self, number: int) -> LockOwner | None:
        """Returns the owner; None where the object is gone or stays empty."""
        files, _ = url_to_fs(self.url)
        for _ in range(READ_ATTEMPTS):
            try:
                return LockOwner(**json.loads(files.cat_file(self._path(number))))
            except FileNotFoundError:
                return None
            except (ValueError, TypeError):
                time.sleep(READ_PAUSE_SECONDS)
        return None


@contextmanager
def storage_lock(url: str, holding: str) -> Iterator[StorageLock]:
    """Holds the lock `url`, a path or an fsspec URL whose folder others can list, and renews it while the body runs.

    Raises LockHeldError where another process holds it. A stale lock is taken over, which is printed.
    """
    lock = StorageLock(url, LockOwner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), holding, time.time()))
    lock.acquire()
    ended = threading.Event()
    heart = threading.Thread(target=_renew_until, args=(lock, ended), name=f"heartbeat of {url}", daemon=True)
    heart.start()
    try:
        yield lock
    finally:
        ended.set()
        heart.join()
        lock.release()


def _renew_until(lock: StorageLock, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        try:
            lock.renew()
        except LockLostError:
            return
        except OSError as error:
            print(f"lock     {lock.url} could not be renewed, which is tried again: {error}", flush=True)


def _content(owner: LockOwner) -> bytes:
    values: dict[str, Any] = dataclasses.asdict(owner)
    return json.dumps(values).encode()
