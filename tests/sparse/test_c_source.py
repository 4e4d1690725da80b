"""The C source computes what PyTorch computes, compiles without a warning, and is as small as what survives."""

import copy
import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import weekly
from torch import Tensor, nn

from lth_lightning.errors import SettingError
from lth_lightning.models import Conv2, LeNet5, LeNet300, ResNet
from lth_lightning.sparse.c_source import BINARY, UNARY, c_source
from lth_lightning.sparse.compaction import compacted
from lth_lightning.sparse.dense import FUNCTIONS, PAIRS, evaluate
from lth_lightning.sparse.graph import Graph, Step
from lth_lightning.sparse.simplify import simplified
from lth_lightning.sparse.trace import trace

STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-std=c99")
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def pruned(module: nn.Module, density: float, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.num_features, generator=generator) / 10
            layer.running_var = torch.rand(layer.num_features, generator=generator) + 0.5
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            keep = torch.rand(layer.weight.shape, generator=generator) < density
            fan_in = layer.weight[0].numel() * density
            values = torch.randn(layer.weight.shape, generator=generator) * math.sqrt(2 / max(fan_in, 1))
            layer.weight.data = values * keep
            if layer.bias is not None:
                layer.bias.data = torch.randn(layer.bias.shape, generator=generator) / 10
    return module


def graph_of(module: nn.Module, example: Tensor) -> Graph:
    return compacted(simplified(trace(module.eval(), example)))


def compiled(folder: Path, graph: Graph, int8: bool = False, comment: str = "") -> ctypes.CDLL:
    header, source = c_source(graph, "net", int8=int8, comment=comment)
    (folder / "net.h").write_text(header)
    (folder / "net.c").write_text(source)
    library = folder / f"net{len(list(folder.iterdir()))}.so"  # a name of its own: a loaded library must not change
    library.touch()
    subprocess.run(["cc", *STRICT, "-O2", "-shared", "-fPIC", "net.c", "-o", library, "-lm"], cwd=folder, check=True)
    return ctypes.CDLL(str(library))


def run(library: ctypes.CDLL, images: Tensor, scores: int) -> tuple[Tensor, list[int]]:
    out = torch.full((len(images), scores), math.nan)
    images = images.contiguous()
    best = [
        library.predict(ctypes.c_void_p(image.data_ptr()), ctypes.c_void_p(row.data_ptr()))
        for image, row in zip(images, out, strict=True)
    ]
    return out, best


def check(folder: Path, graph: Graph, images: Tensor) -> None:
    """Scores as PyTorch's in float64, on which the order of sums has no effect, and the index of the largest."""
    wanted = evaluate(in_double(graph), [images.double()]).flatten(1)
    library = compiled(folder, graph)
    for _ in range(2):  # nothing is left over from the calls before
        scores, best = run(library, images, wanted.shape[1])
        assert (scores - wanted).abs().max() <= 1e-5 * max(1, float(wanted.abs().max()))
        assert best == scores.argmax(1).tolist()


def in_double(graph: Graph) -> Graph:
    graph = copy.deepcopy(graph)
    for step in graph.steps:
        step.tensors = {name: t.double() if t.is_floating_point() else t for name, t in step.tensors.items()}
    return graph


NETWORKS = {
    "lenet300": (LeNet300, (1, 28, 28)),
    "lenet5": (LeNet5, (1, 28, 28)),
    "conv2": (lambda: Conv2(input_shape=(3, 6, 6)), (3, 6, 6)),
    "resnet8": (lambda: ResNet(depth=8, width=8, input_shape=(3, 16, 16)), (3, 16, 16)),
    "resnet14": (lambda: ResNet(depth=14, width=3, input_shape=(3, 16, 16)), (3, 16, 16)),
}


@pytest.mark.parametrize("density", [pytest.param(0.6, marks=weekly), 0.1, pytest.param(0.005, marks=weekly)])
@pytest.mark.parametrize("network", [pytest.param(one, marks=weekly if one == "resnet14" else ()) for one in NETWORKS])
def test_the_papers_networks(network: str, density: float, tmp_path: Path) -> None:
    make, shape = NETWORKS[network]
    images = torch.randn(5, *shape)
    check(tmp_path, graph_of(pruned(make(), density), images), images)


