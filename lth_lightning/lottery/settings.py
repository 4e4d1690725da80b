"""Checks settings against each other, and lists those that a resumed run must share with its beginning."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.lottery.checkpoint import Words
from lth_lightning.runs.score import Score
from lth_lightning.trainer.restart import described

if TYPE_CHECKING:
    from lth_lightning.lottery.callback import LotteryTicket

Settings = TypeVar("Settings")
REWINDS = ("weights", "learning_rate", "nothing")
DATA_ORDERS = ("fresh", "same")


def from_given(kind: type[Settings], given: Any, setting: str) -> Settings:
    """Return settings that were given as such, by their names, or by the `name` alone.

    Args:
        kind: the dataclass of the settings.
        given: an instance, a mapping, or a name.
        setting: what an error names.

    Raises:
        SettingError: a setting is unknown, or its value out of range.
    """
    if isinstance(given, kind):
        return given
    settings = {"name": given} if isinstance(given, str) else dict(given)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if odd := sorted(settings.keys() - set(known)):
        raise unknown_name(setting, odd[0], known)
    return kind(**settings)


def as_score(given: Score | dict[str, Any] | str | None) -> Score | None:
    """Return a score that was given as `from_given` takes it; None for none."""
    return None if given is None else from_given(Score, given, "lottery.score")


def check_choices(rewind: str, data_order: str) -> None:
    """Refuse unknown names.

    Raises:
        SettingError: a name is unknown; the error names the setting and the allowed names.
    """
    for setting, given, allowed in (("rewind", rewind, REWINDS), ("data_order", data_order, DATA_ORDERS)):
        if given not in allowed:
            raise unknown_name(f"lottery.{setting}", given, allowed)


def check_transfer(transfer: str, on_mismatch: str) -> None:
    """Refuse settings for taking over tickets if no tickets are given.

    Raises:
        SettingError: one of them is not the default.
    """
    if (transfer, on_mismatch) != ("mask_and_weights", "refuse"):
        raise SettingError(
            f"lottery.transfer is {transfer} and lottery.on_mismatch {on_mismatch}, but lottery.tickets is not set. "
            "Name the tickets to take over (--lottery.tickets RUN/tickets)."
        )


def check_interval(every: int | None) -> None:
    """Refuse an interval of fewer than 1 step.

    Raises:
        SettingError: `every` is less than 1.
    """
    if every is not None and every < 1:
        raise SettingError(f"lottery.checkpoint_every_n_train_steps must be at least 1, or null; got {every}.")


def in_words(lottery: "LotteryTicket", seed: int, weights: Mapping[str, Tensor], of_trainer: Words) -> Words:
    """Return, in words, the settings that a run's networks depend on.

    Args:
        lottery: the callback with its settings.
        seed: the seed of all random draws.
        weights: the prunable weights by name, for their shapes.
        of_trainer: the same settings of optimizers, schedules and the Trainer.
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
        **({"lottery.score": lottery.score} if lottery.score else {}),
        **({"lottery.keep": lottery.keep} if lottery.keep else {}),
        **({"lottery.engine": lottery.engine} if lottery.engine.is_sparse else {}),
        "lottery.evaluate_test": lottery.evaluate_test,
        **{f"lottery.pruning.{name}": getattr(pruning, name) for name in ("rate", "rates", "densities")},
        **{f"lottery.pruning.{name}": getattr(pruning, name) for name in ("prune_from", "scope")},
        "lottery.pruning.criterion": described(pruning.criterion),
        **(given.contents() if given else {}),
        **{f"shape of {name}": list(weight.shape) for name, weight in weights.items()},
    }
    return {name: str(value) for name, value in settings.items()} | of_trainer
