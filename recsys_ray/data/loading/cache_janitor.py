"""Gives each node a folder on its own disk where shards are unpacked, and a process that removes it in the end.

A worker can end by SIGKILL, which leaves it no time to tidy up. So a janitor, a process of its own, waits until every worker of
the node has gone, however it went, and then removes the folder with the shared memory and lock files of the datasets in it.
The workers hold a lock on the folder, which the system releases when the last of them ends.

    python recsys_ray/data/loading/cache_janitor.py FOLDER      # what the janitor runs; it imports the standard library only
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
NUMBER_SUFFIX = ".segments"
SHARED_MEMORY = Path("/dev/shm")
_locks_held: list[TextIO] = []
"""Until this process ends."""


def shard_cache(root: str, run_dir: str, *, attempt: str, node: int, local_rank: int) -> Path:
    """Returns the folder for this node's shards; a janitor, started here, removes it once the node's last worker has ended.

    Every worker of the node calls this. Two runs on one host, or two "nodes" of one host, get folders of their own.

    Args:
        root: where the folder is made, or "" for the temporary folder.
        attempt: the same on all workers that are started together, and on no others.
    """
    # Not at the top: the janitor runs this file by itself.
    from recsys_ray.files.own_folder import own_folder

    run = hashlib.sha256(run_dir.encode()).hexdigest()[:8]
    folder = own_folder(Path(root or tempfile.gettempdir()) / f"recsys_ray-{os.getuid()}") / f"{run}-{attempt}-{node}"
    folder.mkdir(parents=True, exist_ok=True)  # parents: the janitor of another run may just have removed them
    lock = (folder / LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_SH)
    _locks_held.append(lock)
    if local_rank == 0:
        subprocess.run([sys.executable, "-I", __file__, str(folder)], check=True)
    return folder


def note_shared_memory(folder: Path, number: int) -> None:
    """Records for the janitor the number by which Mosaic Streaming names all shared memory and lock files of a dataset."""
    (folder / f"{number:06}{NUMBER_SUFFIX}").touch()


def _wait_and_remove(folder: Path) -> None:
    with (folder / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        numbers = {noted.name.removesuffix(NUMBER_SUFFIX) for noted in folder.glob(f"*{NUMBER_SUFFIX}")}
        for number in numbers:
            for left in (*SHARED_MEMORY.glob(f"{number}_*"), *Path(tempfile.gettempdir()).glob(f"{number}_*_filelock")):
                left.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # it also holds the folder of another run
            folder.parent.rmdir()


def _detach() -> None:
    """Leaves the worker's process group and ceases to be its child: the end of either may be the end of all in it."""
    if os.fork():
        os._exit(0)
    os.setsid()
    with Path(os.devnull).open("r+") as null:
        for stream in (0, 1, 2):
            os.dup2(null.fileno(), stream)


if __name__ == "__main__":
    _detach()
    _wait_and_remove(Path(sys.argv[1]))
