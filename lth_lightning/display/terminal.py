"""What the terminal shows of a fit: a table that gains a row per network and, below it, the network in training.

Where nothing can be redrawn (a file, a pipe, CI, a notebook), only the table is printed, line by line.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lth_lightning.consoles import can_redraw, duration
from lth_lightning.display.pace import Pace
from lth_lightning.errors import SettingError
from lth_lightning.lottery.callback import LotteryTicket
from lth_lightning.lottery.plan import TrainedNetwork
from lth_lightning.runs.rows import Evaluation, Row
from lth_lightning.runs.score import ACCURACY, Score, known_score
from lth_lightning.trainer import fit

REFRESH_SECONDS = 0.25
IDLE = 50  # the pause after drawing, at least, in units of its duration: a slow terminal costs at most 2 % of the time
WIDTH = 100  # characters, at most


# ------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class NetworkLines:
    """Formats the table of finished networks: 74 characters wide with controls, 69 without.

    Args:
        variant: the length of the longest name in it.
        score: what is shown of each network.
    """

    variant: int
    score: Score = ACCURACY

    @property
    def header(self) -> str:
        """The line above the rows."""
        key = _cut(self.score.key)
        return self._line("round", "density", "variant", f"val {key}", f"test {key}", "early stop", "seconds")

    def line(self, row: Row) -> str:
        """A network's line; unknown values are dashes."""
        stop = "-" if row.early_stop_step is None else f"{row.early_stop_step:,}"
        val, test = (_score(self.score, self.score.value(row, data)) for data in ("val", "test"))
        name = TrainedNetwork(row.round, row.variant, row.replicate).name
        return self._line(str(row.round), _percent(row.density), name, val, test, stop, f"{row.seconds:.1f}")

    def _line(self, number: str, density: str, name: str, val: str, test: str, stop: str, seconds: str) -> str:
        return f"{number:>5}  {density:>8}  {name:<{self.variant}}  {val:>8}  {test:>8}  {stop:>10}  {seconds:>7}"


def _cut(key: str) -> str:
    """A score's name, as long as a column of the table is wide."""
    return key if len(key) <= 4 else f"{key[:3]}…"


def _score(score: Score, value: float | None) -> str:
    if value is None:
        return "-"
    return _percent(value) if score.is_fraction else f"{value:.4g}"


def _percent(fraction: float) -> str:
    """Two decimals, or two significant digits below 0.1 %: `0.0034 %`."""
    return f"{100 * fraction:.2f} %" if fraction == 0 or fraction >= 1e-3 else f"{100 * fraction:.2g} %"


# ------------------------------------------------------------------------------------- the display


@dataclass(frozen=True)
class Glimpse:
    """The state of a running fit, as displayed. `None` means not known yet.

    Args:
        experiment: the run's name.
        network: the network in training.
        density: its fraction of weights kept.
        last_round: the last round of the experiment.
        position: the number of the network, from 1.
        networks: the number of all networks.
        step: the step in the round, of `round_steps`.
        round_steps: steps per round.
        epoch: the epoch of the round, from 1.
        loss: training loss of the last batch.
        evaluation: the last evaluation.
        score: what is shown of the last evaluation, if it is known.
        steps_per_second: speed over the last seconds.
        done: the fraction of the experiment done, from 0 to 1.
        seconds_left: time until the experiment ends.
    """

    experiment: str
    network: TrainedNetwork
    density: float
    last_round: int
    position: int
    networks: int
    step: int
    round_steps: int
    epoch: int
    loss: float | None
    evaluation: Evaluation | None
    score: Score
    steps_per_second: float | None
    done: float
    seconds_left: float | None


def drawn(now: Glimpse) -> RenderableType:
    """Render the display: an empty line, a bar for the network, one for the experiment, and a line of figures."""
    bars = Table.grid(padding=(0, 2, 0, 0), expand=True)
    bars.add_column(no_wrap=True, overflow="ellipsis")
    bars.add_column(ratio=1, min_width=8)
    bars.add_column(no_wrap=True, justify="right")
    title = f"round {now.network.round} of {now.last_round}  {_percent(now.density)}  {now.network.name}"
    left = "" if now.seconds_left is None else f"{duration(now.seconds_left)} left"
    bars.add_row(Text(title, style="bold"), Bar(now.round_steps, now.step), f"{now.step:,}/{now.round_steps:,} steps")
    bars.add_row(f"{now.experiment}  network {now.position} of {now.networks}", Bar(1, now.done), left)
    return Group("", Constrain(bars, WIDTH), Text("  ".join(_figures(now)), no_wrap=True, overflow="ellipsis"))


def _figures(now: Glimpse) -> list[str]:
    figures = [f"epoch {now.epoch}"]
    if now.loss is not None:
        figures.append(f"loss {now.loss:<8.4g}")
    score = now.score.value(now.evaluation, "val") if now.evaluation is not None else None
    if score is not None:
        figures.append(f"val {now.score.key} {_score(now.score, score)}")
    elif now.evaluation is not None and now.evaluation.val_loss is not None:
        figures.append(f"val loss {now.evaluation.val_loss:.4g}")
    if (speed := now.steps_per_second) is not None:
        figures.append(f"{speed:,.0f} steps/s" if speed >= 10 else f"{speed:.2g} steps/s")
    return figures


# ------------------------------------------------------------------------------------- where it is shown


