"""The folder on each node's own disk where shards are unpacked, and who removes it.

A worker can end by SIGKILL, which leaves it no time to tidy up. So a janitor, a process of its own, waits until every worker of
the node has gone, however it went, and then removes the folder with the shared memory and lock files of the datasets in it.
The workers hold a lock on the folder; the system lets go of it when the last of them ends.

    python recsys_ray/data/loading/cache_janitor.py FOLDER      # what the janitor runs; it imports the standard library alone
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TextIO

LOCK = "in-use.lock"
SEGMENTS = ".segments"
SHARED_MEMORY = Path("/dev/shm")
_held: list[TextIO] = []


def shard_cache(root: str, run_dir: str, attempt: str, node: int, local_rank: int) -> Path:
    """A folder for this attempt of the run on this node; `root`, or empty for the temporary folder.

    Two runs on one host, or two "nodes" of one host, must not share one. Removed soon after the node's last worker ends.
    """
    run = hashlib.sha256(run_dir.encode()).hexdigest()[:8]
    folder = Path(root or tempfile.gettempdir()) / f"recsys_ray-{os.getuid()}" / f"{run}-{attempt}-{node}"
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_SH)
    _held.append(lock)  # until this process ends
    if local_rank == 0:
        subprocess.run([sys.executable, "-I", __file__, str(folder)], check=True)
    return folder


def note_segments(folder: Path, number: int) -> None:
    """Mosaic Streaming names all shared memory and lock files of a dataset by one number: tells it to the janitor."""
    (folder / f"{number:06}{SEGMENTS}").touch()


def _wait_and_remove(folder: Path) -> None:
    with (folder / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        numbers = {noted.name.removesuffix(SEGMENTS) for noted in folder.glob(f"*{SEGMENTS}")}
        for number in numbers:
            for left in (*SHARED_MEMORY.glob(f"{number}_*"), *Path(tempfile.gettempdir()).glob(f"{number}_*_filelock")):
                left.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run's folder is beside it
            folder.parent.rmdir()


def _detach() -> None:
    """Out of the worker's process group, whose end may be the end of all in it, and no child of the worker."""
    if os.fork():
        os._exit(0)
    os.setsid()
    with Path(os.devnull).open("r+") as nowhere:
        for stream in (0, 1, 2):
            os.dup2(nowhere.fileno(), stream)


if __name__ == "__main__":
    _detach()
    _wait_and_remove(Path(sys.argv[1]))
