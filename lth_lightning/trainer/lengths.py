"""How long a round is, in optimizer steps and in epochs, and a trainer that says so while its loops run on."""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.core.optimizer import _MockOptimizer

from lth_lightning.errors import SettingError


class Place(NamedTuple):
    """Where training stands: in which epoch, after how many of its batches."""

    epoch: int
    batch: int


@dataclass(frozen=True)
class Epochs:
    """How optimizer steps fall into epochs.

    Args:
        batches: batches of an epoch, None for loaders without a length.
        per_step: batches that make one step, by the first epoch in which they do: `{0: 1, 4: 2}`. Lightning steps
            on the last batch of an epoch too.
    """

    batches: int | None
    per_step: Mapping[int, int]

    def batches_per_step(self, epoch: int) -> int:
        """Batches that make one step in that epoch."""
        return self.per_step[max(first for first in self.per_step if first <= epoch)]

    def steps(self, epochs: int) -> int:
        """Optimizer steps of the first `epochs` epochs.

        Raises:
            SettingError: the loaders have no length.
        """
        return sum(int(min(epochs, end) - first) * size for first, end, size in self._alike() if first < epochs)

    def place(self, step: int) -> Place:
        """Where training stands after `step` steps. Loaders without a length are taken to last for all of them."""
        if self.batches is None:
            return Place(0, step * self.batches_per_step(0))
        for first, end, size in self._alike():
            if step < (end - first) * size:
                break
            step -= int((end - first) * size)
        return Place(first + step // size, step % size * self.per_step[first])

    def epochs(self, steps: int) -> int | None:
        """Epochs that so many steps take, the last of them perhaps in part; None where nobody can know."""
        if self.batches is None:
            return None
        epoch, batch = self.place(steps)
        return epoch + bool(batch)

    def batches_before(self, step: int) -> int:
        """Batches of all epochs that `step` steps take."""
        epoch, batch = self.place(step)
        return epoch * (self.batches or 0) + batch

    def moves(self, step: int, frequency: int, *, by_epoch: bool) -> int:
        """How often Lightning moves a schedule in the first `step` steps.

        By steps it counts the batches of the epoch: one that makes a step moves the schedule if its number is a
        multiple of `frequency`.
        """
        epoch, batch = self.place(step)
        if by_epoch:
            return epoch // frequency
        whole = sum(self._moves(epoch, self.batches or 0, frequency) for epoch in range(epoch))
        return whole + self._moves(epoch, batch, frequency)

    def _moves(self, epoch: int, batches: int, frequency: int) -> int:
        size = self.batches_per_step(epoch)
        by_size = batches // math.lcm(size, frequency)
        return by_size + (batches == self.batches and bool(batches % size) and batches % frequency == 0)

    def _alike(self) -> Iterator[tuple[int, float, int]]:
        """Epochs of equally many steps, one after the other: the first, the one after the last, steps of each."""
        if self.batches is None:
            raise SettingError(
                "lottery.train_for or lottery.rewind_to is given in epochs, but the training loader has no length to "
                "count epochs by; give both in steps, e.g. 5000it."
            )
        firsts = sorted(self.per_step)
        for first, end in zip(firsts, [*firsts[1:], math.inf], strict=True):
            yield first, end, math.ceil(self.batches / self.per_step[first])


def epochs_of(trainer: L.Trainer) -> Epochs:
    """How the steps of the fit fall into epochs, with its training data loaded and no epoch cut.

    In manual optimization every batch counts as a step.
    """
    batches = trainer.fit_loop.max_batches
    per_step = {0: 1}
    if trainer.lightning_module.automatic_optimization:
        schedules = [one.scheduling for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)]
        per_step = dict(schedules[-1]) if schedules else {0: trainer.accumulate_grad_batches}
    return Epochs(None if math.isinf(batches) else int(batches), per_step)


def check_accumulation(trainer: L.Trainer, expected: int) -> None:
    """Look whether a batch was accumulated as the lengths of rounds were counted.

    Raises:
        SettingError: something has set `trainer.accumulate_grad_batches` to another number.
    """
    if trainer.lightning_module.automatic_optimization and trainer.accumulate_grad_batches != expected:
        raise SettingError(
            f"trainer.accumulate_grad_batches: {trainer.accumulate_grad_batches} in epoch {trainer.current_epoch}, "
            f"where {expected} was expected: a callback or the module has set it in training, and the length of a "
            "round was counted without that. Use Lightning's GradientAccumulationScheduler, with a number for each "
            "epoch."
        )


def check_reloaded(trainer: L.Trainer, expected: Epochs) -> None:
    """Look whether training data that have just been loaded anew are as many; call it where an epoch is entered.

    Raises:
        SettingError: they are not.
    """
    batches = trainer.fit_loop.max_batches
    just_now = trainer.fit_loop._last_train_dl_reload_epoch == trainer.current_epoch
    if trainer.reload_dataloaders_every_n_epochs and just_now and batches != (expected.batches or math.inf):
        raise SettingError(
            f"trainer.reload_dataloaders_every_n_epochs: the training data have {batches} batches in epoch "
            f"{trainer.current_epoch}, and had {expected.batches} when they were loaded first. Rounds in "
            "epochs, and rewinding, count epochs of one size: let each reload give as many batches, or give train_for "
            "in steps and rewind to 0it."
        )


