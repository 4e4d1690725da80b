"""The runs of a sweep and the fits that they consist of: a run's own, and those of controls trained apart."""

from dataclasses import dataclass, field
from pathlib import Path

from lth_lightning.runs.folder import RunFolder
from lth_lightning.runs.rows import NetworkKey
from lth_lightning.sweeps.combinations import Training, fit_flags
from lth_lightning.sweeps.display import Standing, name_of
from lth_lightning.sweeps.folder import LOG


@dataclass
class Run:
    """A run of the sweep, and how it stands.

    Args:
        training: what it is asked for.
        standing: how far it is.
        own: the fit in its folder, which finds the tickets.
        apart: the fits of controls that are trained apart, by round, variant and replicate.
        failed: the fit that has failed.
        has_left: whether its own fit has come to its end and left controls to be gathered.
    """

    training: Training
    standing: Standing
    own: "Job" = field(init=False)
    apart: dict[NetworkKey, "Job"] = field(default_factory=dict)
    failed: "Job | None" = None
    has_left: bool = False

    def __post_init__(self) -> None:
        self.own = Job(self, RunFolder(self.standing.folder))

    @property
    def may_find_more(self) -> bool:
        """Whether its own fit has networks of its own to train."""
        return self.standing.state in ("waiting", "training") and not self.has_left

    @property
    def is_gatherable(self) -> bool:
        """Whether it has only to gather its controls."""
        return self.has_left and all(job.folder.is_gatherable for job in self.apart.values())

    def new_controls(self) -> "list[Job]":
        """Find the controls that its own fit has left apart since the last time."""
        names = {path.name for path in self.own.folder.controls.glob("*")}
        found = []
        for network in self.standing.networks if names else ():
            folder = self.own.folder.control(*network)
            if network not in self.apart and folder.path.name in names and folder.taken:
                self.apart[network] = Job(self, folder, network)
                self.standing.apart[network] = "done" if folder.is_gatherable else "waiting"
                found.append(self.apart[network])
        return found


@dataclass(eq=False)
class Job:
    """A fit for a worker: a run's own, or that of a control that is trained apart."""

    run: Run
    folder: RunFolder
    network: NetworkKey | None = None
    lost: int = 0
    last_checkpoint: int = 0

    @property
    def flags(self) -> list[str]:
        """The flags of `fit`."""
        return fit_flags(self.run.training, self.folder.path)

    @property
    def log(self) -> Path:
        """The file with everything that the fit prints."""
        return self.folder.path / LOG

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.network is None:
            return self.run.training.name
        return f"{self.run.training.name}, round {self.network[0]}, {name_of(self.network)}"

    @property
    def rank(self) -> int:
        """Begun runs come before new ones, so that few lie half done, and what ends a run first of all."""
        is_new = self.network is None and not self.run.standing.rows and not self.lost
        return 2 if is_new else 0 if self.network is None else 1
