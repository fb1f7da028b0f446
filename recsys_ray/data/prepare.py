"""The preparation pipeline: Parquet -> dataset directory, with Ray Data. Run it by jobs/prepare_data.py.

Passes over the rows: profile (faults, missing rates, cardinalities), fit (means and vocabularies, only where the schema wants
them), write (transform, shuffle globally, pack into row blocks), and, only where rows were bad, one that sets them aside.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from recsys_ray.config import DataConfig, PrepareConfig
from recsys_ray.data.arrow_types import check_columns
from recsys_ray.data.blocks import mds_columns
from recsys_ray.data.dataset_directory import SUMMARY, DatasetDirectory, staged, write_vocabularies
from recsys_ray.data.fit import fit
from recsys_ray.data.mds_datasink import SPLIT_COLUMN, MDSDatasink
from recsys_ray.data.parquet_files import fingerprint
from recsys_ray.data.profile import PerRow, Profile, profile_rows
from recsys_ray.data.sources import ROW_HASH, Source, open_source
from recsys_ray.data.splits import SPLITS, RowRules, check_split, time_boundaries
from recsys_ray.data.stages import clear_errors, run_stage
from recsys_ray.data.transform import NOT_BINARY, Vocabularies, transform
from recsys_ray.datasets import movielens
from recsys_ray.schema import Schema


def prepare(config: PrepareConfig) -> DatasetDirectory:
    """Writes `config.out`, or returns it as it is when it was prepared from the same inputs with the same settings.

    Raises ValueError or FileNotFoundError, naming file, column or flag, for input that cannot be prepared; FileExistsError
    where `out` holds something else. Whatever goes wrong, `out` is left as it was.
    """
    out = _checked_out(config)
    schema = Schema.load(config.schema or schema_beside(config.parquet))
    source = open_source(config)
    check_columns(schema, source.arrow_schema, config.parquet)
    check_split(config.split, schema.timestamp is not None, source.arrow_schema, config.parquet)
    if not source.interactions.rows:
        raise ValueError(f"no rows: the Parquet at {config.parquet} has columns but is empty")
    print_of_inputs = fingerprint(source.files, schema.to_json(), _settings(config))
    if (existing := _existing(out, print_of_inputs, config.overwrite)) is not None:
        print(f"{out} is up to date with its inputs ({print_of_inputs}): nothing to do")
        return existing
    with staged(out) as staging, clear_errors(out, source):
        _write_dataset(staging, config, schema, source, print_of_inputs)
    return DatasetDirectory.open(out)


def _checked_out(config: PrepareConfig) -> Path:
    """Raises ValueError for paths that are missing or that would make the output an input of the next run."""
    if not config.parquet or not config.out:
        raise ValueError("wants --parquet, what to read, and --out, the dataset directory to write")
    if "://" in config.out:
        raise ValueError(f"--out {config.out} is a URL: wants a folder on a file system that all workers share (a mount)")
    out = Path(config.out).absolute()
    if Path(config.parquet).is_dir() and out.resolve().is_relative_to(Path(config.parquet).resolve()):
        raise ValueError(f"--out {config.out} lies within --parquet {config.parquet}, which is read whole: put it elsewhere")
    return out


def dataset_for(data: DataConfig, run_dir: str) -> str:
    """The dataset directory to train on: `data.path`, or one prepared in the run directory from raw Parquet or MovieLens 1M."""
    if data.path:
        return str(DatasetDirectory.open(data.path).root)
    out = str(Path(run_dir) / "dataset")
    if data.parquet:
        return str(prepare(PrepareConfig(parquet=data.parquet, schema=data.schema, out=out)).root)
    raw = movielens.fetch(Path(run_dir) / "movielens-1m")
    interactions, users, items = (str(raw / f"{table}.parquet") for table in ("interactions", "users", "items"))
    return str(prepare(PrepareConfig(parquet=interactions, users=users, items=items, out=out)).root)


def schema_beside(parquet: str) -> str:
    """The schema.json in the same folder as the Parquet. Raises FileNotFoundError with the remedy."""
    folder = Path(parquet) if Path(parquet).is_dir() else Path(parquet).parent
    for place in (folder, folder.parent):
        if (place / "schema.json").exists():
            return str(place / "schema.json")
    raise FileNotFoundError(
        f"no schema.json beside {parquet}: name one with --schema, or write a first one with --infer-schema FILE"
    )


def _settings(config: PrepareConfig) -> str:
    """What, beside the files, decides the result; files are told apart by `fingerprint`, however their path is written."""
    kept = {field.name: getattr(config, field.name) for field in dataclasses.fields(PrepareConfig)}
    kept |= {"parquet": "", "users": bool(config.users), "items": bool(config.items), "out": "", "schema": "", "overwrite": False}
    return json.dumps(kept | {"split": dataclasses.asdict(config.split)}, sort_keys=True)


def _existing(out: Path, print_of_inputs: str, overwrite: bool) -> DatasetDirectory | None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        dataset = DatasetDirectory.open(out)
        found = dataset.summary["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"{out} exists and is not a dataset directory, so it is left alone: choose another --out"
        ) from error
    if found == print_of_inputs:
        return dataset
    if not overwrite:
        raise FileExistsError(f"{out} was prepared from other inputs or settings: pass --overwrite to replace it")
    return None


def _write_dataset(staging: Path, config: PrepareConfig, schema: Schema, source: Source, print_of_inputs: str) -> None:
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    names = [column.name for column in schema.columns]
    names += [config.split.column] if config.split.by == "column" and config.split.column not in names else []
    rules = RowRules(schema, config.split, config.seed)
    profile = run_stage("reading", lambda: profile_rows(source.read(names), schema, rules.faults))
    _check_enough(profile, config)
    if config.split.by == "time":
        rules = dataclasses.replace(rules, boundaries=time_boundaries(config.split, profile.timestamps))
    fitted, vocabularies = run_stage("fitting", lambda: fit(source.read(names), schema, rules.faults, rules.splits))
    datasink = MDSDatasink(staging, mds_columns(fitted), config.block_rows)
    run_stage("writing", lambda: _write_blocks(source, names, rules, fitted, vocabularies, datasink))
    _check_complete(profile, datasink)
    if profile.reasons:
        run_stage("setting bad rows aside", lambda: _write_rejected(source, rules.faults, staging / "rejected"))
    (staging / "schema.json").write_text(fitted.to_json())
    write_vocabularies(staging, vocabularies)
    summary = _summary(profile, fitted, datasink.rows, config, print_of_inputs)
    (staging / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")


def _write_blocks(
    source: Source, names: list[str], rules: RowRules, fitted: Schema, vocabularies: Vocabularies, datasink: MDSDatasink
) -> None:
    known = ray.put(vocabularies)

    def encode(batch: pa.Table) -> pa.Table:
        batch = batch.filter(pa.array(rules.faults(batch) == None))  # noqa: E711
        encoded = transform(batch, fitted, ray.get(known))
        return encoded.append_column(SPLIT_COLUMN, pa.array(rules.splits(batch), pa.uint8()))

    rows = source.read(names).map_batches(encode, batch_format="pyarrow", batch_size=None)
    rows.random_shuffle(seed=rules.seed).write_datasink(datasink)


def _write_rejected(source: Source, faults: PerRow, folder: Path) -> None:
    def keep_bad(batch: pa.Table) -> pa.Table:
        reasons = faults(batch)
        bad = reasons != None  # noqa: E711
        kept = batch.filter(pa.array(bad)).drop_columns([ROW_HASH])
        return kept.append_column("reason", pa.array(reasons[bad].tolist(), pa.string()))

    rows = source.read(source.arrow_schema.names).map_batches(keep_bad, batch_format="pyarrow", batch_size=None)
    rows.write_parquet(str(folder))


def _check_enough(profile: Profile, config: PrepareConfig) -> None:
    rejected = sum(profile.reasons.values())
    worst = "; ".join(f"{reason} ({count:,} rows)" for reason, count in profile.reasons.most_common(5))
    hint = ' ("positive_above" makes a label of any number)' if NOT_BINARY in worst else ""
    remedy = f"{worst}. Correct the data or the schema{hint}"
    if profile.rows == rejected:
        raise ValueError(f"no rows to keep: all {profile.rows:,} rows of {config.parquet} are bad: {remedy}")
    if rejected > config.max_rejected * profile.rows:
        raise ValueError(
            f"{rejected:,} of {profile.rows:,} rows of {config.parquet} are bad, more than --max-rejected {config.max_rejected}: "
            f"{remedy}, or raise the limit to set them aside"
        )


def _check_complete(profile: Profile, datasink: MDSDatasink) -> None:
    kept = profile.rows - sum(profile.reasons.values())
    if sum(datasink.rows.values()) != kept:
        raise RuntimeError(f"wrote {datasink.rows}, but {kept:,} rows were to be kept: the source changed during preparation")
    if not datasink.rows["train"]:
        raise ValueError(f"no training rows: the split left {datasink.rows}. Choose other fractions or another split")


def _summary(
    profile: Profile, schema: Schema, rows: dict[str, int], config: PrepareConfig, print_of_inputs: str
) -> dict[str, Any]:
    counts = {column.name: {"missing_rate": profile.missing[column.name] / profile.rows} for column in schema.columns}
    for column in schema.categorical:
        counts[column.name]["cardinality"] = profile.cardinality(column.name)
    return {
        "rows_in": profile.rows,
        "rows": {split: rows[split] for split in SPLITS},
        "rejected": sum(profile.reasons.values()),
        "rejected_reasons": dict(profile.reasons.most_common()),
        "columns": counts,
        "block_rows": config.block_rows,
        "fingerprint": print_of_inputs,
    }
