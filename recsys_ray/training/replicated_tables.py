"""The optimizer of data-parallel embedding tables: the very step that fbgemm takes for sharded ones, on all-reduced gradients."""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

import torch
from torchrec.optim.keyed import KeyedOptimizer

from recsys_ray.config import OptimizerConfig
from recsys_ray.sharding.local_tables import table_in_name

EPSILON = 1e-8
"""The number that fbgemm adds to the root of Adagrad's sum of squares."""


class _Lookup(NamedTuple):
    """The tables of one lookup, which lie end to end in memory, as their gradients do: one step updates them all."""

    weights: list[torch.Tensor]
    sums: torch.Tensor | None
    """Adagrad's sums of squared gradients of all rows, or with plain Adagrad of all numbers; None for SGD."""


class ReplicatedTablesOptimizer(KeyedOptimizer):
    """An optimizer of tables that every worker holds whole, whose state has the names and shapes of a sharded table's.

    Hence a checkpoint can be resumed with another plan. Rows without a gradient stay as they are, as in a sharded table.

    Args:
        weights: name in the model -> table [rows, dim], with a gradient of the same shape that is the same on all workers.
    """

    def __init__(self, weights: dict[str, torch.Tensor], config: OptimizerConfig) -> None:
        self._lookups = [_Lookup(tables, _zeros(_joined(tables), config.sparse)) for tables in _neighbours(weights)]
        sums = {weight: part for lookup in self._lookups for weight, part in _sums_of_tables(lookup)}
        names = {weight: f"{table_in_name(name)}.momentum1" for name, weight in weights.items()}
        state = {weight: {names[weight]: sums[weight]} if weight in sums else {} for weight in weights.values()}
        groups: list[dict[str, Any]] = [{"params": list(weights.values()), "lr": config.sparse_learning_rate}]
        super().__init__(weights, state, groups)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients."""
        for weight in self.state:
            weight.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Updates all tables."""
        (group,) = self.param_groups
        for weights, sums in self._lookups:
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            _update(_joined(weights), _joined(gradients), sums, group["lr"])


def _neighbours(weights: dict[str, torch.Tensor]) -> list[list[torch.Tensor]]:
    """Returns the tables in groups of those that share memory, in the order in which they lie there."""

    def place(weight: torch.Tensor) -> tuple[int, int]:
        return weight.untyped_storage().data_ptr(), int(weight.storage_offset())

    return [list(group) for _, group in groupby(sorted(weights.values(), key=place), key=lambda weight: place(weight)[0])]


def _joined(tables: list[torch.Tensor]) -> torch.Tensor:
    """Returns tables that lie end to end as one, a view."""
    first, last = tables[0].detach(), tables[-1]
    rows = sum(len(table) for table in tables)
    assert last.data_ptr() + last.nbytes == first.data_ptr() + rows * first[0].nbytes, "tables do not lie end to end"
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))


def _zeros(weights: torch.Tensor, kind: str) -> torch.Tensor | None:
    match kind:
        case "rowwise_adagrad":
            return torch.zeros(weights.shape[0], device=weights.device)
        case "adagrad":
            return torch.zeros(weights.shape, device=weights.device)
        case _:
            return None


def _sums_of_tables(lookup: _Lookup) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns each table with its part of the sums."""
    if lookup.sums is None:
        return []
    parts = lookup.sums.split([len(weight) for weight in lookup.weights])
    return list(zip(lookup.weights, parts, strict=True))


def _update(weights: torch.Tensor, gradients: torch.Tensor, sums: torch.Tensor | None, rate: float) -> None:
    if sums is None:
        weights.add_(gradients, alpha=-rate)
    elif sums.dim() == 1:
        sums.add_(gradients.square().mean(dim=1))
        weights.addcdiv_(gradients, sums.sqrt().add_(EPSILON).unsqueeze(1), value=-rate)
    else:
        sums.addcmul_(gradients, gradients)
        weights.addcdiv_(gradients, sums.sqrt().add_(EPSILON), value=-rate)
