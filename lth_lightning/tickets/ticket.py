"""The ticket on disk: mask, rewind point and trained weights of one trained network, in one small file.

The file is a safetensors file (no pickle, nothing executes on load). Of a prunable weight it holds the mask,
eight entries to a byte, and of the rewind point and the trained weights only the values that survive, so it
shrinks with the density. Everything else of the network (biases, normalisation, buffers) is held whole.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from lth_lightning.errors import SettingError, TicketError
from lth_lightning.files import replace_file
from lth_lightning.pruning.masks import Masks, density, masked
from lth_lightning.pruning.state import State, fingerprint, full_state, load_state
from lth_lightning.tickets.packed_file import KEY, damaged, unpack

FORMAT = 2


@dataclass
class Ticket:
    """A winning ticket, or a candidate for one: which weights survive, and from where they train.

    Args:
        masks: prunable weights' names to bool masks, True = kept.
        rewind_point: every parameter and buffer as the round started with it; pruned weights 0.
        trained: the same after training, or None.
        info: what is known about it, JSON values: `round`, `seed`, `density`, `data`, `architecture`,
            `train_for`, `rewind_to`, `rewind_step`, `data_order`, `test_acc`, …

    Example:
        >>> net = nn.Linear(4, 2)
        >>> ticket = Ticket({"weight": net.weight > 0}, full_state(net))
        >>> masks = ticket.apply(nn.Linear(4, 2))
    """

    masks: Masks
    rewind_point: State
    trained: State | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if strangers := sorted(self.masks.keys() - self.rewind_point.keys()):
            raise TicketError(
                f"a ticket has masks of {', '.join(strangers)}, and its rewind point has no such weights; a shared "
                "weight goes by the first name in `module.named_parameters()`."
            )

    @property
    def density(self) -> float:
        """Surviving over prunable weights, in [0, 1]."""
        return density(self.masks)

    def save(self, path: str | Path) -> None:
        """Write the ticket to `path`, as a whole or not at all.

        Raises:
            SettingError: the file cannot be written.
        """
        tensors = {f"mask.{name}": _pack(mask) for name, mask in self.masks.items()}
        parts = {"rewind_point": self.rewind_point, "trained": self.trained or {}}
        for part, state in parts.items():
            for name, value in state.items():
                kept = value[self.masks[name].to(value.device)] if name in self.masks else value
                tensors[f"{part}.{name}"] = kept.detach().cpu().clone().contiguous()
        info = {
            **self.info,
            "format": FORMAT,
            "density": self.density,
            "shapes": {name: list(mask.shape) for name, mask in self.masks.items()},
        }
        info["hash"] = _hash(tensors, info)
        replace_file(Path(path), save(tensors, {KEY: json.dumps(info, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | Path) -> "Ticket":
        """Read a ticket; every byte is checked against the hash the file carries.

        Raises:
            TicketError: no such file, not a ticket, truncated or changed.
        """
        path = Path(path)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except FileNotFoundError as error:
            raise TicketError(f"{path}: there is no such ticket.") from error
        except (safetensors.SafetensorError, OSError) as error:
            raise damaged(path, error) from error
        if KEY not in metadata:
            raise TicketError(f"{path} is a safetensors file, but not a ticket.")
        try:
            info = json.loads(metadata[KEY])
            if info["format"] != FORMAT:
                raise ValueError(f"this version reads format {FORMAT}, and it has another")
            return cls._from_tensors(tensors, info)
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise TicketError(f"{path} cannot be read: {error}.") from error

    @classmethod
    def _from_tensors(cls, tensors: State, info: dict[str, Any]) -> "Ticket":
        if info["hash"] != _hash(tensors, info):
            raise ValueError("its content does not have the hash it was written with")
        del info["hash"], info["format"]
        masks = {
            name: torch.from_numpy(unpack(tensors[f"mask.{name}"].numpy(), shape))
            for name, shape in info.pop("shapes").items()
        }
        states: dict[str, State] = {"rewind_point": {}, "trained": {}}
        for key, value in tensors.items():
            part, name = key.split(".", 1)
            if part in states:
                states[part][name] = _spread(value, masks[name]) if name in masks else value
        return cls(masks, states["rewind_point"], states["trained"] or None, info)

    def fit_to(self, module: nn.Module, fresh: State | None = None) -> "Ticket":
        """The same ticket under the names of `module`: a network alone, or inside a LightningModule.

        Names fit as they are, or without a prefix that one side has on all of them (`net.`).

        Args:
            module: the network to fit.
            fresh: values by the names of `module`, for layers with a weight of another shape (a network for other
                images or other classes): they start from them and keep all their weights; `trained` is None then.
                None: a shape that differs is an error.

        Raises:
            TicketError: parameters or buffers are missing, superfluous or, without `fresh`, of another shape; it
                lists them.
        """
        target = full_state(module)
        renamed = self._renamed(target)
        if fresh is not None:
            layers = {_layer(name) for name in renamed.misshapen(target)}
            renamed = renamed._refilled({name: value for name, value in fresh.items() if _layer(name) in layers})
        ours = renamed.rewind_point
        misfits = [f"{name} (only in the ticket)" for name in ours.keys() - target.keys()]
        misfits += [f"{name} (only in the network)" for name in target.keys() - ours.keys()]
        misfits += renamed.misshapen(target).values()
        if misfits:
            made_for = self.info.get("architecture", "another network")
            more = f" and {len(misfits) - 5} more" if len(misfits) > 5 else ""
            raise TicketError(
                f"the ticket, made for {made_for}, does not fit {type(module).__name__}: "
                f"{', '.join(sorted(misfits)[:5])}{more}."
            )
        in_order = {name: renamed.masks[name] for name in target if name in renamed.masks}
        return Ticket(in_order, renamed.rewind_point, renamed.trained, renamed.info)

    def names_in(self, target: State) -> set[str]:
        """The names of the masks in `target`, a network's state."""
        return set(self._renamed(target).masks)

    def misshapen(self, target: State) -> dict[str, str]:
        """The parameters and buffers of `target`, a network's, that are of another shape here: names, and in words."""
        ours = self._renamed(target).rewind_point
        return {
            name: f"{name} (ticket {tuple(ours[name].shape)}, network {tuple(value.shape)})"
            for name, value in target.items()
            if name in ours and ours[name].shape != value.shape
        }

    def _refilled(self, values: State) -> "Ticket":
        """With `values` in place of what is there by their names, whole."""
        if not values:
            return self
        masks = {
            name: torch.ones_like(values[name], dtype=torch.bool) if name in values else mask
            for name, mask in self.masks.items()
        }
        return Ticket(masks, self.rewind_point | values, None, self.info)

    def _renamed(self, target: State) -> "Ticket":
        for old, new in _prefixes(self.rewind_point, target):
            if {new + name.removeprefix(old) for name in self.rewind_point} == target.keys():
                states = [
                    {new + name.removeprefix(old): value for name, value in state.items()}
                    for state in (self.masks, self.rewind_point, self.trained or {})
                ]
                return Ticket(states[0], states[1], states[2] or None, self.info)
        return self

    def apply(self, module: nn.Module, weights: str = "rewind_point") -> Masks:
        """Set `module` to this ticket, in place, and return the masks under the module's names.

        Args:
            module: a network of the ticket's shape, or a LightningModule around one.
            weights: `rewind_point`, to train the ticket, or `trained`, to use it.

        Raises:
            TicketError: the ticket does not fit, or holds no trained weights.
        """
        if weights not in ("rewind_point", "trained"):
            raise TicketError(f"weights: {weights!r} is unknown; choose from 'rewind_point', 'trained'.")
        fitting = self.fit_to(module)
        state = fitting.rewind_point if weights == "rewind_point" else fitting.trained
        if state is None:
            raise TicketError("the ticket holds no trained weights.")
        load_state(module, masked(state, fitting.masks))
        return fitting.masks


