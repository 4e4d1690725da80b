"""What a fit shows: rows that line up, a display that is gone in the end, and nothing a log could choke on."""

import io
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from conftest import Cut, Fit, digits, draw_plainly, fit, mlp
from rich.console import Console

from lth_lightning import LotteryProgress, SettingError
from lth_lightning.cli.main import main
from lth_lightning.consoles import duration
from lth_lightning.display import terminal
from lth_lightning.display.pace import Pace
from lth_lightning.display.terminal import Glimpse, NetworkLines, drawn
from lth_lightning.lottery.plan import TrainedNetwork
from lth_lightning.runs.rows import Evaluation, Row
from lth_lightning.runs.score import ACCURACY

REPOSITORY = Path(__file__).parents[2]
SHORT = [
    *("fit", "--config", str(REPOSITORY / "configs/quickstart.yaml")),
    *("--lottery.rounds", "1", "--lottery.train_for", "2it", "--lottery.controls", "[]"),
]
# The networks of CONTROLLED: 10 steps, then from step 4 on the ticket and two controls, and one that is not trained.
CONTROLLED: dict[str, Any] = {
    "rounds": 1,
    "rewind_to": "4it",
    "controls": ["random_reinit", "pruned_only"],
    "control_replicates": 2,
}
STEPS = [10, 0, 6, 6, 6]


class Terminal(io.StringIO):
    """A terminal that shows what was written to it: lines, a cursor, and of the control codes those that rich uses."""

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> list[str]:
        """Up to the cursor, and what there may be below it."""
        lines, row = [""], 0
        for part in re.findall(r"\x1b\[\??[\d;]*[a-zA-Z]|.|\n", self.getvalue()):
            if part == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif part == "\x1b[2K":
                lines[row] = ""
            elif part == "\x1b[1A":
                row -= 1
            elif not part.startswith("\x1b") and part != "\r":
                lines[row] += part
        while not lines[-1] and len(lines) > row + 1:
            lines.pop()
        return [line.rstrip() for line in lines]

    @property
    def cursor_is_hidden(self) -> bool:
        return self.getvalue().rfind("\x1b[?25l") > self.getvalue().rfind("\x1b[?25h")


@pytest.fixture(autouse=True)
def _no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "FORCE_COLOR", "TTY_COMPATIBLE", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[Glimpse]:
    """What was drawn, at every batch."""
    seen: list[Glimpse] = []

    def spy(now: Glimpse) -> Any:
        seen.append(now)
        return drawn(now)

    monkeypatch.setattr(terminal, "drawn", spy)
    monkeypatch.setattr(terminal, "REFRESH_SECONDS", 0)
    monkeypatch.setattr(terminal, "IDLE", 0)
    return seen


def show(file: io.StringIO, width: int = 80, **settings: Any) -> LotteryProgress:
    return LotteryProgress(Console(file=file, width=width, highlight=False, **settings))


def fit_shown(folder: Path, *callbacks: L.Callback, **settings: Any) -> Fit:
    return fit(mlp(), digits(), folder, callbacks=callbacks, trainer={"enable_progress_bar": True}, **settings)


# ------------------------------------------------------------------------------------- how it looks

ROW = Row(3, "random_reinit", 8, 0.343, 343, 1000, 400, 12.34, 0.1, 0.2, 0.97, 0.2, 0.9812, 50_000, 0.2, 0.98)
NOW = Glimpse(
    experiment="quickstart/3",
    network=TrainedNetwork(12, "random_reinit", 8),
    density=0.343,
    last_round=12,
    position=10,
    networks=37,
    step=12_300,
    round_steps=50_000,
    epoch=11,
    loss=0.07123,
    evaluation=Evaluation(12_000, 0.2, 0.97, None, None),
    score=ACCURACY,
    steps_per_second=1214.3,
    done=0.25,
    seconds_left=3725,
)


