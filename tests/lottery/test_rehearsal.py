"""`Trainer(fast_dev_run=True)`: everything once, nothing kept, and the lottery's own settings afterwards."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import digits, fit, mlp

from lth_lightning import Pruning

CONTROLS = ["random_reinit", "random_mask", "pruned_only"]
ROUND_1 = [(1, "pruned_only"), (1, "ticket"), (1, "random_reinit"), (1, "random_mask")]


@pytest.mark.parametrize(
    ("settings", "networks", "steps", "density"),
    [
        ({"rounds": 7, "train_for": "50000it", "controls": CONTROLS, "control_rounds": [5]}, ROUND_1, 2, 0.8),
        ({"rounds": 7, "train_for": "9ep", "rewind_to": "2ep"}, [(1, "ticket")], 1, 0.8),
        ({"rounds": None, "pruning": Pruning(densities=[0.5, 0.2])}, [(1, "ticket")], 2, 0.5),
        ({"rounds": 0}, [], 2, 1),
    ],
)
def test_two_rounds_of_two_batches_with_all_that_belongs_to_them(
    settings: dict[str, Any],
    networks: list[tuple[int, str]],
    steps: int,
    density: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = fit(mlp(), digits(), tmp_path / "run", trainer={"fast_dev_run": True, "logger": True}, **settings)
    assert [(row.round, row.variant) for row in run.rows] == [(0, "ticket"), *networks]
    assert [row.steps for row in run.rows] == [2, *(0 if name == "pruned_only" else steps for _, name in networks)]
    assert all(row.val_acc is not None and row.test_acc is not None for row in run.rows)
    assert run.rows[-1].density == pytest.approx(density, abs=0.01)
    assert not list(tmp_path.iterdir())
    lottery = run.lottery
    assert (str(lottery.train_for), str(lottery.rewind_to), lottery.given_run_dir) == (
        settings.get("train_for", "10it"),
        settings.get("rewind_to", "0it"),
        tmp_path / "run",
    )
    assert lottery.pruning.densities == settings.get("pruning", Pruning()).densities
    assert lottery.control_rounds == settings.get("control_rounds")
    assert len(lottery.plan) > len(run.rows) or settings["rounds"] == 0


def test_more_batches_and_a_real_fit_after_the_rehearsal(tmp_path: Path) -> None:
    rehearsed = fit(mlp(), digits(), tmp_path / "run", trainer={"fast_dev_run": 3})
    assert [row.steps for row in rehearsed.rows] == [3, 3] and not (tmp_path / "run").exists()
    rehearsed.trainer.fast_dev_run = False
    real = fit(mlp(), digits(), tmp_path / "run")
    assert [row.steps for row in real.rows] == [10, 10, 10] and real.lottery.folder.results.exists()


def test_tickets_that_start_late_are_rehearsed_from_their_step(tmp_path: Path) -> None:
    fit(mlp(), digits(), tmp_path / "found", rewind_to="6it")
    given = {"rounds": None, "tickets": tmp_path / "found/tickets"}
    run = fit(mlp(), digits(), tmp_path / "run", trainer={"fast_dev_run": True}, **given)
    assert [(row.round, row.steps) for row in run.rows] == [(0, 2), (1, 2)]


def test_a_rehearsal_that_fails_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Exception, match="val_accuracy"):
        fit(mlp(), digits(), tmp_path / "run", trainer={"fast_dev_run": True}, metrics={"val_acc": "val_accuracy"})
    assert not list(tmp_path.iterdir())
