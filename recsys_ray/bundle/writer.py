"""Writes the tensors of a bundle: each rank stores the shards that it holds, so no host ever holds a whole model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from recsys_ray.bundle.manifest import BundleFile, StoredTensor, TensorPart, file_entry

WEIGHTS = "weights"
"""The folder of the tensors in a bundle."""
WEIGHTS_FILE_BYTES = 1 << 29
"""The size at which a file of tensors is closed: writing one takes as much memory again."""


class LocalPart(NamedTuple):
    """A rectangle of a tensor that this rank holds."""

    name: str
    tensor: torch.Tensor
    offsets: tuple[int, ...]


class WrittenParts(NamedTuple):
    """The files that one rank has written, by their path in the bundle, and the parts of each tensor in them."""

    files: dict[str, BundleFile]
    parts: dict[str, list[TensorPart]]


def local_parts(state: dict[str, Any], rank: int) -> Iterable[LocalPart]:
    """Yields what this rank stores of a state dict: its own shards, and on rank 0 the tensors that every rank holds.

    Parts are at most WEIGHTS_FILE_BYTES large, or one row of their tensor.
    """
    for name, tensor in state.items():
        if hasattr(tensor, "local_shards"):
            for shard in tensor.local_shards():
                yield from _rows(name, shard.tensor, tuple(shard.metadata.shard_offsets))
        elif rank == 0:
            yield from _rows(name, tensor, (0,) * tensor.dim())


def _rows(name: str, tensor: torch.Tensor, offsets: tuple[int, ...]) -> Iterable[LocalPart]:
    if tensor.nbytes <= WEIGHTS_FILE_BYTES:
        yield LocalPart(name, tensor, offsets)
        return
    rows = max(1, WEIGHTS_FILE_BYTES // tensor[0].nbytes)
    for first in range(0, len(tensor), rows):
        yield LocalPart(name, tensor[first : first + rows], (offsets[0] + first, *offsets[1:]))


def write_parts(folder: Path, parts: Iterable[LocalPart], rank: int) -> WrittenParts:
    """Writes a rank's parts into files of WEIGHTS_FILE_BYTES, each with the tensors' own names as keys."""
    written = WrittenParts({}, {})
    pending: dict[str, LocalPart] = {}
    (folder / WEIGHTS).mkdir(parents=True, exist_ok=True)
    for part in parts:
        size = sum(waiting.tensor.nbytes for waiting in pending.values())
        if pending and (part.name in pending or size + part.tensor.nbytes > WEIGHTS_FILE_BYTES):
            _write_file(folder, pending, rank, written)
            pending = {}
        pending[part.name] = part
    if pending:
        _write_file(folder, pending, rank, written)
    return written


def _write_file(folder: Path, pending: dict[str, LocalPart], rank: int, written: WrittenParts) -> None:
    file = f"{WEIGHTS}/rank_{rank}_{len(written.files):05}.safetensors"
    save_file({name: part.tensor.detach().cpu().contiguous() for name, part in pending.items()}, folder / file)
    with (folder / file).open("rb+") as stream:
        os.fsync(stream.fileno())
    written.files[file] = file_entry(folder / file)
    for name, part in pending.items():
        written.parts.setdefault(name, []).append(TensorPart(file, part.offsets, tuple(part.tensor.shape)))


def merged_parts(state: dict[str, Any], written: Iterable[WrittenParts]) -> tuple[dict[str, BundleFile], dict[str, StoredTensor]]:
    """Returns the manifest's files and tensors, given the state dict and what every rank has written of it."""
    files: dict[str, BundleFile] = {}
    parts: dict[str, list[TensorPart]] = {name: [] for name in state}
    for of_rank in written:
        files |= of_rank.files
        for name, more in of_rank.parts.items():
            parts[name] += more
    tensors = {
        name: StoredTensor(str(tensor.dtype).removeprefix("torch."), tuple(tensor.size()), tuple(parts[name]))
        for name, tensor in state.items()
    }
    return files, tensors
