"""First values of embedding tables: the same for every cut, equal to the published hash, and uniform without correlation."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from recsys_ray.sharding import table_values
from recsys_ray.sharding.table_values import ROWS_OF_A_KEY, fill_uniform

pytestmark = pytest.mark.unit


def drawn(rows: int, dim: int, *, first: int = 0, left: int = 0, stream: str = "1 items", limit: float = 1.0) -> torch.Tensor:
    part = torch.full((rows, dim), math.nan)
    fill_uniform(part, (first, left), stream=stream, limit=limit)
    return part


def value(row: int, column: int, stream: str, limit: float) -> float:
    """One value by Python's integers."""
    digest = hashlib.blake2b(f"{stream} {row >> 16}".encode(), digest_size=8).digest()
    x = (row % 65536 << 16 | column) ^ int.from_bytes(digest[:4], "little")
    x = (x ^ x >> 16) * 0x7FEB352D + int.from_bytes(digest[4:], "little") & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    x = (x ^ x >> 16) >> 8
    return float(torch.tensor(x - (1 << 24) * (x >> 23), dtype=torch.float32) * torch.tensor(limit / (1 << 23)))


@pytest.mark.parametrize("at_once", [64, 1 << 16])
def test_values_are_those_of_the_hash(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(table_values, "NUMBERS_AT_ONCE", {"cpu": at_once})
    first, left = ROWS_OF_A_KEY - 40, 3
    part = drawn(100, 5, first=first, left=left, limit=0.3)
    expected = [[value(first + row, left + column, "1 items", 0.3) for column in range(5)] for row in range(100)]
    assert torch.equal(part, torch.tensor(expected))


def test_parts_of_a_table_have_the_values_of_the_whole() -> None:
    rows, dim = ROWS_OF_A_KEY + 5000, 12
    whole = drawn(rows, dim)
    assert whole.isfinite().all()
    for first, count, left, width in (
        (0, 1, 0, dim),
        (777, 66_000, 4, 3),
        (rows - 1, 1, 11, 1),
        (ROWS_OF_A_KEY, 5000, 8, 4),
        (9, 0, 0, 4),
    ):
        part = drawn(count, width, first=first, left=left)
        assert torch.equal(part, whole[first : first + count, left : left + width])


def test_part_that_is_not_contiguous_is_filled_too() -> None:
    wide = torch.zeros(1000, 32)
    fill_uniform(wide[:, 8:24], (5, 0), stream="1 items", limit=1.0)
    assert torch.equal(wide[:, 8:24], drawn(1000, 16, first=5)) and not wide[:, :8].any() and not wide[:, 24:].any()


def test_values_are_uniform() -> None:
    values = drawn(1 << 17, 64, limit=0.5).double().flatten() * 2
    count = values.numel()
    assert -1 <= values.min() < -0.9999 and 0.9999 < values.max() < 1
    assert abs(values.mean()) < 4 / math.sqrt(3 * count)
    assert abs(values.square().mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / count)
    # The upper and the lower bits of the 24: 4,096 bins each. Chi-square has mean 4,095 and standard deviation 90.5.
    integers = (values * (1 << 23)).long() + (1 << 23)
    for bins in (integers >> 12, integers & 4095):
        observed = torch.bincount(bins, minlength=4096).double()
        assert abs(float((observed - count / 4096).square().sum() / (count / 4096)) - 4095) < 5 * 90.5


def test_neighbours_are_not_correlated() -> None:
    rows, dim = 1 << 16, 64
    table, far = drawn(rows + 1, dim, stream="1 items"), drawn(rows, dim, first=1 << 26)
    pairs = {f"rows {lag}": (table[:-lag], table[lag:]) for lag in (1, 2, 256)}
    pairs |= {f"columns {lag}": (table[:, :-lag], table[:, lag:]) for lag in (1, 2, 32)}
    pairs |= {name: (table[:rows], drawn(rows, dim, stream=name)) for name in ("2 items", "1 items2", "1 users")}
    pairs |= {"far rows": (table[:rows], far), "one key later": (table[:rows], drawn(rows, dim, first=ROWS_OF_A_KEY))}
    for name, (one, other) in pairs.items():
        # Of independent values the product has mean 0 and variance 1/9, and so have the squares' deviations 16/2025.
        for power, deviation in ((1, 1 / 3), (2, 4 / 45)):
            mean = 0 if power == 1 else 1 / 3
            product = (one.double() ** power - mean) * (other.double() ** power - mean)
            assert abs(product.mean()) < 5 * deviation / math.sqrt(product.numel()), name


def test_rows_do_not_repeat_beyond_4_billion_numbers() -> None:
    starts = [0, 1 << 20, (1 << 32) // 128, (1 << 32) // 128 * 7, 1 << 32, 1 << 40]
    rows = torch.cat([drawn(4096, 4, first=start) for start in starts])
    assert len(torch.unique(rows, dim=0)) == len(rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_draws_what_the_cpu_draws() -> None:
    part = torch.empty(ROWS_OF_A_KEY * 3, 96, device="cuda")
    fill_uniform(part, (1000, 32), stream="1 items", limit=0.017)
    assert torch.equal(part.cpu(), drawn(ROWS_OF_A_KEY * 3, 96, first=1000, left=32, limit=0.017))
