"""The output folder of a batch job: a Parquet file for each partition of the input, each there when it is whole.

A job writes into `.NAME.partial` beside its output, which takes the place of the output when all partitions are there. A file
appears under its final name by a rename, so that a job that was killed and runs again does only the partitions that are missing.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.data.dataset.atomic_folder import move_into_place, remove_folder
from recsys_ray.files.json_text import json_text
from recsys_ray.serving.batch.partitioned.delta import make_delta_table

BATCH_MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
"""Written last: the job's manifest with its counts. A folder without it is not whole."""
SCRATCH = "_scratch"
"""The folder for intermediate files, removed in the end."""
COUNTS_KEY = b"recsys_ray.counts"
"""The key of a partition's counts in the metadata of its file."""


class BatchResult(NamedTuple):
    """Rows of one partition, and what to count of them."""

    rows: pa.Table
    counts: dict[str, int]


@dataclass(frozen=True)
class BatchManifest:
    """A record of what an output is made of. A job goes on with earlier files only where all of it is the same."""

    job: str
    made_from: dict[str, str]
    """Flag -> what it stands for: a fingerprint of rows, the version of a model, or a setting."""
    partitions: int

    def differences(self, other: dict[str, Any]) -> str:
        """Returns the flags whose value is another one in `other`, the content of a manifest file."""
        if other.get("job") != self.job:
            return f"it is of jobs/{other.get('job')}.py"
        theirs = other.get("made_from", {})
        return ", ".join(flag for flag in {**self.made_from, **theirs} if self.made_from.get(flag) != theirs.get(flag))


@dataclass(frozen=True)
class BatchOutput:
    """The output of one job: the folder that is wanted, and the manifest of what goes into it."""

    out: Path
    manifest: BatchManifest
    delta: bool = False
    """True where the files become a Delta table."""

    @property
    def work(self) -> Path:
        """The folder that is written until all is there."""
        return self.out.with_name(f".{self.out.name}.partial")

    @property
    def scratch(self) -> Path:
        """The folder for intermediate files."""
        return self.work / SCRATCH

    def begin(self, overwrite: bool) -> bool:
        """Makes the folder to work in, or keeps the one of a job that was interrupted. Returns False where all is done already.

        Raises FileExistsError, naming flags, where either folder holds anything else, unless it is an output to overwrite.
        """
        if self._is_mine(self.out, overwrite, marker=SUCCESS):
            remove_folder(self.work)
            return False
        if not self._is_mine(self.work, overwrite, marker=BATCH_MANIFEST):
            remove_folder(self.work)
            self.scratch.mkdir(parents=True)
            write_whole(self.work / BATCH_MANIFEST, lambda path: path.write_text(json_text(asdict(self.manifest))))
        return True

    def _is_mine(self, folder: Path, overwrite: bool, marker: str) -> bool:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return False
        found = read_json(folder / marker) or read_json(folder / BATCH_MANIFEST)
        if "made_from" not in found:
            raise FileExistsError(f"{folder} exists and is no output of this job, so it is left alone: choose another --out")
        different = self.manifest.differences(found)
        if different and not overwrite:
            begun = "was made" if folder == self.out else "holds a job that was interrupted and was begun"
            raise FileExistsError(
                f"{folder} {begun} with other values ({different}): pass --overwrite to begin again, or choose another --out"
            )
        return not different and (folder / marker).exists()

    def file(self, number: int) -> Path:
        """Returns where a partition is written."""
        return self.work / f"part-{number:05d}.parquet"

    def missing(self) -> list[int]:
        """Returns the numbers of the partitions that are not written yet."""
        return [number for number in range(self.manifest.partitions) if not self.file(number).exists()]

    def write(self, number: int, results: Iterable[BatchResult]) -> None:
        """Writes a partition. Called in a task."""
        write_whole(self.file(number), lambda path: _write_results(path, iter(results)))

    def counts(self) -> Counter[str]:
        """Returns the sums of what was counted in all partitions, and their `rows`."""
        found: Counter[str] = Counter()
        for number in range(self.manifest.partitions):
            footer = pq.read_metadata(self.file(number))
            found.update({**json.loads(footer.metadata[COUNTS_KEY]), "rows": footer.num_rows})
        return found

    def finished_counts(self) -> Counter[str]:
        """Returns the counts of an output that is whole."""
        return Counter(read_json(self.out / SUCCESS)["counts"])

    def publish(self, counts: Counter[str]) -> None:
        """Marks the output as whole and puts it in place."""
        remove_folder(self.scratch)
        for leftover in self.work.glob(".part-*"):  # of a task that was killed while it wrote
            leftover.unlink(missing_ok=True)
        if self.delta:
            make_delta_table(self.work)
        summary = {**asdict(self.manifest), "counts": dict(counts)}
        write_whole(self.work / SUCCESS, lambda path: path.write_text(json_text(summary)))
        move_into_place(self.work, self.out)
        remove_folder(self.work)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a hidden path beside `path`, and renames the file when it is whole.

    Raises FileNotFoundError, naming --out, where the folder is not on this machine.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not there: --out must be on a file system that all nodes share")
    try:
        write(partial)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; an empty one where there is no such file, or it holds something else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_results(path: Path, results: Any) -> None:
    first = next(results)
    counts = Counter(first.counts)
    with pq.ParquetWriter(path, first.rows.schema, compression="zstd") as writer:
        writer.write_table(first.rows)
        for rows, more in results:
            writer.write_table(rows)
            counts.update(more)
        writer.add_key_value_metadata({COUNTS_KEY: json.dumps(counts).encode()})
