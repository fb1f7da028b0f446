"""Tests locks on a disk and on a stand-in for an object store: one holder at a time, and a dead one is replaced once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest

from recsys_ray import locks
from recsys_ray.locks import EXPIRY_SECONDS, LockHeldError, LockLostError, LockOwner, StorageLock, storage_lock

pytestmark = pytest.mark.unit


@pytest.fixture(params=["disk", "object store"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "new" / "build.lock") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/index/build.lock"


def held_elsewhere(url: str, silent_seconds: float = 0.0) -> StorageLock:
    """Takes the lock as a process on another machine, which was last heard of so long ago."""
    lock = StorageLock(url, LockOwner(uuid.uuid4().hex, "elsewhere", 7, "its table", time.time() - silent_seconds))
    lock.acquire()
    return lock


def contents(url: str) -> list[dict[str, Any]]:
    """Returns the content of all objects of this lock."""
    files, root = fsspec.core.url_to_fs(url)
    try:
        paths = files.ls(root.rpartition("/")[0], detail=False)
    except FileNotFoundError:  # an object store has no empty folders
        return []
    return [json.loads(files.cat_file(path)) for path in paths if "build.lock" in path]


def test_one_holder_at_a_time(url: str) -> None:
    with storage_lock(url, "mine") as lock:
        lock.check()
        with pytest.raises(
            LockHeldError, match=r"build\.lock is held by process \d+ on .*sign of life \d s ago.*wait until it ends"
        ):
            storage_lock(url, "other").__enter__()
        lock.check()
    assert contents(url) == []
    with storage_lock(url, "other"):
        assert [owner["holding"] for owner in contents(url)] == ["other"]


def test_a_lock_is_released_where_the_body_fails(url: str) -> None:
    with pytest.raises(ZeroDivisionError), storage_lock(url, "mine"):
        raise ZeroDivisionError
    assert contents(url) == []


def test_a_stale_lock_is_taken_over_and_its_holder_finds_out(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    paused = held_elsewhere(url, silent_seconds=EXPIRY_SECONDS + 60)
    with storage_lock(url, "mine") as lock:
        assert "build.lock is taken over from process 7 on elsewhere, last sign of life 180 s ago" in capsys.readouterr().out
        assert lock.taken_over == paused.owner
        for use in (paused.check, paused.renew):
            with pytest.raises(LockLostError, match="was taken over from this process"):
                use()
        paused.release()
        lock.check()
        assert [owner["holding"] for owner in contents(url)] == ["mine"]
    with storage_lock(url, "a third") as lock, pytest.raises(LockLostError):
        assert lock.number == paused.number
        paused.check()
    assert contents(url) == []


def test_a_process_of_this_machine_that_was_killed_holds_nothing(url: str) -> None:
    if url.startswith("memory:"):
        pytest.skip("no other process sees this memory")
    code = (
        f"import os, signal; from recsys_ray.locks import storage_lock\nwith storage_lock({url!r}, 'x'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(contents(url)) == 1
    with storage_lock(url, "mine") as lock:
        assert lock.taken_over is not None and lock.taken_over.holding == "x"


def test_only_one_of_many_takes_over(url: str) -> None:
    held_elsewhere(url, silent_seconds=EXPIRY_SECONDS + 1)
    start, refused, holders, most = threading.Barrier(12), list[str](), list[StorageLock](), list[int]()

    def contend() -> None:
        start.wait()
        try:
            with storage_lock(url, "one of many") as lock:
                holders.append(lock)
                most.append(len(holders))
                time.sleep(0.3)
                lock.check()
                holders.remove(lock)
        except LockHeldError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) + len(most) == 12 and set(most) == {1} and contents(url) == []


def test_a_held_lock_is_renewed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.01)
    with storage_lock(url, "mine") as lock:
        taken = lock.owner.renewed_at
        deadline = time.monotonic() + 10
        while lock.owner.renewed_at == taken and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.owner.renewed_at > taken
        lock.check()
    assert contents(url) == []


def test_what_a_dying_process_left_half_written_is_taken_over(url: str) -> None:
    files, root = fsspec.core.url_to_fs(url)
    files.makedirs(root.rpartition("/")[0], exist_ok=True)
    files.pipe_file(f"{root}.3", b"")
    with storage_lock(url, "mine") as lock:
        assert lock.number == 4 and lock.taken_over is None
    assert contents(url) == []
