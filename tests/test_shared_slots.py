"""Loader processes that write batches into shared slots: what is read is what was written, whatever its size."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from recsys_ray.columns import Columns
from recsys_ray.compat import torch_compat
from recsys_ray.data.loading.packed_columns import PackedColumns
from recsys_ray.data.loading.shared_slots import PREFETCHED, SLOTS, BatchPlace, SharedSlots

BATCHES, SLOT_BYTES = 40, 4096
LARGE = 7
"""The number of a batch that does not fit into a slot."""


class Batches(Dataset):
    """Batches of several types, whose sizes change from one to the next."""

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, number: int) -> Columns:
        rows = 2000 if number == LARGE else 10 + number
        ids = torch.arange(rows, dtype=torch.int32)
        return {"label": ids * 0.5 + number, "user": ids + number, "time": ids.long() << 33, "item": ids * number}


def put_first(slots: SharedSlots, batches: list[Columns]) -> BatchPlace | PackedColumns:
    return slots.put(batches[0])


@pytest.mark.parametrize("loaders", [1, 2])
def test_what_is_read_is_what_was_written(loaders: int) -> None:
    slots, expected = SharedSlots.allocate(loaders, SLOT_BYTES), Batches()
    loader: DataLoader = DataLoader(
        expected,
        batch_size=1,
        num_workers=loaders,
        collate_fn=partial(put_first, slots),
        prefetch_factor=PREFETCHED,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    for _ in range(2):
        kept: list[PackedColumns] = []
        for number, found in enumerate(loader):
            assert isinstance(found, PackedColumns if number == LARGE else BatchPlace)
            kept = [*kept[-1:], found if isinstance(found, PackedColumns) else slots.get(found)]
            time.sleep(0.005)  # for loader processes to run ahead as far as they can
            for before, packed in enumerate(reversed(kept)):
                for name, values in packed.columns().items():
                    np.testing.assert_array_equal(values, expected[number - before][name], err_msg=f"{name} of {number - before}")
    assert number == BATCHES - 1 and slots.memory.shape[:2] == (loaders, SLOTS)


@pytest.mark.unit
def test_slots_of_a_gpu_are_page_locked_while_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: set[int] = set()
    monkeypatch.setattr(torch_compat, "pin_memory", lambda address, size: locked.add(address))
    monkeypatch.setattr(torch_compat, "unpin_memory", locked.remove)
    slots = SharedSlots.allocate(1, SLOT_BYTES)
    for _ in range(2):
        slots.page_lock()
    assert locked == {slots.memory.data_ptr()}
    del slots
    assert not locked
