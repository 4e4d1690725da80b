"""Layers of survivors against dense ones in PyTorch: outputs and every gradient, and the whole step of a chain."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lth_lightning.errors import SettingError
from lth_lightning.models import MLP, Conv2
from lth_lightning.pruning.state import full_state, load_state
from lth_lightning.pruning.survivors import show_dense, survivors_of
from lth_lightning.sparse.fused import FusedStep, can_step, chain_of
from lth_lightning.sparse.training import ThinConv2d, ThinLinear, densified, thinned

pytestmark = needs_compiler
BATCHES = st.sampled_from((1, 2, 7, 15, 16, 17, 33, 64, 65, 130))
DENSITIES = st.sampled_from((0.0, 0.02, 0.3, 1.0))
DTYPES = st.sampled_from((torch.float32, torch.float64))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found - expected).norm() <= TOLERANCE[expected.dtype] * max(expected.norm(), 1e-3)


def mask_of(weight: Tensor, density: float) -> Tensor:
    """One weight at least, unless the density is 0."""
    mask = torch.rand(weight.shape) < density
    if density:
        mask.view(-1)[torch.randint(mask.numel(), ())] = True
    return mask


def check(layer: nn.Module, x: Tensor, density: float) -> None:
    dense, mask = copy.deepcopy(layer), mask_of(layer.weight, density)
    with torch.no_grad():
        dense.weight.mul_(mask)
    thinned(layer, {"weight": mask}, ways={"weight": "sparse"})
    (weight,) = [one for name, one in layer.named_parameters() if name == "weight"]
    assert weight.shape == (int(mask.sum()),), "only survivors exist"
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(ours)
    expected = dense(theirs)
    close(y, expected)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient)
    close(ours.grad, theirs.grad)
    close(weight.grad, dense.weight.grad[mask])
    if layer.bias is not None:
        close(layer.bias.grad, dense.bias.grad)
    with torch.no_grad():
        close(layer(x), expected)
    densified(layer)
    assert type(layer) is type(dense) and torch.equal(layer.weight, dense.weight)
    close(layer.weight.grad, dense.weight.grad * mask)


@settings(max_examples=60)
@given(st.integers(0, 10**6), BATCHES, st.integers(1, 40), st.integers(1, 40), DENSITIES, DTYPES, st.booleans())
def test_linear(seed: int, batch: int, inner: int, outer: int, density: float, dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(seed)
    check(nn.Linear(inner, outer, bias=bias).to(dtype), torch.randn(batch, inner, dtype=dtype), density)


def test_linear_over_the_last_of_several_dimensions() -> None:
    check(nn.Linear(6, 5), torch.randn(2, 3, 4, 6), 0.4)
    check(nn.Linear(6, 5), torch.randn(6), 0.4)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=80)
@given(
    st.integers(0, 10**6),
    st.sampled_from((1, 3)),
    st.sampled_from(((4, 8, 1), (4, 8, 2), (4, 4, 4), (3, 5, 1))),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.sampled_from(("same", "valid"))),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(8, 19), st.integers(8, 19)),
    DENSITIES,
    DTYPES,
)
def test_convolution(
    seed: int,
    batch: int,
    channels: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    size: tuple[int, int],
    density: float,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(seed)
    inner, outer, groups = channels
    stride = (1, 1) if padding == "same" else stride
    layer = nn.Conv2d(inner, outer, kernel, stride, padding, dilation, groups, bias=seed % 2 == 0).to(dtype)
    check(layer, torch.randn(batch, inner, *size, dtype=dtype), density)


@pytest.mark.parametrize("threads", [1, 2])
def test_convolutions_of_images_in_threads_in_one_dimension_and_of_one_image(threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        check(nn.Conv2d(4, 8, 3, padding=1), torch.randn(7, 4, 13, 18), 0.3)
        check(nn.Conv2d(4, 8, 3, padding=1), torch.randn(7, 13, 18, 4).permute(0, 3, 1, 2), 0.3)  # channels last
        check(nn.Conv1d(4, 8, 5, stride=2, padding=2), torch.randn(3, 4, 33), 0.3)
        check(nn.Conv2d(4, 8, 3, padding=1), torch.randn(4, 13, 18), 0.3)
    finally:
        torch.set_num_threads(1)


def test_images_of_several_sizes_in_one_layer() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1)
    dense, mask = copy.deepcopy(layer), mask_of(layer.weight, 0.5)
    dense.weight.data *= mask
    thinned(layer, {"weight": mask}, ways={"weight": "sparse"})
    for size in (8, 11, 8):
        x = torch.randn(2, 2, size, size)
        close(layer(x), dense(x))


# ------------------------------------------------------------------------ what surrounds a layer


def network() -> tuple[nn.Module, dict[str, Tensor]]:
    net = Conv2(input_shape=(1, 8, 8))
    masks = {name: mask_of(weight, 0.2) for name, weight in net.named_parameters() if weight.ndim > 1}
    masks["output.weight"][:] = False  # nothing survives
    with torch.no_grad():
        for name, weight in net.named_parameters():
            weight.mul_(masks.get(name, 1))
    return net, masks


def test_the_state_of_a_thinned_network_is_dense() -> None:
    net, masks = network()
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    thinned(net, masks)
    assert isinstance(net.conv1, ThinConv2d) and isinstance(net.fc1, ThinLinear)
    for state in (net.state_dict(), full_state(net)):
        assert list(state) == list(expected)
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    doubled = {name: 2 * value for name, value in expected.items()}
    for load in (net.load_state_dict, lambda state: load_state(net, state)):
        load(doubled)
        assert all(torch.equal(net.state_dict()[name], value) for name, value in doubled.items())
        net.load_state_dict(expected)


def test_copies_and_pickles_of_a_thinned_network_compute_the_same() -> None:
    net, masks = network()
    x = torch.randn(3, 1, 8, 8)
    expected = net(x)
    thinned(net, masks, ways=dict.fromkeys(masks, "sparse"))
    twin = copy.deepcopy(net)
    close(twin(x), expected)
    assert survivors_of(twin.fc1._parameters["weight"]) is not None
    with torch.no_grad():
        net.fc1.bias += 1
    close(twin(x), expected)  # the copy has weights of its own
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    back = torch.load(file, weights_only=False)
    assert type(back.fc1) is nn.Linear
    close(back(x), expected)


def test_code_that_reads_the_weight_itself_trains_the_survivors() -> None:
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)
    mask = mask_of(layer.weight, 0.4)
    dense = (layer.weight * mask).detach().requires_grad_()
    thinned(layer, {"weight": mask})
    close(layer.weight, dense)
    (F.linear(x, layer.weight) ** 2).sum().backward()
    (F.linear(x, dense) ** 2).sum().backward()
    close(dict(layer.named_parameters())["weight"].grad, dense.grad[mask])


def test_a_write_to_the_dense_weight_is_an_error() -> None:
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)
    thinned(layer, {"weight": mask_of(layer.weight, 0.4)}, ways={"weight": "sparse"})
    layer.weight.data.clamp_(-1, 1)  # within the bounds already
    layer(x)
    layer.weight.data.mul_(2)
    with pytest.raises(SettingError, match="written to the weight of in_features=5, out_features=4"):
        layer(x)


def test_a_layer_that_shares_its_weight_or_is_of_another_kind_stays_dense() -> None:
    class Own(nn.Linear):
        pass

    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "own": Own(4, 4), "short": nn.Linear(4, 4)})
    net["b"].weight = net["a"].weight
    net["short"].bfloat16()
    masks = {name: mask_of(weight, 0.5) for name, weight in net.named_parameters() if weight.ndim > 1}
    assert thinned(net, masks) == {}


def test_each_layer_takes_the_faster_way_and_says_what_it_measured() -> None:
    layers = {"sparse": nn.Linear(400, 300), "dense": nn.Linear(400, 300)}
    for way, layer in layers.items():
        mask = mask_of(layer.weight, 0.001 if way == "sparse" else 1.0)
        found = thinned(layer, {"weight": mask})["weight"]
        assert found.way is None
        layer(torch.randn(60, 400)).sum().backward()
        sparse, dense = found.times
        assert min(found.times) > 0
        assert found.way == ("sparse" if sparse <= dense else "dense")
    other = thinned(nn.Linear(4, 3), {"weight": torch.ones(3, 4) > 0}, agreed=lambda faster: False)["weight"]
    assert other.way is None  # not yet: without gradients nothing is timed


def test_optimizer_states_shrink_are_saved_dense_and_grow_back() -> None:
    layer, mask = nn.Linear(5, 4), torch.rand(4, 5) < 0.4
    optimizer = Adam(layer.parameters())
    layer(torch.randn(3, 5)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"][0])
    thinned(layer, {"weight": mask}, [optimizer])
    weight = optimizer.param_groups[0]["params"][0]
    assert optimizer.state[weight]["exp_avg"].shape == (int(mask.sum()),) == weight.grad.shape
    handle = show_dense(optimizer)
    saved = optimizer.state_dict()["state"][0]
    assert torch.equal(saved["exp_avg"], before["exp_avg"] * mask) and saved["step"] == 1
    handle.remove()
    densified(layer, [optimizer])
    assert torch.equal(optimizer.state[weight]["exp_avg_sq"], before["exp_avg_sq"] * mask)


# ------------------------------------------------------------------------ the fused step

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda weights: SGD(weights, lr=0.1),
    "momentum": lambda weights: SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-2, dampening=0.2),
    "nesterov": lambda weights: SGD(weights, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda weights: Adam(weights, lr=1e-2, weight_decay=1e-2),
    "adamw": lambda weights: AdamW(weights, lr=1e-2, weight_decay=0.3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("batch", [7, 60, 150])
def test_fifty_fused_steps_equal_those_of_torch(name: str, batch: int) -> None:
    net = MLP([30, 20], input_shape=(1, 6, 6)).double()
    masks = {key: mask_of(weight, 0.2) for key, weight in net.named_parameters() if weight.ndim > 1}
    dense = copy.deepcopy(net)
    thinned(net, masks, ways=dict.fromkeys(masks, "sparse"))
    ours, theirs = OPTIMIZERS[name](net.parameters()), OPTIMIZERS[name](dense.parameters())
    links = chain_of(net)
    assert links is not None and can_step(ours)
    step = FusedStep(links, ours)
    with torch.no_grad():
        for key, weight in dense.named_parameters():
            weight.mul_(masks.get(key, 1))
    for number in range(50):
        if number == 25:
            ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.03  # as a schedule sets it
        if number == 30:  # as a callback may, between two steps
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
            for weight in net.parameters():
                weight.data = weight.data.clone()
        x, y = torch.randn(batch, 1, 6, 6, dtype=torch.float64), torch.randint(10, (batch,))
        theirs.zero_grad()
        loss = F.cross_entropy(dense(x), y)
        loss.backward()
        for key, weight in dense.named_parameters():
            weight.grad.mul_(masks.get(key, 1))
        theirs.step()
        assert step(x, y) == pytest.approx(loss.item(), rel=1e-9)
    for key, value in net.state_dict().items():
        expected = dense.state_dict()[key] * masks.get(key, 1)
        assert (value - expected).abs().max() <= 1e-9 * expected.abs().max()
    for mine, other in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert mine.keys() == other.keys() and all(mine[key].dtype == other[key].dtype for key in mine)


def test_a_batch_that_the_fused_step_cannot_take_is_left_to_torch() -> None:
    net = MLP([5], input_shape=(1, 4, 4))
    step = FusedStep(chain_of(net) or [], SGD(net.parameters(), lr=0.1))
    before = copy.deepcopy(net.state_dict())
    x, y = torch.randn(6, 1, 4, 4), torch.randint(10, (6,))
    for inputs, targets in ((x.double(), y), (x, y.int()), (x, y.unsqueeze(1)), (x[:, :, 1:], y), (x[:0], y[:0])):
        assert step(inputs, targets) is None
    assert step(x, torch.full((6,), -100)) is None and step(x, torch.full((6,), 10)) is None
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "links"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), 2),
        (nn.Sequential(nn.Linear(4, 3)), 1),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), None),  # no scores
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), None),
        (nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 2)), None),
        (nn.Sequential(nn.Linear(4, 4), nn.Flatten(0), nn.Linear(4, 2)), None),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), None),
        (nn.Sequential(*[nn.Linear(4, 4)] * 2), None),  # one layer twice
        (Conv2(input_shape=(1, 8, 8)), None),
        (nn.Sequential(), None),
    ],
    ids=str,
)
def test_a_chain_is_nothing_but_linear_layers_and_relu(net: nn.Module, links: int | None) -> None:
    found = chain_of(net)
    assert (None if found is None else len(found)) == links


def test_a_residual_sum_is_no_chain() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(x)

    assert chain_of(Residual()) is None
