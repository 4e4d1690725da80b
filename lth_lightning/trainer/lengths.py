"""The length of a round in optimizer steps and epochs, and a Trainer that shows it while its loops run on."""

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
    """A place in training: the epoch, and the number of its batches that are done."""

    epoch: int
    batch: int


@dataclass(frozen=True)
class Epochs:
    """How optimizer steps are divided into epochs.

    Args:
        batches: batches per epoch, None for loaders without a length.
        per_step: batches per step, by the first epoch for which this holds: `{0: 1, 4: 2}`. Lightning also steps on
            the last batch of an epoch.
    """

    batches: int | None
    per_step: Mapping[int, int]

    def batches_per_step(self, epoch: int) -> int:
        """Return the batches per step in that epoch."""
        return self.per_step[max(first for first in self.per_step if first <= epoch)]

    def steps(self, epochs: int) -> int:
        """Return the optimizer steps of the first `epochs` epochs.

        Raises:
            SettingError: the loaders have no length.
        """
        return sum(int(min(epochs, end) - first) * size for first, end, size in self._alike() if first < epochs)

    def place(self, step: int) -> Place:
        """Return the place in training after `step` steps. Loaders without a length are assumed never to end."""
        if self.batches is None:
            return Place(0, step * self.batches_per_step(0))
        for first, end, size in self._alike():
            if step < (end - first) * size:
                break
            step -= int((end - first) * size)
        return Place(first + step // size, step % size * self.per_step[first])

    def epochs(self, steps: int) -> int | None:
        """Return the number of epochs that `steps` takes, including a partial last one; None if it is unknown."""
        if self.batches is None:
            return None
        epoch, batch = self.place(steps)
        return epoch + bool(batch)

    def batches_before(self, step: int) -> int:
        """Return the batches, over all epochs, that `step` steps take."""
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
        """Yield runs of epochs with equal steps: the first epoch, the one after the last, and the steps per epoch."""
        if self.batches is None:
            raise SettingError(
                "lottery.train_for or lottery.rewind_to is given in epochs, but the training loader has no length to "
                "count epochs by; give both in steps, e.g. 5000it."
            )
        firsts = sorted(self.per_step)
        for first, end in zip(firsts, [*firsts[1:], math.inf], strict=True):
            yield first, end, math.ceil(self.batches / self.per_step[first])


def epochs_of(trainer: L.Trainer) -> Epochs:
    """Return how the fit's steps are divided into epochs, with its training data loaded and no epoch shortened.

    In manual optimization every batch counts as a step.
    """
    batches = trainer.fit_loop.max_batches
    per_step = {0: 1}
    if trainer.lightning_module.automatic_optimization:
        schedules = [one.scheduling for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)]
        per_step = dict(schedules[-1]) if schedules else {0: trainer.accumulate_grad_batches}
    return Epochs(None if math.isinf(batches) else int(batches), per_step)


def check_accumulation(trainer: L.Trainer, expected: int) -> None:
    """Check that gradients are accumulated as assumed when the lengths of rounds were computed.

    Raises:
        SettingError: something has set `trainer.accumulate_grad_batches` to another number.
    """
    if trainer.lightning_module.automatic_optimization and trainer.accumulate_grad_batches != expected:
        raise SettingError(
            f"trainer.accumulate_grad_batches must be {expected} in epoch {trainer.current_epoch}, got "
            f"{trainer.accumulate_grad_batches}: a callback or the module has changed it in training, after the length "
            "of a round was computed. Use Lightning's GradientAccumulationScheduler, with a number for each epoch."
        )


def check_reloaded(trainer: L.Trainer, expected: Epochs) -> None:
    """Check that reloaded training data have as many batches as before; call it when an epoch is entered.

    Raises:
        SettingError: they do not.
    """
    batches = trainer.fit_loop.max_batches
    just_now = trainer.fit_loop._last_train_dl_reload_epoch == trainer.current_epoch
    if trainer.reload_dataloaders_every_n_epochs and just_now and batches != (expected.batches or math.inf):
        raise SettingError(
            f"trainer.reload_dataloaders_every_n_epochs: the training data have {batches} batches in epoch "
            f"{trainer.current_epoch}, but had {expected.batches} when first loaded. Rounds in epochs, and rewinding, "
            "need epochs of equal length. Make each reload return as many batches, or set train_for in steps and "
            "rewind to 0it."
        )


