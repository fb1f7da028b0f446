"""Folders that appear all at once: a dataset directory is written under another name, then swapped with the old one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Constants of renameat2(2): paths relative to the working directory, and swap the two paths."""
REMOVAL_ATTEMPTS, REMOVAL_PAUSE = 50, 0.1
"""How often `remove_folder` tries, and the seconds between two attempts."""


@contextmanager
def replaced_atomically(out: Path) -> Iterator[Path]:
    """Yields a new folder next to `out`, which takes its place when the body succeeds and is removed when it does not."""
    staging = out.parent / f".{out.name}.preparing"
    remove_folder(staging)
    staging.mkdir(parents=True)
    try:
        yield staging
        move_into_place(staging, out)
    finally:
        remove_folder(staging)


def remove_folder(folder: Path) -> None:
    """Removes a folder, trying for 5 s: cancelled tasks may still write into it for a moment, which makes removal fail."""
    for _ in range(REMOVAL_ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(REMOVAL_PAUSE)


def move_into_place(staging: Path, out: Path) -> None:
    """Puts a folder in the place of `out`, in one step where the system can; an earlier one is removed or left at `staging`."""
    if not out.exists():
        staging.rename(out)
    elif not _exchange(staging, out):
        old = out.parent / f".{out.name}.replaced"
        out.rename(old)
        staging.rename(out)
        shutil.rmtree(old)


def _exchange(left: Path, right: Path) -> bool:
    """Swaps two folders in one step, so that readers always find one; returns False when the system cannot (renameat2(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(AT_FDCWD, os.fsencode(left), AT_FDCWD, os.fsencode(right), RENAME_EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(ctypes.get_errno(), f"cannot put {left} in the place of {right}: {os.strerror(ctypes.get_errno())}")
