"""How fast do tickets run? One command, from the folder that holds configs/:

    OMP_NUM_THREADS=1 taskset -c 0 uv run --extra export python tests/benchmarks/inference.py
    … inference.py lenet conv4 --batches 1,64

A network pruned to each density by magnitude, compiled (`lth_lightning.sparse`), beside the dense network in the
fastest of four engines: torch eager, channels-last, `torch.jit.freeze`, ONNX Runtime where it is installed. Contestants
take turns; each figure is the ratio of medians.
"""

import argparse
import platform
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lth_lightning.errors import SettingError
from lth_lightning.models import VGG, Conv4, LeNet300, ResNet
from lth_lightning.sparse.compaction import compacted
from lth_lightning.sparse.network import SparseNetwork
from lth_lightning.sparse.onnx_model import onnx_runtime
from lth_lightning.sparse.simplify import simplified
from lth_lightning.sparse.timing import in_turns
from lth_lightning.sparse.trace import trace

TURNS = 15
SECONDS = 0.02  # of a turn

IMAGES = {"lenet": (1, 28, 28)}
BUILD: dict[str, Callable[[], nn.Module]] = {
    "lenet": LeNet300,
    "conv4": Conv4,
    "conv4_paper": Conv4,
    "resnet20": lambda: ResNet(depth=20, input_shape=(3, 32, 32), num_classes=10),
    "vgg11": lambda: VGG(depth=11, input_shape=(3, 32, 32), num_classes=10),
}
DENSITIES: dict[str, list[float]] = {"resnet20": [0.21, 0.06, 0.03], "conv4_paper": [7, 14, 21]}
"""Of each prunable layer; for the paper's Conv-4 the round r, in which convolutions keep 0.9^r and layers 0.8^r."""


@torch.no_grad()
def prune(name: str, net: nn.Module, density: float) -> float:
    """Keep the largest weights of each layer, and return the density of the whole network."""
    kept = total = 0
    for layer_name, layer in net.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        part = density
        if name == "conv4_paper":
            part = (0.9 if isinstance(layer, nn.Conv2d) or layer_name == "output" else 0.8) ** density
        elif name in ("resnet20", "vgg11") and (isinstance(layer, nn.Linear) or "shortcut" in layer_name):
            part = 1.0
        weight = layer.weight
        count = max(1, round(part * weight.numel()))
        weight *= weight.abs() >= weight.abs().flatten().kthvalue(weight.numel() - count + 1).values
        kept, total = kept + count, total + weight.numel()
    return kept / total


def engines(net: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    """The dense network in each engine that is here."""
    found: dict[str, Callable[[], Any]] = {"eager": lambda: net(x)}
    if x.shape[2] * x.shape[3] > 784:
        last, y = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        found["channels-last"] = lambda: last(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(torch.jit.trace(net, x))
    found["frozen"] = lambda: frozen(x)
    try:
        run = onnx_runtime(simplified(trace(net, x[:1])))
        found["ONNX Runtime"] = lambda: run(x)
    except (ImportError, SettingError) as error:
        print(f"without ONNX Runtime: {error}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"from {', '.join(BUILD)}; all by default")
    parser.add_argument("--batches", default="1,64")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    print("| network | batch | density | sparse ms | fastest dense ms | speed-up | over torch eager |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in given.networks or BUILD:
        for batch in map(int, given.batches.split(",")):
            for density in DENSITIES.get(name, [0.2, 0.05, 0.02]):
                torch.manual_seed(0)
                net = BUILD[name]().eval()
                x = torch.randn(batch, *IMAGES.get(name, (3, 32, 32)))
                whole = prune(name, net, density)
                network = SparseNetwork(compacted(simplified(trace(net, x[:1]))), batch_size=batch)
                assert torch.allclose(network(x), net(x), rtol=1e-4, atol=1e-4)
                calls = {"sparse": lambda n=network, x=x: n(x), **engines(net, x)}
                milliseconds = in_turns(list(calls.values()), TURNS, SECONDS)
                times = dict(zip(calls, milliseconds, strict=True))
                sparse = times.pop("sparse")
                best = min(times, key=lambda engine: times[engine])
                dense = f"{times[best]:.3f} ({best})"
                gains = f"{times[best] / sparse:.1f} | {times['eager'] / sparse:.1f}"
                print(f"| {name} | {batch} | {100 * whole:.1f} % | {sparse:.3f} | {dense} | {gains} |", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