class _Everything(nn.Module):
    """All kinds of steps: groups, dilation, one-pixel products, uneven pools, concatenation, functions of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, (3, 2), padding=(2, 1), groups=4, stride=(1, 2))
        self.grouped = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2)
        self.squeeze = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(10)
        self.out = nn.Linear(10 * 6, 7)
        self.skip = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.depthwise(x))
        y = F.relu6(self.grouped(x))
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        y = self.norm(torch.cat([y, -x], 1))
        y = F.avg_pool2d(F.max_pool2d(y, 3, 2, 1), 2, 1, padding=1)
        y = F.adaptive_avg_pool2d(y, (2, 3))
        y = F.leaky_relu(self.out(y.flatten(1)), 0.2)
        return F.hardtanh(self.skip(y) + y, -0.5, 0.75)


@pytest.mark.parametrize("density", [1.0, 0.4])
def test_every_kind_of_step(density: float, tmp_path: Path) -> None:
    images = torch.randn(6, 4, 9, 11)
    graph = graph_of(pruned(_Everything(), density), images)
    assert {step.kind for step in graph.steps} >= {"linear", "conv", "affine", "unary", "binary", "pool", "concat"}
    check(tmp_path, graph, images)


def test_one_dimension(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv1d(3, 8, 5, stride=2, padding=3, dilation=2), nn.ReLU(), nn.Conv1d(8, 1, 3), nn.Flatten(), nn.Tanh()
    )

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return conv(torch.relu(first(x)))

    first, conv = module[0], module[2]
    images = torch.randn(4, 3, 31)
    check(tmp_path, graph_of(pruned(Last(), 0.5), images), images)


def test_all_functions(tmp_path: Path) -> None:
    assert {*UNARY, "clamp"} == {*FUNCTIONS}
    assert {*BINARY} == {*PAIRS}
    parameters = {"leaky": (0.1, 0.0), "elu": (1.7, 1.1), "softplus": (2.0, 3.0), "clamp": (-0.25, math.inf)}
    names = [*FUNCTIONS]
    shapes = {"x": (None, 40)}
    steps = [Step("unary", ("x",), "positive", {"function": "abs", "a": 0.0, "b": 0.0})]
    for name in names:
        a, b = parameters.get(name, (0.0, 0.0))
        source = "positive" if name == "sqrt" else "x"
        steps.append(Step("unary", (source,), name, {"function": name, "a": a, "b": b}))
    for name in PAIRS:
        steps.append(Step("binary", ("exp", "positive" if name == "div" else "x"), f"pair_{name}", {"function": name}))
    parts = (*names, *(f"pair_{name}" for name in PAIRS))
    steps.append(Step("concat", parts, "out"))
    shapes |= {step.output: (None, 40) for step in steps} | {"out": (None, 40 * len(parts))}
    x = torch.randn(3, 40) * 3
    x = torch.where(x.abs() < 0.1, 0.5, x)
    check(tmp_path, Graph(["x"], {"value": "out"}, steps, shapes), x)


def test_layers_without_weights(tmp_path: Path) -> None:
    images = torch.randn(3, 1, 8, 8)
    layer = Step("conv", ("x",), "y", {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1})
    layer.tensors = {"weight": torch.zeros(2, 1, 3, 3), "bias": torch.tensor([0.5, -1.0])}
    last = Step("linear", ("z",), "out", {"low": -math.inf, "high": 0.25})
    last.tensors = {"weight": torch.zeros(4, 128), "bias": torch.arange(4) / 10}
    flat = Step("flatten", ("y",), "z", {"sizes": [128]})
    shapes = {"x": (None, 1, 8, 8), "y": (None, 2, 8, 8), "z": (None, 128), "out": (None, 4)}
    check(tmp_path, Graph(["x"], {"value": "out"}, [layer, flat, last], shapes), images)
    compiled(tmp_path, Graph(["x"], {"value": "out"}, [layer, flat, last], shapes), int8=True)


def test_a_network_that_only_hands_on_its_input(tmp_path: Path) -> None:
    flat = Step("flatten", ("x",), "y", {"sizes": [12]})
    graph = Graph(["x"], {"value": "y"}, [flat], {"x": (None, 3, 2, 2), "y": (None, 12)})
    check(tmp_path, graph, torch.randn(3, 3, 2, 2))


def test_long_gaps_and_wide_rows(tmp_path: Path) -> None:
    weight = torch.zeros(6, 70000)
    weight[torch.arange(4), torch.tensor([255, 254, 256, 69999])] = torch.tensor([1.0, -2.0, 3.0, 1e-30])
    weight[4, ::3] = 0.01
    weight[0, [510, 765, 766]] = 1.5
    step = Step("linear", ("x",), "y", {}, {"weight": weight, "bias": torch.zeros(6)})
    graph = Graph(["x"], {"value": "y"}, [step], {"x": (None, 70000), "y": (None, 6)})
    check(tmp_path, graph, torch.randn(2, 70000))


def test_a_row_with_more_weights_than_two_bytes_count(tmp_path: Path) -> None:
    weight = torch.zeros(2, 200_000)
    weight[1, ::3] = 1 / 256
    step = Step("linear", ("x",), "y", {}, {"weight": weight, "bias": torch.zeros(2)})
    graph = Graph(["x"], {"value": "y"}, [step], {"x": (None, 200_000), "y": (None, 2)})
    check(tmp_path, graph, torch.randn(2, 200_000).sign())


def test_selected_columns(tmp_path: Path) -> None:
    index = torch.tensor([3, 69_999])
    select = Step("select", ("x",), "y", {}, {"index": index})
    first = Step("linear", ("y",), "z", {}, {"weight": torch.randn(2, 2), "bias": torch.zeros(2)})
    last = Step("binary", ("z", "y"), "out", {"function": "sub"})
    shapes = {"x": (None, 70_000), "y": (None, 2), "z": (None, 2), "out": (None, 2)}
    x = torch.randn(2, 70_000)
    check(tmp_path, Graph(["x"], {"value": "out"}, [select, first, last], shapes), x)
    graph = Graph(["x"], {"value": "z"}, [select, first], shapes)
    assert "take" not in c_source(graph)[1]  # the layer reads them where they lie
    check(tmp_path, graph, x)


def test_selected_channels(tmp_path: Path) -> None:
    index = torch.tensor([2, 0, 3])
    select = Step("select", ("x",), "y", {}, {"index": index})
    shape = (None, 3, 2, 2)
    last = Step("unary", ("y",), "z", {"function": "neg", "a": 0.0, "b": 0.0})
    graph = Graph(["x"], {"value": "z"}, [select, last], {"x": (None, 4, 2, 2), "y": shape, "z": shape})
    check(tmp_path, graph, torch.randn(3, 4, 2, 2))


@pytest.mark.parametrize("network", ["lenet300", pytest.param("lenet5", marks=weekly), "resnet8"])
def test_signed_bytes_give_nearly_the_same_scores(network: str, tmp_path: Path) -> None:
    make, shape = NETWORKS[network]
    images = torch.randn(64, *shape)
    graph = graph_of(pruned(make(), 0.2), images)
    wanted = evaluate(graph, [images])
    scores, best = run(compiled(tmp_path, graph, int8=True), images, wanted.shape[1])
    assert (scores - wanted).norm() < 0.05 * wanted.norm()
    assert (torch.tensor(best) == wanted.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize(("int8", "limit"), [(False, 60_000), (True, 33_000)])
def test_the_size_of_a_pruned_lenet(int8: bool, limit: int, tmp_path: Path) -> None:
    network = pruned(LeNet300(), 0.036).eval()
    graph = simplified(trace(network, torch.randn(1, 1, 28, 28)))  # not compacted: pruned at random, it would shrink
    assert graph.weights() > 9000
    header, source = c_source(graph, int8=int8)
    (tmp_path / "network.h").write_text(header)
    (tmp_path / "network.c").write_text(source)
    subprocess.run(["cc", *STRICT, "-Os", "-c", "network.c"], cwd=tmp_path, check=True)
    sizes = subprocess.run(["size", "network.o"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert int(sizes.splitlines()[1].split()[0]) <= limit


def test_values_that_are_not_alive_together_share_memory() -> None:
    _, source = c_source(graph_of(ResNet(depth=8, width=4), torch.randn(1, 3, 32, 32)))
    assert f"scratch[{2 * 4 * 32 * 32}]" in source  # a block's input, and its first convolution: sums form in place


def test_the_comment_cannot_end_itself(tmp_path: Path) -> None:
    step = Step("unary", ("x",), "y", {"function": "neg", "a": 0.0, "b": 0.0})
    graph = Graph(["x"], {"value": "y"}, [step], {"x": (None, 3), "y": (None, 3)})
    compiled(tmp_path, graph, comment="a */ int b; /* c /*/ \\\n\n/ d *")
    assert "a * / int b;" in (tmp_path / "net.h").read_text()


class _Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(1).cumsum(1)


def test_what_only_pytorch_runs_is_refused() -> None:
    with pytest.raises(SettingError, match=r"aten\..*softmax.*aten\.cumsum.*--to torch"):
        c_source(graph_of(_Softmax(), torch.randn(2, 5)))
    with pytest.raises(SettingError, match=r"linear.*more than two dimensions.*--to torch"):
        c_source(graph_of(nn.Linear(5, 3), torch.randn(2, 4, 5)))
    step = Step("binary", ("x", "y"), "z", {"function": "add"})
    with pytest.raises(SettingError, match=r"2 inputs.*--to torch"):
        c_source(Graph(["x", "y"], {"value": "z"}, [step], dict.fromkeys("xyz", (None, 3))))
    with pytest.raises(SettingError, match=r"2 outputs.*--to torch"):
        c_source(Graph(["x"], [{"value": "x"}, {"value": "x"}], [], {"x": (None, 3)}))
