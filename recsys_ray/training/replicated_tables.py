"""The optimizer of data-parallel embedding tables: the very step that fbgemm takes for sharded ones, on all-reduced gradients."""

from __future__ import annotations

from typing import Any

import torch
from torchrec.optim.keyed import KeyedOptimizer

from recsys_ray.config import OptimizerConfig
from recsys_ray.sharding.local_tables import table_in_name

EPSILON = 1e-8
"""What fbgemm adds to the root of Adagrad's sum of squares."""


class ReplicatedTablesOptimizer(KeyedOptimizer):
    """An optimizer of tables that every worker holds whole, whose state has the names and shapes of a sharded table's.

    Hence a checkpoint can be resumed with another plan. Rows without a gradient stay as they are, as in a sharded table.

    Args:
        weights: name in the model -> table [rows, dim], with a gradient of the same shape that is the same on all workers.
    """

    def __init__(self, weights: dict[str, torch.Tensor], config: OptimizerConfig) -> None:
        state = {weight: _initial_state(table_in_name(name), weight, config.sparse) for name, weight in weights.items()}
        groups: list[dict[str, Any]] = [{"params": list(weights.values()), "lr": config.sparse_learning_rate}]
        super().__init__(weights, state, groups)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients."""
        for weight in self.state:
            weight.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Updates all tables that have a gradient."""
        (group,) = self.param_groups
        for weight, state in self.state.items():
            if weight.grad is not None:
                _update(weight, weight.grad, next(iter(state.values()), None), group["lr"])


def _initial_state(table: str, weight: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    """Returns Adagrad's sums of squared gradients: a number for each row, or with plain Adagrad for each number of the table."""
    match kind:
        case "rowwise_adagrad":
            return {f"{table}.momentum1": torch.zeros(weight.shape[0], device=weight.device)}
        case "adagrad":
            return {f"{table}.momentum1": torch.zeros(weight.shape, device=weight.device)}
        case _:
            return {}


def _update(weight: torch.Tensor, gradient: torch.Tensor, sums: torch.Tensor | None, rate: float) -> None:
    if sums is None:
        weight.add_(gradient, alpha=-rate)
    elif sums.dim() == 1:
        sums.add_(gradient.square().mean(dim=1))
        weight.addcdiv_(gradient, sums.sqrt().add_(EPSILON).unsqueeze(1), value=-rate)
    else:
        sums.addcmul_(gradient, gradient)
        weight.addcdiv_(gradient, sums.sqrt().add_(EPSILON), value=-rate)
