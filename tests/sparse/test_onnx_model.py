"""ONNX files, run by ONNX Runtime, against the graph in PyTorch."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from lth_lightning.errors import SettingError
from lth_lightning.models import Conv2, LeNet300, ResNet
from lth_lightning.sparse.compaction import compacted
from lth_lightning.sparse.dense import FUNCTIONS, PAIRS, evaluate
from lth_lightning.sparse.graph import Graph, Step
from lth_lightning.sparse.onnx_model import onnx_model
from lth_lightning.sparse.simplify import simplified
from lth_lightning.sparse.trace import trace

onnxruntime = pytest.importorskip("onnxruntime")


def check(graph: Graph, *shape: int) -> None:
    session = onnxruntime.InferenceSession(onnx_model(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = 3 * torch.randn(batch, *shape)
        (scores,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            expected = evaluate(graph, [x])
        assert scores.shape == expected.shape
        assert torch.allclose(torch.from_numpy(scores), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (LeNet300, (1, 28, 28)),
        (Conv2, (3, 32, 32)),
        (lambda: ResNet(depth=8, input_shape=(3, 32, 32), num_classes=10), (3, 32, 32)),
        (lambda: torchvision.models.squeezenet1_1(weights=None), (3, 64, 64)),
        (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, padding=1, stride=2), nn.ReLU6(), nn.AdaptiveAvgPool1d(5)), (3, 12)),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(3), nn.AvgPool2d(2, 1, 1)),
            (3, 8, 8),
        ),
    ],
)
def test_networks(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = build().eval()
    graph = compacted(simplified(trace(module, torch.zeros(1, *shape))))
    if any(step.kind == "torch" for step in graph.steps):
        with pytest.raises(SettingError, match="aten.*use --to torch"):
            onnx_model(graph)
    else:
        check(graph, *shape)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_function_of_a_number(function: str) -> None:
    a, b = {"clamp": (-1.0, 2.0), "softplus": (2.0, 3.0), "elu": (1.5, 0.7)}.get(function, (0.1, 0.0))
    positive = Step("unary", ("x",), "p", {"function": "abs", "a": 0.0, "b": 0.0})
    step = Step("unary", ("p" if function == "sqrt" else "x",), "y", {"function": function, "a": a, "b": b})
    shape = (None, 3, 4)
    check(Graph(["x"], {"value": "y"}, [positive, step], {"x": shape, "p": shape, "y": shape}), 3, 4)


@pytest.mark.parametrize("function", PAIRS)
def test_each_function_of_two_numbers(function: str) -> None:
    gate = Step("unary", ("x",), "p", {"function": "sigmoid", "a": 0.0, "b": 0.0})
    step = Step("binary", ("x", "p"), "y", {"function": function})
    shape = (None, 3, 4)
    check(Graph(["x"], {"value": "y"}, [gate, step], {"x": shape, "p": shape, "y": shape}), 3, 4)
