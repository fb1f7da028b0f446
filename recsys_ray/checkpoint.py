"""Sharded checkpoints: every worker writes its own shards (torch.distributed.checkpoint); a marker, written last, commits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

MARKER = "committed.json"


def save(root: Path, step: int, state: dict[str, Any], progress: dict[str, Any]) -> Path:
    """Called by every worker. `state` may hold sharded tensors; `progress` is JSON, returned by `latest`."""
    folder = root / f"step_{step}"
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    dist.barrier()
    dcp.save(state, checkpoint_id=folder)
    dist.barrier()
    if dist.get_rank() == 0:
        partial = folder / f".{MARKER}"
        partial.write_text(json.dumps(progress))
        partial.replace(folder / MARKER)
    dist.barrier()
    return folder


def restore(folder: Path, state: dict[str, Any]) -> None:
    """Fills `state` in place, under any world size or sharding plan; it must hold every tensor wanted, optimizer state too."""
    dcp.load(state, checkpoint_id=folder)


def latest(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The last committed checkpoint and its `progress`; None where there is none. Called by every worker: rank 0 looks for all,
    since on shared storage they need not see the same files at the same moment."""
    found: list[tuple[Path, dict[str, Any]] | None] = [None]
    if dist.get_rank() == 0 and (folders := committed(root)):
        found[0] = folders[-1], json.loads((folders[-1] / MARKER).read_text())
    dist.broadcast_object_list(found)
    return found[0]


def committed(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    steps = {int(match[1]): folder for folder in root.glob("step_*") if (match := re.fullmatch(r"step_(\d+)", folder.name))}
    return [folder for _, folder in sorted(steps.items()) if (folder / MARKER).exists()]


def prune(root: Path, keep: set[str]) -> None:
    """Called by one worker: removes every checkpoint whose folder name is not in `keep`, its marker first."""
    for folder in root.glob("step_*"):
        if folder.name not in keep:
            (folder / MARKER).unlink(missing_ok=True)
            shutil.rmtree(folder)
