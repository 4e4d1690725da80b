"""An experiment's progress as stored in its checkpoint, and the check that a resumed fit is the same experiment."""

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lth_lightning.errors import SettingError
from lth_lightning.files import replace_file
from lth_lightning.lottery.rewinding import Lineage
from lth_lightning.runs.folder import RunFolder
from lth_lightning.runs.rows import LayerRow, Row
from lth_lightning.trainer import resume

Words = dict[str, str]
"""Settings by name, in words."""


@dataclass
class Progress:
    """Everything a resumed fit needs besides weights, optimizers and Lightning's counters.

    Args:
        lineage: the state that the rounds so far pass to the next networks.
        seed: the seed of all random draws.
        position: the index of the current network in the plan.
        begun: whether that network is in training.
        stopped: whether another callback has ended it early.
        epoch_start: the step at which this epoch began.
        results: a row for each trained network.
        layers: a row for each trained network and prunable weight.
        ticket_hashes: hashes of the tickets written so far, by round.
        settings: the run's settings, by kind.
        folder: the run's folder.
        recorder: the evaluations of the network in training; only in a checkpoint.
        ways: how this round's layers are computed, with `lottery.engine: sparse`.
        best: what `lottery.keep` keeps of the network in training.
        fresh: the part of a network's start that no optimizer's state holds; only in a checkpoint.
        moment: where inside or between epochs a resumed fit starts; None except in a checkpoint.
        until: for a control trained apart, the position after it, at which its fit ends; else None.
        resumed: whether this came from a checkpoint.
    """

    lineage: Lineage = field(default_factory=lambda: Lineage({}))
    seed: int = 0
    position: int = 0
    begun: bool = False
    stopped: bool = False
    epoch_start: int = 0
    results: list[Row] = field(default_factory=list)
    layers: list[LayerRow] = field(default_factory=list)
    ticket_hashes: dict[int, str] = field(default_factory=dict)
    settings: dict[str, Words] = field(default_factory=dict)
    folder: str | None = None
    recorder: dict[str, Any] | None = None
    ways: dict[str, str] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    fresh: dict[str, Any] | None = None
    moment: list[resume.Moment] | None = None
    until: int | None = None
    resumed: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and text only, so that checkpoints load with `weights_only`."""
        state = {name: value for name, value in vars(self).items() if name != "resumed"}
        return state | {
            "lineage": self.lineage.state_dict(),
            "results": [asdict(row) for row in self.results],
            "layers": [asdict(row) for row in self.layers],
        }

    def outcome(self) -> dict[str, Any]:
        """Return the state that a process started by Lightning sends back to the one that called `fit`."""
        return self.state_dict() | {"moment": []}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Progress":
        """Restore the progress from a checkpoint.

        Raises:
            SettingError: another version wrote it, or it was saved where a fit cannot be resumed.
        """
        try:
            progress = cls(**state, resumed=True)
            progress.lineage = Lineage(**state["lineage"])
            progress.results = [Row(**row) for row in state["results"]]
            progress.layers = [LayerRow(**row) for row in state["layers"]]
        except (KeyError, TypeError) as error:
            raise SettingError(f"the checkpoint was written by another version of lth_lightning ({error}).") from error
        if progress.moment is None:
            raise SettingError(
                "ckpt_path: another callback (ModelCheckpoint, say) saved this checkpoint in the middle of a batch, a "
                "validation or a round, where a run cannot be resumed to the same result. Resume from the lottery's "
                f"own checkpoint: {RunFolder(Path(progress.folder or '')).checkpoint}."
            )
        return progress

    def settle(self, kind: str, now: Words) -> None:
        """Record the settings of this run; a resumed run must have those it began with.

        Raises:
            SettingError: they differ; the error names them, with both values.
        """
        then = self.settings[kind] if self.resumed else now
        differ = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if differ:
            words = [f"{name} was {then.get(name, 'not set')}, is {now.get(name, 'not set')}" for name in differ]
            raise SettingError(f"ckpt_path: the checkpoint is from a run with other settings: {'; '.join(words)}.")
        self.settings = {**self.settings, kind: now}


def save(trainer: L.Trainer, path: Path) -> None:
    """Write everything that a resumed fit needs, atomically.

    `trainer.save_checkpoint` is not used: it writes to TMPDIR first, does not sync and recreates lost folders.

    Raises:
        WriteError: the file cannot be written.
    """
    checkpoint = resume.checkpoint(trainer)
    if trainer.is_global_zero:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        replace_file(path, content.getbuffer())
    trainer.strategy.barrier("last.ckpt")
