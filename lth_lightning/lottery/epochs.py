"""The training data: all that is random in an epoch is a function of (seed, round, epoch)."""

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import lightning as L

from lth_lightning.pruning.network_function import Batch
from lth_lightning.seeding import derive_seed, preserved_generators, seed_global_generators
from lth_lightning.trainer import fit, processes, resume


@runtime_checkable
class SeekableLoader(Protocol):
    """A loader whose order is a function of a seed and an epoch; it can start in the middle of one."""

    def seek(self, *, seed: int, epoch: int, batch: int) -> None:
        """Let the next iteration give this epoch's batches, from `batch` on."""


def loads_anew(trainer: L.Trainer) -> bool:
    """Whether a training loader gives another order in each epoch by itself."""
    return any(isinstance(loader, SeekableLoader) for loader in fit.train_loaders(trainer))


def enter_epoch(trainer: L.Trainer, seed: int, order: int, before: int, resumed_after: int) -> None:
    """Seed the epoch that starts now, or bring a resumed fit to its place in it.

    Args:
        trainer: at the epoch's start, or where a resumed fit starts inside it.
        seed: of the run.
        order: the round whose order of the data is meant.
        before: batches of the epoch that lie before the rewind point, for a network that starts there.
        resumed_after: batches that are done; the next is the one after.
    """
    epoch = trainer.current_epoch
    order_seed = derive_seed(seed, "order", order)
    seed_global_generators(derive_seed(seed, "epoch", order, epoch, *processes.draws_of_rank(trainer)))
    loaders = fit.train_loaders(trainer)
    seekable = [loader for loader in loaders if isinstance(loader, SeekableLoader)]
    to_skip = 0 if len(loaders) == len(seekable) == 1 else resumed_after  # several take turns in ways of their own
    for loader in seekable:
        loader.seek(seed=order_seed, epoch=epoch, batch=before + resumed_after - to_skip)
    fit.seed_loaders(trainer, order_seed, epoch)
    fit.renew_iterator(trainer)
    resume.skip_batches(trainer, to_skip)


def pruning_batches(trainer: L.Trainer, seed: int, round: int) -> Callable[[int], list[Batch]]:
    """Gives so many batches of training data to prune by: a function of (seed, round), the same on all processes.

    Loaders are left anywhere, as each epoch begins with its own place.
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