def test_rows_line_up_below_their_headings_in_80_characters() -> None:
    columns = NetworkLines(len("random_reinit #9"))
    unknown = Row(0, "ticket", 0, 1.0, 1000, 1000, 0, 0.1, None, None, None, None, None, None, None, None)
    header, *lines = [columns.header, columns.line(ROW), columns.line(unknown)]
    assert lines[0].split() == [
        *("3", "34.30", "%", "random_reinit", "#9", "97.00", "%", "98.12", "%", "50,000", "12.3"),
    ]
    assert lines[1].split() == ["0", "100.00", "%", "ticket", "-", "-", "-", "0.1"]
    ends = [match.end() for match in re.finditer(r"\S+( \S+)*", header)]
    for line in lines:
        assert len(line) == len(header) <= 80
        assert all(line[end : end + 2] in ("  ", "") for end in ends if end != ends[2]), "a column is cut through"


def test_a_density_shows_digits_however_small() -> None:
    assert [terminal._percent(value) for value in (1, 0.0012, 0.000034, 0)] == [
        *("100.00 %", "0.12 %", "0.0034 %", "0.00 %"),
    ]


@pytest.mark.parametrize("width", [30, 80, 120])
def test_the_display_never_wraps_and_says_all_there_is_to_say(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(drawn(NOW))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 4 and max(map(len, lines)) <= width
    if width >= 80:
        for part in (
            *("round 12 of 12", "34.30 %", "random_reinit #9", "12,300/50,000 steps", "quickstart/3"),
            *("network 10 of 37", "1:02:05 left", "epoch 11", "loss 0.07123", "val acc 97.00 %", "1,214 steps/s"),
        ):
            assert part in "\n".join(lines)


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 67, 7509, 273_600)] == ["0:00", "1:07", "2:05:09", "3 d 4 h"]


def test_the_pace_counts_from_the_first_reading_and_forgets_for_the_speed_of_now() -> None:
    pace = Pace()
    assert (pace.steps_per_second, pace.seconds_for(5)) == (None, None)
    pace.read(100.0, 7)  # a first step of minutes, and six of another process
    assert (pace.steps_per_second, pace.seconds_for(5)) == (None, None)
    pace.read(101.0, 8)
    assert (pace.steps_per_second, pace.seconds_for(5)) == (1, 5)
    for second in range(1, 31):
        pace.read(101.0 + second, 8 + 10 * second)
    assert pace.steps_per_second == 10
    assert pace.seconds_for(602) == pytest.approx(602 / (301 / 31))


# ------------------------------------------------------------------------------------- in a fit


def test_a_terminal_shows_a_row_a_network_and_in_the_end_nothing_else(tmp_path: Path, moments: list[Glimpse]) -> None:
    terminal = Terminal()
    done = fit_shown(tmp_path / "7", show(terminal, force_terminal=True), **CONTROLLED)
    columns = NetworkLines(len("random_reinit #2"))
    assert terminal.shown == [columns.header, *(columns.line(row) for row in done.rows), ""]
    assert not terminal.cursor_is_hidden
    assert f"{tmp_path.name}/7  network 1 of 5" in terminal.getvalue()


def test_how_far_the_experiment_is_counts_every_step_of_the_plan(tmp_path: Path, moments: list[Glimpse]) -> None:
    fit_shown(tmp_path / "run", show(Terminal(), force_terminal=True), **CONTROLLED)
    behind = [[sum(STEPS[:i]) + step for step in range(steps + 1)] for i, steps in enumerate(STEPS)]
    assert [now.done for now in moments] == pytest.approx([step / 28 for steps in behind for step in steps])
    assert [now.position for now in moments] == [i + 1 for i, steps in enumerate(behind) for _ in steps]
    assert [now.step for now in moments if now.position == 3] == list(range(4, 11))
    first = [now for now in moments if now.position == 1]
    assert first[-1].seconds_left is not None and first[-1].steps_per_second is not None
    assert all(now.loss is not None for now in first[1:])
    assert moments[-1].seconds_left == 0


