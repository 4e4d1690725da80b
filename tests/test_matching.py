"""The sparsest ticket of a run that matches the dense network, as its report says it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lth_lightning import SettingError, Ticket, TicketError, best_ticket
from lth_lightning.runs.folder import SCORE
from lth_lightning.runs.rows import Row, read_rows, write_rows
from lth_lightning.runs.score import Score, write_score

ROW = Row(0, "ticket", 0, 1.0, 8, 8, 1, 1.0, None, None, None, None, None, None, None, None)


def write_run(folder: Path, accuracies: list[float | None]) -> Path:
    """A run whose round r has the density 1 / 2**r, with one ticket a round."""
    rows = []
    for number, accuracy in enumerate(accuracies):
        rows.append(replace(ROW, round=number, density=0.5**number, kept=8 >> number, test_acc=accuracy))
        if number:
            rows.append(replace(rows[-1], variant="random_reinit", test_acc=1.0))
        folder.joinpath("tickets").mkdir(parents=True, exist_ok=True)
        state = {"weight": torch.zeros(2)}
        masks = {"weight": torch.ones(2, dtype=torch.bool)}
        Ticket(masks, state, state, {"round": number}).save(folder / f"tickets/round_{number:02d}.safetensors")
    write_rows(folder / "results.csv", rows)
    return folder


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ([0.90, 0.91, 0.89, 0.50], 1),
        ([0.90, 0.80, 0.895, 0.50], 2),  # exactly half a point below, and after a miss
        ([0.90, 0.90, 0.90, None], 2),  # round 3 was not tested
    ],
)
def test_it_is_the_sparsest_within_the_reports_tolerance(
    tmp_path: Path, accuracies: list[float | None], best: int
) -> None:
    assert best_ticket(write_run(tmp_path, accuracies)).info["round"] == best
    assert best_ticket(str(tmp_path)).info["round"] == best


def test_it_follows_the_score_of_the_run(tmp_path: Path) -> None:
    """By validation loss, of which less is better and a hundredth of the dense network's is allowed."""
    run = write_run(tmp_path, [0.9, 0.9, 0.9])
    losses = {0: 2.0, 1: 2.02, 2: 2.03}
    rows = [replace(row, test_loss=losses[row.round]) for row in read_rows(run / "results.csv")]
    write_rows(run / "results.csv", rows)
    write_score(run / SCORE, Score("val_loss", mode="min"))
    assert best_ticket(run).info["round"] == 1


def test_where_none_matches_the_nearest_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"matches.* of 90.0 % \(at most 0.5 points worse\).*round 2 with 85.0 % at 25 %.*round_02"
    ):
        best_ticket(write_run(tmp_path, [0.9, 0.8, 0.85]))


def test_a_run_that_cannot_tell_is_refused(tmp_path: Path) -> None:
    for name, accuracies in {"dense only": [0.9], "untested": [None, None], "dense untested": [None, 0.9]}.items():
        with pytest.raises(SettingError, match="has no .* of .*so no ticket can match"):
            best_ticket(write_run(tmp_path / name, accuracies))
    with pytest.raises(SettingError, match="not a run folder"):
        best_ticket(tmp_path / "nothing")
    run = write_run(tmp_path / "lost", [0.9, 0.9])
    (run / "tickets/round_01.safetensors").unlink()
    with pytest.raises(TicketError, match="round_01"):
        best_ticket(run)
