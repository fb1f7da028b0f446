"""Folders of one user at a place where every user may write, such as the temporary folder."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def own_folder(path: Path) -> Path:
    """Returns the folder, which is created where it is missing, and which no other user can read or write.

    Raises PermissionError where someone else has put a folder or a link there: its owner would choose what is read from it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(
            f"{path} is no folder of this user (uid {os.getuid()}) but a link, a file, or that of uid {found.st_uid}: remove it, "
            "or set TMPDIR to a folder of your own"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path
