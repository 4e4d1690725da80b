"""Stops a run whose training diverges, before a meaningless ticket is made of it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lth_lightning.errors import DataError, DivergedError
from lth_lightning.lottery.plan import TrainedNetwork
from lth_lightning.pruning.state import State, stable_name
from lth_lightning.pruning.survivors import whole

NONE = torch.iinfo(torch.int64).max  # stands for "no step"


class LossWatch:
    """Checks each training loss of the network in training.

    A single process on a CPU stops at once. Otherwise the first bad step is recorded on the device, without a sync,
    and raised at the next `check` by all processes together, so that no process waits for another.
    A loss that is bad because the batch is (a NaN pixel) is a separate error, as no learning rate would help.
    """

    def start_over(self, trainer: L.Trainer, network: TrainedNetwork, start: State) -> None:
        """Begin a new network.

        Args:
            trainer: the Trainer.
            network: the network.
            start: the state that it starts from; what is not finite there (a causal mask of -inf) may stay so.
        """
        device = trainer.strategy.root_device
        infinite = {name: ~value.isfinite() for name, value in start.items()}
        self._infinite = {name: entries for name, entries in infinite.items() if bool(entries.any())}
        self._network = network
        self._at_once = device.type == "cpu" and trainer.world_size == 1
        self._first_bad = torch.full((), NONE, device=device)
        self._first_bad_data = self._first_bad.clone()

    def see(self, outputs: Any, batch: Any, step: int) -> None:
        """Check the loss of a training step.

        Args:
            outputs: the return value of `training_step`: a loss, or a mapping with one; anything else is ignored.
            batch: the batch of that step, checked if the loss is bad.
            step: optimizer steps since the network started, this one included.

        Raises:
            DivergedError: the loss is NaN or infinite.
            DataError: the batch is too.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        if self._at_once:
            if bad := [value for value in loss.flatten().tolist() if not math.isfinite(value)]:
                if (where := bad_entries(batch)) is not None:
                    raise self._data_error(step, where)
                raise self._error(step, f"the training loss is {bad[0]}")
            return
        is_bad = ~loss.detach().isfinite().all()
        self._first_bad = torch.minimum(self._first_bad, torch.where(is_bad, step, NONE))
        for _, part in _numbers(batch):
            data_are_bad = is_bad & ~part.isfinite().all().to(is_bad.device)
            self._first_bad_data = torch.minimum(self._first_bad_data, torch.where(data_are_bad, step, NONE))

    def check(self, trainer: L.Trainer) -> None:
        """Raise an error if a bad loss was recorded.

        Raises:
            DivergedError: a loss was bad.
            DataError: its batch was bad too.
        """
        if self._at_once:
            return
        step, of_data = (int(trainer.strategy.all_gather(one).min()) for one in (self._first_bad, self._first_bad_data))
        if step != NONE:
            if of_data == step:
                raise self._data_error(step, "in its tensors")
            raise self._error(step, "the training loss is not finite")

    def check_weights(self, module: nn.Module, step: int) -> None:
        """Check the trained weights themselves, for modules that return no loss.

        Raises:
            DivergedError: a weight is NaN or infinite that was finite when the network started.
        """
        for name, weight in module.named_parameters():
            is_good = whole(weight).isfinite()
            if (infinite := self._infinite.get(stable_name(name))) is not None:
                is_good = is_good | infinite.to(is_good.device)
            if not bool(is_good.all()):
                raise self._error(step, f"{name} has weights that are not finite", "Or the data hold such values. ")

    def _error(self, step: int, what: str, more: str = "") -> DivergedError:
        return DivergedError(
            f"{self._place(step)}: {what}. Training has diverged and the run is stopped; its results and tickets so "
            f"far are intact. {more}A lower learning rate or gradient clipping may help."
        )

    def _data_error(self, step: int, where: str) -> DataError:
        return DataError(
            f"{self._place(step)}: the training loss is not finite because the batch contains NaN or infinite values "
            f"({where}). The run is stopped; its results and tickets so far are intact. Check the data and their "
            "transforms (for a division by 0, say)."
        )

    def _place(self, step: int) -> str:
        return f"round {self._network.round}, {self._network.name}, step {step}"


def bad_entries(batch: Any) -> str | None:
    """Describe where a batch has NaN or infinite values: `entry 0: 3 of 40 examples`; None if all are finite."""
    found = []
    for name, part in _numbers(batch):
        bad = ~part.isfinite().reshape(len(part) if part.ndim else 1, -1).all(dim=1)
        if bool(bad.any()):
            found.append(f"entry {name or 'of all'}: {int(bad.sum())} of {len(bad)} examples")
    return "; ".join(found) or None


def _numbers(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a batch that can hold NaN, each with its path: `0`, `pixels.1`."""
    if isinstance(batch, Tensor):
        if (batch.is_floating_point() or batch.is_complex()) and batch.layout == torch.strided and batch.numel():
            yield name, batch.detach()
        return
    parts: Any = ()
    if isinstance(batch, Mapping):
        parts = batch.items()
    elif isinstance(batch, list | tuple):
        parts = enumerate(batch)
    elif is_dataclass(batch):
        parts = vars(batch).items()
    for key, part in parts:
        yield from _numbers(part, f"{name}.{key}" if name else str(key))
