"""The weight matrices that a network multiplies by, and the parameters that they are computed from.

A pruned 0 must be a 0 in the product. If a layer computes its matrix from a parameter, that parameter is pruned only
if the computation provably keeps zeros; otherwise the error texts here give the reason and the fix.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lth_lightning.pruning.state import stable_name
from lth_lightning.seeding import preserved_generators

# Layers that do not subclass torch's, by class path, so that nothing is imported for them.
LAYERS_BY_PATH = {("transformers.pytorch_utils", "Conv1D"), ("torchvision.ops.deform_conv", "DeformConv2d")}
ONE_NORM = -1  # torch's `dim` for a norm over all entries
LEAVE_OUT = "or leave it out by lottery.prunable"
CHANGED = (
    "{} changes its weight before multiplying by it (standardises it, say), so a pruned weight would not act as a 0. "
    f"Use a layer that multiplies by its weight unchanged, {LEAVE_OUT}."
)
COMPUTED = (
    "it is computed from another parameter ({}), and a 0 in that one need not be a 0 here. Remove this with "
    f"`torch.nn.utils.parametrize.remove_parametrizations`, {LEAVE_OUT}."
)
PRUNED = (
    "torch.nn.utils.prune keeps its own mask on it, which densities would not count. Remove it with "
    f"`torch.nn.utils.prune.remove`, {LEAVE_OUT}."
)


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of a layer.

    Args:
        name: the layer's name and the attribute: `net.0.weight`.
        parameter: the trained parameter, often the matrix itself; None if something else computes the matrix.
        problem: why a 0 in the parameter need not be a 0 in the matrix, and the fix; None if it always is.
        norm_dim: the dimension along which the matrix is divided by norms, `ONE_NORM` for a single norm, None for none.
    """

    name: str
    parameter: nn.Parameter | None
    problem: str | None = None
    norm_dim: int | None = None


def matrices(module: nn.Module) -> Iterator[Matrix]:
    """Yield the weight matrices of all layers of known types, in the order of `named_modules`."""
    tried: dict[type, bool] = {}
    for layer_name, layer in module.named_modules():
        for attribute in _attributes(layer):
            matrix = _matrix(stable_name(f"{layer_name}.{attribute}" if layer_name else attribute), layer, attribute)
            if matrix is None:
                continue
            if matrix.problem is None and _has_a_way_of_its_own(layer):
                if type(layer) not in tried:
                    tried[type(layer)] = _changes_zeros(layer)
                if tried[type(layer)]:
                    matrix = replace(matrix, problem=CHANGED.format(type(layer).__name__))
            yield matrix


def _attributes(layer: nn.Module) -> tuple[str, ...]:
    """Return the attributes that a layer multiplies its input, or its hidden state, by."""
    if isinstance(layer, nn.Linear | nn.Bilinear | _ConvNd):
        return ("weight",)
    if isinstance(layer, nn.MultiheadAttention):  # its out_proj is a Linear
        return ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    if isinstance(layer, nn.RNNBase):
        return tuple(name for names in layer._all_weights for name in names if name.startswith("weight_"))
    if isinstance(layer, nn.RNNCellBase):
        return ("weight_ih", "weight_hh")
    paths = {(kind.__module__, kind.__qualname__) for kind in type(layer).__mro__}
    return ("weight",) if paths & LAYERS_BY_PATH else ()


def _matrix(name: str, layer: nn.Module, attribute: str) -> Matrix | None:
    """Return the matrix behind a layer's attribute; None if there is none, or nothing in it is trained."""
    if attribute in layer._parameters:
        weight = layer._parameters[attribute]
        return None if weight is None else Matrix(name, weight)
    if parametrize.is_parametrized(layer, attribute):
        return _parametrized(name, layer.parametrizations[attribute])  # type: ignore[index]
    for hook in layer._forward_pre_hooks.values():
        if (hooked := _hooked(name, layer, attribute, hook)) is not None:
            return hooked
    value = getattr(layer, attribute, None)
    return Matrix(name, None) if isinstance(value, Tensor) and value.requires_grad else None


def _parametrized(name: str, steps: Any) -> Matrix:
    """Handle parametrizations: weight_norm and spectral_norm only scale entries; others might do anything."""
    odd = [type(step).__name__.lstrip("_") for step in steps if type(step) not in (_WeightNorm, _SpectralNorm)]
    normed = type(steps[0]) is _WeightNorm
    weight = steps.original1 if normed else steps.original if steps.is_tensor else steps.original0
    problem = COMPUTED.format(", ".join(odd)) if odd else None
    return Matrix(name, weight, problem, steps[0].dim if normed else ONE_NORM)


def _hooked(name: str, layer: nn.Module, attribute: str, hook: Any) -> Matrix | None:
    """Handle the older torch.nn.utils versions, which compute the attribute in a forward pre-hook."""
    if isinstance(hook, WeightNorm) and hook.name == attribute:
        return Matrix(name, layer._parameters[f"{attribute}_v"], norm_dim=hook.dim)
    if isinstance(hook, SpectralNorm) and hook.name == attribute:
        return Matrix(name, layer._parameters[f"{attribute}_orig"], norm_dim=ONE_NORM)
    if isinstance(hook, BasePruningMethod) and hook._tensor_name == attribute:
        return Matrix(name, layer._parameters[f"{attribute}_orig"], PRUNED)
    return None


# ------------------------------------------------------------------------------------- custom layers


def _has_a_way_of_its_own(layer: nn.Module) -> bool:
    """Whether a class outside torch overrides how a Linear or a convolution uses its weight."""
    if not isinstance(layer, nn.Linear | _ConvNd) or "weight" not in layer._parameters:
        return False
    speaker = next(kind for kind in type(layer).__mro__ if vars(kind).keys() & {"forward", "_conv_forward"})
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels // layer.groups
    return not speaker.__module__.startswith("torch.") and inputs > 1


@torch.no_grad()
def _changes_zeros(layer: nn.Module) -> bool:
    """Whether an input affects the output although all its weights are 0, found by a trial on a copy.

    A layer that cannot be tried (its `forward` takes more than inputs) is assumed to keep zeros.
    """
    try:
        with preserved_generators():
            trial = copy.deepcopy(layer).eval()
            weight = trial._parameters["weight"]
            assert weight is not None
            weight.normal_()
            of_input_0, inputs, every = weight[:, 0], torch.randn(1, weight.shape[1]), 1
            if isinstance(trial, _ConvNd):
                every = trial.in_channels // trial.groups  # input 0 of each group
                if isinstance(trial, _ConvTransposeNd):
                    of_input_0 = weight[::every]
                reach = [d * (k - 1) + 1 for d, k in zip(trial.dilation, trial.kernel_size, strict=True)]
                inputs = torch.randn(1, trial.in_channels, *reach)
            elif isinstance(trial, nn.Linear):
                every = trial.in_features
            of_input_0.zero_()
            inputs = inputs.to(weight.device, weight.dtype)
            others = inputs.clone()
            others[:, ::every] += 1
            return not torch.equal(trial(inputs), trial(others))
    except Exception:  # third-party code may raise anything
        return False
