"""Criteo's display-advertising logs as Parquet: Kaggle's train.txt, or the day files of the terabyte set.

    python jobs/fetch_dataset.py criteo --files day_0.gz day_1.gz --out data/criteo

A line is a label, 13 counts and 26 hexadecimal ids, separated by tabs; all but the label may be blank. The logs have no users or
items, only impressions. This module converts files that you get from Criteo.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from recsys_ray.datasets.folder import build_once
from recsys_ray.schema import Categorical, Dense, Label, Schema

CRITEO_LICENCE = """Criteo's logs are Criteo's: they may be used for research and other non-commercial purposes, with attribution.
Read the terms that came with your copy."""

DENSE = [f"i{number}" for number in range(1, 14)]
CATEGORICAL = [f"c{number}" for number in range(1, 27)]
COLUMN_TYPES = {
    "label": pa.int8(),
    **dict.fromkeys(DENSE, pa.float64()),
    **dict.fromkeys(CATEGORICAL, pa.string()),
}
CSV_BLOCK_BYTES = 16 << 20
"""Text read at a time, which makes row groups of about 60 thousand rows."""
ROWS_PER_FILE = 2_000_000


def criteo_schema(dtype: Literal["int", "string"] = "string", num_embeddings: int = 1 << 18) -> Schema:
    """Returns the schema: the label, i1 to i13 as log1p, c1 to c26 hashed into tables of `num_embeddings` rows each.

    `dtype` is that of c1 to c26: string as `convert` writes them, int for copies with numbers instead.
    """
    dense = (Dense(name, scale="log1p") for name in DENSE)
    categorical = (Categorical(name, dtype=dtype, encoding="hash", num_embeddings=num_embeddings) for name in CATEGORICAL)
    return Schema((Label("label"), *dense, *categorical))


def convert(files: list[Path], out: Path, num_embeddings: int = 1 << 18) -> Path:
    """Writes `out/interactions/*.parquet`, in the order of the lines and of `files` (plain or .gz), and `out/schema.json`.

    Blanks become null. Memory use does not grow with the files. Returns at once when `out` was made from the same files.
    Raises FileNotFoundError for a missing file, ValueError naming a file whose lines are not Criteo's, and FileExistsError
    when `out` holds something else.
    """
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not a file: --files wants Criteo's text files, plain or .gz")

    def write(folder: Path) -> None:
        (folder / "interactions").mkdir()
        for number, file in enumerate(files):
            _write_parts(_batches(file), folder / "interactions", f"part-{number:03}")
        (folder / "schema.json").write_text(criteo_schema("string", num_embeddings).to_json())
        print(CRITEO_LICENCE, flush=True)

    sizes = [[file.name, file.stat().st_size] for file in files]
    return build_once(out, {"dataset": "Criteo", "files": sizes, "num_embeddings": num_embeddings}, write)


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    try:
        # Only without threads does Arrow count lines, so that its error names the wrong one.
        reader = pyarrow.csv.open_csv(
            file,
            pyarrow.csv.ReadOptions(column_names=list(COLUMN_TYPES), block_size=CSV_BLOCK_BYTES, use_threads=False),
            pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
            pyarrow.csv.ConvertOptions(column_types=COLUMN_TYPES, null_values=[""], strings_can_be_null=True),
        )
        yield from reader
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{file}: {error}\nA line must be a label, 13 numbers and 26 ids, separated by tabs: 40 columns. "
            "Kaggle's test.txt has 39, for want of a label, and cannot be used."
        ) from error


def _write_parts(batches: Iterator[pa.RecordBatch], folder: Path, prefix: str) -> None:
    writer, rows, part = None, 0, 0
    for batch in batches:
        if writer is None or rows >= ROWS_PER_FILE:
            if writer:
                writer.close()
            writer, rows, part = pq.ParquetWriter(folder / f"{prefix}-{part:05}.parquet", batch.schema), 0, part + 1
        writer.write_batch(batch)
        rows += len(batch)
    if writer:
        writer.close()
