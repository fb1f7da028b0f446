"""The folder of a data set, written completely or not at all, for the other modules of recsys_ray.datasets."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys_ray.files.json_text import json_text

SET_MANIFEST = "dataset.json"


def build_once(out: Path, made_from: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Calls `write` with a new folder next to `out`, renames that folder to `out`, and returns the absolute path of `out`.

    Returns at once when `out` was made from the same `made_from`, a JSON object in which a value of None matches any.
    Raises FileExistsError when `out` holds anything else. When `write` raises, nothing is left behind.
    """
    out = out.absolute()
    if is_built(out, made_from):
        return out
    partial = out.with_name(f"{out.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir(parents=True)
    try:
        write(partial)
        (partial / SET_MANIFEST).write_text(json_text(made_from))
        _publish(partial, out, made_from)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def is_built(out: Path, made_from: dict[str, Any]) -> bool:
    """Returns whether `out` holds the set made from `made_from`; False when it is absent or an empty folder.

    Raises FileExistsError when it holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    manifest = out / SET_MANIFEST
    found = json.loads(manifest.read_text()) if manifest.exists() else {}
    differing = [name for name, value in made_from.items() if value is not None and found.get(name) != value]
    if differing:
        was = {name: found.get(name) for name in differing} if found else "something that is no data set"
        wanted = {name: made_from[name] for name in differing}
        raise FileExistsError(f"{out} holds {was}, but {wanted} was asked for: remove it, or name another folder with --out")
    return True


def _publish(partial: Path, out: Path, made_from: dict[str, Any]) -> None:
    try:
        partial.rename(out)
    except OSError:
        # Another process may have made the same set first: then its copy is as good.
        if not is_built(out, made_from):
            raise
