"""Whole networks, compiled: equal to the module, whatever its graph holds, and never slower by choice."""

import copy
import functools
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import needs_compiler, weekly
from torch import Tensor, nn

from lth_lightning import Ticket, sparse
from lth_lightning.errors import SettingError, TicketError
from lth_lightning.models import VGG, Conv2, Conv4, LeNet5, LeNet300, ResNet
from lth_lightning.pruning.state import full_state
from lth_lightning.sparse import native
from lth_lightning.sparse.compaction import compacted
from lth_lightning.sparse.compile import DenseNetwork
from lth_lightning.sparse.dense import evaluate
from lth_lightning.sparse.graph import LAYERS, Graph
from lth_lightning.sparse.network import Chain, SparseNetwork
from lth_lightning.sparse.simplify import simplified
from lth_lightning.sparse.trace import trace


def pruned(module: nn.Module, density: float) -> nn.Module:
    """A module with random weights, running statistics and biases, of which some rows and columns are all zeros."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
        if isinstance(part, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                mask = torch.rand(part.weight.shape) < density
                mask[torch.rand(len(mask)) < 0.2] = False
                mask[:, torch.rand(mask.shape[1]) < 0.2] = False
                part.weight *= mask
                if part.bias is not None:
                    part.bias.normal_()
    return module.eval()


def graph_of(module: nn.Module, x: Tensor) -> Graph:
    return compacted(simplified(trace(module, x[:1])))


@functools.cache
def pruned_and_its_graph(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Graph]:
    module = pruned(build(), 0.1)
    return module, graph_of(module, torch.zeros(1, *shape))


def relative(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).norm() / expected.norm().clamp_min(1e-12))


class Mixed(nn.Module):
    """What kernels do not know stands between what they do; the batch is reshaped, outputs are several."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.LayerNorm(8)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        x = F.relu(self.conv(x)).transpose(1, 2)
        tokens = self.second(F.gelu(self.first(self.norm(x))))
        scores = tokens.mean(1)
        return {"tokens": tokens, "both": (scores, scores.softmax(-1).cumsum(-1))}


NETWORKS = [
    (LeNet300, (1, 28, 28)),
    (LeNet5, (1, 28, 28)),
    pytest.param(Conv2, (3, 32, 32), marks=weekly),
    (Conv4, (3, 32, 32)),
    (lambda: ResNet(depth=20, input_shape=(3, 32, 32), num_classes=10), (3, 32, 32)),
    pytest.param(lambda: VGG(depth=11, input_shape=(3, 32, 32), num_classes=10), (3, 32, 32), marks=weekly),
    pytest.param(lambda: torchvision.models.resnet18(weights=None), (3, 64, 64), marks=weekly),
    pytest.param(lambda: torchvision.models.mobilenet_v3_small(weights=None), (3, 64, 64), marks=weekly),
    pytest.param(lambda: torchvision.models.squeezenet1_1(weights=None), (3, 64, 64), marks=weekly),
    (lambda: nn.TransformerEncoderLayer(32, 4, batch_first=True), (5, 32)),
]


@pytest.mark.parametrize(("build", "shape"), NETWORKS)
def test_whole_networks(build, shape) -> None:  # type: ignore[no-untyped-def]
    for density in (0.3, 0.03, 0.0) if build in (LeNet5, LeNet300) else (0.03,):
        module = pruned(build(), density).double()
        x = torch.randn(3, *shape, dtype=torch.float64)
        with torch.no_grad():
            expected = module(x)
            graph = graph_of(module, x)
            assert relative(evaluate(graph, [x]), expected) < 1e-12
            if not any(map(shutil.which, ("cc", "gcc", "clang"))):
                continue
            assert relative(SparseNetwork(graph)(x), expected) < 1e-12
            assert relative(SparseNetwork(graph, group=4)(x.repeat(7, *[1] * len(shape))[:17]),
                            module(x.repeat(7, *[1] * len(shape))[:17])) < 1e-12  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("batch", [1, 16, 17, 65, *(pytest.param(size, marks=weekly) for size in (15, 64, 300))])
@pytest.mark.parametrize(("build", "shape"), NETWORKS[:5])
def test_batch_sizes_in_single_precision(build, shape, batch: int) -> None:  # type: ignore[no-untyped-def]
    module, graph = pruned_and_its_graph(build, shape)
    x = torch.randn(batch, *shape)
    with torch.no_grad():
        assert relative(SparseNetwork(graph)(x), module(x)) < 1e-5


@needs_compiler
def test_what_kernels_do_not_know_runs_in_torch() -> None:
    module, x = pruned(Mixed(), 0.5), torch.randn(6, 3, 10)
    network = SparseNetwork(graph_of(module, x))
    assert sum(isinstance(part, Chain) for part in network.parts) == 2
    with torch.no_grad():
        expected, given = module(x), network(x)
    assert given.keys() == expected.keys() and isinstance(given["both"], tuple)
    assert relative(given["tokens"], expected["tokens"]) < 1e-5
    for one, other in zip(given["both"], expected["both"], strict=True):
        assert relative(one, other) < 1e-5


def test_compaction_takes_out_what_reaches_nothing() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight[0] = 0  # unit 0 is a constant
        net[0].weight[:, 5] = 0  # nothing reads input 5
        net[2].weight[:, 1] = 0  # nothing reads unit 1
    x = torch.randn(9, 6)
    graph = graph_of(net, x)
    assert [tuple(step.tensors["weight"].shape) for step in graph.layers()] == [(2, 5), (2, 2)]
    with torch.no_grad():
        assert torch.allclose(evaluate(graph, [x]), net(x), atol=1e-6)


