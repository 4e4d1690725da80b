"""What a sweep shows: how far each run is, and how long it takes."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lth_lightning.runs.rows import Row, write_rows
from lth_lightning.sweeps.display import Standing, SweepDisplay, drawn, seconds_left

PLAN = [(0, "ticket", 0), (1, "pruned_only", 0), (1, "ticket", 0), (1, "random_mask", 0), (1, "random_mask", 1)]
ROW = Row(0, "ticket", 0, 1.0, 10, 10, 100, 30.0, None, 0.1, 0.9, 0.2, 0.875, 80, 0.1, 0.87)


@pytest.fixture
def standing(tmp_path: Path) -> Standing:
    rows = [
        ROW,
        replace(ROW, round=1, variant="pruned_only", steps=0, seconds=0.1),
        replace(ROW, round=1, test_acc=0.5),
    ]
    write_rows(tmp_path / "results.csv", rows)
    one = Standing("seed=1", tmp_path, networks=PLAN)
    one.begin()
    one.look()
    return one


def test_a_run_shows_its_network_score_and_time(standing: Standing) -> None:
    assert standing.current == "round 1 of 1  random_mask"
    assert standing.score == "50.0 %"
    assert standing.seconds_left() == pytest.approx(60, abs=1)  # two networks of 30 s; pruned_only takes none
    standing.rows.append(replace(ROW, round=1, variant="random_mask"))
    assert standing.current == "round 1 of 1  random_mask #2"


def test_controls_in_training_beside_the_tickets_are_shown_and_counted(standing: Standing) -> None:
    masks = (1, "random_mask", 0), (1, "random_mask", 1)
    standing.networks = [*PLAN, (2, "ticket", 0)]
    standing.apart = dict.fromkeys(masks, "waiting")
    assert standing.current == "round 2 of 2  ticket"
    standing.begin(masks[0])
    assert standing.current == "round 2 of 2  ticket; 1: random_mask"
    assert standing.seconds_left() == pytest.approx(45, abs=1)  # three networks of 30 s, by two workers
    standing.apart[masks[0]] = "done"
    assert len(standing.trained) == 4
    standing.own_is_in_training = False
    standing.begin(masks[1])
    assert standing.current == "round 1 of 2  random_mask #2"
    standing.wait(masks[1])
    assert standing.state == "waiting"


def test_the_whole_takes_as_long_as_its_longest_run_or_as_all_runs_shared(standing: Standing, tmp_path: Path) -> None:
    waiting = [Standing(f"seed={n}", tmp_path / str(n), networks=PLAN) for n in (2, 3)]  # 4 networks of 30 s each
    assert seconds_left([standing], 2) == pytest.approx(60, abs=1)
    assert seconds_left([standing, *waiting], 2) == pytest.approx((60 + 120 + 120) / 2, abs=1)
    assert seconds_left([standing, *waiting], 100) == pytest.approx(120, abs=1)
    assert seconds_left(waiting, 2) is None


def test_the_table_has_a_line_a_run_and_one_for_the_whole(standing: Standing, tmp_path: Path) -> None:
    out = io.StringIO()
    done = Standing("seed=2", tmp_path, "done", PLAN, rows=standing.rows)
    Console(file=out, width=100).print(drawn([standing, done], 1))
    _, first, second, whole = out.getvalue().splitlines()
    assert first.split() == ["seed=1", "round", "1", "of", "1", "random_mask", "3/5", "50.0", "%", "1:00"]
    assert second.split()[:2] == ["seed=2", "done"]
    assert whole.split()[:6] == ["2", "runs", "1", "done,", "1", "training"]


def test_a_small_terminal_shows_what_is_in_training_first(tmp_path: Path) -> None:
    out = io.StringIO()
    many = [Standing(f"seed={n}", tmp_path, "training" if n == 30 else "waiting") for n in range(31)]
    Console(file=out, width=100).print(drawn(many, 1, height=10))
    assert len(out.getvalue().splitlines()) == 7
    assert "seed=30" in out.getvalue()


def test_without_a_terminal_there_are_plain_lines(standing: Standing) -> None:
    out = io.StringIO()
    with SweepDisplay(Console(file=out)) as display:
        display.say("seed=1: starts")
        display.show([standing], 1, at_once=True)
    assert out.getvalue() == "seed=1: starts\n"
