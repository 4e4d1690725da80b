"""Fresh weights for any module: by a scheme of the papers, or as each layer initialises itself.

Both functions draw from torch's global generator: `torch.manual_seed` before the call repeats the weights. A
module on a GPU draws from that GPU's generator, so initialise on the CPU for the same weights everywhere.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from lth_lightning.errors import SettingError, unknown_name

SCHEMES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "glorot_normal": nn.init.xavier_normal_,
    "kaiming_normal": partial(nn.init.kaiming_normal_, mode="fan_in", nonlinearity="relu"),
}


@torch.no_grad()
def initialise(module: nn.Module, scheme: str) -> None:
    """Draw the weights of Linear and convolution layers anew, in place, and set their biases to 0.

    Any other layer that holds parameters is reset by its own `reset_parameters()`: normalisation gets weight 1,
    bias 0 and fresh running statistics. Buffers of a layer without one (constants, as a rule) stay.

    Args:
        module: Any module, ours or not.
        scheme: `glorot_normal`: standard deviation sqrt(2 / (fan_in + fan_out)), as in Frankle & Carbin 2019
            (Glorot & Bengio 2010); or `kaiming_normal`: sqrt(2 / fan_in) (He et al. 2015).

    Raises:
        SettingError: the scheme is unknown; or a layer's parameters cannot be given fresh values, for want of
            a `reset_parameters()` or because they are computed from others (weight_norm, say).
    """
    if scheme not in SCHEMES:
        raise unknown_name("model.init", scheme, SCHEMES)
    for name, layer in module.named_modules():
        _refuse_computed_weights(name, layer)
        if isinstance(layer, nn.Linear | _ConvNd):
            SCHEMES[scheme](layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif hasattr(layer, "reset_parameters") and (_own_parameters(layer) or _own_buffers(layer)):
            layer.reset_parameters()
        elif _own_parameters(layer):
            raise _cannot_reset(name, layer)


@torch.no_grad()
def reset(module: nn.Module) -> None:
    """Give every layer fresh weights and buffers, in place, by its own `reset_parameters()`.

    Children come before parents: a module that initialises its children in a way of its own has the last word,
    and children that it leaves alone do not keep trained weights. What a constructor did beyond its layers'
    own initialisation (torchvision's ResNet, for one) is not repeated; `initialise` is the way to say it.

    Args:
        module: Any module, ours or not.

    Raises:
        SettingError: a module holds parameters, and neither it nor one around it has `reset_parameters()`; or
            they are computed from others (weight_norm, say). Buffers of such a module (a loss's class weights,
            say) stay.
    """
    _reset(module, name="", covered=False)


def _reset(layer: nn.Module, name: str, covered: bool) -> None:
    _refuse_computed_weights(name, layer)
    own_reset = getattr(layer, "reset_parameters", None)
    covered = covered or own_reset is not None
    if not covered and _own_parameters(layer):
        raise _cannot_reset(name, layer)
    for child_name, child in layer.named_children():
        _reset(child, f"{name}.{child_name}" if name else child_name, covered)
    if own_reset is not None:
        own_reset()


def _own_parameters(layer: nn.Module) -> list[str]:
    return [name for name, _ in layer.named_parameters(recurse=False)]


def _own_buffers(layer: nn.Module) -> list[str]:
    return [name for name, _ in layer.named_buffers(recurse=False)]


def _refuse_computed_weights(name: str, layer: nn.Module) -> None:
    """Writing to a computed weight is lost: the layer would silently keep its trained values."""
    if is_parametrized(layer) or (isinstance(layer, nn.Linear | _ConvNd) and "weight" not in _own_parameters(layer)):
        raise SettingError(
            f"{name or 'the network'} ({type(layer).__name__}): its weight is computed from other parameters "
            "(weight_norm, spectral_norm, parametrize, prune), so it cannot be given fresh values. Take that off."
        )


def _cannot_reset(name: str, layer: nn.Module) -> SettingError:
    where, kind = name or "the network", type(layer).__name__
    return SettingError(
        f"{where} ({kind}) holds {', '.join(_own_parameters(layer))} and cannot be given fresh values. "
        f"Give {kind} a reset_parameters()."
    )
