"""An output folder of Parquet files as a Delta table, which Databricks and Spark read as such."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from recsys_ray.command_line import JobError


def check_delta_installed() -> None:
    """Raises ValueError where the package that writes Delta tables is not installed."""
    if find_spec("deltalake") is None:
        raise ValueError("--format delta needs deltalake: pip install 'recsys-ray[delta]'")


def make_delta_table(folder: Path) -> None:
    """Adds the log that makes a Delta table of one version of the folder's files, unless it is there. No file is written again.

    Raises JobError for columns of a type that Delta does not have.
    """
    # Not at the top: the job works without it.
    from deltalake import DeltaTable, convert_to_deltalake

    if DeltaTable.is_deltatable(str(folder)):
        return
    try:
        convert_to_deltalake(folder)
    except Exception as error:  # deltalake's own have no common base
        why = str(error).partition("\n")[0]
        raise JobError(f"{folder} cannot become a Delta table ({why}): run again with --format parquet: all is done") from error
