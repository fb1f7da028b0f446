"""The optimizers of a sharded model: tables by fbgemm in the backward pass or data-parallel, and Adam for the dense part."""

from __future__ import annotations

from typing import Any

import torch
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from recsys_ray.config import OptimizerConfig
from recsys_ray.sharding.local_tables import data_parallel_tables, table_in_name
from recsys_ray.training.replicated_tables import ReplicatedTablesOptimizer


def build_optimizer(model: Any, config: OptimizerConfig) -> CombinedOptimizer:
    """Builds the optimizer of a DistributedModelParallel with Adam's state, since state that is missing would not be restored."""
    replicated = data_parallel_tables(model)
    parameters: dict[str, torch.Tensor] = dict(in_backward_optimizer_filter(model.named_parameters()))
    tables = {name: parameters.pop(name) for name in list(parameters) if table_in_name(name) in replicated}
    sparse = [("sparse", model.fused_optimizer)]
    if tables:
        sparse.append(("sparse", ReplicatedTablesOptimizer(tables, config)))
    if not parameters:  # matrix factorisation: tables and nothing else
        return CombinedOptimizer(sparse)
    dense: KeyedOptimizer = KeyedOptimizerWrapper(
        parameters,
        lambda parameters: torch.optim.Adam(
            parameters, lr=config.dense_learning_rate, weight_decay=config.dense_weight_decay, fused=True
        ),
    )
    _init_adam_state(dense)
    if config.clip_norm:
        dense = GradientClippingOptimizer(dense, GradientClipping.NORM, max_gradient=config.clip_norm)
    return CombinedOptimizer([*sparse, ("dense", dense)])


def _init_adam_state(optimizer: KeyedOptimizer) -> None:
    """Makes the state as Adam's first step would, without taking a step, which with weight decay would move the parameters."""
    for parameter in optimizer.params.values():
        assert isinstance(parameter, torch.Tensor)
        optimizer.state[parameter].update(
            step=torch.zeros((), dtype=torch.float32, device=parameter.device),
            exp_avg=torch.zeros_like(parameter),
            exp_avg_sq=torch.zeros_like(parameter),
        )


def rate_factor(step: int, config: OptimizerConfig) -> float:
    """Returns the factor of both learning rates at `step` (from 0): linear warm-up, then linear decay to final_rate.

    It depends on the step alone, so a resumed run needs no schedule state.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if not config.decay_steps:
        return 1.0
    done = min((step - config.warmup_steps) / config.decay_steps, 1.0)
    return 1.0 - done * (1.0 - config.final_rate)


def set_learning_rates(optimizer: CombinedOptimizer, step: int, config: OptimizerConfig) -> None:
    """Sets the learning rates of the next step. The fused kernels read theirs at zero_grad(), before the backward pass."""
    factor = rate_factor(step, config)
    base = {"sparse": config.sparse_learning_rate, "dense": config.dense_learning_rate}
    for name, part in optimizer.optimizers:
        for group in part.param_groups:
            group["lr"] = base[name] * factor
