"""Restores every torchmetrics object, wrappers and trackers too, to its state at the start of the fit."""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers import MetricTracker

KINDS = (Metric, MetricCollection, MetricTracker)
OF_EVERY_MODULE = vars(nn.Module()).keys()


class MetricStates:
    """The states of metrics, as they are when this is created.

    `Metric.reset` does not suffice: a MinMaxMetric keeps its extremes, a MetricTracker its history, and a metric may
    have been updated before the fit. All objects stay the same, as Lightning knows logged metrics by their identity.

    Args:
        owners: what holds metrics: the module, other callbacks.
    """

    def __init__(self, owners: Sequence[object]) -> None:
        self._owners = owners
        self._parts = [(part, dict(part._modules), copy.deepcopy(_state(part))) for part in self._find()]

    def take_persistent(self, earlier: "MetricStates") -> None:
        """Take the persistent states from before a checkpoint was loaded, as it holds those in mid-network."""
        states = {id(part): state for part, _, state in earlier._parts}
        for part, _, state in self._parts:
            if isinstance(part, Metric):
                saved = [name for name, persistent in part._persistent.items() if persistent]
                known = states.get(id(part), part._defaults)
                state |= {name: apply_to_collection(known[name], Tensor, Tensor.to, part.device) for name in saved}

    def restore(self) -> None:
        """Restore the states; metrics that were created later, as in `setup("test")`, are reset."""
        for part, modules, state in self._parts:
            part._modules.clear()
            part._modules.update(modules)
            own = vars(part)
            for name in _state(part).keys() - state.keys():
                del own[name]
            own.update(copy.deepcopy(state))
        known = {id(part) for part, _, _ in self._parts}
        for part in self._find():
            if id(part) not in known and isinstance(part, Metric):
                part.reset()

    def _find(self) -> list[nn.Module]:
        """Find metrics and the parts of wrappers, also in lists and dicts of their owners and of a module's layers."""
        found: dict[int, nn.Module] = {}
        for owner in self._owners:
            for layer in owner.modules() if isinstance(owner, nn.Module) else [owner]:
                for thing in (layer, *_values(layer)):
                    if isinstance(thing, KINDS):
                        found |= {id(part): part for part in thing.modules()}
        return [part for part in found.values() if not type(part).__module__.startswith("torch.")]


def _values(owner: object) -> Iterator[object]:
    for name, value in vars(owner).items():
        if name not in OF_EVERY_MODULE:
            entries = value.values() if isinstance(value, dict) else value
            yield from entries if isinstance(value, list | tuple | dict) else (value,)


def _state(part: nn.Module) -> dict[str, Any]:
    """Return the attributes that are data; functions and settings such as `_update_signature` never change."""
    own = {name: value for name, value in vars(part).items() if name not in {*OF_EVERY_MODULE, "_defaults"}}
    return {name: value for name, value in own.items() if _is_data(value)}


def _is_data(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    if isinstance(value, list | tuple | set | deque):
        return all(map(_is_data, value))
    return isinstance(value, NoneType | Tensor | np.ndarray | bool | int | float | str | torch.device | torch.dtype)
