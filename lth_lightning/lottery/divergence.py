"""Training that diverges is stopped where it happens, before a ticket is made of numbers that mean nothing."""

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lth_lightning.errors import DivergedError
from lth_lightning.lottery.plan import TrainedNetwork

NONE = torch.iinfo(torch.int64).max  # a step that none is


class LossWatch:
    """Looks at each training loss, of one network after the other.

    One process on a CPU stops at once. Otherwise the first bad step is noted on the device, without waiting
    for it, and told at the next `check`: by all processes together, so that none is left waiting for another.
    """

    def start_over(self, trainer: L.Trainer, network: TrainedNetwork) -> None:
        """Begin a new network."""
        device = trainer.strategy.root_device
        self._network = network
        self._at_once = device.type == "cpu" and trainer.world_size == 1
        self._first_bad = torch.full((), NONE, device=device)

    def see(self, outputs: Any, step: int) -> None:
        """Look at what `training_step` gave in step `step`: a loss, or a mapping with one; all else says nothing.

        Raises:
            DivergedError: it is NaN or infinite.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        if self._at_once:
            if bad := [value for value in loss.flatten().tolist() if not math.isfinite(value)]:
                raise self._error(step, f"the training loss is {bad[0]}")
            return
        noted = torch.where(loss.detach().isfinite().all(), NONE, step)
        self._first_bad = torch.minimum(self._first_bad, noted)

    def check(self, trainer: L.Trainer) -> None:
        """Tell of a bad loss that was noted.

        Raises:
            DivergedError: there was one.
        """
        if self._at_once:
            return
        step = int(trainer.strategy.all_gather(self._first_bad).min())
        if step != NONE:
            raise self._error(step, "the training loss is not finite")

    def check_weights(self, module: nn.Module, step: int) -> None:
        """Look at the trained weights themselves, for modules that show no loss.

        Raises:
            DivergedError: one is NaN or infinite.
        """
        for name, weight in module.named_parameters():
            if not bool(weight.isfinite().all()):
                raise self._error(step, f"{name} holds weights that are not finite")

    def _error(self, step: int, what: str) -> DivergedError:
        return DivergedError(
            f"round {self._network.round}, {self._network.name}, step {step}: {what}. Training has diverged, and the "
            "run is stopped; its results and tickets so far are intact. A lower learning rate or gradient clipping "
            "may help."
        )