def check_place(trainer: L.Trainer, expected: Place, step: int) -> None:
    """Check that the rewind point is at the place where later rounds start; call it at the end of its batch.

    Raises:
        SettingError: the epochs before it did not have the expected length.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    here = Place(trainer.current_epoch, progress.current.ready)
    if progress.is_last_batch:
        here = Place(trainer.current_epoch + 1, 0)
    if here != expected:
        raise SettingError(
            f"lottery.rewind_to: step {step} was expected after {expected.batch} batches of epoch {expected.epoch}, "
            f"but came after {here.batch} batches of epoch {here.epoch}. Epochs must have equal length for rounds to "
            "start inside one: give loaders a length, use trainer.limit_train_batches in place of "
            "on_train_batch_start's -1, or rewind to 0it."
        )


# ------------------------------------------------------------------------ the length that the Trainer shows


def show_round(trainer: L.Trainer, *, epochs: int | None, steps: int | None) -> None:
    """Make `max_epochs`, `max_steps` and `estimated_stepping_batches` those of a round of `epochs` or `steps`.

    Modules use these numbers, in `configure_optimizers` and in training. The loops, which would end by them, read
    their own. Converting to the other unit loads the training data on first access, as Lightning's
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


def shorten_to_rehearsal(trainer: L.Trainer) -> int:
    """Shorten an epoch of a `fast_dev_run` to its number of batches, at least 2, and let the lottery end the fit.

    Returns:
        The number of batches; 0 if this is no rehearsal.
    """
    if not trainer.fast_dev_run:
        return 0
    asked = int(trainer.fast_dev_run)
    batches = max(2, asked)  # True means 1 to Lightning, and a rewind point lies between two
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if getattr(trainer, name) == asked:  # not so with `overfit_batches`
            setattr(trainer, name, batches)
    if (trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps) == (1, asked):  # as Lightning sets them
        trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = -1, -1
    return batches


# ------------------------------------------------------------------------ unsupported settings


def refuse_partial_rounds(trainer: L.Trainer) -> None:
    """Refuse settings under which rounds would not be trained whole, or not all alike.

    Raises:
        SettingError: such a setting is used.
    """
    if trainer.barebones:
        raise SettingError(
            "trainer.barebones cannot be used with a lottery, which needs validation, logging and its checkpoints. For "
            "a quick try, use trainer.fast_dev_run."
        )
    if trainer.limit_train_batches == 0:
        raise SettingError("trainer.limit_train_batches must be above 0 to train a round, got 0. Set it to 1.0, say.")
    if trainer._val_check_time_interval is not None:
        raise SettingError(
            f"trainer.val_check_interval must not be a time, got {trainer._val_check_time_interval:g} s: each network, "
            "and a resumed run, would be evaluated at different steps. Set a number of batches (100) or a fraction of "
            "an epoch (0.25)."
        )


def refuse_no_optimizer(trainer: L.Trainer) -> None:
    """Refuse a module without optimizers; call it in `on_fit_start`.

    Raises:
        SettingError: `configure_optimizers` returns no optimizer.
    """
    if all(isinstance(optimizer, _MockOptimizer) for optimizer in trainer.optimizers):
        raise SettingError(
            f"{type(trainer.lightning_module).__name__}.configure_optimizers returns no optimizer, so the lottery can "
            "neither start each network with a new one nor keep pruned weights at 0. Return one, in manual "
            "optimization too."
        )


def refuse_overfitting(trainer: L.Trainer, *, shuffles_anew: bool) -> None:
    """Refuse `overfit_batches` for loaders that reshuffle in each epoch; Lightning handles only stock loaders.

    Raises:
        SettingError: both are the case.
    """
    if trainer.overfit_batches and shuffles_anew:
        raise SettingError(
            f"trainer.overfit_batches is {trainer.overfit_batches}, but this loader returns other batches in each "
            "epoch. To overfit, train on few examples: set data.train_size."
        )


def refuse_no_data(trainer: L.Trainer) -> None:
    """Refuse training data without batches; call it in `on_fit_end`, as Lightning silently ends such a fit.

    Raises:
        SettingError: the training data have no batch.
    """
    if trainer.fit_loop.max_batches == 0:
        raise SettingError(
            "nothing was trained: the training data have no batch (0 images, or fewer than a batch with drop_last)."
        )