def test_networks_to_come_are_expected_to_stop_as_early_as_those_before(tmp_path: Path, moments: list[Glimpse]) -> None:
    class StopAtFive(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop |= trainer.global_step == 5

    fit_shown(tmp_path / "run", show(Terminal(), force_terminal=True), StopAtFive(), rounds=2)
    assert [now.done for now in moments if now.position == 1] == pytest.approx([step / 30 for step in range(6)])
    assert [now.done for now in moments if now.position > 1] == pytest.approx(
        [step / 15 for step in (*range(5, 11), *range(10, 16))]
    )


def test_a_resumed_fit_goes_on_where_it_was_and_leaves_the_terminal_sane(
    tmp_path: Path, moments: list[Glimpse]
) -> None:
    terminal = Terminal()
    with pytest.raises(RuntimeError, match="cut"):
        fit_shown(tmp_path, show(terminal, force_terminal=True), Cut(16), rounds=2)
    assert not terminal.cursor_is_hidden and len(terminal.shown) == 3
    moments.clear()
    last = tmp_path / "checkpoints/last.ckpt"
    fit_shown(tmp_path, show(Terminal(), force_terminal=True), ckpt_path=last, rounds=2)
    assert [now.done for now in moments[:2]] == pytest.approx([10 / 30, 11 / 30])
    assert moments[1].seconds_left is None, "the first reading of this process"


def test_between_refreshes_nothing_is_drawn_nor_read(
    tmp_path: Path, moments: list[Glimpse], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "REFRESH_SECONDS", 1e9)
    fit_shown(tmp_path / "run", show(Terminal(), force_terminal=True), rounds=1)
    assert [(now.position, now.loss) for now in moments] == [(1, None), (2, None)]


PLAIN: dict[str, tuple[type[io.StringIO], dict[str, Any], dict[str, str]]] = {
    "a file": (io.StringIO, {}, {}),
    "a file, colours wanted": (io.StringIO, {}, {"FORCE_COLOR": "1"}),
    "CI with a terminal": (Terminal, {"force_terminal": True}, {"CI": "true"}),
    "a dumb terminal": (Terminal, {}, {"TERM": "dumb"}),
    "a notebook": (Terminal, {"force_jupyter": True}, {}),
}


@pytest.mark.parametrize("where", PLAIN)
def test_where_nothing_can_be_redrawn_there_are_rows_alone(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, settings, environment = PLAIN[where]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file = kind()
    flushed: list[str] = []
    monkeypatch.setattr(file, "flush", lambda: flushed.append(file.getvalue()))
    done = fit_shown(tmp_path / "run", show(file, width=20, **settings), rounds=1)
    columns = NetworkLines(len("variant"))
    lines = [columns.header, *(columns.line(row) for row in done.rows)]
    assert file.getvalue().splitlines() == lines
    assert [len(text.splitlines()) for text in flushed] == [1, 2, 3], "each line at once"


def test_processes_but_the_first_show_nothing(tmp_path: Path, moments: list[Glimpse]) -> None:
    terminal = Terminal()
    display = show(terminal, force_terminal=True)
    display.disable()
    fit_shown(tmp_path / "run", display, rounds=1)
    display.print("words")
    assert not terminal.getvalue() and not moments


def test_without_a_lottery_it_says_so() -> None:
    with pytest.raises(SettingError, match="a LotteryProgress needs a LotteryTicket"):
        LotteryProgress().on_train_start(L.Trainer(logger=False, accelerator="cpu"), mlp())


# ------------------------------------------------------------------------------------- --quiet


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_quiet_is_a_plain_line_a_network_and_where_results_lie_and_no_setting_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_plainly(monkeypatch)
    assert main([*SHORT, "--run_dir", "run", "--quiet", "--trainer.enable_model_summary", "true"]) == 0
    out, err = capsys.readouterr()
    header, dense, ticket, where = out.splitlines()
    assert (header.split()[0], dense.split()[:4], err) == ("round", ["0", "100.00", "%", "ticket"], "")
    assert ticket.split()[:4] == ["1", "70.00", "%", "ticket"]
    assert where == "Results, tickets and figures: run"
    assert main([*SHORT, "--run_dir", "silent", "--trainer.enable_progress_bar", "false"]) == 0
    assert capsys.readouterr() == ("Results, tickets and figures: silent\n", "")
    assert "quiet" not in yaml.safe_load(Path("run/config.yaml").read_text())
    assert main(["fit", "--config", "run/config.yaml", "--ckpt_path", "last"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.startswith("Resuming run.\n")