def check_place(trainer: L.Trainer, expected: Place, step: int) -> None:
    """Look whether the rewind point lies where later rounds will start; call it at the end of its batch.

    Raises:
        SettingError: the epochs before it had other lengths than the first was expected to have.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    here = Place(trainer.current_epoch, progress.current.ready)
    if progress.is_last_batch:
        here = Place(trainer.current_epoch + 1, 0)
    if here != expected:
        raise SettingError(
            f"lottery.rewind_to: step {step} was expected after {expected.batch} batches of epoch {expected.epoch}, "
            f"and came after {here.batch} batches of epoch {here.epoch}. Epochs must be equally long for rounds to "
            "start inside one: give loaders a length, use trainer.limit_train_batches in place of "
            "on_train_batch_start's -1, or rewind to 0it."
        )


def check_schedules(trainer: L.Trainer, epochs: Epochs, step: int, *, passed: bool) -> None:
    """Look whether schedules move on from a rewind point as they would have without one.

    Args:
        trainer: with its schedules.
        epochs: how steps fall into epochs.
        step: the rewind point's.
        passed: whether this fit trains up to it, and so sees where schedules stand there.

    Raises:
        SettingError: they would not.
    """
    batch = epochs.place(step).batch if step else 0
    for config in trainer.lr_scheduler_configs if step else ():
        name = f"lr_scheduler: {type(config.scheduler).__name__}"
        if not trainer.lightning_module.automatic_optimization:
            if not passed:
                raise SettingError(
                    f"{name} is moved by the module itself (manual optimization), so nothing says where it stands at "
                    f"step {step}, the rewind point of the tickets. Use tickets that were rewound to 0it."
                )
        elif config.interval == "step" and batch % config.frequency:
            raise SettingError(
                f"{name} moves every {config.frequency} batches of an epoch, and the rewind point, step {step}, lies "
                f"after {batch}. Networks that start there would move it at other steps than the first. Set "
                f"rewind_to to a multiple of {config.frequency} batches, or frequency to 1."
            )


# ------------------------------------------------------------------------ what the trainer says


def show_round(trainer: L.Trainer, *, epochs: int | None, steps: int | None) -> None:
    """Let `max_epochs`, `max_steps` and `estimated_stepping_batches` be those of a round of so many epochs or steps.

    People plan by them, in `configure_optimizers` and in training. The loops, which would end by them, read numbers
    of their own. What the other unit needs, the training data, is loaded when it is first asked for, as Lightning's
    `estimated_stepping_batches` does.
    """

    @functools.cache
    def known() -> Epochs:
        trainer.fit_loop.setup_data()
        return epochs_of(trainer)

    def max_steps(self: L.Trainer) -> int:
        return known().steps(epochs) if steps is None and epochs is not None else int(steps or -1)

    def max_epochs(self: L.Trainer) -> int:
        if epochs is not None or steps is None:
            return -1 if epochs is None else epochs
        planned = known().epochs(steps)
        return -1 if planned is None else max(planned, self.current_epoch)  # epochs that a module leaves early add up

    kind = type(trainer)
    shown = {"max_steps": property(max_steps), "max_epochs": property(max_epochs)}
    shown["estimated_stepping_batches"] = shown["max_steps"]
    trainer.__class__ = type(kind.__name__, (kind,), {**shown, "__module__": kind.__module__, "_unshown": kind})
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def show_fit(trainer: L.Trainer) -> None:
    """Undo `show_round`."""
    trainer.__class__ = getattr(trainer, "_unshown", type(trainer))
    trainer.fit_loop.__dict__.pop("_iteration_based_training", None)


# ------------------------------------------------------------------------ settings that no round can have


def refuse_rehearsals(trainer: L.Trainer) -> None:
    """Name settings under which no whole round would be trained, or none like the other.

    Raises:
        SettingError: there is one.
    """
    for name in ("fast_dev_run", "barebones"):
        if getattr(trainer, name):
            raise SettingError(
                f"trainer.{name}: not with a lottery, whose rounds end the fit. For a quick try: "
                'LotteryTicket(rounds=1, train_for="20it").'
            )
    if trainer.limit_train_batches == 0:
        raise SettingError("trainer.limit_train_batches is 0: a round would train nothing. Give 1.0, or some batches.")
    if trainer._val_check_time_interval is not None:
        raise SettingError(
            f"trainer.val_check_interval: a time ({trainer._val_check_time_interval:g} s). By the clock each network "
            "would be evaluated at other steps, and a resumed run at others again. Give a number of batches (100) or "
            "a fraction of an epoch (0.25)."
        )


def refuse_no_optimizer(trainer: L.Trainer) -> None:
    """Name a module that gives no optimizer; call it in `on_fit_start`.

    Raises:
        SettingError: it is so.
    """
    if all(isinstance(optimizer, _MockOptimizer) for optimizer in trainer.optimizers):
        raise SettingError(
            f"{type(trainer.lightning_module).__name__}.configure_optimizers gives no optimizer: the lottery could "
            "neither start each network with a new one nor keep pruned weights at 0. Return one, in manual "
            "optimization too."
        )


def refuse_overfitting(trainer: L.Trainer, *, shuffles_anew: bool) -> None:
    """Name `overfit_batches` where loaders would give other batches in each epoch; Lightning knows stock loaders only.

    Raises:
        SettingError: it is so.
    """
    if trainer.overfit_batches and shuffles_anew:
        raise SettingError(
            f"trainer.overfit_batches: {trainer.overfit_batches}, but this loader gives other batches in each epoch. "
            "To overfit, train on few examples: data.train_size."
        )


def refuse_no_data(trainer: L.Trainer) -> None:
    """Name training data of no batches; call it in `on_fit_end`, for Lightning then ends a fit without a word.

    Raises:
        SettingError: it is so.
    """
    if trainer.fit_loop.max_batches == 0:
        raise SettingError(
            "the training data have no batch (0 images, or fewer than a batch with drop_last): nothing was trained."
        )
