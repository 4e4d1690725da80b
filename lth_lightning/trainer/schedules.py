"""Learning-rate schedules: where they stand at the rewind point, and the rates that fine-tuning holds."""

import copy
import dataclasses
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.hooks import RemovableHandle

from lth_lightning.errors import SettingError
from lth_lightning.trainer.lengths import Epochs
from lth_lightning.trainer.new_optimizers import set_settings, settings_of


def state(trainer: L.Trainer) -> dict[str, Any]:
    """Return the state of schedules, of the settings that they move, and of `global_step`, for a checkpoint too.

    ReduceLROnPlateau, which depends on metrics, is left out: it starts new.
    """
    moved = [config.scheduler for config in trainer.lr_scheduler_configs]
    states = [None if isinstance(one, ReduceLROnPlateau) else one.state_dict() for one in moved]
    groups = [[settings_of(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    return copy.deepcopy({"schedules": states, "groups": groups, "global_step": trainer.global_step})


def load(trainer: L.Trainer, state: dict[str, Any]) -> None:
    """Restore what `state` returned, after `FreshFit.restore`."""
    for config, schedule in zip(trainer.lr_scheduler_configs, copy.deepcopy(state["schedules"]), strict=True):
        if schedule is not None:
            config.scheduler.load_state_dict(schedule)
    if None not in state["schedules"]:
        for optimizer, groups in zip(trainer.optimizers, state["groups"], strict=True):
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                set_settings(group, settings)
    # In manual optimization a batch may take several steps, and `FreshFit` counts batches.
    by_hand = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    by_hand.reset()
    by_hand.total.increment_by(state["global_step"])


def advance(trainer: L.Trainer, epochs: Epochs, step: int) -> None:
    """Advance new schedules to their state after `step` steps, as Lightning would have.

    For tickets from files, whose rewind point this fit has not passed itself.
    """
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau):
            continue
        with warnings.catch_warnings():  # torch warns if a schedule steps before its optimizer, as here it must
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(epochs.moves(step, config.frequency, by_epoch=config.interval == "epoch")):
                config.scheduler.step()


def check(trainer: L.Trainer, epochs: Epochs, step: int, *, passed: bool) -> None:
    """Check that schedules move on from a rewind point as they would have without one.

    Args:
        trainer: with its schedules.
        epochs: how steps fall into epochs.
        step: the rewind point's.
        passed: whether this fit trains up to it, and so sees where schedules stand there.

    Raises:
        SettingError: they would not.
    """
    batch, module = epochs.place(step).batch if step else 0, trainer.lightning_module
    by_itself = not module.automatic_optimization or is_overridden("lr_scheduler_step", module)
    for config in trainer.lr_scheduler_configs if step else ():
        name = f"lr_scheduler: {type(config.scheduler).__name__}"
        if by_itself and not passed:
            raise SettingError(
                f"{name} is moved by the module itself (manual optimization, lr_scheduler_step), so its state at step "
                f"{step}, the rewind point of the tickets, is unknown. Use tickets that were rewound to 0it."
            )
        by_steps = module.automatic_optimization and config.interval == "step" and not config.reduce_on_plateau
        if by_steps and batch % config.frequency:
            raise SettingError(
                f"{name} moves every {config.frequency} batches of an epoch, but the rewind point, step {step}, lies "
                f"after {batch} batches of one, so later networks would move it at other steps than the first. Set "
                f"rewind_to to a multiple of {config.frequency} batches, or frequency to 1."
            )


# ------------------------------------------------------------------------ rates that are held


class HeldRates:
    """The learning rates of fine-tuning: those of the dense network's last step, held in all later networks.

    Attributes:
        last: the learning rates of the latest step, once `note` was called.
    """

    def __init__(self) -> None:
        self.last: list[list[float]] | None = None
        self._still: list[Any] = []  # schedules that stand still
        self._handles: list[RemovableHandle] = []

    def note(self, trainer: L.Trainer) -> None:
        """Keep the learning rates of the latest step in `last`: a schedule moves on after the last one."""

        def keep(optimizer: Optimizer, *_: Any) -> None:
            self.last = learning_rates(trainer)

        self._handles = [optimizer.register_step_pre_hook(keep) for optimizer in trainer.optimizers]

    def hold(self, trainer: L.Trainer, rates: list[list[float]]) -> None:
        """Set each optimizer's groups to `rates` and stop the schedules, which remain visible, until `release`."""
        for config in trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            kind = type(schedule)
            schedule.__class__ = type(kind.__name__, (kind,), {"step": _stand_still, "_moving": kind})
            of = getattr(schedule, "optimizer", None)
            held = [one for optimizer, one in zip(trainer.optimizers, rates, strict=True) if optimizer is of]
            schedule._last_lr = list(held[0]) if held else []
            self._still.append(schedule)
        configs = trainer.lr_scheduler_configs
        trainer.strategy.lr_scheduler_configs = [dataclasses.replace(one, interval="held") for one in configs]
        for optimizer, groups in zip(trainer.optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, groups, strict=True):
                set_settings(group, {"lr": rate})

    def release(self) -> None:
        """Let schedules move again, and forget about steps."""
        for schedule in self._still:
            schedule.__class__ = schedule._moving
        for handle in self._handles:
            handle.remove()
        self._still, self._handles = [], []


def learning_rates(trainer: L.Trainer) -> list[list[float]]:
    """Return the learning rate of each group of each optimizer."""
    return [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers]


def _stand_still(schedule: Any, *_: Any, **__: Any) -> None:
    """Stand in for a schedule's `step`, which in manual optimization the module calls."""
