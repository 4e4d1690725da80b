"""Keeps each network's weights at its best evaluation (`lottery.keep: best`), besides those at the end of training."""

import math
from dataclasses import asdict
from typing import Any

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.pruning.state import State, copied
from lth_lightning.runs.rows import Evaluation
from lth_lightning.runs.score import ACCURACY, LOSS, Score

KEEP = ("best",)


def check_keep(keep: str | None) -> None:
    """Refuse an unknown choice.

    Raises:
        SettingError: `keep` is neither null nor `best`.
    """
    if keep is not None and keep not in KEEP:
        raise unknown_name("lottery.keep", keep, KEEP)


def better(found: dict[str, Any], point: Evaluation, state: State, given: Score | None) -> dict[str, Any]:
    """Return what to keep: the weights of the best evaluation so far.

    Only validation decides; of equal scores the first counts. Tensors, numbers and text only, for the checkpoint.

    Args:
        found: what was kept before; at the first evaluation only `start`, the weights that the network started from.
        point: the evaluation.
        state: the weights that were evaluated.
        given: the run's score, if one is set.

    Raises:
        SettingError: the evaluation has no validation score.
    """
    score = given or (ACCURACY if point.val_acc is not None else LOSS)
    value = score.value(point, "val")
    if value is None:
        raise SettingError(
            "lottery.keep: best needs a score on validation data, and the first validation has logged none. Log one, "
            "or leave lottery.keep out."
        )
    if "evaluation" in found:
        then = score.value(Evaluation(**found["evaluation"]), "val")
        assert then is not None
        if math.isnan(value) or (not math.isnan(then) and (then == value or score.best([then, value]) == then)):
            return found
    return {**found, "evaluation": asdict(point), "weights": copied(state)}


def facts(found: dict[str, Any], score: Score | None) -> dict[str, Any]:
    """What a file says of its best weights: the step and the scores there."""
    point = Evaluation(**found["evaluation"])
    own = {name: score.value(point, name.partition("_")[0]) for name in score.columns[:2]} if score else {}
    return {"best_step": point.step, "val_acc": point.val_acc, "test_acc": point.test_acc, **own}
