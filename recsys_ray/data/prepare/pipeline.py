"""The preparation pipeline from Parquet or a Spark table to a dataset directory, run by jobs/prepare_data.py.

`prepare` opens the inputs, checks them against the schema, and returns at once when the output is up to date with them. Otherwise
it runs the stages of `stages.py`, which run the passes of `passes.py` on Ray Data or Spark. `dataset_for` prepares the data of a
training job.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from recsys_ray.config import DataConfig, PrepareConfig
from recsys_ray.data.dataset.atomic_folder import replaced_atomically
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.engines.base import Engine, open_engine
from recsys_ray.data.prepare.catalogue import check_item_key
from recsys_ray.data.prepare.growth import EarlierDataset
from recsys_ray.data.prepare.passes import Passes
from recsys_ray.data.prepare.splits import RowRules, check_split
from recsys_ray.data.prepare.stages import explained_io_errors, write_dataset
from recsys_ray.data.sources.column_types import check_columns
from recsys_ray.data.sources.source import TABLE_PREFIX, Source, input_fingerprint, open_source
from recsys_ray.schema import Schema


def prepare(config: PrepareConfig, engine: AbstractContextManager[Engine] | None = None) -> DatasetDirectory:
    """Writes the dataset directory `config.out`, or returns it as it is when its inputs and settings are unchanged.

    Runs on `engine` when given, else on the engine that `config.engine` names.
    Raises ValueError or FileNotFoundError, naming file, column or flag, for input that cannot be prepared; FileExistsError when
    `out` holds something else. After any error `out` is as it was before.
    """
    out = _checked_out(config)
    schema = Schema.load(config.schema or schema_beside(config.parquet))
    earlier = EarlierDataset.open(config.grow_from, schema) if config.grow_from else EarlierDataset()
    with engine or open_engine(config.engine) as opened:
        source = open_source(config, opened.open_table)
        _check_input(source, schema, config)
        fingerprint = input_fingerprint(source, schema.to_json(), _settings(config, earlier))
        if (existing := _existing(out, fingerprint, config.overwrite)) is not None:
            print(f"{out} is up to date with its inputs ({fingerprint}): nothing to do")
            return existing
        passes = Passes(opened, source, RowRules(schema, config.split, config.seed))
        with replaced_atomically(out) as folder, explained_io_errors(out, source):
            write_dataset(folder, config, passes, earlier=earlier, fingerprint=fingerprint)
    return DatasetDirectory.open(out)


def dataset_for(data: DataConfig, out: str, engine: Literal["ray", "spark"]) -> Path:
    """Returns the dataset directory to train on: `data.path`, or `out`, prepared from `data.parquet` unless it is up to date.

    Raises ValueError when `data` names neither, FileNotFoundError when `data.path` is not a dataset directory, and what
    `prepare` raises.
    """
    if data.path:
        return DatasetDirectory.open(data.path).root
    if not data.parquet:
        raise ValueError("no data to train on: pass --data.path, a dataset directory, or --data.parquet, raw Parquet to prepare")
    return prepare(PrepareConfig(engine, data.parquet, schema=data.schema, out=out, split=data.split)).root


def schema_beside(parquet: str) -> str:
    """Returns the path of the schema.json in the folder of the Parquet. Raises FileNotFoundError with the remedy."""
    folder = Path(parquet) if Path(parquet).is_dir() else Path(parquet).parent
    for place in () if parquet.startswith(TABLE_PREFIX) else (folder, folder.parent):
        if (place / "schema.json").exists():
            return str(place / "schema.json")
    raise FileNotFoundError(
        f"no schema.json beside {parquet}: name one with --schema, or write a first one with --infer-schema FILE"
    )


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


def _check_input(source: Source, schema: Schema, config: PrepareConfig) -> None:
    """Raises ValueError when the tables do not fit the schema or the split, or hold no rows; reads no rows of Parquet."""
    check_columns(schema.columns, source.arrow_schema, config.parquet)
    check_split(config.split, schema, source.arrow_schema, config.parquet)
    check_item_key(source, schema)
    if not source.interactions.rows:
        raise ValueError(f"no rows: {config.parquet} has columns but is empty")


def _settings(config: PrepareConfig, earlier: EarlierDataset) -> str:
    """Returns the settings that decide the result, as JSON for the fingerprint.

    The engine does not decide it, and `input_fingerprint` covers the files. Datasets that were prepared before must stay up to
    date, so the text must not change for settings that existed then: without an earlier dataset it has no `grow_from`.
    """
    names = [field.name for field in dataclasses.fields(PrepareConfig) if field.name != "engine"]
    kept = {name: getattr(config, name) for name in names}
    kept |= {"parquet": "", "users": bool(config.users), "items": bool(config.items), "out": "", "schema": "", "overwrite": False}
    kept |= {"grow_from": earlier.stamp} if kept.pop("grow_from") else {}
    return json.dumps(kept | {"split": dataclasses.asdict(config.split)}, sort_keys=True)


def _existing(out: Path, fingerprint: str, overwrite: bool) -> DatasetDirectory | None:
    """Returns the dataset in `out` when it has this fingerprint, None when `out` is to be written.

    Raises FileExistsError when `out` holds something else, unless it is a dataset to overwrite.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        dataset = DatasetDirectory.open(out)
        found = dataset.summary["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"{out} exists and is not a dataset directory, so it is left alone: choose another --out"
        ) from error
    if found == fingerprint:
        return dataset
    if not overwrite:
        raise FileExistsError(f"{out} was prepared from other inputs or settings: pass --overwrite to replace it")
    return None
