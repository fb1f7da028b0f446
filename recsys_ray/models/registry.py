"""The table of models. A new model is one file with its config class, its build function and `MODEL`, and one line here.

A model's module is imported only when its model is asked for. Its config class may be in recsys_ray/config/NAME.py instead, with
NAME as in the table: then the process that launches its workers imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from recsys_ray.config import ModelConfig
from recsys_ray.config.serialization import MODEL_NAME, build_config
from recsys_ray.models.task import BuildContext, RegisteredModel, Task

MODELS = {
    "dlrm": "recsys_ray.models.dlrm",
    "two_tower": "recsys_ray.models.two_tower",
}
ONLY_TWO_TOWER = "query_layers"
"""A setting by which config.json of version 0.1, which names no model, is recognised as that of a Two Tower."""


def registered_model(name: str) -> RegisteredModel:
    """Returns the model registered as `name`. Raises ValueError where there is none."""
    if name not in MODELS:
        raise ValueError(f"model {name!r} is not one of {', '.join(MODELS)} (recsys_ray/models/registry.py)")
    return import_module(MODELS[name]).MODEL


def model_name(config: ModelConfig) -> str:
    """Returns the name under which the model of this configuration is registered. Raises ValueError where it is not."""
    module = type(config).__module__
    name = next((name for name, path in MODELS.items() if module in (path, f"recsys_ray.config.{name}")), None)
    if name is None:
        raise ValueError(
            f"{type(config).__name__} is of {module}, which is no model of recsys_ray/models/registry.py: add it there"
        )
    return name


def model_config(values: dict[str, Any]) -> ModelConfig:
    """Returns the model's configuration from its part of config.json. Raises ValueError for a model or setting unknown here."""
    settings = {name: value for name, value in values.items() if name != MODEL_NAME}
    name = values.get(MODEL_NAME) or ("two_tower" if ONLY_TWO_TOWER in settings else "dlrm")
    return build_config(registered_model(name).config, settings)


def build_task(config: ModelConfig, context: BuildContext) -> Task:
    """Builds the model. Dense parameters are drawn from the seed, alike on every worker; embedding tables stay on `meta`."""
    torch.manual_seed(context.seed)
    return registered_model(model_name(config)).build(config, context)
