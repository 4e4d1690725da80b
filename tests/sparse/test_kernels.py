"""Each operation of the kernels against PyTorch, on graphs made by hand: any shape, density and batch size."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lth_lightning.sparse import plan
from lth_lightning.sparse.dense import FUNCTIONS, PAIRS, evaluate
from lth_lightning.sparse.graph import Graph, Shape, Step
from lth_lightning.sparse.network import Chain, SparseNetwork

pytestmark = needs_compiler
BATCHES = st.sampled_from((1, 2, 7, 15, 16, 17, 64, 65))
DTYPES = st.sampled_from((torch.float32, torch.float64))
DENSITIES = st.sampled_from((0.0, 0.02, 0.3, 1.0))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def pruned(shape: tuple[int, ...], density: float, dtype: torch.dtype) -> Tensor:
    """A weight of which only a part survives; never exactly none by chance, unless the density is 0."""
    weight = torch.randn(shape, dtype=dtype) * (torch.rand(shape) < density)
    if density:
        weight.view(-1)[torch.randint(weight.numel(), ())] = 1.5
    return weight


def check(steps: list[Step], shapes: dict[str, Shape], x: Tensor, expected: Tensor) -> None:
    graph = Graph(["x"], {"value": steps[-1].output}, steps, {"x": (None, *x.shape[1:]), **shapes})
    for cache in (plan.CACHE, 256):  # with the second, inputs are cut into many blocks
        with patch.multiple(plan, CACHE=cache, PIECE=1):
            network = SparseNetwork(graph, batch_size=len(x))
        assert any(isinstance(part, Chain) for part in network.parts)
        for _ in range(2):  # the second run finds the first one's numbers in the arenas
            close(network(x), expected)


def close(given_: Tensor, expected: Tensor) -> None:
    assert given_.shape == expected.shape and given_.dtype == expected.dtype
    assert (given_ - expected).norm() <= TOLERANCE[expected.dtype] * max(expected.norm(), 1e-3)


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    BATCHES,
    st.integers(1, 40),
    st.integers(1, 40),
    DENSITIES,
    DTYPES,
    st.booleans(),
    st.booleans(),
)
def test_linear(
    seed: int, batch: int, inner: int, outer: int, density: float, dtype: torch.dtype, relu: bool, residual: bool
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, inner, dtype=dtype)
    first, second = pruned((outer, inner), density, dtype), pruned((outer, outer), density, dtype)
    bias = torch.randn(outer, dtype=dtype)
    hidden = F.linear(x, first, bias).relu()
    expected = F.linear(hidden, second, bias) + (hidden if residual else 0)
    clamp = {"low": 0.0, "high": float("inf")}
    steps = [
        Step("linear", ("x",), "h", clamp, {"weight": first, "bias": bias}),
        Step(
            "linear", ("h", "h") if residual else ("h",), "y", clamp if relu else {}, {"weight": second, "bias": bias}
        ),
    ]
    check(steps, {"h": (None, outer), "y": (None, outer)}, x, expected.relu() if relu else expected)


@settings(max_examples=100)
@given(st.data(), st.integers(0, 10**6), BATCHES, DENSITIES, DTYPES)
def test_convolution(data: st.DataObject, seed: int, batch: int, density: float, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    groups = data.draw(st.sampled_from((1, 1, 2, 3)), "groups")
    channels, out = groups * data.draw(st.integers(1, 4), "in"), groups * data.draw(st.integers(1, 4), "out")
    kernel = [data.draw(st.integers(1, 4), "kernel") for _ in range(2)]
    stride, dilation = ([data.draw(st.integers(1, n), "s") for _ in range(2)] for n in (3, 2))
    padding = [data.draw(st.integers(0, 3), "padding") for _ in range(2)]
    size = [
        data.draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 20), "size")
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    x = torch.randn(batch, channels, *size, dtype=dtype)
    weight, bias = pruned((out, channels // groups, *kernel), density, dtype), torch.randn(out, dtype=dtype)
    middle = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    again = pruned((3, out, 3, 3), density, dtype)
    expected = F.conv2d(middle.relu(), again, None, padding=1)
    s = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "low": 0.0, "high": float("inf")}
    plain = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    steps = [
        Step("conv", ("x",), "h", s, {"weight": weight, "bias": bias}),
        Step("conv", ("h",), "y", plain, {"weight": again, "bias": torch.zeros(3, dtype=dtype)}),
    ]
    check(steps, {"h": (None, *middle.shape[1:]), "y": (None, *expected.shape[1:])}, x, expected)


def identity(channels: int, dtype: torch.dtype, name: str) -> Step:
    """A convolution that changes nothing, for what kernels only do beside a layer."""
    weight = torch.eye(channels, dtype=dtype)[..., None, None]
    plain = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    return Step("conv", ("x",), name, plain, {"weight": weight, "bias": torch.zeros(channels, dtype=dtype)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 5, 16, 33])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_function_of_a_number(function: str, batch: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = 4 * torch.randn(batch, 3, 4, 5, dtype=dtype)
    x = x.abs() if function == "sqrt" else x
    a, b = {"clamp": (-1.0, 2.0), "softplus": (2.0, 3.0), "elu": (1.5, 0.7)}.get(function, (0.1, 0.0))
    step = Step("unary", ("h",), "y", {"function": function, "a": a, "b": b})
    expected = FUNCTIONS[function](x, a, b)
    check([identity(3, dtype, "h"), step], {"h": (None, 3, 4, 5), "y": (None, 3, 4, 5)}, x, expected)


@pytest.mark.parametrize("pixels", [(4, 5), (1, 1)])
@pytest.mark.parametrize("batch", [1, 16, 19])
@pytest.mark.parametrize("function", PAIRS)
def test_each_function_of_two_numbers(function: str, batch: int, pixels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 4, 5) + 3
    windows = [[[0, 4]], [[0, 5]]] if pixels == (1, 1) else [[[i, i + 1] for i in range(n)] for n in (4, 5)]
    other = x.mean((2, 3), keepdim=True) if pixels == (1, 1) else x
    factor = torch.full(pixels, 1 / 20 if pixels == (1, 1) else 1.0)
    steps = [
        identity(3, torch.float32, "h"),
        Step("pool", ("x",), "p", {"function": "sum", "rows": windows[0], "columns": windows[1]}, {"factor": factor}),
        Step("binary", ("h", "p"), "y", {"function": function}),
    ]
    shapes: dict[str, Shape] = {"h": (None, 3, 4, 5), "p": (None, 3, *pixels), "y": (None, 3, 4, 5)}
    check(steps, shapes, x, PAIRS[function](x, other))


@settings(max_examples=60)
@given(st.data(), st.integers(0, 10**6), BATCHES, st.booleans())
def test_pooling(data: st.DataObject, seed: int, batch: int, largest: bool) -> None:
    torch.manual_seed(seed)
    height, width = (data.draw(st.integers(1, 12), "size") for _ in range(2))

    def windows(size: int) -> list[list[int]]:
        starts = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5), "starts")
        return [[start, data.draw(st.integers(start + 1, size), "end")] for start in starts]

    rows, columns = windows(height), windows(width)
    x = torch.randn(batch, 3, height, width)
    factor = torch.rand(len(rows), len(columns))
    lines = [[x[:, :, a:b, c:d] for c, d in columns] for a, b in rows]
    reduced = [[(part.amax((2, 3)) if largest else part.sum((2, 3))) for part in line] for line in lines]
    expected = torch.stack([torch.stack(line, -1) for line in reduced], -2)
    settings_ = {"function": "max" if largest else "sum", "rows": rows, "columns": columns}
    steps = [identity(3, x.dtype, "h"), Step("pool", ("h",), "y", settings_, {"factor": factor})]
    shapes: dict[str, Shape] = {"h": (None, *x.shape[1:]), "y": (None, *expected.shape[1:])}
    check(steps, shapes, x, expected if largest else expected * factor)
    assert torch.allclose(
        evaluate(Graph(["x"], {"value": "y"}, steps, {}), [x]), expected if largest else expected * factor
    )


@pytest.mark.parametrize("batch", [1, 16, 64, 70])
def test_nan_and_infinity_pass_as_in_torch(batch: int) -> None:
    x = torch.randn(batch, 1, 4, 4)  # one channel: a weight of 0 that is not multiplied lets no NaN through
    x[0, 0, 1, 1], x[-1, 0, 2, 2] = float("nan"), float("inf")
    step = identity(1, x.dtype, "h")
    step.settings |= {"low": 0.0, "high": 6.0}
    pool = Step("pool", ("h",), "y", {"function": "max", "rows": [[0, 2], [2, 4]], "columns": [[0, 4]]},
                {"factor": torch.ones(2, 1)})  # fmt: skip
    graph = Graph(
        ["x"], {"value": "y"}, [step, pool], {"x": (None, 1, 4, 4), "h": (None, 1, 4, 4), "y": (None, 1, 2, 1)}
    )
    expected = evaluate(graph, [x])
    assert expected.isnan().any() and torch.equal(SparseNetwork(graph)(x).isnan(), expected.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 8, 16, 21, 64])
@pytest.mark.parametrize("size", [(2, 2), (5, 4), (12, 27)])
def test_a_convolution_and_its_pool_at_once(size: tuple[int, int], batch: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(batch, 3, *size, dtype=dtype),
        pruned((5, 3, 3, 3), 0.4, dtype),
        torch.randn(5, dtype=dtype),
    )
    x[0, 1, 0, 0] = float("nan")
    height, width = size[0] // 2, size[1] // 2
    windows = [[[2 * i, 2 * i + 2] for i in range(n)] for n in (height, width)]
    conv = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "low": 0.0, "high": 6.0}
    pool = {"function": "max", "rows": windows[0], "columns": windows[1]}
    steps = [
        Step("conv", ("x",), "h", conv, {"weight": weight, "bias": bias}),
        Step("pool", ("h",), "y", pool, {"factor": torch.ones(height, width)}),
    ]
    shapes: dict[str, Shape] = {"x": (None, *x.shape[1:]), "h": (None, 5, *size), "y": (None, 5, height, width)}
    result = SparseNetwork(Graph(["x"], {"value": "y"}, steps, shapes))(x)
    expected = F.max_pool2d(F.conv2d(x, weight, bias, padding=1).clamp(0, 6), 2)
    known = ~result.isnan()  # a weight of 0 lets no NaN through
    assert expected[known].isnan().sum() <= expected.isnan().sum() and not expected[~known].isnan().logical_not().any()
    close(result[1:], expected[1:])


def test_offsets_reach_further_than_two_bytes() -> None:
    torch.manual_seed(0)
    wide, weight = torch.randn(3, 70_000), pruned((2, 70_000), 0.01, torch.float32)
    steps = [Step("linear", ("x",), "y", {}, {"weight": weight, "bias": torch.zeros(2)})]
    check(steps, {"y": (None, 2)}, wide, F.linear(wide, weight))
    tall, kernel = torch.randn(2, 2, 300, 250), pruned((1, 2, 299, 3), 0.01, torch.float32)
    settings_ = {"stride": [1, 1], "padding": [0, 1], "dilation": [1, 1], "groups": 1}
    steps = [Step("conv", ("x",), "y", settings_, {"weight": kernel, "bias": torch.ones(1)})]
    check(steps, {"y": (None, 1, 2, 250)}, tall, F.conv2d(tall, kernel, padding=(0, 1)) + 1)
