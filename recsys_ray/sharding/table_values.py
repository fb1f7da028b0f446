"""First values of embedding tables: a hash of seed, table, row and column, so any shard draws its own part on its own device.

The generator is counter-based, like those of Salmon et al. (2011, "Parallel random numbers: as easy as 1, 2, 3"): it has no
state, and numbers may be drawn in any order. The hash is Wellons' lowbias32 (https://nullprogram.com/blog/2018/07/31/) with a
second key added between its rounds: with one key alone, every table would be a reordering of any other. All operations are on
int32, which wraps alike on CPU and GPU, but for one exact conversion to float32 and one multiplication: the values are the same
bit by bit.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

import torch

ROWS_OF_A_KEY = 1 << 16
"""Rows that share their keys. The counter of a number has 16 bits for its row and 16 for its column."""
NUMBERS_AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 23}
"""How many numbers are drawn at once. On a CPU they fit its cache, and torch gives so few to one thread: with a barrier of all
threads after every operation, a busy machine takes four times as long. On a GPU they take longer than launching the kernels."""
MULTIPLIERS = 0x7FEB352D, 0x846CA68B - (1 << 32)
"""Those of lowbias32, as int32."""
KEPT_BITS = 24
"""An integer of so many bits converts to float32 exactly."""


class Keys(NamedTuple):
    """The keys of ROWS_OF_A_KEY rows: `counter` is combined with each number's counter, `middle` is added between the rounds."""

    counter: int
    middle: int


def fill_uniform(part: torch.Tensor, offsets: tuple[int, int], *, stream: str, limit: float) -> None:
    """Fills a part of a table, in place, with float32 values that are uniform in [-limit, limit).

    Args:
        part: rows x columns, on any device.
        offsets: the part's first row and first column in the whole table, which has at most 65,536 columns.
        stream: names the table's random numbers, such as its seed and name.
    """
    (first, left), (count, width) = offsets, part.shape
    step = _rows_at_once(width, part.device.type)
    counters = _counters(step, left, part)
    drawn, shifted = torch.empty_like(counters), torch.empty_like(counters)
    for start in range(first // step * step, first + count, step):
        low, high = max(start, first), min(start + step, first + count)
        keys = _keys(f"{stream} {start // ROWS_OF_A_KEY}")
        block = drawn[: high - low]
        # `step` divides `start`, so a row's counter is that of its place in the block xor `start`'s; and so are their mixtures.
        torch.bitwise_xor(counters[low - start : high - start], _mixed(keys.counter ^ start % ROWS_OF_A_KEY << 16), out=block)
        _hash(block, keys.middle, shifted[: high - low])
        integers = block.bitwise_right_shift_(32 - KEPT_BITS)
        torch.mul(integers.float(), _float32(limit) / (1 << KEPT_BITS - 1), out=part[low - first : high - first])


def _rows_at_once(width: int, device: str) -> int:
    """Returns how many rows are drawn at once, a power of two that divides ROWS_OF_A_KEY."""
    most = NUMBERS_AT_ONCE[device] // max(width, 1)
    return min(ROWS_OF_A_KEY, 1 << max(most, 1).bit_length() - 1)


def _counters(rows: int, left: int, part: torch.Tensor) -> torch.Tensor:
    """Returns the counters of the first `rows` rows and the part's columns, after the first xor and shift of the hash."""
    row = torch.arange(rows, dtype=torch.int32, device=part.device)[:, None]
    column = torch.arange(left, left + part.shape[1], dtype=torch.int32, device=part.device)
    # The upper half of row << 16 | column is the row, which the shift brings down to the column.
    return row << 16 | column ^ row


def _keys(stream: str) -> Keys:
    return Keys(*struct.unpack("<Ii", hashlib.blake2b(stream.encode(), digest_size=8).digest()))


def _mixed(counter: int) -> int:
    """Applies the first xor and shift of the hash to an unsigned number of 32 bits; returns it as int32."""
    mixed = counter ^ counter >> 16
    return mixed - (1 << 32) if mixed >> 31 else mixed


def _hash(numbers: torch.Tensor, key: int, scratch: torch.Tensor) -> None:
    """Applies the rest of the hash, in place."""
    first, second = MULTIPLIERS
    torch.add(torch.tensor(key, dtype=torch.int32, device=numbers.device), numbers, alpha=first, out=numbers)
    _xor_shifted(numbers, 15, scratch)
    numbers.mul_(second)
    _xor_shifted(numbers, 16, scratch)


def _xor_shifted(numbers: torch.Tensor, bits: int, scratch: torch.Tensor) -> None:
    """Applies `numbers ^= numbers >> bits` as if they were unsigned: int32 shifts copies of the sign in, which a mask clears."""
    torch.bitwise_right_shift(numbers, bits, out=scratch)
    numbers.bitwise_xor_(scratch.bitwise_and_((1 << 32 - bits) - 1))


def _float32(number: float) -> float:
    """Rounds to float32, so that the factor is the same whether a device takes it as float32 or float64."""
    return torch.tensor(number, dtype=torch.float32).item()
