"""Runs a graph's steps by PyTorch, with dense weights: what kernels do not pay for, and what they are compared with."""

import math
import operator
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lth_lightning.sparse.graph import Graph, Step, filled, regular

FUNCTIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "clamp": lambda x, a, b: x.relu() if (a, b) == (0, math.inf) else x.clamp(a, b),
    "leaky": lambda x, a, b: F.leaky_relu(x, a),
    "sigmoid": lambda x, a, b: x.sigmoid(),
    "tanh": lambda x, a, b: x.tanh(),
    "silu": lambda x, a, b: F.silu(x),
    "gelu": lambda x, a, b: F.gelu(x),
    "gelu_tanh": lambda x, a, b: F.gelu(x, approximate="tanh"),
    "elu": lambda x, a, b: b * F.elu(x, a),
    "hardsigmoid": lambda x, a, b: F.hardsigmoid(x),
    "hardswish": lambda x, a, b: F.hardswish(x),
    "abs": lambda x, a, b: x.abs(),
    "neg": lambda x, a, b: -x,
    "exp": lambda x, a, b: x.exp(),
    "sqrt": lambda x, a, b: x.sqrt(),
    "softplus": F.softplus,
}
PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
NUMBERS = {
    "mul": operator.mul,
    "add": operator.add,
    "sub": operator.sub,
    "floordiv": operator.floordiv,
    "getitem": operator.getitem,
}


def evaluate(graph: Graph, inputs: Iterable[Tensor]) -> Any:
    """Return what the network returns for `inputs`, computed by PyTorch alone."""
    values: dict[str, Any] = {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True))}
    for step in graph.steps:
        perform(step, values)
    return filled(graph.outputs, values)


def perform(step: Step, values: MutableMapping[str, Any]) -> None:
    """Run one step: take its inputs from `values`, and put its output there."""
    values[step.output] = _KINDS[step.kind](step, values)


def _layer(step: Step, values: MutableMapping[str, Any]) -> Tensor:
    x, weight, bias = values[step.inputs[0]], step.tensors["weight"], step.tensors["bias"]
    if step.kind == "linear":
        out = F.linear(x, weight, bias)
    else:
        s = step.settings
        planes = x.unsqueeze(2) if x.ndim == 3 else x.reshape(*x.shape, 1, 1) if x.ndim == 2 else x
        out = F.conv2d(planes, weight, bias, s["stride"], s["padding"], s["dilation"], s["groups"])
        out = out.reshape(*out.shape[:2], *out.shape[3:]) if x.ndim == 3 else out
    if len(step.inputs) > 1:
        out = out + values[step.inputs[1]]
    return _clamped(step, out)


def _clamped(step: Step, x: Tensor) -> Tensor:
    if "low" not in step.settings:
        return x
    return FUNCTIONS["clamp"](x, step.settings["low"], step.settings["high"])


def _affine(step: Step, values: MutableMapping[str, Any]) -> Tensor:
    x = values[step.inputs[0]]
    by_channel = (len(step.tensors["scale"]), *([1] * (x.ndim - 2)))
    return _clamped(step, x * step.tensors["scale"].reshape(by_channel) + step.tensors["shift"].reshape(by_channel))


def _pool(step: Step, values: MutableMapping[str, Any]) -> Tensor:
    x, rows, columns = values[step.inputs[0]], step.settings["rows"], step.settings["columns"]
    largest = step.settings["function"] == "max"
    if (down := regular(rows, x.shape[2])) and (across := regular(columns, x.shape[3])):
        size, stride = (down[0], across[0]), (down[1], across[1])
        if largest:
            return F.max_pool2d(x, size, stride)
        return F.avg_pool2d(x, size, stride) * (step.tensors["factor"] * math.prod(size))
    reduce = (lambda part, dim: part.amax(dim)) if largest else (lambda part, dim: part.sum(dim))
    lines = torch.stack([reduce(x[:, :, a:b], 2) for a, b in rows], 2)
    out = torch.stack([reduce(lines[..., a:b], 3) for a, b in columns], 3)
    return out if largest else out * step.tensors["factor"]


def _torch(step: Step, values: MutableMapping[str, Any]) -> Any:
    target = step.settings["target"]
    call = NUMBERS.get(target) or operator_named(target)
    arguments, named = (decoded(filled(step.settings[key], values)) for key in ("args", "kwargs"))
    return call(*arguments, **named)


def operator_named(target: str) -> Callable[..., Any]:
    """Return PyTorch's operator: `aten.softmax.int`.

    Raises:
        AttributeError: this PyTorch has no such operator.
    """
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def decoded(structure: Any) -> Any:
    """Turn {"torch": "float32"} into what it names, in arguments."""
    if isinstance(structure, dict):
        if structure.keys() == {"torch"}:
            name = structure["torch"]
            return getattr(torch, name, None) or torch.device(name)
        return {key: decoded(part) for key, part in structure.items()}
    return [decoded(part) for part in structure] if isinstance(structure, list) else structure


_KINDS: dict[str, Callable[[Step, MutableMapping[str, Any]], Any]] = {
    "linear": _layer,
    "conv": _layer,
    "affine": _affine,
    "unary": lambda step, values: FUNCTIONS[step.settings["function"]](
        values[step.inputs[0]], step.settings["a"], step.settings["b"]
    ),
    "binary": lambda step, values: PAIRS[step.settings["function"]](values[step.inputs[0]], values[step.inputs[1]]),
    "pool": _pool,
    "concat": lambda step, values: torch.cat([values[name] for name in step.inputs], 1),
    "flatten": lambda step, values: values[step.inputs[0]].reshape(
        values[step.inputs[0]].shape[0], *step.settings["sizes"]
    ),
    "select": lambda step, values: values[step.inputs[0]][:, step.tensors["index"]],
    "torch": _torch,
}
