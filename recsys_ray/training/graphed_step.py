"""A training step of which all but the lookups is compiled, and replayed as one CUDA graph.

At small batches the host takes longer to launch kernels one by one than a GPU takes to run them. The lookups stay outside: their
kernels take the learning rate, and where a row has several ids the number of ids, from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from recsys_ray.models.task import Batch, SplitRanker

WARM_UP_RUNS = 3
"""Runs before a capture: compiling, and libraries that choose algorithms or allocate at first use, cannot be captured."""


class GraphedStep:
    """Trains on one batch of a fixed number of rows. The first call compiles and captures, which takes seconds."""

    def __init__(self, optimizer: CombinedOptimizer, split: SplitRanker, *, backend: str = "inductor") -> None:
        self._split, parts = split, dict(optimizer.optimizers)
        self._sparse, self._dense = parts["sparse"], parts["dense"]
        self._loss_of = torch.compile(split.loss, dynamic=False, backend=backend)
        self._replay: Callable[[], None] | None = None

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Returns the loss, still on the device."""
        self._sparse.zero_grad()  # the fused kernels take the learning rate here
        embeddings = self._split.lookup(batch)
        inputs = [batch.dense, embeddings.detach(), batch.labels, batch.weights]
        if self._replay is None:
            self._prepare(inputs)
        assert self._replay is not None
        with torch.no_grad():
            for mine, values in zip(self._inputs, inputs, strict=True):
                mine.copy_(values)
            self._rate.fill_(self._dense.param_groups[0]["lr"])
        self._replay()
        embeddings.backward(self._gradient)
        return self._loss.clone()

    def _prepare(self, inputs: list[torch.Tensor]) -> None:
        self._inputs = [values.clone() for values in inputs]
        self._inputs[1].requires_grad_()
        self._rate = torch.zeros((), device=inputs[0].device)
        with _graph_settings(self._dense, self._rate):
            with _restored(_state(self._dense)):
                self._warm_up()
            self._replay = self._captured() if inputs[0].device.type == "cuda" else self._run

    def _warm_up(self) -> None:
        if self._rate.device.type == "cpu":
            return self._run()
        # Not on the default stream: autograd would accumulate gradients there, also while another stream is captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        return None

    def _run(self) -> None:
        """Computes the loss and the gradients, and updates the dense parameters."""
        self._dense.zero_grad()
        self._inputs[1].grad = None
        loss = self._loss_of(*self._inputs)
        loss.backward()
        self._dense.step()
        self._loss, self._gradient = loss.detach(), self._inputs[1].grad

    def _captured(self) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # A thread may be allocating page-locked memory for checkpoints, which has nothing to do with the capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._run()
        return graph.replay


@contextmanager
def _graph_settings(optimizer: KeyedOptimizer, rate: torch.Tensor) -> Iterator[None]:
    """Lets Adam read its learning rate from `rate` in the block. Outside it is a number, as checkpoints keep it."""
    before = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"], group["capturable"] = rate, True
    try:
        yield
    finally:
        for group, (number, capturable) in zip(optimizer.param_groups, before, strict=True):
            group["lr"], group["capturable"] = number, capturable


def _state(optimizer: KeyedOptimizer) -> list[torch.Tensor]:
    """Returns the parameters of an optimizer and all that it keeps for them."""
    parameters: list[Any] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [parameter.detach() for parameter in parameters] + [
        value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)
    ]


@contextmanager
def _restored(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Gives the tensors the values back that they had before the block."""
    kept = [(tensor, tensor.clone()) for tensor in tensors]
    yield
    for tensor, value in kept:
        tensor.copy_(value)
