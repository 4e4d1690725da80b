"""The training data: makes all randomness in an epoch a function of (seed, round, epoch)."""

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import lightning as L

from lth_lightning.errors import SettingError
from lth_lightning.pruning.network_function import Batch
from lth_lightning.seeding import derive_seed, preserved_generators, seed_global_generators
from lth_lightning.trainer import fit, processes, resume


@runtime_checkable
class SeekableLoader(Protocol):
    """A loader whose order is a function of a seed and an epoch, and which can start in the middle of an epoch."""

    def seek(self, *, seed: int, epoch: int, batch: int) -> None:
        """Make the next iteration yield this epoch's batches, from `batch` on."""


def loads_anew(trainer: L.Trainer) -> bool:
    """Whether a training loader reorders its data itself in each epoch."""
    return any(isinstance(loader, SeekableLoader) for loader in fit.train_loaders(trainer))


def seeks(trainer: L.Trainer) -> bool:
    """Whether the fit has one training loader, and it can start in the middle of an epoch."""
    loaders = fit.train_loaders(trainer)  # several may be combined in any way
    return len(loaders) == 1 and isinstance(loaders[0], SeekableLoader)


def check_order(trainer: L.Trainer, before: int) -> None:
    """Check that `data_order: same` can be kept from a rewind point inside an epoch.

    Args:
        trainer: the Trainer with its training data.
        before: batches of the epoch before the rewind point.

    Raises:
        SettingError: a loader starts over inside an epoch, in an order that depends on earlier draws.
    """
    if before and fit.restarts_loaders(trainer):
        raise SettingError(
            "lottery.data_order: same cannot be kept from a rewind point inside an epoch, as the shorter training "
            "loader starts over there in an order that depends on all draws before. Give the loaders equal length, "
            "combine them by min_size, rewind to a whole epoch, or choose fresh."
        )


def enter_epoch(trainer: L.Trainer, seed: int, order: int, before: int, resumed_after: int, skipped: int) -> None:
    """Seed the epoch that starts now, or move a resumed fit to its place in the epoch.

    Args:
        trainer: the Trainer, at the start of the epoch or where a resumed fit starts inside it.
        seed: the run's seed.
        order: the round whose data order is used.
        before: batches of the epoch before the rewind point, for a network that starts there.
        resumed_after: batches already done; the next one follows them.
        skipped: how many of those before the rewind point are drawn from the loaders and dropped.
    """
    epoch = trainer.current_epoch
    order_seed = derive_seed(seed, "order", order)
    seed_global_generators(derive_seed(seed, "epoch", order, epoch, *processes.draws_of_rank(trainer)))
    to_skip = 0 if seeks(trainer) else skipped + resumed_after
    for loader in fit.train_loaders(trainer):
        if isinstance(loader, SeekableLoader):
            loader.seek(seed=order_seed, epoch=epoch, batch=before + resumed_after - to_skip)
    fit.seed_loaders(trainer, order_seed, epoch)
    fit.renew_iterator(trainer)
    if resumed_after:
        resume.skip_batches(trainer, to_skip, uncounted=resumed_after)
    elif to_skip:
        resume.skip_at_start(trainer, to_skip)


def pruning_batches(trainer: L.Trainer, seed: int, round: int) -> Callable[[int], list[Batch]]:
    """Return a function from a count to that many training batches for pruning, the same on all processes.

    The batches depend only on (seed, round). The loaders' places are not restored, as each epoch sets its own.
    """
    seed = derive_seed(seed, "pruning data", round)

    @functools.cache
    def batches(count: int) -> list[Batch]:
        with preserved_generators():
            seed_global_generators(derive_seed(seed, *processes.draws_of_rank(trainer)))
            for loader in fit.train_loaders(trainer):
                if isinstance(loader, SeekableLoader):
                    loader.seek(seed=seed, epoch=0, batch=0)
            fit.seed_loaders(trainer, seed, epoch=0)
            return processes.joined(trainer, fit.first_batches(trainer, count))

    return batches
