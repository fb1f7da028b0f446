"""Folders in the temporary folder, where another user may have put one of the same name before."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from recsys_ray.bundle import fetch
from recsys_ray.data.loading import cache_janitor
from recsys_ray.files.own_folder import own_folder

pytestmark = pytest.mark.unit


def test_the_folder_is_this_users_alone(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "a" / "own")
    assert folder.stat().st_mode & 0o777 == 0o700 and own_folder(folder) == folder
    folder.chmod(0o755)  # as version 0.1 made it
    assert own_folder(folder).stat().st_mode & 0o777 == 0o700


def test_a_link_and_the_folder_of_another_user_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("link", "dangling"):
        with pytest.raises(PermissionError, match=rf"/{name} is no folder of this user .*: remove it, or set TMPDIR"):
            own_folder(tmp_path / name)
    assert not (tmp_path / "nothing").exists()
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(PermissionError, match=rf"elsewhere is no folder of this user .* or that of uid {uid}: remove it"):
        own_folder(tmp_path / "elsewhere")


def test_shards_and_bundles_do_not_follow_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(fetch, "parse_manifest", lambda text, origin: type("Named", (), {"version": "v"}))
    (tmp_path / "elsewhere").mkdir()
    for name in (f"recsys_ray-{os.getuid()}", f"recsys_ray_bundles_{os.getuid()}"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="recsys_ray-"):
        cache_janitor.shard_cache("", "run", attempt="a", node=0, local_rank=1)
    store = type("Store", (), {"cat_file": lambda self, path: b"{}"})()
    with pytest.raises(PermissionError, match="recsys_ray_bundles_"):
        fetch.copied_bundle(store, "root", "s3://bucket/model")
    assert not list((tmp_path / "elsewhere").iterdir())
