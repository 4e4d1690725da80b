"""Compiles a module for inference, in the way that is measured to be the fastest on this machine."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lth_lightning.errors import SettingError
from lth_lightning.sparse.compaction import compacted
from lth_lightning.sparse.dense import perform
from lth_lightning.sparse.graph import LAYERS, Graph, Step
from lth_lightning.sparse.native import NoCompilerError
from lth_lightning.sparse.network import Chain, SparseNetwork
from lth_lightning.sparse.simplify import simplified
from lth_lightning.sparse.timing import in_turns
from lth_lightning.sparse.trace import trace

PAYS = 0.7  # of the kernels' time: what PyTorch may take for a layer to leave them, as its tensors must be copied


@dataclass
class LayerChoice:
    """How one layer runs, and the milliseconds that each way took for the batch."""

    name: str
    density: float
    way: str
    milliseconds: dict[str, float]


@dataclass
class Choice:
    """How a network runs, as it was measured; printed as a table.

    Args:
        batch_size: the batch size of all measurements.
        threads: PyTorch's threads, which kernels use too.
        way: `sparse`, `compacted` (dense, without dead channels) or `dense` (the module as it was).
        milliseconds: for a batch, by way.
        layers: the same a layer.
        note: what to do or know, if anything.
    """

    batch_size: int
    threads: int
    way: str = "dense"
    milliseconds: dict[str, float] = field(default_factory=dict)
    layers: list[LayerChoice] = field(default_factory=list)
    note: str = ""

    @property
    def speed_up(self) -> float:
        """The dense module's time over that of the chosen way."""
        return self.milliseconds["dense"] / self.milliseconds[self.way] if self.milliseconds else 1.0

    def __str__(self) -> str:
        lines = [f"{'layer':24}{'density':>9}{'sparse':>10}{'compacted':>11}{'dense':>10}  ms, batch {self.batch_size}"]
        for layer in self.layers:
            times = "".join(
                f"{layer.milliseconds[way]:>{width}.3f}" if way in layer.milliseconds else f"{'':>{width}}"
                for way, width in (("sparse", 10), ("compacted", 11), ("dense", 10))
            )
            lines.append(f"{layer.name:24}{100 * layer.density:>7.2f} %{times}  {layer.way}")
        whole = ", ".join(f"{way} {ms:.3f} ms" for way, ms in self.milliseconds.items())
        if self.way == "dense":
            lines.append(f"Nothing is gained on this machine, so the network stays dense ({whole or 'not measured'}).")
        else:
            lines.append(f"The whole network: {whole}; {self.way} is {self.speed_up:.1f} times as fast as dense.")
        return "\n".join([*lines, *([self.note] if self.note else [])])


class DenseNetwork(nn.Module):
    """A module that stays as it is, for inference: a copy of it in eval mode."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval().requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the module returns."""
        return self.net(*inputs)


@torch.no_grad()
def compile(
    module: nn.Module, example: Tensor | Sequence[Tensor], batch_size: int = 64, *, graph: Graph | None = None
) -> nn.Module:
    """Return a module for inference that gives what `module` gives, and costs what survives of it.

    Channels that nothing reaches or that reach nothing go. Each layer is timed as sparse kernel, as dense layer and as
    dense layer without its dead channels; the whole network is timed in the ways that result, in turns, and the fastest
    is taken. If that is the module as it is, it stays dense. The result is never trained: its weights are copies.

    Args:
        module: any trained module with zeros in its weights.
        example: one input, or a tuple of several, with the batch first. It is repeated for measurements.
        batch_size: the batch size to choose for. The result takes any.
        graph: `simplified(trace(module, example))`, to read the module once for several batch sizes.

    Returns:
        A module with a `choice`, which prints what was measured.

    Raises:
        SettingError: the module's graph cannot be read (the error gives the line), or the batch size is below 1.
    """
    if batch_size < 1:
        raise SettingError(f"batch_size must be at least 1, got {batch_size}.")
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    whole = simplified(trace(module, inputs)) if graph is None else graph
    small = compacted(copy.deepcopy(whole))
    if device.type != "cpu":
        return _on_accelerator(small, device, batch_size)
    samples = tuple(_batch(x, batch_size) for x in inputs)
    choice = Choice(batch_size, torch.get_num_threads())
    ways: dict[str, nn.Module] = {"dense": DenseNetwork(module)}
    ways["compacted"] = SparseNetwork(small, dense=[step.output for step in small.layers()])
    try:
        fast = SparseNetwork(small, batch_size=batch_size)
    except NoCompilerError as error:
        choice.note = str(error)
    else:
        choice.layers = _layers(whole, small, fast, samples)
        slow = [layer.name for layer in choice.layers if layer.way != "sparse"]
        candidates = [fast, *([SparseNetwork(small, dense=slow, batch_size=batch_size)] if slow else [])]
        times = in_turns([_call(one, samples) for one in candidates])
        best = times.index(min(times))
        ways["sparse"] = candidates[best]
        if not candidates[best].dense:
            for layer in choice.layers:
                layer.way = "sparse"
    choice.milliseconds = dict(zip(ways, in_turns([_call(one, samples) for one in ways.values()]), strict=True))
    choice.way = min(choice.milliseconds, key=lambda way: choice.milliseconds[way])
    if choice.way != "sparse":
        for layer in choice.layers:
            layer.way = choice.way
    chosen = ways[choice.way]
    chosen.choice = choice  # type: ignore[assignment]
    return chosen


