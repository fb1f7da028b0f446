"""The weights of a sharded model from a bundle: each rank reads the slices that it holds, so no host ever holds a whole model."""

from __future__ import annotations

import torch
from torch import nn

from recsys_ray.bundle.reader import BundleFolder, Rectangle
from recsys_ray.bundle.writer import local_parts


@torch.no_grad()
def load_weights(model: nn.Module, bundle: BundleFolder) -> None:
    """Fills what this rank holds of `model`, after comparing the files that it reads with their checksums.

    Files are memory-mapped: they take no memory of the rank's own. Names and shapes of the tensors must be those of the bundle.
    Raises BundleError for a file that is damaged.
    """
    # The share of rank 0 is its own shards and all that every rank holds, which is what each rank needs here.
    held = [(part, Rectangle(part.offsets, tuple(part.tensor.shape))) for part in local_parts(model.state_dict(), rank=0)]
    bundle.verify(set().union(*(bundle.files_with(part.name, wanted) for part, wanted in held)))
    for part, wanted in held:
        bundle.read_into(part.name, part.tensor, wanted)
