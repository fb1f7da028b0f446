"""manifest.json: what a model bundle is, the checksum of every file in it, and where each part of each tensor is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1
FILE_TYPES = (".json", ".parquet", ".safetensors")
"""Files of a bundle hold data alone; any other kind of file is refused."""
PLAIN_PATH = re.compile(r"[^/\\\0]+(/[^/\\\0]+)*")


class BundleError(ValueError):
    """A bundle that is damaged, incomplete or not to be trusted."""


@dataclass(frozen=True)
class BundleFile:
    """The size in bytes and the SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorPart:
    """A rectangle of a tensor, stored under the tensor's name in one file."""

    file: str
    offsets: tuple[int, ...]
    """The index of its first value in the whole tensor."""
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the state dict; its parts cover it without overlap."""

    dtype: str
    """The name of a torch type, such as "float32"."""
    shape: tuple[int, ...]
    parts: tuple[TensorPart, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    model: str
    """The registered name of the model."""
    version: str
    """Names this content: an index is built and searched with one version."""
    step: int
    """The training step of the checkpoint that the weights are from."""
    created: str
    """UTC, ISO 8601."""
    dataset: dict[str, str]
    """path and fingerprint of the dataset that the model was trained on."""
    packages: dict[str, str]
    """Package -> the version that wrote the bundle."""
    metrics: dict[str, float]
    """Test metrics; a metric that is not finite is left out."""
    files: dict[str, BundleFile] = field(default_factory=dict)
    """Path in the bundle -> the file. manifest.json itself is not among them."""
    tensors: dict[str, StoredTensor] = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns the text of manifest.json: the format, this manifest, and the manifest's own checksum."""
        body = dataclasses.asdict(self)
        checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        return json.dumps({"format": FORMAT, "checksum": checksum, "manifest": body}, indent=1, allow_nan=False) + "\n"


def content_version(files: dict[str, BundleFile]) -> str:
    """Returns 16 hex digits that name the content of these files."""
    listing = json.dumps({name: file.sha256 for name, file in files.items()}, sort_keys=True)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def file_entry(path: Path) -> BundleFile:
    """Measures a file, reading it once."""
    with path.open("rb") as stream:
        return BundleFile(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def check_file(file: Path, expected: BundleFile, name: str) -> None:
    """Raises BundleError, which calls the file `name`, unless its content is what the manifest says."""
    if file_entry(file) != expected:
        raise BundleError(f"{name} does not fit its checksum in {MANIFEST}: copy or export the bundle again")


def parse_manifest(text: str, origin: str) -> Manifest:
    """Returns what `Manifest.to_json` wrote. Raises BundleError naming `origin` for anything else."""
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise BundleError(f"{origin} has another format than {FORMAT}: another version of this package wrote it")
        values = document["manifest"]
        files = {str(name): BundleFile(**file) for name, file in values.pop("files").items()}
        tensors = {str(name): _tensor(entry) for name, entry in values.pop("tensors").items()}
        manifest = Manifest(**values, files=files, tensors=tensors)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise BundleError(f"{origin} is not the manifest of a model bundle: {error!r}") from error
    if manifest.to_json() != text:
        raise BundleError(f"{origin} does not fit its checksum: copy or export the bundle again")
    check_names([*files, *(part.file for tensor in tensors.values() for part in tensor.parts)], origin)
    for name, tensor in tensors.items():
        _check_coverage(name, tensor, manifest, origin)
    return manifest


def _tensor(entry: dict[str, Any]) -> StoredTensor:
    parts = tuple(TensorPart(part["file"], tuple(part["offsets"]), tuple(part["sizes"])) for part in entry["parts"])
    return StoredTensor(entry["dtype"], tuple(entry["shape"]), parts)


def check_names(names: Iterable[str], origin: str) -> None:
    """Raises BundleError for a path that leaves the bundle's folder, or a file that could hold more than data."""
    for name in names:
        parts = PurePosixPath(name).parts
        if not PLAIN_PATH.fullmatch(name) or not parts or ".." in parts or "." in name.split("/"):
            raise BundleError(f"{origin} names {name!r}, which is no path inside the bundle: it is refused")
        if not name.endswith(FILE_TYPES):
            raise BundleError(f"{origin} names {name!r}: a bundle holds {', '.join(FILE_TYPES)} alone, so it is refused")


def _check_coverage(name: str, tensor: StoredTensor, manifest: Manifest, origin: str) -> None:
    """Raises BundleError where parts leave their tensor, overlap or do not fill it, or lie in files that are not listed."""
    rank = len(tensor.shape)
    inside = all(
        len(part.offsets) == len(part.sizes) == rank
        and all(
            isinstance(first, int) and isinstance(size, int) and first >= 0 and size >= 0 and first + size <= whole
            for first, size, whole in zip(part.offsets, part.sizes, tensor.shape, strict=True)
        )
        for part in tensor.parts
    )
    listed = all(part.file in manifest.files for part in tensor.parts)
    filled = inside and sum(math.prod(part.sizes) for part in tensor.parts) == math.prod(tensor.shape)
    if not listed or not filled or _overlap(tensor.parts):
        raise BundleError(f"{origin}: the parts of tensor {name} do not fit together")


def _overlap(parts: tuple[TensorPart, ...]) -> bool:
    """Returns whether two parts share a value."""
    ordered = sorted((part for part in parts if part.offsets and 0 not in part.sizes), key=lambda part: part.offsets)
    for place, part in enumerate(ordered):
        below = part.offsets[0] + part.sizes[0]
        for other in takewhile(lambda one: one.offsets[0] < below, ordered[place + 1 :]):  # noqa: B023 (used at once)
            dimensions = zip(part.offsets, part.sizes, other.offsets, other.sizes, strict=True)
            if all(first < start + length and start < first + size for first, size, start, length in dimensions):
                return True
    return False
