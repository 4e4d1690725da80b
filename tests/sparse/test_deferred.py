"""What follows a sparse convolution runs with it, and gives what PyTorch gives; everything else just computes it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lth_lightning.sparse.deferred import Deferred, Then
from lth_lightning.sparse.training import ConvKernel, thinned

pytestmark = needs_compiler

FOLLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu in place": nn.ReLU(inplace=True),
    "relu by method": lambda y: y.relu(),
    "pool": nn.MaxPool2d(2),
    "pool, relu": lambda y: F.relu(F.max_pool2d(y, 2)),
    "relu, pool": lambda y: torch.max_pool2d(torch.relu(y), (2, 2), [2, 2]),
    "relu, pool in place": nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda y: y,
    "another pool": lambda y: F.max_pool2d(y, 3, 2, 1),
    "pooled at the edge": lambda y: F.max_pool2d(y, 2, ceil_mode=True),
    "pooled with indices": lambda y: F.max_pool2d(y, 2, return_indices=True)[0],
    "two pools": lambda y: F.max_pool2d(F.max_pool2d(y, 2), 2),
    "used twice": lambda y: F.relu(y) + y,
    "used twice, once in place": lambda y: F.relu(y + 1) * torch.relu_(y),
    "its shape": lambda y: F.relu(y.view(y.shape[0], -1, *y.size()[2:])) * y.dim() * len(y),
    "joined": lambda y: torch.cat([y, F.relu(y)]),
    "cut off": lambda y: y.detach() * F.relu(y),
    "without gradients": lambda y: F.relu(y) * _sum(y),
    "indexed": lambda y: F.relu(y)[:, :2],
}


@torch.no_grad()
def _sum(y: Tensor) -> Tensor:
    return y.sum()


def pair(layer: nn.Conv2d, density: float) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Return the layer sparse, and dense with the same weights."""
    dense, mask = copy.deepcopy(layer), torch.rand(layer.weight.shape) < density
    mask.view(-1)[0] = True
    with torch.no_grad():
        dense.weight.mul_(mask)
    thinned(layer, {"weight": mask}, ways={"weight": "sparse"})
    return layer, dense


def gradients(layer: nn.Module, then: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Return the outputs, and the gradients of the input, the dense weights and the biases."""
    x = x.clone().requires_grad_()
    y = then(layer(x))
    y.backward(torch.arange(y.numel(), dtype=y.dtype).view(y.shape) % 7 - 3)
    (weight,) = [one for name, one in layer.named_parameters() if name == "weight"]
    (bias,) = [one for name, one in layer.named_parameters() if name == "bias"]
    return [y.detach() + 0, x.grad, weight.grad, bias.grad]


def compare(then: Callable[[Tensor], Tensor], sparse: nn.Conv2d, dense: nn.Conv2d, x: Tensor) -> None:
    mask = dense.weight != 0
    found, expected = gradients(sparse, then, x), gradients(dense, then, x)
    expected[2] = expected[2][mask]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def whole(layer: nn.Conv2d) -> nn.Conv2d:
    """Give a layer small whole numbers, never 0: sums are exact in any order, and equal outputs really equal."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(1, 3, parameter.shape) * (torch.randint(0, 2, parameter.shape) * 2 - 1))
    return layer


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from(sorted(FOLLOWED)),
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.sampled_from((1, 2)),
    st.sampled_from((torch.float32, torch.float64)),
    st.sampled_from((1, 3)),
)
def test_what_follows_gives_the_same_and_sends_the_same_gradients(
    seed: int, then: str, size: tuple[int, int], stride: int, dtype: torch.dtype, numbers: int
) -> None:
    """With few different numbers, many of 2 x 2 pixels are equal; then the first of them gets the gradient."""
    torch.manual_seed(seed)
    if stride == 2:
        size = size[0] + 2, size[1] + 2
    sparse, dense = pair(whole(nn.Conv2d(2, 5, 3, stride, padding=1).to(dtype)), 0.3)
    assert type(sparse(torch.zeros(1, 2, *size, dtype=dtype))) is Deferred
    compare(FOLLOWED[then], sparse, dense, torch.randint(-1, numbers, (3, 2, *size)).to(dtype))


