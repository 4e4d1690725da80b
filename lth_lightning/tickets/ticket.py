"""The ticket on disk: mask, rewind point and trained weights of one trained network, in one small file.

The format is safetensors (no pickle, nothing executes on load). For each prunable weight the file holds the mask,
eight entries to a byte, and only the surviving values of the rewind point and of the trained weights, so the file
shrinks with the density. All other parameters and buffers (biases, normalisation) are stored whole.
"""

import copy
import hashlib
import json
import os
from collections.abc import Sequence
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
from lth_lightning.tickets.prediction import Normalised, Prediction, normalised, predictions
from lth_lightning.tickets.rebuilding import built
from lth_lightning.tickets.shown import as_card, in_short

FORMAT = 2


@dataclass(repr=False)
class Ticket:
    """A winning ticket, or a candidate for one: which weights survive, and the values that they train from.

    Args:
        masks: bool masks by the names of the prunable weights, True = kept.
        rewind_point: every parameter and buffer at the start of the round; pruned weights are 0.
        trained: the same after training, or None.
        info: facts about the ticket, JSON values: `round`, `seed`, `density`, `data`, `architecture`,
            `train_for`, `rewind_to`, `rewind_step`, `data_order`, `test_acc`, …; and to use it, `network` (how to
            build it), `normalisation` of its images, `input_shape` and `classes` (their names).

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
                f"a ticket has masks for {', '.join(strangers)}, but its rewind point has no such weights. Name a "
                "shared weight by its first name in `module.named_parameters()`."
            )

    @property
    def density(self) -> float:
        """The fraction of prunable weights that survive, in [0, 1]."""
        return density(self.masks)

    def __repr__(self) -> str:
        return in_short(self)

    def _repr_html_(self) -> str:
        return as_card(self)

    def save(self, path: str | Path) -> None:
        """Write the ticket to `path` atomically.

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
        """Read a ticket and check every byte against the hash in the file.

        Raises:
            TicketError: the file does not exist, is not a ticket, or is truncated or changed.
        """
        path = Path(path)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except FileNotFoundError as error:
            raise TicketError(f"the ticket {path} does not exist.") from error
        except (safetensors.SafetensorError, OSError) as error:
            raise damaged(path, error) from error
        if KEY not in metadata:
            raise TicketError(f"{path} is a safetensors file, but not a ticket.")
        try:
            info = json.loads(metadata[KEY])
            if info["format"] != FORMAT:
                raise ValueError(f"this version reads format {FORMAT}, got {info['format']}")
            return cls._from_tensors(tensors, info)
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise TicketError(f"{path} cannot be read: {error}.") from error

    @classmethod
    def _from_tensors(cls, tensors: State, info: dict[str, Any]) -> "Ticket":
        if info["hash"] != _hash(tensors, info):
            raise ValueError("its content does not match the hash it was written with")
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
        """Rename the ticket to the names of `module`: a network alone, or inside a LightningModule.

        Names match as they are, or after a prefix that all names of one side share (`net.`) is removed.

        Args:
            module: the network to fit.
            fresh: values by the names of `module` for layers whose shapes differ (a network for other images or
                other classes). Those layers start from these values and keep all their weights, and `trained` becomes
                None. If None, a shape that differs is an error.

        Raises:
            TicketError: parameters or buffers are missing, superfluous or, without `fresh`, of another shape; the
                error lists them.
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
        """Return the masks' names in `target`, a network's state."""
        return set(self._renamed(target).masks)

    def misshapen(self, target: State) -> dict[str, str]:
        """Return the tensors of a network's state `target` whose shapes differ from the ticket's, with both shapes."""
        ours = self._renamed(target).rewind_point
        return {
            name: f"{name} (ticket {tuple(ours[name].shape)}, network {tuple(value.shape)})"
            for name, value in target.items()
            if name in ours and ours[name].shape != value.shape
        }

    def _refilled(self, values: State) -> "Ticket":
        """Replace the tensors named in `values`, and keep all of their weights."""
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
        """Load this ticket into `module`, in place, and return the masks under the module's names.

        By default the module gets the weights of the rewind point, which are *not trained*: a ticket is there to be
        trained. To use the trained network, say `weights="trained"`, or see `to_module`.

        Args:
            module: a network of the ticket's shape, or a LightningModule around one.
            weights: `rewind_point`, the weights that the ticket trains from, or `trained`, those after training.

        Raises:
            TicketError: the ticket does not fit, or has no trained weights.
        """
        self._check_weights(weights)
        fitting = self.fit_to(module)
        state = fitting.rewind_point if weights == "rewind_point" else fitting.trained
        assert state is not None
        load_state(module, masked(state, fitting.masks))
        return fitting.masks

    def to_module(self, weights: str = "trained") -> nn.Module:
        """Build the network that the ticket was found in, with its weights, in eval mode on the CPU.

        If the ticket records how its images were normalised (it does if an `ImageDataModule` gave them), the module is
        a `Normalised` around the network (its `.net`): it takes images as the data set stores them, for MNIST values
        from 0 to 255. If not, it is the network itself (of a LightningModule without a recorded `net`, that module),
        and takes what it was trained on.

        The class that the ticket names is imported from this machine's packages and called; nothing else of the file
        is executed.

        Args:
            weights: `trained`, or `rewind_point` for the weights before training.

        Raises:
            TicketError: the ticket does not record class and arguments, they do not give a network of its shape here,
                or it has no such weights.

        Example:
            >>> module = Ticket.load("runs/lenet/0/tickets/round_07.safetensors").to_module()  # doctest: +SKIP
            >>> module(images).argmax(dim=1)  # uint8 (N, 1, 28, 28), as MNIST stores them  # doctest: +SKIP
        """
        self._check_weights(weights)
        network = self._rebuilt(weights).eval()
        images = self.info.get("normalisation") and self.info.get("input_shape")
        return normalised(network, self.info).eval() if images else network

    def predict(
        self, images: str | os.PathLike[str] | np.ndarray | Tensor, *, resize: bool = False
    ) -> list[Prediction]:
        """Classify images with the trained network.

        Args:
            images: a folder of image files, an image file or a .npy file; or an array (N, H, W), (N, H, W, C) or
                (N, C, H, W) of raw values, as the data set stores them.
            resize: whether to resize image files of another size; their aspect ratio is ignored.

        Returns:
            For each image its `file` (or number), the `label` and its `probability`.

        Raises:
            SettingError: images that the network does not take; the error says which it takes.
            TicketError: as in `to_module`, or the ticket does not record the normalisation.
        """
        module = self.to_module()
        return predictions(
            module if isinstance(module, Normalised) else normalised(module, self.info), images, resize=resize
        )

    def compile(
        self,
        net: nn.Module,
        batch_size: int = 64,
        *,
        weights: str = "trained",
        example: Tensor | Sequence[Tensor] | None = None,
    ) -> nn.Module:
        """Return a module for inference: `net` with this ticket's weights, at the cost of those that survive.

        See `lth_lightning.sparse.compile`: each layer runs in the way that is measured to be the fastest on this
        machine, and `choice` of the result prints the measurements.

        Args:
            net: a network of the ticket's shape. It is not changed.
            batch_size: the batch size to choose for; the result takes any.
            weights: `trained`, or `rewind_point` for the weights before training.
            example: an input of `net`, or a tuple of several; needed only if the ticket does not record the shape of
                its images.

        Raises:
            TicketError: the ticket does not fit, has no such weights, or does not record the shape of an input.
            SettingError: as in `lth_lightning.sparse.compile`.

        Example:
            >>> fast = Ticket.load("runs/lenet/0/tickets/round_12.safetensors").compile(net)  # doctest: +SKIP
            >>> print(fast.choice)  # doctest: +SKIP
        """
        from lth_lightning import sparse  # a second of imports that no other use of a ticket needs

        module = copy.deepcopy(net)
        self.apply(module, weights)
        return sparse.compile(module, self.example() if example is None else example, batch_size)

    def example(self) -> Tensor:
        """Return noise of the shape and range of this ticket's raw images, (1, C, H, W).

        Raises:
            TicketError: the ticket does not record the shape of an input.
        """
        shape: Sequence[int] | None = self.info.get("input_shape")
        if not shape:
            raise TicketError("the ticket does not record the shape of an input: pass one, compile(net, example=x).")
        facts = self.info.get("normalisation") or {"low": 0.0, "high": 1.0}
        noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
        return facts["low"] + noise * (facts["high"] - facts["low"])

    def _check_weights(self, weights: str) -> None:
        if weights not in ("rewind_point", "trained"):
            raise TicketError(f"weights: {weights!r} is unknown; choose from 'rewind_point', 'trained'.")
        if weights == "trained" and self.trained is None:
            raise TicketError("the ticket has no trained weights; choose weights='rewind_point'.")

    def _rebuilt(self, weights: str) -> nn.Module:
        reasons = []
        for recipe in self.info.get("network") or []:
            try:
                network = built(recipe)
                self.apply(network, weights)
            except TicketError as error:
                reasons.append(str(error))
            else:
                return network
        why = f"cannot be built here ({'; '.join(reasons)})" if reasons else "is not recorded with all its arguments"
        raise TicketError(
            f"the ticket's network, {self.info.get('architecture', 'of an unknown class')}, {why}. Build it yourself, "
            f'and load the weights: ticket.apply(net, weights="{weights}").'
        )


def check_storable(state: State) -> None:
    """Check before any training that a ticket's file can hold every dtype in `state`.

    Raises:
        SettingError: a dtype cannot be stored; the error names the first such parameter or buffer.
    """
    for name, value in state.items():
        try:
            save({name: torch.empty(0, dtype=value.dtype)})
        except KeyError as error:
            kind = str(value.dtype).removeprefix("torch.")
            raise SettingError(
                f"{name} is {kind}, which a ticket's file cannot hold. Convert it (complex64 in place of complex128, "
                "say), or, if it never changes, keep it in an attribute that is not a buffer."
            ) from error


def _layer(name: str) -> str:
    """Return the layer of a parameter, which is reinitialised as a whole: `net.output` for `net.output.weight`."""
    return name.rpartition(".")[0]


def _prefixes(ours: State, target: State) -> list[tuple[str, str]]:
    """Return the pairs (prefix to remove, prefix to add) to try, starting with neither."""

    def first_parts(state: State) -> list[str]:
        heads = {name.split(".", 1)[0] + "." for name in state if "." in name}
        return [head for head in heads if all(name.startswith(head) for name in state)]

    return [("", ""), *((old, "") for old in first_parts(ours)), *(("", new) for new in first_parts(target))]


def _hash(tensors: State, info: dict[str, Any]) -> str:
    """Return a SHA-256 of the tensors and `info`, the latter as it reads back from JSON."""
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
