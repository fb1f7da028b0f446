"""The preparation pipeline: Parquet or a Spark table -> dataset directory, on Ray Data or Spark. Run it by jobs/prepare_data.py.

Passes over the rows: profile (faults, missing rates, cardinalities), fit (means and vocabularies, only where the schema wants
them), write (transform, shuffle globally, pack into row blocks), and, only where rows were bad, one that sets them aside.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from recsys_ray.columns import SPLITS
from recsys_ray.config import DataConfig, PrepareConfig
from recsys_ray.data.blocks.layout import mds_columns
from recsys_ray.data.blocks.parts import PartWriter, rows_per_part
from recsys_ray.data.dataset.directory import SUMMARY, DatasetDirectory, staged
from recsys_ray.data.dataset.tables import write_catalogue, write_vocabularies
from recsys_ray.data.engines.base import Engine, open_engine
from recsys_ray.data.prepare.catalogue import absence, check_item_key, item_table, with_frequencies
from recsys_ray.data.prepare.passes import Passes
from recsys_ray.data.prepare.profile import Profile
from recsys_ray.data.prepare.splits import RowRules, check_split, time_boundaries
from recsys_ray.data.prepare.stages import check_complete, check_enough, clear_errors, run_stage
from recsys_ray.data.prepare.statistics import NOTHING, Earlier, Fitted
from recsys_ray.data.sources.column_types import check_columns
from recsys_ray.data.sources.source import TABLE, fingerprint, open_source
from recsys_ray.schema import Schema


def prepare(config: PrepareConfig, opened: AbstractContextManager[Engine] | None = None) -> DatasetDirectory:
    """Writes `config.out`, or returns it as it is when it was prepared from the same inputs with the same settings.

    Runs on the engine that `config.engine` names, or on `opened` where that is given.
    Raises ValueError or FileNotFoundError, naming file, column or flag, for input that cannot be prepared; FileExistsError
    where `out` holds something else. Whatever goes wrong, `out` is left as it was.
    """
    out = _checked_out(config)
    schema = Schema.load(config.schema or schema_beside(config.parquet))
    earlier = Earlier.open(config.grow_from, schema) if config.grow_from else NOTHING
    with opened or open_engine(config.engine) as engine:
        source = open_source(config, engine.open_table)
        check_columns(schema, source.arrow_schema, config.parquet)
        check_split(config.split, schema, source.arrow_schema, config.parquet)
        check_item_key(source, schema)
        if not source.interactions.rows:
            raise ValueError(f"no rows: {config.parquet} has columns but is empty")
        print_of_inputs = fingerprint(source, schema.to_json(), _settings(config, earlier))
        if (existing := _existing(out, print_of_inputs, config.overwrite)) is not None:
            print(f"{out} is up to date with its inputs ({print_of_inputs}): nothing to do")
            return existing
        with staged(out) as staging, clear_errors(out, source):
            passes = Passes(engine, source, RowRules(schema, config.split, config.seed))
            _write_dataset(staging, config, passes, earlier, print_of_inputs)
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
    """The schema.json in the same folder as the Parquet. Raises FileNotFoundError with the remedy."""
    folder = Path(parquet) if Path(parquet).is_dir() else Path(parquet).parent
    for place in () if parquet.startswith(TABLE) else (folder, folder.parent):
        if (place / "schema.json").exists():
            return str(place / "schema.json")
    raise FileNotFoundError(
        f"no schema.json beside {parquet}: name one with --schema, or write a first one with --infer-schema FILE"
    )


def _settings(config: PrepareConfig, earlier: Earlier) -> str:
    """What, beside the files and whatever the engine, decides the result; `fingerprint` tells files apart."""
    names = [field.name for field in dataclasses.fields(PrepareConfig) if field.name != "engine"]
    kept = {name: getattr(config, name) for name in names}
    kept |= {"parquet": "", "users": bool(config.users), "items": bool(config.items), "out": "", "schema": "", "overwrite": False}
    # Where there is nothing to grow from, as it was before there was that setting: those datasets are still up to date.
    kept |= {"grow_from": earlier.stamp} if kept.pop("grow_from") else {}
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


def _write_dataset(staging: Path, config: PrepareConfig, passes: Passes, earlier: Earlier, print_of_inputs: str) -> None:
    profile = run_stage("reading", passes.profile)
    check_enough(profile, config)
    if config.split.by == "time":
        boundaries = time_boundaries(config.split, profile.timestamps)
        passes = dataclasses.replace(passes, rules=dataclasses.replace(passes.rules, boundaries=boundaries))
    if config.split.by == "leave_one_out":
        held_out = passes.engine.share(run_stage("splitting", passes.held_out))
        passes = dataclasses.replace(passes, rules=dataclasses.replace(passes.rules, held_out=held_out))
    fitted = run_stage("fitting", lambda: passes.fit(earlier))
    growth = {"grew_from": _growth(earlier, fitted, passes.rules.schema)} if config.grow_from else {}
    writer = PartWriter(staging, mds_columns(fitted.schema), config.block_rows, rows_per_part(profile.rows, profile.bytes))
    written = run_stage("writing", lambda: passes.write_blocks(fitted, writer))
    check_complete(profile, written)
    if profile.reasons:
        run_stage("setting bad rows aside", lambda: passes.set_bad_rows_aside(staging / "rejected"))
    (staging / "schema.json").write_text(fitted.schema.to_json())
    write_vocabularies(staging, fitted.vocabularies)
    _write_items(staging, config, passes, fitted)
    summary = _summary(profile, fitted.schema, written.rows, config, print_of_inputs)
    (staging / SUMMARY).write_text(json.dumps(summary | growth, indent=2) + "\n")


def _write_items(staging: Path, config: PrepareConfig, passes: Passes, fitted: Fitted) -> None:
    """The catalogue, where the schema tells items apart."""
    if (key := fitted.schema.key("item")) is None:
        return
    items = item_table(passes.source, key)
    if items is None:
        items = run_stage("listing items", lambda: passes.items(key))
    items, absent = with_frequencies(items, key, fitted.item_frequencies)
    if absent:
        print(f"prepare: {absence(absent, key, config.items)}", flush=True)
    write_catalogue(staging, items)


def _growth(earlier: Earlier, fitted: Fitted, wanted: Schema) -> dict[str, Any]:
    """For the summary. Printed too, with what only the schema as given, `wanted`, knows: which tables have no room to grow."""
    counts = {}
    for name, values in fitted.vocabularies.items():
        had, has, limit = len(earlier.vocabularies.get(name, ())), len(values), wanted.tables[name][0].num_embeddings
        full = f", all that num_embeddings {limit} leaves room for" if has + 1 == limit else ""
        print(f"prepare: table {name!r} had {had:,} values and has {has:,}{full}", flush=True)
        counts[name] = {"had": had, "has": has}
    return {"path": earlier.path, "fingerprint": earlier.fingerprint, "values": counts}


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
        "rejected_reasons": profile.worst_reasons,
        "columns": counts,
        "block_rows": config.block_rows,
        "fingerprint": print_of_inputs,
    }
