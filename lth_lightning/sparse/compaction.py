"""Takes out what a pruned network computes for nothing: channels that nothing reaches, or that reach nothing.

A channel that no weight reaches is a constant (of its bias, after its ReLU), and folds into the biases of the layers
that read it. A channel that no weight reads is not computed. Both go on from layer to layer. Only before zero padding a
constant other than 0 must stay: at the border it is not constant.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lth_lightning.sparse.dense import FUNCTIONS, PAIRS
from lth_lightning.sparse.graph import CHANNELWISE, LAYERS, Graph, Step, planes, without_unused

Constants = dict[str, Tensor]
"""For each value with channels: what a channel always is, or NaN if it depends on the input."""


def compacted(graph: Graph) -> Graph:
    """Return a graph without dead channels that computes the same; the steps given may change."""
    constants = _constants(graph)
    for step in graph.steps:
        if step.kind in LAYERS:
            _fold(step, constants)
    _remove(graph, _needed(graph, constants))
    return without_unused(graph)


def _constants(graph: Graph) -> Constants:
    found: Constants = {}

    def of(name: str) -> Tensor:
        if name not in found:
            found[name] = torch.full((_channels(graph, name),), math.nan, dtype=torch.float64)
        return found[name]

    for step in graph.steps:
        if not _has_channels(graph, step):
            continue
        if step.kind in LAYERS:
            value = _layer_constants(step, of(step.inputs[0]))
            if len(step.inputs) > 1:
                value = value + of(step.inputs[1])
        elif step.kind == "affine":
            value = of(step.inputs[0]) * step.tensors["scale"] + step.tensors["shift"]
        elif step.kind == "unary":
            value = FUNCTIONS[step.settings["function"]](of(step.inputs[0]), step.settings["a"], step.settings["b"])
        elif step.kind == "binary":
            value = PAIRS[step.settings["function"]](of(step.inputs[0]), of(step.inputs[1]))
        elif step.kind == "pool":
            value = of(step.inputs[0]).clone()
            if step.settings["function"] == "sum" and not _averages(step):
                value[value != 0] = math.nan
        elif step.kind == "concat":
            value = torch.cat([of(name) for name in step.inputs])
        elif step.kind == "flatten":
            value = of(step.inputs[0]).repeat_interleave(planes(graph.shapes[step.inputs[0]]).pixels)
        else:
            continue
        found[step.output] = (
            value.clamp(step.settings["low"], step.settings["high"]) if "low" in step.settings else value
        )
    return found


def _averages(step: Step) -> bool:
    """Whether a pool gives the mean of what it reads: not with zero padding that counts."""
    rows, columns = (torch.tensor([b - a for a, b in step.settings[key]]) for key in ("rows", "columns"))
    return bool(torch.allclose(step.tensors["factor"].double() * (rows[:, None] * columns), torch.tensor(1.0).double()))


def _layer_constants(step: Step, given: Tensor) -> Tensor:
    weight, bias = step.tensors["weight"].double(), step.tensors["bias"].double()
    if step.settings.get("groups", 1) > 1:
        reached = weight.flatten(1).count_nonzero(1) > 0
        return torch.where(reached, math.nan, bias)
    known = _foldable(step, given)
    by_channel = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    varies = (weight.flatten(2) != 0).any(2) if weight.ndim > 2 else weight != 0
    reached = (varies & ~known).any(1)
    return torch.where(reached, math.nan, bias + by_channel @ torch.where(known, given, 0.0))


def _foldable(step: Step, given: Tensor) -> Tensor:
    """Which input channels are constants that a layer can add to its bias."""
    padded = step.kind == "conv" and any(step.settings["padding"])
    return given == 0 if padded else ~given.isnan()


def _fold(step: Step, constants: Constants) -> None:
    given = constants.get(step.inputs[0])
    if given is None or step.settings.get("groups", 1) > 1:
        return
    known = _foldable(step, given)
    if not known.any():
        return
    weight = step.tensors["weight"]
    whole = weight.double().flatten(2).sum(2) if weight.ndim > 2 else weight.double()
    more = whole @ torch.where(known, given, 0.0)
    step.tensors["bias"] = (step.tensors["bias"].double() + more).to(weight.dtype)
    weight = weight.clone()
    weight[:, known] = 0
    step.tensors["weight"] = weight


def _channels(graph: Graph, name: str) -> int:
    shape = graph.shapes[name]
    return planes(shape).channels if shape[0] is None and None not in shape[1:] and len(shape) <= 4 else 0


def _has_channels(graph: Graph, step: Step) -> bool:
    """Whether a step works on values (N, C, …), batch first and channels second."""
    if step.kind == "torch" or (step.kind == "linear" and len(graph.shapes[step.output]) > 2):
        return False
    return all(_channels(graph, name) for name in (*step.inputs, step.output))


def _needed(graph: Graph, constants: Constants) -> dict[str, Tensor]:
    """For each value with channels, which of them must be computed: the least that the outputs need.

    Channels that stand at the same place (of a sum's terms, of a ReLU's input and output) are needed together.
    """
    names = [*graph.inputs, *(step.output for step in graph.steps)]
    needed = {name: torch.zeros(_channels(graph, name), dtype=torch.bool) for name in names if name in graph.shapes}
    for name in graph.returned():
        if name in needed:
            needed[name][:] = True
    for step in graph.steps:
        if not _has_channels(graph, step):
            for name in (*step.inputs, step.output):
                if name in needed:
                    needed[name][:] = True
    before = -1
    while (count := sum(int(some.sum()) for some in needed.values())) != before:
        before = count
        for step in reversed(graph.steps):
            if _has_channels(graph, step):
                _ask(graph, step, needed)
    return needed


def _ask(graph: Graph, step: Step, needed: Mapping[str, Tensor]) -> None:
    """Mark what a step needs for the channels of its output that are needed."""
    out = needed[step.output]
    first = needed[step.inputs[0]]
    if step.kind in LAYERS:
        _ask_layer(step, out, first)
        if len(step.inputs) > 1:
            _alike(out, needed[step.inputs[1]])
    elif step.kind == "concat":
        start = 0
        for name in step.inputs:
            _alike(out[start : start + len(needed[name])], needed[name])
            start += len(needed[name])
    elif step.kind == "flatten":
        pixels = planes(graph.shapes[step.inputs[0]]).pixels
        if step.inputs[0] in graph.inputs:
            first[:] = True  # the pixels that are read are selected one by one, after it
            return
        first |= out.reshape(-1, pixels).any(1)
        out |= first.repeat_interleave(pixels)
    elif step.kind in CHANNELWISE:
        for name in step.inputs:
            _alike(out, needed[name])
        for name in step.inputs:
            _alike(out, needed[name])


def _ask_layer(step: Step, out: Tensor, first: Tensor) -> None:
    if depthwise(step):
        _alike(out, first)
    elif step.settings.get("groups", 1) > 1:
        out[:], first[:] = True, True
    else:
        weight = step.tensors["weight"].flatten(2) if step.kind == "conv" else step.tensors["weight"][..., None]
        first |= (weight[out] != 0).any(2).any(0)
        if out.any() and not first.any():
            first[0] = True  # a constant, but for each sample of the batch: someone must say how many they are


def _alike(one: Tensor, other: Tensor) -> None:
    one |= other
    other |= one


def depthwise(step: Step) -> bool:
    """Whether a convolution has one input channel and one output channel a group."""
    groups = step.settings.get("groups", 1)
    return groups > 1 and tuple(step.tensors["weight"].shape[:2]) == (groups, 1)


def _remove(graph: Graph, needed: Mapping[str, Tensor]) -> None:
    steps: list[Step] = []
    for name in graph.inputs:
        _select(graph, name, needed, steps)
    for step in graph.steps:
        if not _has_channels(graph, step):
            steps.append(step)
            continue
        out = needed[step.output]
        if not out.any():
            continue
        if step.kind == "flatten" and step.inputs[0] in graph.inputs:
            steps.append(step)
            _select(graph, step.output, needed, steps)
            continue
        if step.kind == "concat":
            step.inputs = tuple(name for name in step.inputs if needed[name].any())
        else:
            _narrow(step, out, needed[step.inputs[0]])
        steps.append(step)
    graph.steps = steps
    for name, some in needed.items():
        if len(some) and name not in graph.inputs:
            shape = graph.shapes[name]
            graph.shapes[name] = (shape[0], int(some.sum()), *shape[2:])


def _narrow(step: Step, rows: Tensor, columns: Tensor) -> None:
    """Keep only these channels of a step's output and input."""
    if step.kind in LAYERS:
        weight = step.tensors["weight"][rows]
        if depthwise(step):
            step.settings["groups"] = int(rows.sum())
        elif step.settings.get("groups", 1) == 1:
            weight = weight[:, columns]
        step.tensors = {"weight": weight.contiguous(), "bias": step.tensors["bias"][rows]}
    elif step.kind == "affine":
        step.tensors = {name: value[rows] for name, value in step.tensors.items()}
    elif step.kind == "flatten":
        step.settings["sizes"] = [int(rows.sum()), *step.settings["sizes"][1:]]


def _select(graph: Graph, name: str, needed: Mapping[str, Tensor], steps: list[Step]) -> None:
    """Take only the channels of `name` that are needed, if not all are."""
    some = needed.get(name)
    if some is None or some.all():
        return
    whole = f"{name}_whole"
    for step in steps:  # the one that gives it, if it is not an input
        step.output = whole if step.output == name else step.output
    graph.shapes[whole] = graph.shapes[name]
    index = some.nonzero()[:, 0]
    if name in graph.inputs:
        graph.inputs = [whole if one == name else one for one in graph.inputs]
    steps.append(Step("select", (whole,), name, {}, {"index": index}))
