"""Builds a module a second time, or says how to, if its class and arguments show how the first was built.

Only the constructor can repeat what it does beyond its layers' own initialisation (a std of 0.02, a last batch norm at
0, a teacher that is a copy of its student).
"""

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from lth_lightning.models.network import Network

Way = tuple[Callable[..., nn.Module], tuple[Any, ...], dict[str, Any]]
"""What to call to build a module, and its arguments."""

Recipe = dict[str, Any]
"""The same in JSON values, `{"class_path": …, "init_args": {…}}`, as in a config."""

GIVEN = "built_from"
"""The attribute that holds the recipe of a module which was built from a config."""


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
    for make, args, named in _ways(module):
        try:
            built = complete(make(*copy.deepcopy(args), **copy.deepcopy(named)))
        except Exception:  # a constructor may fail in any way; then the module was not built like this
            continue
        common = len(ours.items() & shapes(built).items())
        if common > most and alike(built, module):
            found, most = built, common
    return found


def recipes(module: nn.Module) -> list[Recipe]:
    """Return how `module` can be built again, in JSON values, the most reliable way first; empty if not known.

    Beside the ways of `rebuilt`, a module that was built from a config is known, and a `Network` by its attributes.
    Which way is right shows when the result has the module's names and shapes.
    """
    found: list[Recipe] = []
    with suppress(TypeError):  # an argument that JSON does not have
        found += [_in_json(getattr(module, GIVEN))] if hasattr(module, GIVEN) else []
    try:
        ways = list(_own_ways(module))
    except Exception:  # what a foreign module computes in its attributes may fail in any way; then nothing is known
        return found
    for make, args, named in ways:
        try:
            names = inspect.signature(make).parameters
            arguments = _in_json({**dict(zip(names, args, strict=False)), **named})
        except (TypeError, ValueError):  # as above, or a class without a signature
            continue
        recipe = {"class_path": _path(make), "init_args": arguments}
        if "<locals>" not in make.__qualname__ and recipe not in found:
            found.append(recipe)
    return found


def _own_ways(module: nn.Module) -> Iterator[Way]:
    if isinstance(module, Network):
        names = inspect.signature(type(module)).parameters
        if all(hasattr(module, name) for name in names):
            yield type(module), (), {name: getattr(module, name) for name in names}
    yield from _ways(module)


def _path(make: Callable[..., Any]) -> str:
    """Return the import path of a class or function, for our networks the public one."""
    public = "lth_lightning.models"
    ours = getattr(sys.modules.get(public), make.__qualname__, None) is make
    return f"{public if ours else make.__module__}.{make.__qualname__}"


def _in_json(value: Any) -> Any:
    """Return a value as JSON has it.

    Raises:
        TypeError: JSON has no such value.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [_in_json(one) for one in value]
    if isinstance(value, Mapping) and all(type(name) is str for name in value):
        return {name: _in_json(one) for name, one in value.items()}
    raise TypeError(f"{type(value).__name__} is not a value of JSON")


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


def _ways(module: nn.Module) -> Iterator[Way]:
    kind = type(module)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    named = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    required = [one.name for one in parameters if one.name in named and one.default is one.empty]
    saved = getattr(module, "hparams", None) or {}
    if isinstance(saved, Mapping) and saved and not _holds_weights(saved):
        if set(named) <= saved.keys():
            yield kind, (), dict(saved)
        elif len(named) == 1:  # `save_hyperparameters(config)`
            yield kind, (saved,), {}
    elif not named:
        yield kind, (), {}
    if len(required) == 1 and _is_configuration(config := getattr(module, required[0], None)):
        yield kind, (config,), {}
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


def _registered(module: nn.Module) -> Iterator[Way]:
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
            yield models.get_model, (nearest,), {"num_classes": classes}
    if family.startswith("timm.models."):
        about = getattr(module, "pretrained_cfg", None) or {}
        first = about.get("first_conv")
        conv = module.get_submodule(first) if isinstance(first, str) else None
        settings = {"in_chans": conv.in_channels} if isinstance(conv, nn.Conv2d) else {}
        if architecture := about.get("architecture"):
            classes = getattr(module, "num_classes", 1000)
            yield sys.modules["timm"].create_model, (architecture,), {"num_classes": classes, **settings}
