"""Opens a model bundle: finds and verifies its files, and reads its tensors, whole or a rectangle at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from recsys_ray.bundle.manifest import MANIFEST, BundleError, Manifest, StoredTensor, TensorPart, check_file, parse_manifest
from recsys_ray.bundle.version_0_1 import WEIGHTS_FILE, old_manifest


class Rectangle(NamedTuple):
    """A part of a tensor: the index of its first value, and its sizes."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class BundleFolder(NamedTuple):
    """An opened bundle: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    def verify(self, paths: Collection[str] | None = None) -> None:
        """Reads every file once, or only these. Raises BundleError for one that is missing, damaged or not in the manifest."""
        for path in _files_of(self.folder):
            if path != MANIFEST and path not in self.manifest.files:
                raise BundleError(f"{self.folder} holds {path}, which {MANIFEST} does not list: the bundle is refused")
        for path in self.manifest.files if paths is None else paths:
            file, expected = self.folder / path, self.manifest.files[path]
            if not file.resolve().is_relative_to(self.folder.resolve()):
                raise BundleError(f"{file} leads out of the bundle's folder: the bundle is refused")
            if not file.is_file():
                raise BundleError(f"{self.folder} has no {path}, which {MANIFEST} lists: copy or export the bundle again")
            check_file(file, expected, str(file))

    def files_with(self, name: str, wanted: Rectangle) -> set[str]:
        """Returns the files that `read_into` reads for that rectangle of a tensor."""
        return {part.file for part in self.manifest.tensors[name].parts if _overlap(part, wanted) is not None}

    def tensor_bytes(self) -> int:
        """Returns the size of all tensors together."""
        return sum(math.prod(one.shape) * torch_type(one).itemsize for one in self.manifest.tensors.values())

    def read_tensor(self, name: str) -> torch.Tensor:
        """Reads a whole tensor. Raises KeyError for a name that the bundle does not have."""
        stored = self.manifest.tensors[name]
        whole = torch.empty(stored.shape, dtype=torch_type(stored))
        self.read_into(name, whole, Rectangle((0,) * len(stored.shape), stored.shape))
        return whole

    def read_into(self, name: str, out: torch.Tensor, wanted: Rectangle) -> None:
        """Fills `out`, of `wanted.sizes`, with that rectangle of a tensor, and reads nothing else of it."""
        for part in self.manifest.tensors[name].parts:
            overlap = _overlap(part, wanted)
            if overlap is not None:
                there = tuple(slice(low - first, high - first) for (low, high), first in zip(overlap, part.offsets, strict=True))
                here = tuple(slice(low - first, high - first) for (low, high), first in zip(overlap, wanted.offsets, strict=True))
                out[here].copy_(self._read(name, part, there))

    def gather_rows(self, name: str, rows: torch.Tensor, columns: slice) -> torch.Tensor:
        """Returns these rows of a matrix, [len(rows), columns]; `rows` is int64 and may be in any order."""
        stored = self.manifest.tensors[name]
        found = torch.empty(len(rows), columns.stop - columns.start, dtype=torch_type(stored))
        for part in stored.parts:
            (top, left), (height, width) = part.offsets, part.sizes
            low, high = max(left, columns.start), min(left + width, columns.stop)
            here = ((rows >= top) & (rows < top + height)).nonzero().squeeze(1)
            if low < high and len(here):
                values = self._read(name, part, ())[rows[here] - top, low - left : high - left]
                found[here, low - columns.start : high - columns.start] = values
        return found

    def _read(self, name: str, part: TensorPart, there: tuple[slice, ...]) -> torch.Tensor:
        """Returns a part, or the slices of it that are wanted. The file is memory-mapped, and read where it is used."""
        try:
            with safe_open(self.folder / part.file, framework="pt") as file:
                return file.get_slice(name)[there] if there else file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{self.folder / part.file} cannot be read ({error}): copy or export the bundle again") from error


def _overlap(part: TensorPart, wanted: Rectangle) -> list[tuple[int, int]] | None:
    """Returns the indices, first and stop in each dimension, that a part and a rectangle share; None where they share none."""
    overlap = [
        (max(first, other), min(first + size, other + length))
        for first, size, other, length in zip(part.offsets, part.sizes, *wanted, strict=True)
    ]
    return overlap if all(low < high for low, high in overlap) else None


def torch_type(stored: StoredTensor) -> torch.dtype:
    """Returns the type of a stored tensor. Raises BundleError for a name that is no type."""
    found = getattr(torch, stored.dtype, None)
    if not isinstance(found, torch.dtype):
        raise BundleError(f"{MANIFEST}: {stored.dtype!r} is no type of a tensor")
    return found


def open_bundle(location: str | Path) -> BundleFolder:
    """Opens the bundle in a folder, or in the run directory above it. It reads the manifest, and verifies nothing.

    Raises FileNotFoundError where there is no bundle, BundleError for a manifest that cannot be trusted.
    """
    for folder in (Path(location), Path(location) / "model"):
        if (folder / MANIFEST).exists():
            return BundleFolder(folder, parse_manifest((folder / MANIFEST).read_text(), str(folder / MANIFEST)))
        if (folder / WEIGHTS_FILE).exists() and (folder / "schema.json").exists():
            return BundleFolder(folder, old_manifest(folder))
    raise FileNotFoundError(
        f"{location} has no model bundle (no {MANIFEST}): name a run that has ended, or the folder `model` of one"
    )


def _files_of(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file() or path.is_symlink())
