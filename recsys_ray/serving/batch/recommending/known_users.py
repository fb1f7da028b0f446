"""Tells which users a retrieval model can tell from a stranger, and why not the others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recsys_ray.columns import LENGTHS
from recsys_ray.data.transform import as_floats, rejections
from recsys_ray.schema import QUERY_SIDES, Categorical
from recsys_ray.serving.encoder import Encoder, with_unknown

UNKNOWN_USER = "the model knows neither the user nor a feature of theirs"


def reasons_for_popular(users: pa.Table, retriever: Encoder, ranker: Encoder | None) -> np.ndarray:
    """Returns for each user why no model can recommend to them, as an object array of str; None where the models can.

    Either a value cannot be used, or the retrieval model has never seen the user's id nor any of their other values.
    """
    reasons = np.full(users.num_rows, None, dtype=object)
    for encoder in (retriever, ranker) if ranker is not None else (retriever,):
        wanted = encoder.schema.features_of(*QUERY_SIDES)
        found = rejections(with_unknown(users, wanted), wanted)
        reasons = np.where(reasons == None, found, reasons)  # noqa: E711 (element by element)
    usable = np.flatnonzero(reasons == None)  # noqa: E711
    known = is_known(users.take(pa.array(usable)), retriever)
    reasons[usable[~known]] = UNKNOWN_USER
    return reasons


def is_known(users: pa.Table, encoder: Encoder) -> np.ndarray:
    """Returns for each user, bool, whether any column of side user has a value that the model has seen in training."""
    wanted = encoder.schema.features_of("user")
    users = with_unknown(users, wanted)
    encoded = encoder.encode(users, wanted)
    known = np.zeros(users.num_rows, bool)
    for column in wanted:
        if not isinstance(column, Categorical):
            known |= ~np.isnan(as_floats(users[column.name].combine_chunks()))
            continue
        rows = encoded[column.name].numpy()
        lengths = encoded.get(column.name + LENGTHS)
        known |= (rows if lengths is None else np.add.reduceat(rows, np.cumsum(lengths.numpy()) - lengths.numpy())) > 0
    return known