def check_storable(state: State) -> None:
    """Find out before any training that a ticket's file can hold what there is.

    Raises:
        SettingError: it cannot; it names the first parameter or buffer of such a type.
    """
    for name, value in state.items():
        try:
            save({name: torch.empty(0, dtype=value.dtype)})
        except KeyError as error:
            kind = str(value.dtype).removeprefix("torch.")
            raise SettingError(
                f"{name} is {kind}, which a ticket's file cannot hold. Convert it (complex64 in place of complex128, "
                "say), or keep it in an attribute that is not a buffer, if it never changes."
            ) from error


def _layer(name: str) -> str:
    """`net.output` of `net.output.weight`: what is re-initialised together."""
    return name.rpartition(".")[0]


def _prefixes(ours: State, target: State) -> list[tuple[str, str]]:
    """Pairs (prefix to take off, prefix to put on) worth a try, none first."""

    def first_parts(state: State) -> list[str]:
        heads = {name.split(".", 1)[0] + "." for name in state if "." in name}
        return [head for head in heads if all(name.startswith(head) for name in state)]

    return [("", ""), *((old, "") for old in first_parts(ours)), *(("", new) for new in first_parts(target))]


def _hash(tensors: State, info: dict[str, Any]) -> str:
    """SHA-256 over the tensors and all that is said of them, `info` as it reads back from JSON."""
    said = json.dumps(json.loads(json.dumps(info | {"hash": None})), sort_keys=True)
    return hashlib.sha256(f"{fingerprint(tensors)} {said}".encode()).hexdigest()


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def _spread(survivors: Tensor, mask: Tensor) -> Tensor:
    if len(survivors) != int(mask.sum()):
        raise ValueError(f"{len(survivors)} values for {int(mask.sum())} surviving weights")
    value = torch.zeros(mask.shape, dtype=survivors.dtype)
    value[mask] = survivors
    return value
