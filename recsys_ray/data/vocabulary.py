"""The look-up from a raw value to its row in an embedding table, built once for a vocabulary and used for every batch or request.

It is a sorted array and not a hash table: ten million values take 120 MB, and numpy shares it between processes without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Vocabularies = dict[str, pa.Array]
"""The vocabulary of each embedding table by name; value i selects table row i + 1. The values of the dataset it grew from come
first, then new values, most frequent first."""
HASHED_AT_ONCE = 1 << 20
FEW = 256
"""Strings that are hashed faster one by one than through a dictionary of the distinct ones."""


@dataclass(frozen=True)
class ValueLookup:
    """A vocabulary with its values in order of their keys: an integer is its own key, and a string's key is its hash."""

    values: pa.Array
    """int64 or string, in the order of their table rows."""
    keys: np.ndarray
    """int64 or uint64, ascending."""
    order: np.ndarray
    """int32: the place among `values` of each key."""
    longest_run: int
    """The most values that share a key: 1, unless two strings have the same 64-bit hash."""

    @staticmethod
    def of(values: pa.Array) -> ValueLookup:
        """Builds the look-up of a vocabulary: about a second for ten million integers."""
        keys = _keys(values)
        order = np.argsort(keys, kind="stable").astype(np.int32)
        ascending = keys[order]
        starts = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1], [True]]))
        return ValueLookup(values, ascending, order, int(np.diff(starts).max(initial=0)))

    def rows(self, values: pa.Array) -> np.ndarray:
        """Returns the table row of each int64 or string, int32; 0 for null and for a value that is not in the vocabulary."""
        found = np.zeros(len(values), np.int32)
        if not len(self.values):
            return found
        keys = _keys(values)
        first = np.searchsorted(self.keys, keys)
        for step in range(self.longest_run):
            place = np.minimum(first + step, len(self.keys) - 1)
            rows = self.order[place]
            same = (self.keys[place] == keys) & (found == 0)
            if pa.types.is_string(values.type):
                same &= self._are(rows, values)
            found[same] = rows[same] + 1
        if values.null_count:
            found[values.is_null().to_numpy(zero_copy_only=False)] = 0
        return found

    def _are(self, places: np.ndarray, values: pa.Array) -> np.ndarray:
        """Returns which of `values` are those at `places` of the vocabulary, bool."""
        if len(values) < FEW:
            pairs = zip(places.tolist(), values.to_pylist(), strict=True)
            return np.array([self.values[place].as_py() == value for place, value in pairs], bool)
        return pc.equal(self.values.take(pa.array(places)), values).fill_null(False).to_numpy(zero_copy_only=False)


Lookups = dict[str, ValueLookup]
"""The look-up of each embedding table that has a vocabulary, by name."""


def build_lookups(vocabularies: Vocabularies) -> Lookups:
    """Builds the look-up of every vocabulary."""
    return {name: ValueLookup.of(values) for name, values in vocabularies.items()}


def value_hashes(values: pa.Array) -> np.ndarray:
    """Returns a uint64 hash of each int64 or string, the same on every machine; nulls hash as 0 or ''.

    pandas.util.hash_array: SipHash for strings, bit mixing for int64.
    """
    # Imported here because training workers import this module and hash nothing.
    import pandas as pd

    if pa.types.is_integer(values.type):
        return pd.util.hash_array(values.fill_null(0).to_numpy(zero_copy_only=False))
    if len(values) < FEW:
        return pd.util.hash_array(np.array(values.fill_null("").to_pylist(), object), categorize=False)
    encoded = values.fill_null("").dictionary_encode()
    hashes = pd.util.hash_array(encoded.dictionary.to_numpy(zero_copy_only=False).astype(object), categorize=False)
    return hashes[encoded.indices.to_numpy(zero_copy_only=False)]


def _keys(values: pa.Array) -> np.ndarray:
    if pa.types.is_integer(values.type):
        return values.fill_null(0).to_numpy(zero_copy_only=False)
    parts = [value_hashes(values[start : start + HASHED_AT_ONCE]) for start in range(0, len(values), HASHED_AT_ONCE)]
    return np.concatenate([np.zeros(0, np.uint64), *parts])
