"""The compiled network on disk: the same bits back, small, and nothing that is damaged or foreign is taken."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lth_lightning import sparse
from lth_lightning.errors import SettingError
from lth_lightning.models import LeNet5, LeNet300, ResNet
from lth_lightning.sparse.compaction import compacted
from lth_lightning.sparse.dense import evaluate
from lth_lightning.sparse.file import _gaps, read, save
from lth_lightning.sparse.graph import Graph, Step
from lth_lightning.sparse.simplify import simplified
from lth_lightning.sparse.trace import trace


def graph_of(module: nn.Module, density: float, *shape: int, dtype: torch.dtype = torch.float32) -> Graph:
    torch.manual_seed(0)
    module = module.to(dtype).eval()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.weight *= torch.rand(part.weight.shape) < density
    return compacted(simplified(trace(module, torch.zeros(1, *shape, dtype=dtype))))


@pytest.mark.parametrize(
    ("module", "shape", "dtype"),
    [
        (LeNet300(), (1, 28, 28), torch.float32),
        (LeNet5(), (1, 28, 28), torch.float64),
        (ResNet(depth=8, input_shape=(3, 32, 32), num_classes=10), (3, 32, 32), torch.float32),
        (nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True), (5, 16), torch.float32),
    ],
)
def test_the_same_bits_come_back(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    graph, x = graph_of(module, 0.1, *shape, dtype=dtype), torch.randn(3, *shape, dtype=dtype)
    save(graph, tmp_path / "network")
    with torch.no_grad():
        assert torch.equal(evaluate(read(tmp_path / "network"), [x]), evaluate(graph, [x]))
        assert torch.allclose(sparse.load(tmp_path / "network")(x), evaluate(graph, [x]), rtol=1e-5, atol=1e-5)


def test_lenet_at_3_6_percent_takes_at_most_52_kilobytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = LeNet300().eval()
    with torch.no_grad():
        for layer, density in ((net.fc1, 0.0355), (net.fc2, 0.0355), (net.output, 0.21)):
            layer.weight *= torch.rand(layer.weight.shape) < density
    graph = compacted(simplified(trace(net, torch.zeros(1, 1, 28, 28))))
    save(graph, tmp_path / "network")
    assert graph.weights() > 9000 and (tmp_path / "network").stat().st_size <= 52_000


@pytest.mark.parametrize("places", [[], [0], [254], [255], [256], [509, 510, 511, 2000], [0, 1, 2]])
def test_gaps_of_every_length(places: list[int], tmp_path: Path) -> None:
    assert len(_gaps(torch.tensor(places, dtype=torch.long).numpy())) == sum(
        1 + (place - before - 1) // 255 for before, place in zip([-1, *places], places, strict=False)
    )
    weight = torch.zeros(3, 1000)
    weight.view(-1)[places] = torch.arange(1.0, len(places) + 1)
    step = Step("linear", ("x",), "y", {}, {"weight": weight, "bias": torch.zeros(3)})
    save(Graph(["x"], {"value": "y"}, [step], {"x": (None, 1000), "y": (None, 3)}), tmp_path / "network")
    assert torch.equal(read(tmp_path / "network").steps[0].tensors["weight"], weight)


def test_each_changed_byte_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "network"
    save(graph_of(LeNet300(), 0.02, 1, 28, 28), file)
    content = file.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(content), (60,), generator=generator).tolist():
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(SettingError, match="network"):
            read(file)
    file.write_bytes(content[:-10])
    with pytest.raises(SettingError, match="is damaged, or is not a compiled network"):
        read(file)


def test_what_is_not_a_compiled_network_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(SettingError, match="does not exist"):
        sparse.load(tmp_path / "nothing")
    save_file({"x": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(SettingError, match="but not a compiled network"):
        sparse.load(tmp_path / "other")


@pytest.mark.parametrize("target", ["os.system.x", "prim.device.default", "eval", "aten.no_such_operator.default"])
def test_only_operators_of_torch_are_named(target: str, tmp_path: Path) -> None:
    value: dict[str, object] = {"target": target, "args": [{"value": "x"}], "kwargs": {}}
    x: Tensor = torch.ones(1)
    save(Graph(["x"], {"value": "y"}, [Step("torch", ("x",), "y", value)], {}, {"c": x}), tmp_path / "network")
    with pytest.raises(SettingError, match="cannot be read"):
        read(tmp_path / "network")
