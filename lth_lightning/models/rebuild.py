"""A module built a second time, where it can be known how the first was built.

What a constructor does beyond its layers' own initialisation (a std of 0.02, a last batch norm at 0, a teacher that is
a copy of its student) can be repeated by that constructor alone.
"""

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def rebuilt(module: nn.Module) -> nn.Module | None:
    """A new module as `module` was built: the same class, names and shapes, with fresh weights.

    How it was built is known if its class takes no arguments; if a LightningModule has saved them
    (`save_hyperparameters()`); if it takes one configuration, which it keeps (Hugging Face's `PreTrainedModel`,
    nanoGPT); and of torchvision's and timm's networks by the name they are registered under.

    Returns:
        The new module; None if it is not known how, or if what comes out has other names or shapes, as after changes
        to the module once it was built.
    """
    for build in _ways(module):
        try:
            built = complete(build())
        except Exception:  # whatever a constructor needs and lacks: this is then not the way it was built
            continue
        if type(built) is type(module) and shapes(built) == shapes(module):
            return built
    return None


def complete(built: nn.Module) -> nn.Module:
    """With what a LightningModule builds in `configure_model`, which Lightning calls before a fit."""
    if callable(rest := getattr(built, "configure_model", None)):
        rest()
    return built


def shapes(module: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """Each parameter's shape, shared ones under all their names; None where a lazy layer has yet to make it."""
    return {
        name: None if nn.parameter.is_lazy(parameter) else tuple(parameter.shape)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def fresh_values(built: nn.Module) -> dict[str, Tensor]:
    """What a newly built module says of weights: parameters by all their names, and the buffers that go with weights.

    Those belong to layers that reset themselves (running statistics) or to the parametrization of a weight. Other
    buffers may have been filled since the module was built (the data's mean, class weights).
    """
    values = {name: weight.detach() for name, weight in built.named_parameters(remove_duplicate=False)}
    for name, buffer in built.named_buffers(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        if "parametrizations" in owner.split(".") or hasattr(built.get_submodule(owner), "reset_parameters"):
            values[name] = buffer
    return values


def _ways(module: nn.Module) -> Iterator[Callable[[], nn.Module]]:
    kind = type(module)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    named = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    required = [one.name for one in parameters if one.name in named and one.default is one.empty]
    saved = getattr(module, "hparams", None) or {}
    if not parameters:
        yield kind
    elif isinstance(saved, Mapping) and saved and not _holds_weights(saved):
        if set(named) <= saved.keys():
            yield lambda: kind(**copy.deepcopy(dict(saved)))
        elif len(named) == 1:  # `save_hyperparameters(config)`
            yield lambda: kind(copy.deepcopy(saved))
    if len(required) == 1 and _is_configuration(config := getattr(module, required[0], None)):
        yield lambda: kind(copy.deepcopy(config))
    yield from _registered(module)


def _is_configuration(value: object) -> bool:
    """Something with settings of its own; of a width or a name alone a constructor's other arguments stay unknown."""
    return isinstance(value, Mapping) or (hasattr(value, "__dict__") and not _holds_weights(value))


def _holds_weights(value: Any) -> bool:
    """A module among the arguments would be shared, and would bring its weights along."""
    if isinstance(value, Mapping):
        return any(map(_holds_weights, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_weights, value))
    return isinstance(value, nn.Module | Tensor)


def _registered(module: nn.Module) -> Iterator[Callable[[], nn.Module]]:
    """Builders of the libraries that name their networks."""
    family = sys.modules.get(type(module).__module__)
    if family is None:
        return
    if family.__name__.rpartition(".")[0] == "torchvision.models":  # those below fetch backbones
        heads = [layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)]
        models = sys.modules["torchvision.models"]
        for name in models.list_models(module=family) if heads else []:
            yield lambda name=name: _if_fits(module, models.get_model, name, num_classes=heads[-1])  # type: ignore[misc]
    if family.__name__.startswith("timm.models."):
        about = getattr(module, "pretrained_cfg", None) or {}
        first = about.get("first_conv")
        conv = module.get_submodule(first) if isinstance(first, str) else None
        settings = {"in_chans": conv.in_channels} if isinstance(conv, nn.Conv2d) else {}
        yield lambda: sys.modules["timm"].create_model(
            about["architecture"], num_classes=getattr(module, "num_classes", 1000), **settings
        )


def _if_fits(module: nn.Module, build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Build it only if its names and shapes are the module's: of a large family most members are other networks."""
    with torch.device("meta"):
        sketch = build(*args, **kwargs)
    return build(*args, **kwargs) if shapes(sketch) == shapes(module) else sketch
