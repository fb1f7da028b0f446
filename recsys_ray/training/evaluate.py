"""Evaluation over a whole split, exact: every row once, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from recsys_ray.models.task import Batch
from recsys_ray.training.world import World

Predictions = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Probabilities, labels and weights, float32 [rows of the split]."""


@torch.no_grad()
def predict_split(model: Any, batches: Iterable[Batch], world: World) -> Predictions | None:
    """Runs the model over this worker's batches and gathers all rows on rank 0 (12 bytes a row); None on the others."""
    model.eval()
    parts = []
    for batch in batches:
        on_device = batch.to(world.device)
        _, (_, logits, labels) = model(on_device)
        counted = on_device.weights > 0
        parts.append(torch.stack([logits.sigmoid()[counted], labels[counted], on_device.weights[counted]]).cpu())
    model.train()
    gathered = _gather(torch.cat(parts, dim=1), world)
    return None if gathered is None else (gathered[0], gathered[1], gathered[2])


def _gather(rows: torch.Tensor, world: World) -> np.ndarray | None:
    """Concatenates [3, n] of all workers, by rank; padded on the way, since they differ in n."""
    mine = torch.tensor([rows.shape[1]], device=world.device)
    counts = [torch.zeros_like(mine) for _ in range(world.size)]
    dist.all_gather(counts, mine)
    most = max(int(count) for count in counts)
    padded = torch.zeros(3, most, device=world.device)
    padded[:, : rows.shape[1]] = rows.to(world.device)
    received = [torch.empty_like(padded) for _ in range(world.size)] if world.rank == 0 else None
    dist.gather(padded, received)
    if received is None:
        return None
    return torch.cat([part[:, : int(count)].cpu() for part, count in zip(received, counts, strict=True)], dim=1).numpy()