class LotteryProgress(ProgressBar):
    """Shows the progress of a LotteryTicket's experiment: a row for each finished network and, on a terminal, the
    network in training, with the time left for the whole experiment.

    It draws in the training loop a few times a second, and reads the loss from the device only then. A thread would
    hold locks that the workers of a DataLoader inherit.

    Args:
        console: where to show it; by default standard output.
        rows_only: whether to leave out the lottery's opening line.
    """

    def __init__(self, console: Console | None = None, rows_only: bool = False) -> None:
        super().__init__()
        self._rows_only = rows_only
        self._above: str | None = None
        self._given_console = console  # the default is made in the process that shows it, as it cannot be pickled
        self._disabled = False
        self._live: Live | None = None
        self._lines: NetworkLines | None = None
        self._due = 0.0

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all processes but the first."""
        self._disabled = True

    def enable(self) -> None:
        """Show again."""
        self._disabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the display, which captures standard output; used by `LightningModule.print`."""
        if not self._disabled:
            print(*args, **kwargs)

    def say(self, line: str) -> None:
        """Set the line above the table."""
        self._above = None if self._rows_only else line

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        lottery = next((callback for callback in trainer.callbacks if isinstance(callback, LotteryTicket)), None)
        if lottery is None:
            raise SettingError("trainer.callbacks: a LotteryProgress needs a LotteryTicket; add one.")
        self._lottery, self._pace = lottery, Pace()
        self._width = max(len(name) for name in ("variant", *(network.name for network in lottery.plan)))
        self._console = self._given_console or Console(highlight=False)
        self._header_due, self._lines = True, None

    def on_network_start(
        self, trainer: L.Trainer, module: L.LightningModule, network: TrainedNetwork, density: float
    ) -> None:
        self._network, self._density = network, density
        if self._header_due:
            if self._above is not None:
                self.print(self._above, flush=True)
            if not self._disabled and can_redraw(self._console):
                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            self._header_due = False
            if self._lottery.score is not None or self._lottery.results:
                self._write_header(self._lottery.results)
        self._draw(trainer, None)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        if self._live is None or time.monotonic() < self._due:
            return
        self._pace.read(time.monotonic(), self._steps_done(trainer))
        self._draw(trainer, _loss(outputs))

    def on_network_end(self, trainer: L.Trainer, module: L.LightningModule, row: Row) -> None:
        if self._lines is None:  # only the first row shows whether the module logs an accuracy
            self._write_header([row])
        assert self._lines is not None
        self._write(Text(self._lines.line(row), style="" if row.variant == "ticket" else "dim"))

    def _write_header(self, rows: list[Row]) -> None:
        self._lines = NetworkLines(self._width, known_score(rows, self._lottery.score))
        self._write(Text(self._lines.header, style="bold"))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _write(self, line: Text) -> None:
        if self._disabled:
            return
        if self._live is not None:
            self._console.print(line, no_wrap=True, overflow="crop")
        else:  # flushed for readers who follow the log (tail -f, Slurm)
            print(line.plain, file=self._console.file, flush=True)

    def _draw(self, trainer: L.Trainer, loss: float | None) -> None:
        if self._live is None:
            return
        start = time.monotonic()
        self._live.update(drawn(self._glimpse(trainer, loss)), refresh=True)
        end = time.monotonic()
        self._due = end + max(REFRESH_SECONDS, IDLE * (end - start))

    def _glimpse(self, trainer: L.Trainer, loss: float | None) -> Glimpse:
        lottery = self._lottery
        done, to_go = self._steps_done(trainer), self._steps_to_go(trainer)
        return Glimpse(
            experiment=_name(lottery.folder.path),
            network=self._network,
            density=self._density,
            last_round=lottery.plan[-1].round,
            position=lottery.position + 1,
            networks=len(lottery.plan),
            step=fit.steps_done(trainer),
            round_steps=lottery.experiment.round_steps,
            epoch=trainer.current_epoch + 1,
            loss=loss,
            evaluation=lottery.experiment.recorder.last,
            score=lottery.score or ACCURACY,
            steps_per_second=self._pace.steps_per_second,
            done=done / (done + to_go) if done else 0,
            seconds_left=self._pace.seconds_for(to_go),
        )

    def _steps_done(self, trainer: L.Trainer) -> int:
        """Steps done of the whole experiment, including those before it was resumed."""
        lottery = self._lottery
        return sum(row.steps for row in lottery.results) + self._steps_of_network(trainer)

    def _steps_of_network(self, trainer: L.Trainer) -> int:
        return fit.steps_done(trainer) - self._lottery.experiment.first_step(self._network)

    def _steps_to_go(self, trainer: L.Trainer) -> float:
        """Steps left of the whole experiment, if networks stop as early as the finished ones did on average."""
        lottery = self._lottery
        others = lottery.left_apart
        planned = [0 if one in others else lottery.experiment.planned_steps(one) for one in lottery.plan]
        finished = lottery.position
        could = sum(planned[:finished])
        share = sum(row.steps for row in lottery.results) / could if could else 1
        here = max(0, share * planned[finished] - self._steps_of_network(trainer))
        return here + share * sum(planned[finished + 1 :])


def _loss(outputs: Any) -> float | None:
    """The loss that `training_step` returned, if it is one number. Reading it waits for the device."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _name(folder: Path) -> str:
    """The run's name: `mine`, or `quickstart/3` if the folder's own name is a number."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name.isdigit() else folder.name
