"""A run whose controls were trained apart and gathered is, byte for byte, the run that trained them itself.

Here without Ray and without processes: each control is a fit of its own in this one, as a worker of a sweep does it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import (
    FOREIGN_METRICS,
    Cut,
    ForeignData,
    ForeignModule,
    assert_equal_runs,
    assert_same_pages,
    digits,
    make_trainer,
    mlp,
    needs_compiler,
    resnet,
    weekly,
)
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging

from lth_lightning import LotteryBoard, LotteryTicket, Pruning, SettingError
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
    assert_same_pages(split, whole)
    return split


AT_INITIALISATION = Pruning(densities=[0.5, 0.2], prune_from="initialisation", criterion=SNIP())
CASES = {
    "all controls, replicates, rewinding to a step": (
        FOREIGN,
        {**ALL, "rounds": 1, "rewind_to": "3it", "control_replicates": 2},
    ),
    "gradients, controls of one round": (
        MLP,
        {**BOTH, "rounds": None, "control_rounds": [1], "pruning": AT_INITIALISATION},
    ),
}
MORE = {
    "two rounds": (MLP, {**BOTH}),
    "gradients, batch norm, replicates": (
        RESNET,
        {**BOTH, "rounds": None, "control_replicates": 2, "pruning": AT_INITIALISATION},
    ),
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


@weekly
@needs_compiler
def test_sparse_controls_are_split_too(tmp_path: Path) -> None:
    assert_split_equals_whole(tmp_path, MLP, **BOTH, engine={"name": "sparse", "below": 0.9})


@weekly
@pytest.mark.parametrize("transfer", ["mask_and_weights", "mask"])
def test_controls_of_tickets_from_files_are_split_too(tmp_path: Path, transfer: str) -> None:
    train(tmp_path / "found", FOREIGN, rewind_to="3it")
    given = {"tickets": tmp_path / "found/tickets", "transfer": transfer, "rounds": None, "seed": 8}
    assert_split_equals_whole(
        tmp_path, FOREIGN, **(BOTH if transfer == "mask_and_weights" else {"controls": ["random_mask"]}), **given
    )


def test_what_is_cut_goes_on_and_an_unfinished_control_is_named(tmp_path: Path) -> None:
    """The run is cut before its second ticket, a control in its second epoch, and gathering before the checkpoint."""
    given = {**BOTH, "rounds": 1, "control_rounds": [1], "train_for": "2ep"}
    whole, split = tmp_path / "whole", tmp_path / "split"
    train(whole, MLP, **given)
    with pytest.raises(RuntimeError, match="cut"):
        train(split, MLP, apart=True, callbacks=lambda: (Cut(20),), **given)
    train(split, MLP, apart=True, resume=True, **given)
    reinit, mask = sorted(controls_of(split), reverse=True)
    with pytest.raises(RuntimeError, match="cut"):
        train(mask, MLP, resume=True, callbacks=lambda: (Cut(9),), **given)
    train(reinit, MLP, resume=True, **given)
    with pytest.raises(SettingError, match=r"round_01_random_mask_0 is not done yet \(1 of 2\)"):
        train(split, MLP, resume=True, **given)
    train(mask, MLP, resume=True, **given)
    shutil.copytree(split, tmp_path / "kept")
    train(split, MLP, resume=True, **given)
    for path in ("controls", "checkpoints"):  # as if it had been killed just before its checkpoint
        shutil.rmtree(split / path, ignore_errors=True)
        shutil.copytree(tmp_path / "kept" / path, split / path)
    train(split, MLP, resume=True, **given)
    assert_equal_runs(split, whole)
    assert_same_pages(split, whole)
