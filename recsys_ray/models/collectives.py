"""Rows of all workers together: with gradients for losses, padded for parts of unequal length."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather


def workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def my_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gather_with_gradient(rows: torch.Tensor) -> torch.Tensor:
    """[n, ...] of every worker, by rank, [workers * n, ...]. In the backward pass each worker gets the sum of all gradients of
    its rows. Workers have equal n."""
    return torch.cat(all_gather(rows)) if workers() > 1 else rows


def gather_equal(rows: torch.Tensor) -> torch.Tensor:
    """As `gather_with_gradient`, without gradients and for any type."""
    if workers() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(workers())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_rows(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """[n, ...] of every worker, by rank, on the CPU; workers may differ in n. They travel through `device`, NCCL's or gloo's."""
    if workers() == 1:
        return rows.cpu()
    count = torch.tensor([len(rows)], device=device)
    counts = gather_equal(count).tolist()
    padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows.to(device)
    parts = gather_equal(padded).cpu().split(max(counts)) if max(counts) else [rows.cpu()]
    return torch.cat([part[:size] for part, size in zip(parts, counts, strict=False)])


def from_rank_0(make: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor:
    """What `make` returns on rank 0, on every worker's CPU; it travels through `device`."""
    if workers() == 1:
        return make()
    made = make().to(device) if my_rank() == 0 else None
    described = [(made.shape, made.dtype)] if made is not None else [None]
    dist.broadcast_object_list(described, device=device)
    assert described[0] is not None
    shape, dtype = described[0]
    found = torch.empty(shape, dtype=dtype, device=device) if made is None else made
    dist.broadcast(found, 0)
    return found.cpu()
