"""A network as a list of steps: what `trace` reads from a module, and what all else here works on.

A step takes values by name and gives one. Kinds with a meaning of their own (`linear`, `conv`, `affine`, `unary`,
`binary`, `pool`, `concat`, `flatten`, `select`) can run in kernels; a `torch` step is any other operation of the graph,
which PyTorch runs as it is. All of it is plain data, so a graph can be written to a file and read without pickle.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = tuple[int | None, ...]
"""The size of each dimension; None where it depends on the batch."""

LAYERS = ("linear", "conv")
CHANNELWISE = ("affine", "unary", "binary", "pool")
"""Kinds whose output channel c depends on channel c of their inputs only."""


@dataclass
class Step:
    """One operation.

    Args:
        kind: what it does; see `Graph`.
        inputs: names of the values that it takes.
        output: the name of the value that it gives.
        settings: JSON values.
        tensors: its weights, by name.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    settings: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Graph:
    """A network for inference.

    The kinds of its steps, with x and y for the inputs (N, C, …):

    - `linear`: x W^T + b over the last dimension; tensors `weight` (out, in), `bias` (out). A second input is added;
      `low` and `high`, where set, clamp the result.
    - `conv`: tensors `weight` (out, in / groups, height, width), `bias`; settings `stride`, `padding`, `dilation` (two
      integers each), `groups`. A second input and clamping as above.
    - `affine`: x · scale + shift a channel (batch normalisation, say); clamped likewise.
    - `unary`: the `function` of each number, with parameters `a` and `b`.
    - `binary`: the `function` of x and y; one of them may have one pixel a channel.
    - `pool`: `function` max or sum over windows; settings `rows` and `columns` list each output's first and last + 1,
      tensor `factor` (height, width) multiplies sums.
    - `concat`: all inputs, channel after channel.
    - `flatten`: (N, C, H, W) to (N, C · H · W), or to any shape that differs by dimensions of 1.
    - `select`: channels `index` of x.
    - `torch`: the operator `target` with `args` and `kwargs`, in which {"value": name} stands for a value.

    Args:
        inputs: names of the inputs, in order.
        outputs: what the network returns: a name, or lists, tuples and dicts of names (`Output`).
        steps: in an order in which each can run.
        shapes: the shape of each value.
        constants: tensors that `torch` steps take.
    """

    inputs: list[str]
    outputs: Any
    steps: list[Step]
    shapes: dict[str, Shape]
    constants: dict[str, Tensor] = field(default_factory=dict)

    def consumers(self) -> dict[str, list[Step]]:
        """Return the steps that take each value."""
        found: dict[str, list[Step]] = {name: [] for name in (*self.inputs, *(step.output for step in self.steps))}
        for step in self.steps:
            for name in dict.fromkeys(step.inputs):
                if name in found:
                    found[name].append(step)
        return found

    def returned(self) -> set[str]:
        """Return the names of the values that the network returns."""
        return set(names_in(self.outputs))

    def layers(self) -> list[Step]:
        """Return the linear layers and convolutions, in order."""
        return [step for step in self.steps if step.kind in LAYERS]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the layers' weights."""
        return next((step.tensors["weight"].dtype for step in self.layers()), torch.float32)

    def weights(self) -> int:
        """Count the weights that are not 0, in linear layers and convolutions."""
        return sum(int(step.tensors["weight"].count_nonzero()) for step in self.layers())


class Planes(NamedTuple):
    """A value's size without its batch: features have one pixel a channel."""

    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Pixels of one channel."""
        return self.height * self.width


def planes(shape: Shape) -> Planes:
    """Return the channels and pixels of a value (N, C), (N, C, L) or (N, C, H, W), or of its last dimension (…, F).

    Raises:
        ValueError: a size besides the batch's is not known.
    """
    sizes = shape[1:]
    if not 1 <= len(sizes) <= 3 or any(size is None for size in sizes):
        raise ValueError(f"a value of shape {shape} has no channels")
    whole = [size for size in sizes if size is not None]
    return Planes(whole[0], *([1] * (3 - len(whole))), *whole[1:])


def names_in(structure: Any) -> Iterator[str]:
    """Yield the values' names in a step's arguments or a graph's outputs."""
    if isinstance(structure, Mapping):
        if structure.keys() == {"value"}:
            yield structure["value"]
        else:
            for part in structure.values():
                yield from names_in(part)
    elif isinstance(structure, list | tuple):
        for part in structure:
            yield from names_in(part)


def filled(structure: Any, values: Mapping[str, Any]) -> Any:
    """Replace each {"value": name} in a structure by its value; {"tuple": […]} becomes a tuple."""
    if isinstance(structure, Mapping):
        if structure.keys() == {"value"}:
            return values[structure["value"]]
        if structure.keys() == {"tuple"}:
            return tuple(filled(part, values) for part in structure["tuple"])
        return {key: filled(part, values) for key, part in structure.items()}
    return [filled(part, values) for part in structure] if isinstance(structure, list) else structure


def without_unused(graph: Graph) -> Graph:
    """Remove the steps and constants that nothing takes."""
    needed = graph.returned()
    kept: list[Step] = []
    for step in reversed(graph.steps):
        if step.output in needed:
            kept.append(step)
            needed |= {*step.inputs, *names_in(step.settings)}
    graph.steps = kept[::-1]
    graph.constants = {name: value for name, value in graph.constants.items() if name in needed}
    return graph


def regular(windows: list[list[int]], size: int) -> tuple[int, int] | None:
    """Return the length and stride of a pool's windows if ordinary pooling without padding has them.

    Args:
        windows: the first and last + 1 index of each.
        size: of the input.
    """
    length = windows[0][1] - windows[0][0]
    stride = windows[1][0] - windows[0][0] if len(windows) > 1 else max(size, 1)
    alike = all(window == [i * stride, i * stride + length] for i, window in enumerate(windows))
    return (length, stride) if alike and stride > 0 and len(windows) == (size - length) // stride + 1 else None
