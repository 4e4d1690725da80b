"""Settings: which contradict each other, and which a resumed run must have in common with its past."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.lottery.checkpoint import Words
from lth_lightning.trainer.restart import described

if TYPE_CHECKING:
    from lth_lightning.lottery.callback import LotteryTicket

REWINDS = ("weights", "learning_rate", "nothing")
DATA_ORDERS = ("fresh", "same")


def check_choices(rewind: str, data_order: str, metrics: Mapping[str, str], known_metrics: Sequence[str]) -> None:
    """Refuse names that are none of those allowed.

    Raises:
        SettingError: it names the setting, and what to choose from.
    """
    for setting, given, allowed in (("rewind", rewind, REWINDS), ("data_order", data_order, DATA_ORDERS)):
        if given not in allowed:
            raise unknown_name(f"lottery.{setting}", given, allowed)
    if odd := sorted(metrics.keys() - set(known_metrics)):
        raise unknown_name("lottery.metrics", odd[0], known_metrics)


def check_transfer(transfer: str, on_mismatch: str) -> None:
    """Refuse ways to take tickets over where there are none.

    Raises:
        SettingError: one is not the default.
    """
    if (transfer, on_mismatch) != ("mask_and_weights", "refuse"):
        raise SettingError(
            f"lottery.transfer is {transfer} and lottery.on_mismatch {on_mismatch}, but there is nothing to take "
            "over: name the tickets (--lottery.tickets RUN/tickets)."
        )


def check_interval(every: int | None) -> None:
    """Refuse a number of steps that is not one.

    Raises:
        SettingError: it is less than 1.
    """
    if every is not None and every < 1:
        raise SettingError(f"lottery.checkpoint_every_n_train_steps: {every}; give 1 or more steps, or null.")


def in_words(lottery: "LotteryTicket", seed: int, weights: Mapping[str, Tensor], of_trainer: Words) -> Words:
    """What decides what a run's networks become.

    Args:
        lottery: its settings.
        seed: what everything random depends on.
        weights: the prunable weights by name, each with its shape.
        of_trainer: the same of optimizers, schedules and the Trainer.
    """
    pruning, given = lottery.pruning, lottery.given
    settings = {
        "seed": seed,
        "lottery.train_for": lottery.train_for,
        "lottery.rewind_to": lottery.rewind_to,
        "lottery.rewind": lottery.rewind,
        "lottery.data_order": lottery.data_order,
        "lottery.rounds": lottery.plan[-1].round,
        "lottery.controls": lottery.controls,
        "lottery.control_rounds": lottery.control_rounds,
        "lottery.control_replicates": lottery.control_replicates,
        "lottery.transfer": given.transfer if given else None,
        "lottery.on_mismatch": given.on_mismatch if given else None,
        "lottery.reinit": getattr(lottery.reinit, "__qualname__", lottery.reinit and type(lottery.reinit).__qualname__),
        "lottery.metrics": lottery.metrics,
        "lottery.evaluate_test": lottery.evaluate_test,
        **{f"lottery.pruning.{name}": getattr(pruning, name) for name in ("rate", "rates", "densities")},
        **{f"lottery.pruning.{name}": getattr(pruning, name) for name in ("prune_from", "scope")},
        "lottery.pruning.criterion": described(pruning.criterion),
        **(given.contents() if given else {}),
        **{f"shape of {name}": list(weight.shape) for name, weight in weights.items()},
    }
    return {name: str(value) for name, value in settings.items()} | of_trainer
