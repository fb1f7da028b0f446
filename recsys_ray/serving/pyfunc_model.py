"""The Python code of a registered model ("models from code"): MLflow copies this file into the model and runs it to load one.

A ranking model returns the score of every row, a retrieval model the query vector of every row. The rest is in the package, which
must be installed where the model is loaded; the model's pip requirements name its version.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from recsys_ray.serving.bundle import Ranker, load_bundle


class BundleModel(PythonModel):
    """A model bundle behind MLflow's interface: raw rows in, scores or vectors out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the bundle that was logged with the model."""
        self.model = load_bundle(context.artifacts["bundle"])

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:
        """Returns scores, float32 [rows], or query vectors, float32 [rows, dim]. Raises ValueError naming what cannot be used."""
        if isinstance(self.model, Ranker):
            return self.model.predict(model_input)
        return self.model.embed_queries(model_input)


set_model(BundleModel())
