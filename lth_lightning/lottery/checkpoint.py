"""How far an experiment has come, as its checkpoint holds it, and whether a resumed fit is of the same experiment."""

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
"""Settings by their names, in words."""


@dataclass
class Progress:
    """All that a resumed fit needs to know beside weights, optimizers and Lightning's counters.

    Args:
        lineage: what the rounds so far hand on to the next networks.
        seed: what everything random depends on.
        position: in the plan.
        begun: whether the network at that position is in training.
        stopped: whether another callback has ended it early.
        epoch_start: the step that this epoch began at.
        results: a row for each trained network.
        layers: a row for each trained network and prunable weight.
        ticket_hashes: of the tickets written so far, by round.
        settings: what the run was set to do, by kind.
        folder: where it writes.
        recorder: the evaluations of the network in training, in a checkpoint.
        fresh: what a network starts with and no optimizer's state holds, in a checkpoint.
        moment: where inside or between epochs a resumed fit starts; None except in a checkpoint.
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
    fresh: dict[str, Any] | None = None
    moment: list[resume.Moment] | None = None
    resumed: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and text only, so that checkpoints load with `weights_only`."""
        state = {name: value for name, value in vars(self).items() if name != "resumed"}
        return state | {
            "lineage": self.lineage.state_dict(),
            "results": [asdict(row) for row in self.results],
            "layers": [asdict(row) for row in self.layers],
        }

    def outcome(self) -> dict[str, Any]:
        """What a process that Lightning has started brings home to the one that called `fit`."""
        return self.state_dict() | {"moment": []}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Progress":
        """Take over where a checkpoint left off.

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
                "ckpt_path: another callback (ModelCheckpoint, say) saved this checkpoint, where a batch, a validation "
                "or a round had not ended, and no run can be resumed from there to the same result. The lottery saves "
                f"its own: {RunFolder(Path(progress.folder or '')).checkpoint}."
            )
        return progress

    def settle(self, kind: str, now: Words) -> None:
        """Note the settings of this run; those of a resumed run must be the ones it began with.

        Raises:
            SettingError: they differ; it names them, with both values.
        """
        then = self.settings[kind] if self.resumed else now
        differ = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if differ:
            words = [f"{name} was {then.get(name, 'not there')}, is {now.get(name, 'not there')}" for name in differ]
            raise SettingError(f"ckpt_path: the checkpoint is of a run with other settings: {'; '.join(words)}.")
        self.settings = {**self.settings, kind: now}


def save(trainer: L.Trainer, path: Path) -> None:
    """Write everything that a resumed fit needs, as a whole or not at all.

    Not by `trainer.save_checkpoint`, which writes to TMPDIR first, syncs nothing and makes lost folders anew.

    Raises:
        WriteError: the file cannot be written.
    """
    checkpoint = resume.checkpoint(trainer)
    if trainer.is_global_zero:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        replace_file(path, content.getbuffer())
    trainer.strategy.barrier("last.ckpt")
