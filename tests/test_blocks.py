"""Row blocks on disk: our writer's files are those of Mosaic Streaming's, and our reader's arrays too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.columns import LENGTHS, ROW_HASH, SPLIT_COLUMN
from recsys_ray.compat.streaming_compat import MDSWriter, Reader, Stream, StreamingDataset, StreamingWorld
from recsys_ray.data.blocks.collator import BlockCollator
from recsys_ray.data.blocks.layout import Block, id_type, mds_columns, split_block, widened
from recsys_ray.data.blocks.packing import pack_rows, to_block, unpack_rows
from recsys_ray.data.blocks.parts import PartWriter
from recsys_ray.data.blocks.reader import BlockReader
from recsys_ray.data.blocks.writer import BlockWriter
from recsys_ray.schema import Categorical, Dense, Label, Schema, Timestamp

pytestmark = pytest.mark.unit

SCHEMA = Schema(
    (
        Label("label"),
        Dense("age"),
        Timestamp("at"),
        Categorical("small", num_embeddings=256),
        Categorical("middle", num_embeddings=257),
        Categorical("large", num_embeddings=65537),
        Categorical("tags", num_embeddings=65536, multi=True),
    )
)
SINGLE = Schema(tuple(column for column in SCHEMA.columns if column.name != "tags"))
LISTS = Schema((SCHEMA.columns[-1],))


def rows(schema: Schema, count: int) -> pa.Table:
    """Returns rows as `transform` does, with the largest id of every table among them."""
    random = np.random.default_rng(count)
    columns: dict[str, pa.Array] = {}
    for column in schema.columns:
        match column:
            case Categorical(multi=True):
                lists = [random.integers(0, column.num_embeddings, random.integers(1, 400)) for _ in range(count)]
                columns[column.name] = pa.array(lists, pa.list_(pa.int32()))
            case Categorical():
                ids = random.integers(0, column.num_embeddings, count)
                ids[0] = column.num_embeddings - 1
                columns[column.name] = pa.array(ids, pa.int32())
            case Timestamp():
                columns[column.name] = pa.array(random.integers(0, 2**40, count), pa.int64())
            case _:
                columns[column.name] = pa.array(random.random(count), pa.float32())
    return pa.table(columns)


def encoded(table: pa.Table, schema: Schema, block_rows: int) -> list[Block]:
    columns = mds_columns(schema)
    return list(split_block(unpack_rows(pack_rows(table, columns), columns), block_rows))


def write(writer: type[MDSWriter], folder: Path, schema: Schema, blocks: list[Block]) -> Path:
    settings = {"columns": mds_columns(schema), "compression": "zstd:1", "hashes": ["xxh64"], "size_limit": 1 << 15}
    with writer(out=str(folder), **settings) as output:
        for block in blocks:
            output.write(block)
    return folder


def test_ids_are_as_narrow_as_their_table() -> None:
    found = {column.name: id_type(column) for column in SCHEMA.categorical}
    assert found == {"small": "uint8", "middle": "uint16", "large": "int32", "tags": "uint16"}


@pytest.mark.parametrize("schema", [SCHEMA, SINGLE, LISTS])
def test_no_rows_and_rows_in_pieces_are_packed_alike(schema: Schema) -> None:
    table, columns = rows(schema, 100), mds_columns(schema)
    pieces = pa.concat_tables([table.slice(0, 30), table.slice(30, 0), table.slice(30)])
    for part in (pieces, table.slice(0, 0), table.schema.empty_table()):
        found = widened(unpack_rows(pack_rows(part, columns), columns))
        expected = to_block(part)
        assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("schema", [SCHEMA, SINGLE, LISTS])
def test_packed_rows_keep_their_values_however_they_are_moved(schema: Schema) -> None:
    table, columns = rows(schema, 2500), mds_columns(schema)
    order = np.random.default_rng(0).permutation(2500)
    moved = pa.concat_tables([pack_rows(table, columns).slice(0, 1000), pack_rows(table, columns).slice(1000)]).take(order)
    found = widened(unpack_rows(moved.slice(10), columns))
    for name, values in to_block(table.take(order[10:])).items():
        assert np.array_equal(found.pop(name), values), name
    assert not found


@pytest.mark.parametrize("block_rows", [200, 256, 1000])
@pytest.mark.parametrize("schema", [SCHEMA, SINGLE])
def test_same_bytes_as_the_writer_of_mosaic_streaming(schema: Schema, block_rows: int, tmp_path: Path) -> None:
    blocks = encoded(rows(schema, 2500), schema, block_rows)
    theirs = write(MDSWriter, tmp_path / "theirs", schema, blocks)
    ours = write(BlockWriter, tmp_path / "ours", schema, blocks)
    files = sorted(path.name for path in theirs.iterdir())
    assert len(files) > 2 and files == sorted(path.name for path in ours.iterdir())
    for name in files:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.mark.parametrize("block_rows", [200, 256, 1000])
@pytest.mark.parametrize("schema", [SCHEMA, SINGLE])
def test_same_arrays_as_the_reader_of_mosaic_streaming(schema: Schema, block_rows: int, tmp_path: Path) -> None:
    """Compares batches of whole blocks, and the one with the short last block, which is padded."""
    table = rows(schema, 2500)
    folder = write(BlockWriter, tmp_path / "blocks", schema, encoded(table, schema, block_rows))
    plain = StreamingDataset(local=str(folder), batch_size=1)
    decoded = [widened(plain[number]) for number in range(len(plain))]
    readers = open_readers(folder)
    raw = [reader.get_item(number) for reader in readers for number in range(reader.samples)]
    together = BlockCollator.of(readers[0], block_rows)
    for first in range(0, len(raw), 2):
        columns, counts = together(raw[first : first + 2])
        expected = decoded[first : first + 2]
        assert counts.tolist() == [len(block["label"]) for block in expected]
        for name, values in columns.items():
            multi = name + LENGTHS in columns
            parts = [block[name] if multi else np.pad(block[name], (0, block_rows - len(block["label"]))) for block in expected]
            assert values.dtype == parts[0].dtype
            assert np.array_equal(values, np.concatenate(parts)), name


def open_readers(folder: Path) -> list[BlockReader]:
    stream = Stream(local=str(folder), download_retry=1)
    stream.apply_default({"split": "", "download_timeout": 60.0, "keep_zip": False, "validate_hash": None})
    shards: list[Reader] = stream.get_shards(StreamingWorld(1, 1, 1, 0), allow_unsafe_types=False)
    assert len(shards) == len(json.loads((folder / "index.json").read_text())["shards"]) > 1
    return [BlockReader.of(shard) for shard in shards]


def test_the_index_of_all_parts_is_that_of_mosaic_streaming_and_takes_no_path_for_a_url(tmp_path: Path) -> None:
    from streaming.base.util import merge_index

    table = pack_rows(rows(SINGLE, 80), mds_columns(SINGLE))
    table = table.append_column(SPLIT_COLUMN, pa.array(np.zeros(80, np.uint8)))
    table = table.append_column(ROW_HASH, pa.array(np.arange(80, dtype=np.uint64)))
    for name in ("plain", "x#1?y [2]"):
        (tmp_path / name).mkdir()
        writer = PartWriter(tmp_path / name, mds_columns(SINGLE), block_rows=8, part_rows=50)
        writer.start()
        written = [writer.write(part, number) for number, part in enumerate((table.slice(0, 50), table.slice(50)))]
        assert writer.commit(written).rows["train"] == 80
        train = tmp_path / name / "train"
        index = json.loads((train / "index.json").read_text())
        assert len(index["shards"]) == 3 and all((train / shard["zip_data"]["basename"]).exists() for shard in index["shards"])
    train = tmp_path / "plain" / "train"
    ours = json.loads((train / "index.json").read_text())
    (train / "index.json").unlink()
    merge_index([str(folder / "index.json") for folder in sorted(train.glob("part-*"), key=order_of(ours))], str(train))
    assert json.loads((train / "index.json").read_text()) == ours


def order_of(index: dict[str, Any]) -> Callable[[Path], int]:
    """Returns the place of a part's folder in an index."""
    folders = [shard["zip_data"]["basename"].partition("/")[0] for shard in index["shards"]]
    return lambda folder: folders.index(folder.name)
