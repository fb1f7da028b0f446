"""How far a run has come, its checkpoints, and its weights as one file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torchrec.optim.keyed import CombinedOptimizer

from recsys_ray import checkpoint


@dataclass
class Progress:
    """What a checkpoint says beside the tensors: enough to go on, and to draw the whole run."""

    epoch: int = 0
    step: int = 0
    steps_in_epoch: int = 0
    """Of the epoch that is under way: 0 between epochs."""
    best: str = ""
    best_score: float = float("inf")
    """The task's objective, negative where higher is better."""
    worse_epochs: int = 0
    mlflow_run_id: str = ""
    training: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add_seconds(self, parts: dict[str, float]) -> None:
        for part, seconds in parts.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds


def save(root: Path, model: Any, optimizer: CombinedOptimizer, progress: Progress) -> None:
    """Commits a checkpoint, then drops all but it and the best one."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    folder = checkpoint.save(root, progress.step, state, dataclasses.asdict(progress))
    if dist.get_rank() == 0:
        checkpoint.prune(root, {folder.name, progress.best})


def resume(root: Path, model: Any, optimizer: CombinedOptimizer) -> Progress:
    """Restores the last committed checkpoint, or starts anew where there is none."""
    found = checkpoint.latest(root)
    if found is None:
        return Progress()
    folder, progress = found
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint.restore(folder, state)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**progress)


def restore_weights(folder: Path, model: Any) -> None:
    state = {"model": model.state_dict()}
    checkpoint.restore(folder, state)
    model.load_state_dict(state["model"])


def weights_bytes(model: Any) -> int:
    return sum(tensor.size().numel() * tensor.dtype.itemsize for tensor in model.state_dict().values())


def write_weights(folder: Path, model: Any, file: Path) -> None:
    """The whole state dict of a checkpoint as safetensors, a format that runs no code when loaded; by one worker, on its CPU."""
    whole = {name: torch.empty(tuple(tensor.size()), dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
    dcp.load({"model": whole}, checkpoint_id=folder, no_dist=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(whole, file)
