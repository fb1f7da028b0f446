"""The cost of a model's dense part, counted from its parameters."""

from __future__ import annotations

from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from recsys_ray.models.task import StepCost


def step_cost(module: nn.Module, embedding_dim: int, vectors: int, extra_multiplications: int = 0) -> StepCost:
    """Returns the cost of a module whose dense part is made of layers with weight matrices.

    Args:
        module: the whole model, its tables included.
        embedding_dim: numbers in an embedding.
        vectors: embeddings of a row that reach the dense part, padding included.
        extra_multiplications: multiply-adds of a row that are not those of a weight matrix, such as dot products.
    """
    dense = dense_parameters(module)
    layers = sum(sum(parameter.shape) for parameter in dense if parameter.dim() == 2)
    parameters = sum(parameter.numel() for parameter in dense)
    return StepCost(
        dense_parameters=parameters,
        multiplications_per_row=parameters + extra_multiplications,
        activations_per_row=layers + 2 * vectors * embedding_dim,
    )


def dense_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that every worker holds whole: all but those of embedding tables."""
    collections = [part for part in module.modules() if isinstance(part, EmbeddingBagCollection | EmbeddingCollection)]
    tables = {id(parameter) for part in collections for parameter in part.parameters()}
    return [parameter for parameter in module.parameters() if id(parameter) not in tables]
