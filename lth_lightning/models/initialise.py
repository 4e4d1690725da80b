"""Fresh weights for any module: by a scheme of the papers, or as each layer initialises itself.

Both functions draw from torch's global generator, so `torch.manual_seed` before the call reproduces the weights. A
module on a GPU draws from that GPU's generator, so initialise on the CPU for the same weights everywhere.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.models.rebuild import alike, own_values, rebuilt

WAY_OUT = (
    "Keep the network's own weights (ImageClassifier's init: null), and for fresh weights pass a function that builds "
    "the network again: LotteryTicket(reinit=function), --lottery.reinit on the command line."
)

SCHEMES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "glorot_normal": nn.init.xavier_normal_,
    "kaiming_normal": partial(nn.init.kaiming_normal_, mode="fan_in", nonlinearity="relu"),
}


@torch.no_grad()
def initialise(module: nn.Module, scheme: str) -> None:
    """Draw fresh weights for Linear and convolution layers, in place, and set their biases to 0.

    Any other layer with parameters is reset by its own method (`reset`): normalisation gets weight 1, bias 0 and
    fresh running statistics. Buffers of a layer without such a method (usually constants) do not change, nor do
    constant parameters (LayerScale's).

    Args:
        module: Any module.
        scheme: `glorot_normal`: standard deviation sqrt(2 / (fan_in + fan_out)), as in Frankle & Carbin 2019
            (Glorot & Bengio 2010); or `kaiming_normal`: sqrt(2 / fan_in) (He et al. 2015).

    Raises:
        SettingError: the scheme is unknown; or a layer's parameters cannot be reset, because it has no reset method
            or computes them from others (weight_norm, say).
    """
    if scheme not in SCHEMES:
        raise unknown_name("model.init", scheme, SCHEMES)
    for name, layer in module.named_modules():
        _refuse_computed_weights(name, layer)
        if isinstance(layer, nn.Linear | _ConvNd):
            SCHEMES[scheme](layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif (own_way := _own_reset(layer)) and (_own_parameters(layer) or _own_buffers(layer)):
            own_way()
        elif _drawn_parameters(layer):
            raise _cannot_reset(name, layer)


@torch.no_grad()
def reset(module: nn.Module) -> None:
    """Give every layer fresh weights and buffers, in place, the way it was first initialised.

    For each module, from the outermost in, that is the first of: its own `reset_parameters()` (`_reset_parameters` in
    torch's attention and Transformer), after its children; the weights of a newly built module (`rebuilt`), if its
    arguments are known; the methods of Hugging Face (`_init_weights`) and timm (`init_weights`), after its children.
    A module that initialises its children itself thus has the last word, and children that it skips do not keep
    trained weights. Further work of a constructor whose arguments are unknown is not repeated.

    Args:
        module: Any module.

    Raises:
        SettingError: a module holds parameters that are not constant, and neither it nor a parent can reset them; or
            they are computed from others (weight_norm, say) in a way that cannot be inverted. Buffers of such a
            module (a loss's class weights, say) do not change.
    """
    _reset(module, name="", covered=False)


def _reset(layer: nn.Module, name: str, covered: bool) -> None:
    own_reset = _own_reset(layer)
    if own_reset is None and _own_parameters(layer, recurse=True):
        if (built := rebuilt(layer)) is not None:
            _take_over(layer, built, name, covered)
            return
        own_reset = _framework_reset(layer)
    if is_parametrized(layer):
        _reset_behind_parametrization(layer, name)
        return
    _refuse_computed_weights(name, layer)
    covered = covered or own_reset is not None
    if not covered and _drawn_parameters(layer):
        raise _cannot_reset(name, layer)
    for child_name, child in layer.named_children():
        _reset(child, f"{name}.{child_name}" if name else child_name, covered)
    if own_reset is not None:
        own_reset()


def _own_reset(layer: nn.Module) -> Callable[[], object] | None:
    ways = (getattr(layer, name, None) for name in ("reset_parameters", "_reset_parameters"))
    return next((way for way in ways if callable(way) and _required(way) == 0), None)


def _framework_reset(layer: nn.Module) -> Callable[[], object] | None:
    """Return the reset of Hugging Face (one layer at a time), or of timm and many others (all layers at once)."""
    each, whole = getattr(layer, "_init_weights", None), getattr(layer, "init_weights", None)
    if callable(each) and _required(each) == 1 and (hasattr(layer, "config") or whole is None):
        return lambda: layer.apply(each)
    return whole if callable(whole) and _required(whole) == 0 else None


def _required(function: Callable[..., object]) -> int:
    parameters = inspect.signature(function).parameters.values()
    return sum(one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters)


def _take_over(layer: nn.Module, built: nn.Module, name: str, covered: bool) -> None:
    """Copy the weights of `built`; reset layers that were replaced after construction on their own."""
    fresh = dict(own_values(built, f"{name}."))
    for own_name, value in own_values(layer, f"{name}."):
        value.copy_(fresh[own_name])
    counterparts = dict(built.named_children())
    for child_name, child in layer.named_children():
        full_name, counterpart = f"{name}.{child_name}" if name else child_name, counterparts.get(child_name)
        if counterpart is not None and alike(counterpart, child):
            _take_over(child, counterpart, full_name, covered)
        else:
            _reset(child, full_name, covered)


def _reset_behind_parametrization(layer: nn.Module, name: str) -> None:
    """Reset the unparametrized layer, and let the parametrization's inverse compute the parameters from it."""
    parametrizations = layer.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    tensors = list(parametrizations)
    steps = [step for several in parametrizations.values() for step in several.children()]
    if any(_own_buffers(step) or not hasattr(step, "right_inverse") for step in steps):
        _refuse_computed_weights(name, layer)
    # Not `remove_parametrizations`, which would change the class that the copy shares with the original.
    plain = copy.deepcopy(layer)
    plain.__class__ = type_before_parametrizations(layer)
    del plain.parametrizations
    for tensor in tensors:
        plain.register_parameter(tensor, nn.Parameter(torch.empty_like(getattr(layer, tensor))))
    _reset(plain, name, covered=False)
    for parameter_name, value in (*plain.named_parameters(), *plain.named_buffers()):
        if parameter_name in tensors:
            setattr(layer, parameter_name, value.detach())  # a Parameter would be registered in addition
        else:
            layer.get_parameter(parameter_name).copy_(value)


def _own_parameters(layer: nn.Module, recurse: bool = False) -> list[str]:
    return [name for name, _ in layer.named_parameters(recurse=recurse)]


def _drawn_parameters(layer: nn.Module) -> list[str]:
    """Return the layer's own non-constant parameters; a constant (LayerScale's 1e-6) is its own fresh value."""
    return [name for name, weight in layer.named_parameters(recurse=False) if not is_constant(weight)]


def is_constant(tensor: Tensor) -> bool:
    """Whether all entries are one value set by hand; a single entry counts if it has few digits."""
    first = tensor.detach().reshape(-1)[:1]
    if tensor.numel() != 1:
        return bool((tensor == first).all())
    return not tensor.is_complex() and torch.equal(first.double().mul(1e3).round().div(1e3).to(first.dtype), first)


def _own_buffers(layer: nn.Module) -> list[str]:
    return [name for name, _ in layer.named_buffers(recurse=False)]


def _refuse_computed_weights(name: str, layer: nn.Module) -> None:
    """Refuse computed weights: writes to them are lost, so the layer would silently keep its trained values."""
    if is_parametrized(layer) or (isinstance(layer, nn.Linear | _ConvNd) and "weight" not in _own_parameters(layer)):
        raise SettingError(
            f"{name or 'the network'} ({type(layer).__name__}): its weight is computed from other parameters "
            f"(weight_norm, spectral_norm, parametrize, prune), so it cannot be drawn anew. {WAY_OUT}"
        )


def _cannot_reset(name: str, layer: nn.Module) -> SettingError:
    where, kind = name or "the network", type(layer).__name__
    return SettingError(
        f"{where} ({kind}) holds {', '.join(_drawn_parameters(layer))}, but has no method to draw it anew. {WAY_OUT}"
    )
