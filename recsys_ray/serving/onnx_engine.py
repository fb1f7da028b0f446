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
NOISY = ("torch.onnx", "onnx_ir")
"""Loggers that warn of matters that only an author of the exporter can change."""
EXAMPLE_ROWS, CHECKED_ROWS = 3, 77
"""Rows of the example from which the graph is traced, and of the batch by which the export is checked."""
LARGEST_DIFFERENCE = 1e-5


def onnx_engine(dense: nn.Module, dense_features: int, embeddings: tuple[int, int]) -> DenseEngine:
    """Exports the dense part and opens it, with as many threads as PyTorch has.

    Args:
        embeddings: features and dim.

    Raises ImportError where the extra `serving` is not installed, ValueError where the export computes something else.
    """
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(_exported(dense, dense_features, embeddings), options, ["CPUExecutionProvider"])

    def score(features: torch.Tensor, pooled: torch.Tensor) -> np.ndarray:
        return session.run(None, {"dense": features.numpy(), "embeddings": pooled.numpy()})[0]

    _check(score, dense, (torch.rand(CHECKED_ROWS, dense_features), torch.rand(CHECKED_ROWS, *embeddings)))
    return score


def _check(score: DenseEngine, dense: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Raises ValueError where the engine takes no batch of another size than its example, or scores it differently."""
    with torch.no_grad():
        expected = dense(*inputs).numpy()
    try:
        difference = float(np.abs(score(*inputs) - expected).max())
    except Exception as error:  # the runtime's own exceptions have no common base
        raise ValueError(f"engine onnx cannot run this model ({error}): use engine torch") from error
    if not difference <= LARGEST_DIFFERENCE:
        raise ValueError(f"engine onnx scores this model differently, by up to {difference:.1e}: use engine torch")


def _exported(dense: nn.Module, dense_features: int, embeddings: tuple[int, int]) -> bytes:
    example = torch.rand(EXAMPLE_ROWS, dense_features), torch.rand(EXAMPLE_ROWS, *embeddings)
    rows = torch.export.Dim("rows")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        dense.eval()(*example)  # fills caches of constants, which would otherwise keep the exporter's fake tensors
        program = torch.onnx.export(
            dense,
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