@pytest.mark.parametrize("then", sorted(FOLLOWED))
def test_nan_passes_as_in_pytorch(then: str) -> None:
    torch.manual_seed(0)
    sparse, dense = pair(whole(nn.Conv2d(1, 3, 1)), 1.0)
    x = torch.randint(-1, 2, (2, 1, 17, 18)).float()
    x[0, 0, 3:5, 4:9], x[1, 0, 16, 17] = torch.nan, torch.nan
    compare(FOLLOWED[then], sparse, dense, x)


@pytest.mark.parametrize("then", sorted(OTHERS))
def test_whatever_else_follows(then: str) -> None:
    torch.manual_seed(0)
    sparse, dense = pair(whole(nn.Conv2d(2, 4, 3, padding=1)), 0.3)
    compare(OTHERS[then], sparse, dense, torch.randint(-2, 3, (3, 2, 13, 10)).float())


def test_relu_and_pooling_run_within_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    forward = ConvKernel.forward

    def spy(self: ConvKernel, *given: Any, **more: Any) -> Any:
        ran.append(given[3])
        return forward(self, *given, **more)

    monkeypatch.setattr(ConvKernel, "forward", spy)
    sparse, _ = pair(nn.Conv2d(2, 4, 3), 0.3)
    for then in FOLLOWED.values():
        then(sparse(torch.randn(1, 2, 9, 9))).sum()
    relu, pool = Then.RELU, Then.POOL
    assert ran == [relu, relu, relu, pool, pool | relu, pool | relu, pool | relu]


def test_a_hook_may_keep_the_output_and_ask_for_its_gradient() -> None:
    for layer in pair(whole(nn.Conv2d(2, 4, 3)), 0.3):
        kept: list[Tensor] = []
        layer.register_forward_hook(lambda _, __, y, kept=kept: kept.append(y))
        y = F.relu(layer(torch.ones(1, 2, 9, 9)))
        (gradient,) = torch.autograd.grad(y.sum(), kept)
        assert torch.equal(gradient, (kept[0] > 0).float())


def test_hooks_of_a_convolution_see_its_output() -> None:
    sparse, dense = pair(whole(nn.Conv2d(2, 4, 3)), 0.3)
    for layer in (sparse, dense):
        layer.register_forward_hook(lambda _, __, y: y + 1)
        layer.register_full_backward_hook(lambda _, gx, gy: (gx[0] * 2,))
    compare(F.relu, sparse, dense, torch.randint(-2, 3, (1, 2, 9, 9)).float())


def test_nothing_waits_where_no_gradients_are_recorded() -> None:
    """There, code may write to a convolution's input afterwards."""
    sparse, dense = pair(whole(nn.Conv2d(2, 4, 3)), 0.3)
    x = torch.randint(-2, 3, (1, 2, 9, 9)).float()
    with torch.no_grad():
        expected, y = dense(x), sparse(x)
        x.zero_()
        assert type(y) is Tensor and torch.equal(y, expected)


def test_an_input_that_is_written_to_is_an_error_as_in_pytorch() -> None:
    sparse, dense = pair(nn.Conv2d(2, 4, 3), 0.3)
    for layer in (sparse, dense):
        x = torch.randn(1, 2, 9, 9)
        y = layer(x)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an in-?place operation"):
            F.relu(y).sum().backward()


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return 2 * y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Tensor:
        return 2 * gy


def test_a_gradient_that_would_be_lost_is_refused() -> None:
    sparse, _ = pair(nn.Conv2d(2, 4, 3), 0.3)
    with pytest.raises(RuntimeError, match="custom autograd.Function"):
        Twice.apply(sparse(torch.randn(1, 2, 9, 9))).sum().backward()
    Twice.apply(sparse(torch.randn(1, 2, 9, 9)).clone()).sum().backward()
    assert next(sparse.parameters()).grad.any()
