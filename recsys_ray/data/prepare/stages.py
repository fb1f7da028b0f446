"""The stages of a preparation, from profile to summary, with a line printed for each and the checks between them.

Stages: profile the rows, find the split's boundaries, measure statistics of training rows, write row blocks, set bad rows aside,
write the catalogue and the small files. `summary.json`, without which a folder is no dataset, is written last.
"""

from __future__ import annotations

import dataclasses
import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from recsys_ray.columns import SPLITS
from recsys_ray.config import PrepareConfig
from recsys_ray.data.blocks.layout import mds_columns
from recsys_ray.data.blocks.parts import CommitReport, PartWriter, rows_per_part
from recsys_ray.data.dataset.directory import SUMMARY
from recsys_ray.data.dataset.tables import write_catalogue, write_vocabularies
from recsys_ray.data.prepare.catalogue import absent_items_note, add_frequencies, read_item_table
from recsys_ray.data.prepare.growth import EarlierDataset
from recsys_ray.data.prepare.passes import Passes
from recsys_ray.data.prepare.profile import Profile
from recsys_ray.data.prepare.splits import time_boundaries
from recsys_ray.data.prepare.statistics import Statistics
from recsys_ray.data.sources.source import Source
from recsys_ray.data.transform import NOT_BINARY
from recsys_ray.files.json_text import json_text
from recsys_ray.schema import Schema

T = TypeVar("T")


def write_dataset(folder: Path, config: PrepareConfig, passes: Passes, *, earlier: EarlierDataset, fingerprint: str) -> None:
    """Runs all stages and writes the files of a dataset directory into `folder`, which is empty.

    `fingerprint` is that of the inputs, for the summary. Raises ValueError when too many rows are bad, none is left to train on,
    or the source changes between two passes.
    """
    profile = run_stage("reading", passes.profile)
    check_enough_rows(profile, config)
    passes = with_split_rules(passes, profile)
    statistics = run_stage("measuring", lambda: passes.statistics(earlier.kept))
    growth = {"grew_from": earlier.growth(statistics, passes.rules.schema)} if config.grow_from else {}
    part_rows = rows_per_part(profile.rows, profile.bytes)
    writer = PartWriter(folder, mds_columns(statistics.schema), config.block_rows, part_rows)
    written = run_stage("writing", lambda: passes.write_blocks(statistics, writer))
    check_all_written(profile, written)
    if profile.rejected:
        run_stage("setting bad rows aside", lambda: passes.write_bad_rows(folder / "rejected"))
    (folder / "schema.json").write_text(statistics.schema.to_json())
    write_vocabularies(folder, statistics.vocabularies)
    write_items(folder, config, passes, statistics)
    summary = _summary(profile, statistics.schema, rows=written.rows, block_rows=config.block_rows, fingerprint=fingerprint)
    (folder / SUMMARY).write_text(json_text(summary | growth))


def run_stage(stage: str, work: Callable[[], T]) -> T:
    """Returns what `work` returns, and prints when the stage starts and how long it took."""
    started = time.perf_counter()
    print(f"prepare: {stage} ...", flush=True)
    result = work()
    print(f"prepare: {stage} took {time.perf_counter() - started:.1f} s", flush=True)
    return result


def with_split_rules(passes: Passes, profile: Profile) -> Passes:
    """Returns the passes with what the split needs to know of all rows: time boundaries, or the rows of leave-one-out."""
    rules = passes.rules
    if rules.split.by == "time":
        rules = dataclasses.replace(rules, boundaries=time_boundaries(rules.split, profile.timestamps))
    if rules.split.by == "leave_one_out":
        rules = dataclasses.replace(rules, held_out=passes.engine.broadcast(run_stage("splitting", passes.held_out)))
    return dataclasses.replace(passes, rules=rules)


def write_items(folder: Path, config: PrepareConfig, passes: Passes, statistics: Statistics) -> None:
    """Writes the catalogue when the schema has an item key, and prints which items the item table lacks."""
    if (key := statistics.schema.key("item")) is None:
        return
    items = read_item_table(passes.source, key)
    if items is None:
        items = run_stage("listing items", lambda: passes.items(key))
    items, absent = add_frequencies(items, key, statistics.item_frequencies)
    if absent:
        print(f"prepare: {absent_items_note(absent, key, config.items)}", flush=True)
    write_catalogue(folder, items)


@contextmanager
def explained_io_errors(out: Path, source: Source) -> Iterator[None]:
    """Names the disk that is full, or the file with damaged pages, in errors of the body: those of an engine name neither."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"the disk of {out} is full: free some space, or choose another --out") from error
        # pyarrow raises bare OSErrors for pages it cannot read; those of the system have a subclass or a number.
        raise (type(error) is OSError and error.errno is None and _damaged_file(source)) or error from error
    except pa.ArrowException as error:
        raise _damaged_file(source) or error from error


def check_enough_rows(profile: Profile, config: PrepareConfig) -> None:
    """Raises ValueError when no row is good, or more than `max_rejected` of them are bad."""
    worst = "; ".join(f"{reason} ({count:,} rows)" for reason, count in list(profile.worst_reasons.items())[:5])
    hint = ' ("positive_above" makes a label of any number)' if NOT_BINARY in worst else ""
    remedy = f"{worst}. Correct the data or the schema{hint}"
    if profile.rows == profile.rejected:
        raise ValueError(f"no rows to keep: all {profile.rows:,} rows of {config.parquet} are bad: {remedy}")
    if profile.rejected > config.max_rejected * profile.rows:
        limit = f"more than --max-rejected {config.max_rejected}"
        raise ValueError(
            f"{profile.rejected:,} of {profile.rows:,} rows of {config.parquet} are bad, {limit}: "
            f"{remedy}, or raise the limit to set them aside"
        )


def check_all_written(profile: Profile, written: CommitReport) -> None:
    """Raises ValueError unless exactly the good rows of the profile were written, some of them for training."""
    kept, rows = profile.rows - profile.rejected, written.rows
    if (sum(rows.values()), written.hash_sum) != (kept, profile.hash_sum):
        raise ValueError(
            f"wrote {rows}, not the {kept:,} rows that were to be kept: the source changed during preparation. Run it again; a "
            "view that gives other rows each time (a limit, a random or a floating-point sum) must be a table first"
        )
    if not rows["train"]:
        raise ValueError(f"no training rows: the split left {rows}. Choose other fractions or another split")


def _damaged_file(source: Source) -> ValueError | None:
    found = next(filter(None, (table.unreadable() for table in source.tables)), "")
    return ValueError(f"{found}: write it again or leave it out") if found else None


def _summary(profile: Profile, schema: Schema, *, rows: dict[str, int], block_rows: int, fingerprint: str) -> dict[str, Any]:
    counts = {column.name: {"missing_rate": profile.missing[column.name] / profile.rows} for column in schema.columns}
    for column in schema.categorical:
        counts[column.name]["cardinality"] = profile.cardinality(column.name)
    return {
        "rows_in": profile.rows,
        "rows": {split: rows[split] for split in SPLITS},
        "rejected": profile.rejected,
        "rejected_reasons": profile.worst_reasons,
        "columns": counts,
        "block_rows": block_rows,
        "fingerprint": fingerprint,
    }
