"""Guard: keeps pruned weights at 0 in layers that are copied or that load weights."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lth_lightning.errors import RevivedError
from lth_lightning.pruning.held_mask import HeldMask, held_by
from lth_lightning.pruning.optimizer_hooks import watch_optimizers


class Guard:
    """Masks a layer's weight after `load_state_dict`.

    The guard is part of the layer. When the layer is copied or sent to another process, the guard is copied with it
    and holds the new weight, so that the copy does not train dense.
    """

    def __init__(self, weight: nn.Parameter, held: HeldMask) -> None:
        self._weight, self._held = weight, held

    def __call__(self, layer: nn.Module, _: Any) -> None:
        if not self._holds:
            return
        if not any(self._weight is own for own in layer._parameters.values()):
            raise RevivedError(
                f"{type(layer).__name__}.load_state_dict(assign=True) has replaced a pruned Parameter; the new one has "
                "no mask and no optimizer. Load without `assign`."
            )
        self._held.clear_weight(self._weight)

    @property
    def _holds(self) -> bool:
        """False if the weight was released and this guard is left over in a copy of its layer."""
        return held_by(self._weight) is self._held

    def __deepcopy__(self, memo: dict[int, Any]) -> "Guard":
        weight = copy.deepcopy(self._weight, memo)
        return _guard(weight, self._held.mask) if self._holds else Guard(weight, self._held)

    def __reduce__(self) -> tuple[Any, ...]:
        mask = self._held.mask
        return (_guard, (self._weight, mask)) if self._holds else (Guard, (self._weight, HeldMask(mask)))


def _guard(weight: nn.Parameter, mask: Tensor) -> Guard:
    """Hold a copied layer's weight."""
    held = HeldMask(mask)
    held.take(weight)
    watch_optimizers()
    return Guard(weight, held)


def owners(source: nn.Module | Mapping[str, nn.Parameter], weight: nn.Parameter) -> list[nn.Module]:
    """Return the layers of a module that have `weight` as a parameter."""
    layers = source.modules() if isinstance(source, nn.Module) else ()
    return [layer for layer in layers if any(weight is own for own in layer._parameters.values())]
