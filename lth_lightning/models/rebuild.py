"""Builds a module a second time, if its class and arguments show how the first was built.

Only the constructor can repeat what it does beyond its layers' own initialisation (a std of 0.02, a last batch norm at
0, a teacher that is a copy of its student).
"""

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def rebuilt(module: nn.Module) -> nn.Module | None:
    """Build `module` again: the same class, with fresh weights.

    The arguments are known if the class takes none; if a LightningModule has saved them (`save_hyperparameters()`); if
    the class takes one configuration and keeps it (Hugging Face's `PreTrainedModel`, nanoGPT); or if torchvision or
    timm registers the network under a name.

    Returns:
        The new module, or None if the arguments are not known. Layers that were replaced (a head for other classes)
        may differ, but most parameters have the names and shapes of the module's.
    """
    ours, found = shapes(module), None
    most = len(ours) // 2
    for build in _ways(module):
        try:
            built = complete(build())
        except Exception:  # a constructor may fail in any way; then the module was not built like this
            continue
        common = len(ours.items() & shapes(built).items())
        if common > most and alike(built, module):
            found, most = built, common
    return found


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether both have the same class and, apart from children, tensors of the same names and shapes."""
    if type(one) is not type(other) or any(nn.parameter.is_lazy(weight) for weight in one.parameters(recurse=False)):
        return False
    ours, theirs = ([(name, value.shape) for name, value in own_values(layer)] for layer in (one, other))
    return ours == theirs


def complete(built: nn.Module) -> nn.Module:
    """Call a LightningModule's `configure_model`, as Lightning does before a fit, and return the module."""
    if callable(rest := getattr(built, "configure_model", None)):
        rest()
    return built


def shapes(module: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """Return each parameter's shape, shared ones under all their names; None for uninitialised lazy parameters."""
    return {
        name: None if nn.parameter.is_lazy(parameter) else tuple(parameter.shape)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def fresh_values(built: nn.Module, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield a newly built module's parameters, by all their names, and the buffers that belong to weights.

    Those buffers belong to layers that reset themselves (running statistics) or to the parametrization of a weight.
    Other buffers may have been filled after the module was built (the data's mean, class weights).

    Args:
        built: the module.
        name: the prefix of all names, ending in a dot.
    """
    yield from own_values(built, name)
    for child_name, child in built.named_children():
        yield from fresh_values(child, f"{name}{child_name}.")


def own_values(layer: nn.Module, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the layer's own part of `fresh_values`, without its children's."""
    for parameter_name, weight in layer.named_parameters(recurse=False):
        yield name + parameter_name, weight.detach()
    if hasattr(layer, "reset_parameters") or "parametrizations" in name.split("."):
        for buffer_name, buffer in layer.named_buffers(recurse=False):
            yield name + buffer_name, buffer


def _ways(module: nn.Module) -> Iterator[Callable[[], nn.Module]]:
    kind = type(module)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    named = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    required = [one.name for one in parameters if one.name in named and one.default is one.empty]
    saved = getattr(module, "hparams", None) or {}
    if isinstance(saved, Mapping) and saved and not _holds_weights(saved):
        if set(named) <= saved.keys():
            yield lambda: kind(**copy.deepcopy(dict(saved)))
        elif len(named) == 1:  # `save_hyperparameters(config)`
            yield lambda: kind(copy.deepcopy(saved))
    elif not named:
        yield kind
    if len(required) == 1 and _is_configuration(config := getattr(module, required[0], None)):
        yield lambda: kind(copy.deepcopy(config))
    yield from _registered(module)


def _is_configuration(value: object) -> bool:
    """Whether `value` holds settings; a width or a name alone does not determine the constructor's other arguments."""
    return isinstance(value, Mapping) or (hasattr(value, "__dict__") and not _holds_weights(value))


def _holds_weights(value: Any) -> bool:
    """Whether an argument is a module or a tensor, whose trained weights the rebuilt module would share."""
    if isinstance(value, Mapping):
        return any(map(_holds_weights, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_weights, value))
    return isinstance(value, nn.Module | Tensor)


def _registered(module: nn.Module) -> Iterator[Callable[[], nn.Module]]:
    """Yield the builders of torchvision and timm, which register their networks by name."""
    family = type(module).__module__
    heads = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if family.rpartition(".")[0] == "torchvision.models" and heads:  # subpackages would download backbones
        models, classes = sys.modules["torchvision.models"], heads[-1].out_features
        ours = sum(weight.numel() for weight in module.parameters()) + (heads[-1].in_features + 1) * (1000 - classes)
        sizes = {
            name: models.get_model_weights(name).DEFAULT.meta["num_params"]
            for name in models.list_models(module=models)
            if models.get_model_builder(name).__module__ == family
        }
        nearest = min(sizes, key=lambda name: abs(sizes[name] - ours), default=None)
        if nearest is not None and abs(sizes[nearest] - ours) < ours / 10:
            yield lambda: models.get_model(nearest, num_classes=classes)
    if family.startswith("timm.models."):
        about = getattr(module, "pretrained_cfg", None) or {}
        first = about.get("first_conv")
        conv = module.get_submodule(first) if isinstance(first, str) else None
        settings = {"in_chans": conv.in_channels} if isinstance(conv, nn.Conv2d) else {}
        yield lambda: sys.modules["timm"].create_model(
            about["architecture"], num_classes=getattr(module, "num_classes", 1000), **settings
        )