def _on_accelerator(graph: Graph, device: torch.device, batch_size: int) -> nn.Module:
    for step in graph.steps:
        step.tensors = {name: value.to(device) for name, value in step.tensors.items()}
    graph.constants = {name: value.to(device) for name, value in graph.constants.items()}
    network = SparseNetwork(graph, dense=[step.output for step in graph.layers()], device=device.type)
    network.choice = Choice(  # type: ignore[assignment]
        batch_size,
        torch.get_num_threads(),
        way="compacted",
        note=f"On {device.type}, single zeros gain nothing: this is the dense network without its dead channels.",
    )
    return network


def _batch(x: Tensor, batch_size: int) -> Tensor:
    return x.repeat(-(-batch_size // len(x)), *[1] * (x.ndim - 1))[:batch_size].contiguous() if x.ndim else x


def _call(module: nn.Module, samples: tuple[Tensor, ...]) -> Callable[[], Any]:
    return lambda: module(*samples)


def _layers(whole: Graph, small: Graph, fast: SparseNetwork, samples: tuple[Tensor, ...]) -> list[LayerChoice]:
    """Time each layer as kernel and by PyTorch, before and after compaction, on its own inputs."""
    found = []
    before, after = _recorded(whole, samples), _recorded(small, samples)
    originals = {step.output: step for step in whole.layers()}
    kernels = {id(step): chain for chain in fast.parts if isinstance(chain, Chain) for step in chain.steps}
    fast(*samples)  # fills the arenas
    for step in small.layers():
        original = originals[step.output]
        weight = original.tensors["weight"]
        calls = {"dense": _alone(original, before), "compacted": _alone(step, after)}
        if id(step) in kernels:
            chain, source = kernels[id(step)], after[step.inputs[0]]
            calls["sparse"] = chain.alone(step, source.shape[: chain.lead].numel())
        times = dict(zip(calls, in_turns(list(calls.values())), strict=True))
        by_torch = min(times["dense"], times["compacted"])
        way = "sparse" if "sparse" in times and times["sparse"] * PAYS <= by_torch else "compacted"
        density = int(step.tensors["weight"].count_nonzero()) / max(weight.numel(), 1)
        found.append(LayerChoice(step.output, density, way, times))
    return found


def _recorded(graph: Graph, samples: tuple[Tensor, ...]) -> dict[str, Any]:
    """The inputs of each layer, by name."""
    values: dict[str, Any] = {**graph.constants, **dict(zip(graph.inputs, samples, strict=True))}
    kept: dict[str, Any] = {}
    for step in graph.steps:
        if step.kind in LAYERS:
            kept.update({name: values[name] for name in step.inputs})
        perform(step, values)
    return kept


def _alone(step: Step, values: dict[str, Any]) -> Callable[[], None]:
    given = {name: values[name] for name in step.inputs}
    return lambda: perform(step, dict(given))
