"""The dense part of a ranking model in ONNX Runtime, which runs it up to twice as fast on a CPU as PyTorch does.

The model is exported when it is loaded, which takes some seconds, so that a bundle holds the weights once. With `int8` the
weights of its layers are rounded to eight bits, and the inputs of a layer as it runs: faster again on a CPU that multiplies such
numbers. docs/speed.md has the figures of the engines compared: PyTorch, torch.compile (which needs a C++ compiler), ONNX Runtime.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from recsys_ray.serving.pair_scores import PairScores, SideColumns, SideFeatures

PairEngine = Callable[[SideFeatures, SideFeatures, torch.Tensor, torch.Tensor], np.ndarray]
"""Computes what `PairScores.forward` does, as numpy."""
INPUTS = ("user_dense", "user_embeddings", "item_dense", "item_embeddings", "user", "item")
NOISY = ("torch.onnx", "onnx_ir")
"""Loggers that warn of matters that only an author of the exporter can change."""
LARGEST_DIFFERENCE, LARGEST_DIFFERENCE_INT8 = 1e-5, 0.2


class PairInputs(NamedTuple):
    """The inputs of a `PairEngine`."""

    users: SideFeatures
    items: SideFeatures
    user: torch.Tensor
    item: torch.Tensor


def onnx_engine(model: PairScores, dim: int, *, int8: bool = False) -> PairEngine:
    """Exports a model and opens it, with as many threads as PyTorch has.

    Args:
        dim: the numbers of an embedding.

    Raises ImportError where the extra `serving` is not installed, ValueError where the export computes something else.
    """
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait in busy loops take the cores from PyTorch's, which look embeddings up, and from other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    example = _example(model, dim, users=2, items=3, pairs=5)
    session = runtime.InferenceSession(_exported(model, example, int8=int8), options, ["CPUExecutionProvider"])

    def score(users: SideFeatures, items: SideFeatures, user: torch.Tensor, item: torch.Tensor) -> np.ndarray:
        values = (*users, *items, user, item)
        return session.run(None, {name: one.numpy() for name, one in zip(INPUTS, values, strict=True)})[0]

    inputs = _example(model, dim, users=7, items=40, pairs=77)
    _check(score, model, inputs, LARGEST_DIFFERENCE_INT8 if int8 else LARGEST_DIFFERENCE)
    return score


def _check(score: PairEngine, model: PairScores, inputs: PairInputs, largest: float) -> None:
    """Raises ValueError where the engine takes no batch of another size than its example, or scores it differently."""
    with torch.no_grad():
        expected = model(*inputs).numpy()
    try:
        difference = float(np.abs(score(*inputs) - expected).max())
    except Exception as error:  # the runtime's own exceptions have no common base
        raise ValueError(f"engine onnx cannot run this model ({error}): use engine torch") from error
    if not difference <= largest:
        raise ValueError(f"engine onnx scores this model differently, by up to {difference:.1e}: use engine torch")


def _example(model: PairScores, dim: int, *, users: int, items: int, pairs: int) -> PairInputs:
    def side(rows: int, columns: SideColumns) -> SideFeatures:
        return SideFeatures(torch.rand(rows, len(columns.dense)), torch.rand(rows, len(columns.categorical), dim))

    user, item = (torch.arange(pairs) % rows for rows in (users, items))
    return PairInputs(side(users, model.user_columns), side(items, model.item_columns), user, item)


def _exported(model: PairScores, example: PairInputs, *, int8: bool) -> bytes:
    users, items, pairs = (torch.export.Dim(name) for name in ("users", "items", "pairs"))
    shapes = (SideFeatures({0: users}, {0: users}), SideFeatures({0: items}, {0: items}), {0: pairs}, {0: pairs})  # type: ignore[arg-type]
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        model.eval()(*example)  # fills caches of constants, which would otherwise keep the exporter's fake tensors
        program = torch.onnx.export(
            model, tuple(example), dynamo=True, dynamic_shapes=shapes, input_names=list(INPUTS), verbose=False
        )
        assert program is not None
        path = Path(folder, "pairs.onnx")
        program.save(path)
        return _rounded(path).read_bytes() if int8 else path.read_bytes()


def _rounded(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    prepared, rounded = path.with_name("prepared.onnx"), path.with_name("rounded.onnx")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, rounded, weight_type=QuantType.QInt8)
    return rounded


def is_installed() -> bool:
    """Returns whether this environment has what `onnx_engine` needs."""
    return all(find_spec(name) is not None for name in ("onnxruntime", "onnx", "onnxscript"))


def _runtime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (the exporter needs it, and says so less clearly)
    except ImportError as error:
        raise ImportError("engine onnx needs onnxruntime, onnx and onnxscript: pip install 'recsys-ray[serving]'") from error
    return onnxruntime