def test_a_constant_before_zero_padding_is_kept() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 3, padding=1))
    with torch.no_grad():
        net[0].weight[0] = 0
        net[0].bias[0] = 3.0
    x = torch.randn(2, 1, 5, 5)
    with torch.no_grad():
        assert torch.allclose(evaluate(graph_of(net, x), [x]), net(x), atol=1e-5)


def test_normalisation_and_relus_fold_into_layers() -> None:
    module = pruned(ResNet(depth=8, input_shape=(3, 32, 32), num_classes=10), 0.3)
    kinds = [step.kind for step in graph_of(module, torch.zeros(1, 3, 32, 32)).steps]
    assert set(kinds) <= {*LAYERS, "pool", "flatten", "select"}


def test_weights_that_are_computed_from_others_are_computed_once() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), nn.Dropout(0.5), nn.Linear(3, 2))
    x = torch.randn(4, 5)
    graph = graph_of(net, x)
    assert [step.kind for step in graph.steps] == ["linear", "linear"]
    with torch.no_grad():
        assert torch.allclose(evaluate(graph, [x]), net.eval()(x), atol=1e-6)


@needs_compiler
def test_the_fastest_way_is_chosen_and_printed() -> None:
    net = pruned(LeNet300(), 0.02)
    before = copy.deepcopy(net.state_dict())
    fast = sparse.compile(net, torch.zeros(1, 1, 28, 28), batch_size=64)
    choice = fast.choice
    assert isinstance(choice, sparse.Choice)
    assert choice.way == min(choice.milliseconds, key=lambda way: choice.milliseconds[way])
    assert {*choice.milliseconds} == {"dense", "compacted", "sparse"} and len(choice.layers) == 3
    assert "ms, batch 64" in str(choice)
    x = torch.randn(33, 1, 28, 28)
    with torch.no_grad():
        assert relative(fast(x), net(x)) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.output.weight.data.zero_()
    assert fast(x).abs().max() > 0 and not fast(x).requires_grad


def test_without_a_compiler_it_stays_dense_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_compilers", lambda: iter(()))
    native.kernels.cache_clear()
    net = pruned(LeNet300(), 0.02)
    fast = sparse.compile(net, torch.zeros(1, 1, 28, 28), batch_size=2)
    native.kernels.cache_clear()
    assert isinstance(fast, DenseNetwork | SparseNetwork) and fast.choice.way != "sparse"  # type: ignore[union-attr]
    assert "pip install 'lth_lightning[native]'" in str(fast.choice) and str(fast.choice).count("\n") <= 2
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert relative(fast(x), net(x)) < 1e-5


@needs_compiler
def test_kernels_are_compiled_once_a_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.kernels.cache_clear()
    first = native.kernels(torch.float32)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "lth_lightning").iterdir()}
    native.kernels.cache_clear()
    assert native.kernels(torch.float32).width == first.width >= 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "lth_lightning").iterdir()} == files and len(
        files
    ) == 1
    native.kernels.cache_clear()


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_a_graph_that_depends_on_the_data_is_refused_with_its_line() -> None:
    with pytest.raises(SettingError, match=r"Branching cannot be compiled.*test_compile.py, line \d+") as error:
        sparse.compile(Branching(), torch.zeros(2, 3))
    assert "\n" not in str(error.value)


def test_other_shapes_are_refused_when_it_runs() -> None:
    network = SparseNetwork(graph_of(LeNet300(), torch.zeros(1, 1, 28, 28)), dense=["relu", "relu_1", "linear_2"])
    with pytest.raises(ValueError, match=r"takes \(N, 1, 28, 28\) on cpu, got \(2, 784\)"):
        network(torch.zeros(2, 784))


@needs_compiler
def test_threads_share_a_network_and_a_large_batch() -> None:
    module, x = pruned(LeNet5(), 0.2), torch.randn(700, 1, 28, 28)
    network = SparseNetwork(graph_of(module, x))
    with torch.no_grad():
        expected = module(x)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert relative(network(x), expected) < 1e-5
        alone = network(x[:64])
        results: list[Tensor] = []
        users = [threading.Thread(target=lambda: results.append(network(x[:64]))) for _ in range(4)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        assert len(results) == 4 and all(torch.equal(result, alone) for result in results)
    finally:
        torch.set_num_threads(threads)


def test_a_ticket_compiles_a_network() -> None:
    net = pruned(LeNet300(), 0.05)
    masks = {name: p.detach() != 0 for name, p in net.named_parameters() if name.endswith("weight")}
    ticket = Ticket(masks, full_state(LeNet300()), trained=full_state(net), info={"input_shape": [1, 28, 28]})
    fresh = LeNet300()
    start = copy.deepcopy(fresh.state_dict())
    fast, x = ticket.compile(fresh, batch_size=4), torch.randn(5, 1, 28, 28)
    with torch.no_grad():
        assert relative(fast(x), net(x)) < 1e-5
    assert all(torch.equal(value, start[name]) for name, value in fresh.state_dict().items())
    with pytest.raises(TicketError, match="does not fit"):
        ticket.compile(LeNet5())
    with pytest.raises(TicketError, match="example=x"):
        Ticket(masks, full_state(net), trained=full_state(net)).compile(LeNet300())
    with pytest.raises(SettingError, match="batch_size must be at least 1, got 0"):
        ticket.compile(LeNet300(), batch_size=0)


@needs_compiler
def test_copies_and_pickles_give_the_same(tmp_path: Path) -> None:
    module = pruned(LeNet300(), 0.1)
    x = torch.randn(5, 1, 28, 28)
    fast = sparse.compile(module, x, batch_size=4)
    expected = fast(x)
    torch.save(fast, tmp_path / "fast.pt")
    for other in (copy.deepcopy(fast), torch.load(tmp_path / "fast.pt", weights_only=False)):
        assert torch.equal(other(x), expected) and other.choice.batch_size == 4
