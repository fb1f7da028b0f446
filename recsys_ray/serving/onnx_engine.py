"""The dense part of a ranking model in ONNX Runtime, which runs it two to three times as fast on a CPU as PyTorch does.

The model is exported when it is loaded, which takes some seconds, so that a bundle holds the weights once. docs/speed.md has the
figures of the engines that were compared: eager PyTorch, torch.compile (which needs a C++ compiler) and ONNX Runtime.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

DenseEngine = Callable[[torch.Tensor, torch.Tensor], np.ndarray]
"""Maps dense features [B, D] and pooled embeddings [B, F, dim] to scores, float32 [B]."""
EXAMPLE_ROWS = 3
"""Rows of the example from which the graph is traced; the exported batch size is variable."""


def onnx_engine(dense: nn.Module, dense_features: int, embeddings: tuple[int, int]) -> DenseEngine:
    """Exports the dense part and opens it, with as many threads as PyTorch has.

    Args:
        embeddings: features and dim.

    Raises ImportError where the extra `serving` is not installed.
    """
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(_exported(dense, dense_features, embeddings), options, ["CPUExecutionProvider"])

    def score(features: torch.Tensor, pooled: torch.Tensor) -> np.ndarray:
        return session.run(None, {"dense": features.numpy(), "embeddings": pooled.numpy()})[0]

    return score


def _exported(dense: nn.Module, dense_features: int, embeddings: tuple[int, int]) -> bytes:
    example = torch.rand(EXAMPLE_ROWS, dense_features), torch.rand(EXAMPLE_ROWS, *embeddings)
    rows = torch.export.Dim("rows")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            dense.eval(),
            example,
            dynamo=True,
            dynamic_shapes=({0: rows}, {0: rows}),
            input_names=["dense", "embeddings"],
            verbose=False,
        )
        assert program is not None
        program.save(f"{folder}/dense.onnx")
        return Path(folder, "dense.onnx").read_bytes()


def _runtime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (the exporter needs it, and says so less clearly)
    except ImportError as error:
        raise ImportError("engine onnx needs onnxruntime, onnx and onnxscript: pip install 'recsys-ray[serving]'") from error
    return onnxruntime
