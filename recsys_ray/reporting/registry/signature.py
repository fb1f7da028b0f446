"""The types of a model's inputs and outputs, and an example, as MLflow describes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType
from mlflow.types import Schema as ColumnSpecs
from mlflow.types.schema import AnyType, Array, TensorSpec

from recsys_ray.schema import Categorical, Column


def model_signature(columns: Sequence[Column], output_shape: tuple[int, ...]) -> ModelSignature:
    """Returns the signature of a model that maps raw `columns` to float32 [rows, *output_shape]."""
    output = TensorSpec(np.dtype(np.float32), (-1, *output_shape))
    return ModelSignature(column_specs(columns), ColumnSpecs([output]))


def column_specs(columns: Sequence[Column]) -> ColumnSpecs:
    """Returns MLflow's types of raw columns, of which each must be there and may hold nulls.

    A number has MLflow's type Any: its long takes no null, its double refuses a column of whole numbers, and its lists of typed
    values take no null and turn one among strings into 'None'. The model itself checks what it is given.
    """
    return ColumnSpecs([ColSpec(_type_of(column), column.name) for column in columns])


def _type_of(column: Column) -> DataType | Array | AnyType:
    if isinstance(column, Categorical):
        if column.multi:
            return Array(AnyType())
        if column.dtype == "string":
            return DataType.string
    return AnyType()


def as_example(rows: pa.Table) -> pd.DataFrame:
    """Returns raw rows as MLflow stores an example: as objects, so that whole numbers stay whole beside nulls."""
    frame = rows.to_pandas(integer_object_nulls=True).astype(object)
    return frame.where(frame.notna(), None)
