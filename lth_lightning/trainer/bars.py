"""Lightning's progress bars in a fit with a lottery: they say which network is in training, before the epoch.

By themselves they count the epochs of each network from 0 and say nothing of rounds. If a round is given in steps and
the data have no length, the last epoch is `-2`.
"""

import functools
from collections.abc import Callable

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

SAID = ("_get_train_description", "on_train_epoch_start")
"""The methods that `say_network` replaces on a bar."""
NO_LAST_EPOCH = "/-2"  # of Lightning's `f"/{max_epochs - 1}"` without a number of epochs


def say_network(trainer: L.Trainer, name: str) -> None:
    """Make the trainer's bar begin with a network's name, as in `round 3 ticket, epoch 0/19`, until `say_epochs`.

    Args:
        trainer: a Trainer in a fit; it may have a bar of another kind, or none.
        name: the network's name.
    """
    bar = trainer.progress_bar_callback
    say_epochs(trainer)
    if isinstance(bar, RichProgressBar):
        bar._get_train_description = functools.partial(  # type: ignore[method-assign]
            _described, name, bar._get_train_description
        )
    elif isinstance(bar, TQDMProgressBar):
        bar.on_train_epoch_start = functools.partial(  # type: ignore[method-assign]
            _begin_epoch, name, bar.on_train_epoch_start, bar
        )


def say_epochs(trainer: L.Trainer) -> None:
    """Undo `say_network`."""
    if (bar := trainer.progress_bar_callback) is not None:
        for name in SAID:
            vars(bar).pop(name, None)


def _described(name: str, describe: Callable[[int], str], epoch: int) -> str:
    return _with_name(name, describe(epoch))


def _begin_epoch(
    name: str,
    begin: Callable[[L.Trainer, L.LightningModule], None],
    bar: TQDMProgressBar,
    trainer: L.Trainer,
    module: L.LightningModule,
) -> None:
    begin(trainer, module)
    bar.train_progress_bar.set_description(_with_name(name, bar.train_progress_bar.desc.removesuffix(": ")))


def _with_name(name: str, text: str) -> str:
    return f"{name}, {text.rstrip().removesuffix(NO_LAST_EPOCH).replace('Epoch', 'epoch', 1)}"
