"""Configurations as JSON and back, for config.json in the run directory and for comparing two runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, get_type_hints

from recsys_ray.config.run import ModelConfig, TrainConfig

MODEL_NAME = "name"
"""The key under which config.json stores the registered name of the model, beside the model's settings."""


def to_values(config: TrainConfig, model_name: str) -> dict[str, Any]:
    """Returns the configuration as nested dicts, with the registered name of the model among the model's settings."""
    values = dataclasses.asdict(config)
    return {**values, "model": {MODEL_NAME: model_name, **values["model"]}}


def to_json(config: TrainConfig, model_name: str) -> str:
    """Returns the text of config.json."""
    return json.dumps(to_values(config, model_name), indent=2) + "\n"


def from_json(text: str, model_config: Callable[[dict[str, Any]], ModelConfig]) -> TrainConfig:
    """Returns the configuration that `to_json` wrote; settings that are newer than the text take their defaults.

    `model_config` makes the model's configuration from its part of the JSON (models/registry.py).
    Raises ValueError for a setting that this version does not know.
    """
    values = json.loads(text)
    return build_config(TrainConfig, {**values, "model": model_config(values["model"])})


def build_config(kind: Any, values: dict[str, Any]) -> Any:
    """Returns the dataclass `kind` filled with `values` as JSON holds them: lists for tuples, objects for dataclasses."""
    hints = get_type_hints(kind)
    if unknown := values.keys() - {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}: another version of this package wrote it")
    return kind(**{name: _from_json_value(hints[name], value) for name, value in values.items()})


def _from_json_value(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return build_config(hint, value) if isinstance(value, dict) and dataclasses.is_dataclass(hint) else value


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings as one level, keys joined with dots: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
