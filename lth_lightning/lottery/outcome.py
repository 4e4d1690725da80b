"""What a lottery knows of its fit, for reading: its results and folder, the run read back, and how it shows itself."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L

from lth_lightning.cards import card
from lth_lightning.errors import SettingError
from lth_lightning.lottery import apart
from lth_lightning.lottery.checkpoint import Progress
from lth_lightning.lottery.claim import last_checkpoint
from lth_lightning.lottery.plan import Length, TrainedNetwork
from lth_lightning.runs.folder import RunFolder
from lth_lightning.runs.rows import LayerRow, Row
from lth_lightning.trainer.last_checkpoint import let_callbacks_find_last

if TYPE_CHECKING:
    from lth_lightning.notebook import Run

# Here, as a process that Lightning spawns imports this module, but gets its lottery ready-made.
let_callbacks_find_last()


class Outcome:
    """The part of a LotteryTicket that reads the progress of its current fit, or of the last one."""

    plan: list[TrainedNetwork]
    train_for: Length
    controls: list[str]
    given_run_dir: str | os.PathLike[str] | None
    _progress: Progress

    @property
    def results(self) -> list[Row]:
        """A `Row` for each trained network, in training order."""
        return self._progress.results

    @property
    def layers(self) -> list[LayerRow]:
        """A `LayerRow` for each trained network and prunable weight."""
        return self._progress.layers

    @property
    def position(self) -> int:
        """How many networks of the plan are trained, or left to be trained apart."""
        return self._progress.position

    @property
    def left_apart(self) -> list[TrainedNetwork]:
        """The controls up to here that are trained apart, and not gathered yet."""
        return apart.missing(self.plan[: self.position], self.results)

    @property
    def is_whole(self) -> bool:
        """Whether this fit trains all networks: neither has it left some out, nor is it for one of those."""
        return self._progress.until is None and not self.left_apart

    @property
    def run(self) -> "Run":
        """The run so far, read back from its folder: DataFrames, figures, a report.

        Raises:
            SettingError: no network has been trained yet.
        """
        from lth_lightning.notebook import Run  # with the report, which training does not need

        if not self.results:
            raise SettingError("lottery.run: no network has been trained yet; the first is when round 0 ends.")
        return Run.read(self.folder.path)

    @property
    def seed_in_use(self) -> int:
        """The seed of all random draws, once a fit has started."""
        return self._progress.seed

    @property
    def settings(self) -> dict[str, str]:
        """This run's settings and data, in words; a resumed run must have the same."""
        return {name: value for part in self._progress.settings.values() for name, value in part.items()}

    @property
    def folder(self) -> RunFolder:
        """The run's folder, once a fit has started."""
        assert self._progress.folder is not None, "no fit has started"
        return RunFolder(Path(self._progress.folder))

    def last_checkpoint(self, trainer: L.Trainer) -> Path | None:
        """The checkpoint that `trainer.fit(..., ckpt_path="last")` resumes from; None to start anew.

        Raises:
            SettingError: it is not known which run to resume, or that run has no checkpoint.
        """
        return last_checkpoint(trainer, self.given_run_dir or self._progress.folder)

    def __repr__(self) -> str:
        return f"LotteryTicket({'; '.join(f'{name}: {value}' for name, value in self._in_words().items())})"

    def _repr_html_(self) -> str:
        read_back = self.results and self.folder.results.is_file()  # a rehearsal keeps no file
        return card("LotteryTicket", self._in_words(), self.run._repr_html_() if read_back else "")

    def _in_words(self) -> dict[str, str]:
        folder = self._progress.folder or self.given_run_dir
        said = {
            "rounds": f"{self.plan[0].round} to {self.plan[-1].round} of {self.train_for}",
            "controls": ", ".join(self.controls),
            "networks trained": f"{len(self.results)} of {len(self.plan)}",
            "folder": os.fspath(folder) if folder else "",
        }
        return {name: value for name, value in said.items() if value}
