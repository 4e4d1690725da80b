"""What the terminal shows of a fit: which network is in training, and a line for each that is done."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lth_lightning.experiment import Network
from lth_lightning.lottery import LotteryTicket
from lth_lightning.results import Row

REFRESH_SECONDS = 0.2


class LotteryProgress(ProgressBar):
    """Two bars on a terminal (the network in training, the experiment), plain lines where output is no terminal.

    Every finished network leaves a line, in both.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(highlight=False)
        self._bars: Progress | None = None
        self._disabled = False
        self._due = 0.0

    def disable(self) -> None:
        """Show nothing; Lightning calls it on all processes but the first."""
        self._disabled = True

    def enable(self) -> None:
        """Show again."""
        self._disabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bars, for `LightningModule.print`."""
        if not self._disabled:
            self._console.print(*args, soft_wrap=True, **kwargs)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lottery = next(callback for callback in trainer.callbacks if isinstance(callback, LotteryTicket))
        self._started, self._done_before = time.monotonic(), len(self._lottery.results)
        if self._disabled or not self._console.is_terminal:
            return
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=18),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            refresh_per_second=1 / REFRESH_SECONDS,
            transient=True,
        )
        self._network_bar = self._bars.add_task("", total=None, note="")
        self._experiment_bar = self._bars.add_task(
            "all networks", total=len(self._lottery.plan), completed=self._done_before, note=""
        )
        self._bars.start()

    def on_network_start(self, trainer: L.Trainer, module: L.LightningModule, network: Network, density: float) -> None:
        if self._bars is not None:
            self._bars.reset(
                self._network_bar,
                description=network.title(density),
                total=self._lottery.round_steps,
                completed=trainer.global_step,
                note="",
            )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._bars is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + REFRESH_SECONDS
        self._bars.update(self._network_bar, completed=trainer.global_step, note=self._note(trainer))

    def _note(self, trainer: L.Trainer) -> str:
        known = {name: trainer._logger_connector._callback_metrics.get(name) for name in ("val_loss", "val_acc")}
        return "  ".join(f"{name} {float(value):.3f}" for name, value in known.items() if value is not None)

    def on_network_end(self, trainer: L.Trainer, module: L.LightningModule, row: Row) -> None:
        self.print(line(row))
        if self._disabled or not self._console.is_terminal:
            sys.stdout.flush()  # a log that is followed (tail -f, Slurm) should show the line now
        if self._bars is not None:
            done, total = len(self._lottery.results), len(self._lottery.plan)
            pace = (time.monotonic() - self._started) / (done - self._done_before)
            left = f"{_duration(pace * (total - done))} left"
            self._bars.update(self._experiment_bar, completed=done, note=left)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def line(row: Row) -> str:
    """A finished network in one line of at most 100 characters."""
    name = row.variant + (f" #{row.replicate + 1}" if row.replicate else "")
    parts = [f"round {row.round:>2}", f"{100 * row.density:>5.3g} %", f"{name:<16}"]
    parts += [f"{what} {100 * value:5.2f} %" for what, value in (("val", row.val_acc), ("test", row.test_acc)) if value]
    if row.early_stop_step is not None:
        parts.append(f"early stop {row.early_stop_step:>6}")
    return "  ".join([*parts, f"{row.seconds:6.1f} s"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
