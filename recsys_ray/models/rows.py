"""Selection and padding of rows of encoded columns, among them multi-valued ones, whose values lie end to end."""

from __future__ import annotations

import torch
from torch.nn import functional

from recsys_ray.columns import LENGTHS, Columns


def take_rows(columns: Columns, rows: torch.Tensor) -> Columns:
    """Returns these rows of every column, in this order; `rows` is int64 and may name a row more than once."""
    taken: Columns = {}
    for name, values in columns.items():
        if name.endswith(LENGTHS):
            continue
        lengths = columns.get(name + LENGTHS)
        if lengths is None:
            taken[name] = values[rows]
            continue
        starts = torch.cumsum(lengths, 0) - lengths
        kept = lengths[rows].long()
        within = torch.arange(int(kept.sum())) - torch.repeat_interleave(torch.cumsum(kept, 0) - kept, kept)
        taken |= {name: values[torch.repeat_interleave(starts[rows], kept) + within], name + LENGTHS: lengths[rows]}
    return taken


def pad_rows(columns: Columns, rows: int) -> Columns:
    """Appends rows until there are `rows`: zeros, and in multi-valued columns rows without values."""
    return {
        name: values if name + LENGTHS in columns else functional.pad(values, (0, rows - len(values)))
        for name, values in columns.items()
    }
