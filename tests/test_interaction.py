"""Our own interaction modules against TorchRec's: equal values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torchrec.models.dlrm import InteractionArch
from torchrec.sparse.jagged_tensor import KeyedTensor

from recsys_ray.models.interaction import DotInteraction, in_order

pytestmark = pytest.mark.unit

ROWS, FEATURES, DIM = 33, 5, 4


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(ROWS, DIM, requires_grad=True), torch.randn(ROWS, FEATURES, DIM, requires_grad=True)


def test_same_dots_and_gradients_as_torchrec(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours = DotInteraction(FEATURES)
    theirs = InteractionArch(FEATURES)(*inputs)
    found = ours(*inputs)
    assert found.shape == (ROWS, ours.width(DIM)) and ours.width(DIM) % 8 == 0
    torch.testing.assert_close(found[:, : theirs.shape[1]], theirs)
    assert not found[:, theirs.shape[1] :].any()
    weights = torch.randn_like(theirs)
    expected = torch.autograd.grad((theirs * weights).sum(), inputs)
    got = torch.autograd.grad((found[:, : theirs.shape[1]] * weights).sum(), inputs)
    torch.testing.assert_close(got, expected)


def test_a_model_that_has_predicted_can_train() -> None:
    """Positions that are cached in inference mode, while a bundle predicts, serve the backward pass of a model of that size."""
    names, columns = [f"f{n}" for n in range(9)], torch.randn(ROWS, 9 * DIM)

    def run() -> torch.Tensor:
        found = KeyedTensor(names[::-1], [DIM] * 9, columns)
        return DotInteraction(9)(torch.ones(ROWS, DIM), in_order(found, names))

    with torch.inference_mode():
        predicted = run()
    columns.requires_grad_()
    trained = run()
    trained.sum().backward()
    assert torch.equal(trained, predicted) and columns.grad is not None and columns.grad.any()


def test_gradients_by_differences(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours = DotInteraction(FEATURES)
    assert gradcheck(ours, [part[:3].detach().double().requires_grad_() for part in inputs])


def test_under_autocast(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The backward pass runs outside autocast, and its types must still fit."""
    ours = DotInteraction(FEATURES)
    exact = torch.autograd.grad(ours(*inputs).sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ours(*inputs)
    rough = torch.autograd.grad(found.sum(), inputs)
    assert [part.dtype for part in rough] == [torch.float32] * 2
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("keys", [["a", "b", "c", "d"], ["c", "a", "d", "b"]])
def test_embeddings_in_the_order_of_the_features(keys: list[str]) -> None:
    vectors = {name: torch.randn(ROWS, DIM, requires_grad=True) for name in keys}
    found = in_order(KeyedTensor(keys, [DIM] * 4, torch.cat([vectors[name] for name in keys], dim=1)), [*"abcd"])
    expected = torch.stack([vectors[name] for name in "abcd"], dim=1)
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    got, wanted = (torch.autograd.grad((values * weights).sum(), list(vectors.values())) for values in (found, expected))
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
