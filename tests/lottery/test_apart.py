"""A run whose controls were trained apart and gathered is, byte for byte, the run that trained them itself.

Here without Ray and without processes: each control is a fit of its own in this one, as a worker of a sweep does it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import (
    FOREIGN_METRICS,
    ForeignData,
    ForeignModule,
    assert_equal_runs,
    digits,
    make_trainer,
    mlp,
    resnet,
    weekly,
)
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from lth_lightning import LotteryBoard, LotteryTicket, Pruning
from lth_lightning.pruning.gradient_criteria import SNIP
from lth_lightning.trainer.sub_runs import SubRunLogger

Parts = tuple[Callable[[], L.LightningModule], Callable[[], Any]]
MLP, RESNET, FOREIGN = (mlp, digits), (resnet, digits), (ForeignModule, ForeignData)
BOTH = {"controls": ["random_reinit", "random_mask"]}
ALL = {"controls": ["pruned_only", "random_reinit", "random_mask"]}


def train(folder: Path, parts: Parts, apart: bool = False, resume: bool = False, **given: Any) -> LotteryTicket:
    module, data = parts
    torch.manual_seed(0)
    metrics = {"metrics": FOREIGN_METRICS} if module is ForeignModule else {}
    settings = {"rounds": 2, "train_for": "10it", "seed": 7, **metrics, **given}
    callbacks, trainer = settings.pop("callbacks", tuple)(), settings.pop("trainer", {})
    lottery = LotteryTicket(run_dir=folder, **settings)
    lottery.leaves_apart = (lambda: True) if apart else None
    logger = SubRunLogger(folder, name="tensorboard", version="", default_hp_metric=False)
    fitter = make_trainer(
        callbacks=[lottery, *callbacks, LotteryBoard(draw_at_end=False)], **{"logger": logger, **trainer}
    )
    ckpt_path = folder / "checkpoints/last.ckpt" if resume else None
    fitter.fit(module(), datamodule=data(), ckpt_path=ckpt_path, weights_only=True)
    return lottery


def controls_of(run: Path) -> list[Path]:
    return sorted((run / "controls").iterdir())


def points(run: Path) -> dict[str, list[Any]]:
    """What TensorBoard shows of a run: by sub-run, tag, step and value of each point."""
    found: dict[str, list[Any]] = {}
    for path in (run / "tensorboard").rglob("events*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                value.metadata.plugin_data.content = (
                    b"" if "session_end" in value.tag else (value.metadata.plugin_data.content)
                )  # the time
                is_start = "session_start" in value.tag
                content = b"" if is_start else value.SerializeToString()
                found.setdefault(path.parent.name, []).append((value.tag, event.step, content))
    return {name: sorted(found[name]) for name in sorted(found)}


def files(run: Path) -> list[str]:
    return sorted(
        str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "events.out" not in path.name
    )


def assert_split_equals_whole(tmp_path: Path, parts: Parts, **given: Any) -> Path:
    whole, split = tmp_path / "whole", tmp_path / "split"
    train(whole, parts, **given)
    train(split, parts, apart=True, **given)
    left = controls_of(split)
    assert left and not any("pruned_only" in path.name for path in left)
    for control in reversed(left):
        train(control, parts, resume=True, **given)
    train(split, parts, resume=True, **given)
    assert_equal_runs(split, whole)
    assert files(split) == files(whole)
    assert points(split) == points(whole)
    return split


CASES = {
    "magnitude": (MLP, {**BOTH}),
    "rewinding to a step, all controls, replicates": (FOREIGN, {**ALL, "rewind_to": "3it", "control_replicates": 2}),
    "gradients": (
        RESNET,
        {
            **BOTH,
            "rounds": None,
            "control_rounds": [1],
            "pruning": Pruning(densities=[0.5, 0.2], prune_from="initialisation", criterion=SNIP()),
        },
    ),
}
MORE = {
    "rewinding into a later epoch": (FOREIGN, {**ALL, "rewind_to": "9it", "train_for": "16it"}),
    "rewinding to an epoch": (RESNET, {**BOTH, "rewind_to": "1ep", "train_for": "3ep"}),
    "learning rate": (RESNET, {**ALL, "rewind": "learning_rate", "rewind_to": "2it"}),
    "nothing": (FOREIGN, {**ALL, "rewind": "nothing"}),
    "same order, kept best": (FOREIGN, {**BOTH, "rewind_to": "3it", "data_order": "same", "keep": "best"}),
    "one-shot, global": (RESNET, {**ALL, "pruning": Pruning(prune_from="dense", scope="global")}),
    "callbacks": (
        FOREIGN,
        {
            **ALL,
            "callbacks": lambda: (EarlyStopping("valid/ce", patience=0), EMAWeightAveraging(decay=0.9)),
            "train_for": "4ep",
        },
    ),
    "accumulation": (FOREIGN, {**ALL, "trainer": {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}}),
}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=weekly) for name in MORE)])
def test_split_equals_whole(tmp_path: Path, case: str) -> None:
    parts, given = {**CASES, **MORE}[case]
    assert_split_equals_whole(tmp_path, parts, **given)
