"""`keep="best"` leaves a ticket file a network with the weights that validation scored best."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Cut, Fit, assert_same, copies, digits, fit, mlp

from lth_lightning import Score, SettingError, Ticket
from lth_lightning.pruning.state import State
from lth_lightning.runs.rows import read_curves

LOSS = Score("val_loss", "min")


class Seen(L.Callback):
    """The weights that each validation has scored, by round, variant and step; and what each network started from."""

    def __init__(self) -> None:
        self.weights: dict[tuple[int, str, int], State] = {}
        self.starts: dict[tuple[int, str], State] = {}
        self.network: Any = None

    def on_network_start(self, trainer: L.Trainer, module: L.LightningModule, network: Any, density: float) -> None:
        self.network = network
        self.starts[network.round, network.variant] = copies(module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.weights[self.network.round, self.network.variant, trainer.global_step] = copies(module)


def run(folder: Path, *callbacks: L.Callback, lr: float = 0.1, **settings: Any) -> Fit:
    torch.manual_seed(3)
    module = mlp(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr))
    trainer = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    given = {"keep": "best", "controls": ["random_reinit"], "train_for": "20it", **settings}
    return fit(module, digits(), folder, callbacks=callbacks, trainer=trainer, **given)


Whole = Callable[..., tuple[Fit, Seen]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """`whole(score, lr)`: the run of these settings, made once, and what was seen of it."""

    @cache
    def made(score: Score | None = None, lr: float = 0.1) -> tuple[Fit, Seen]:
        seen = Seen()
        return run(tmp_path_factory.mktemp("whole"), seen, score=score, lr=lr), seen

    return made


@pytest.mark.parametrize(("score", "lr"), [(None, 0.1), (LOSS, 0.03)])
def test_the_file_holds_what_the_best_validation_has_scored(score: Score | None, lr: float, whole: Whole) -> None:
    done, seen = whole(score, lr) if score else whole()
    folder = done.lottery.folder.path
    curves = read_curves(folder / "curves")
    early = False
    for number, variant in ((0, "ticket"), (1, "ticket"), (1, "random_reinit"), (2, "ticket"), (2, "random_reinit")):
        points = [point for point in curves if (point.round, point.variant) == (number, variant)]
        best = min(points, key=lambda point: (point.val_loss if score else -point.val_acc, point.step))  # type: ignore[operator]
        which = "" if variant == "ticket" else f"_{variant}_0"
        kept = Ticket.load(folder / f"best/round_{number:02d}{which}.safetensors")
        assert kept.info["best_step"] == best.step
        assert (kept.info["val_acc"], kept.info["test_acc"]) == (best.val_acc, best.test_acc)
        last = done.ticket(number)
        scored = seen.weights[number, variant, best.step]
        assert_same(kept.trained, {name: scored[name] for name in last.trained})
        start = seen.starts[number, variant]
        assert_same(kept.rewind_point, {name: start[name] for name in last.rewind_point})
        assert_same(kept.masks, last.masks)
        early |= best.step < 20
    assert early, "the last evaluation was always the best, so nothing was tried"
    assert not (folder / "best/round_03.safetensors").exists()


@pytest.mark.parametrize("batch", [13, 55])
def test_a_run_that_is_resumed_keeps_the_same(batch: int, tmp_path: Path, whole: Whole) -> None:
    """Cut in rounds 0 and 1: the best of the epochs before is in the checkpoint."""
    uncut = whole()[0].lottery.folder.path
    with pytest.raises(RuntimeError, match="cut"):
        run(tmp_path / "cut", Cut(batch))
    run(tmp_path / "cut", ckpt_path=tmp_path / "cut/checkpoints/last.ckpt")
    files = sorted(path.name for path in (uncut / "best").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "cut/best").iterdir())
    for name in files:
        assert (uncut / "best" / name).read_bytes() == (tmp_path / "cut/best" / name).read_bytes()


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"lottery\.keep: 'last' is unknown; choose from best"):
        run(tmp_path, keep="last")
    run(tmp_path / "none", keep=None, rounds=0)
    assert not (tmp_path / "none/best").exists()
    with pytest.raises(SettingError, match=r"lottery\.keep"):
        run(tmp_path / "none", rounds=0, ckpt_path=tmp_path / "none/checkpoints/last.ckpt")
