"""Tickets from files, to be trained in place of new ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from lth_lightning.errors import SettingError
from lth_lightning.files import content_hash
from lth_lightning.masks import State, check_masks
from lth_lightning.ticket import Ticket


class GivenTickets:
    """The tickets of a run that finds none itself.

    Args:
        path: a ticket, or a folder of them.

    Attributes:
        files: each ticket's file, by its round.
        latest_rewind_step: the latest step that one of them starts at, once they are checked.

    Raises:
        SettingError: there is none, one cannot be read, or two are of the same round.
    """

    def __init__(self, path: Path) -> None:
        self.files = ticket_files(path)
        self.latest_rewind_step = 0

    def load(self, round: int, module: nn.Module) -> tuple[Ticket, State | None]:
        """The ticket under the module's names, and its rewind point with the pruned weights, where that is known.

        Raises:
            TicketError: the file cannot be read, or does not fit the module.
        """
        ticket = Ticket.load(self.files[round])
        fitting, whole = ticket.fit_to(module), whole_rewind_point(self.files[round], ticket)
        return fitting, None if whole is None else Ticket(ticket.masks, whole).fit_to(module).rewind_point

    def check(self, module: nn.Module, weights: Mapping[str, Tensor], controls: Sequence[str]) -> None:
        """Find out before any training what would fail rounds later.

        Raises:
            SettingError: a ticket does not fit the module or its prunable weights, or does not hold what a control
                needs.
        """
        for round, path in self.files.items():
            ticket, whole = self.load(round, module)
            check_masks(ticket.masks, weights)
            if whole is None and "random_mask" in controls:
                raise SettingError(
                    f"lottery.controls: random_mask keeps weights that {path.name} has pruned and does not hold. Put "
                    "its run's round_00.safetensors beside it, or leave random_mask out."
                )
            self.latest_rewind_step = max(self.latest_rewind_step, int(ticket.info["rewind_step"]))

    def contents(self) -> dict[str, str]:
        """The beginning of each file's hash, by its name: other files are other tickets, wherever they lie."""
        return {f"content of {path.name}": content_hash(path)[:12] for path in self.files.values()}


def ticket_files(path: Path) -> dict[int, Path]:
    """The ticket at `path`, or those in that folder, by their rounds.

    Raises:
        SettingError: there is none, one cannot be read, or two are of the same round.
    """
    paths = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not paths:
        raise SettingError(f"lottery.tickets: there is no ticket (*.safetensors) in the folder {path}.")
    files: dict[int, Path] = {}
    for file in paths:
        round = int(Ticket.load(file).info["round"])
        if round in files:
            raise SettingError(f"lottery.tickets: {files[round]} and {file} are both of round {round}.")
        files[round] = file
    return files


def whole_rewind_point(path: Path, ticket: Ticket) -> State | None:
    """The rewind point with the weights that the ticket has pruned: from the dense round's file beside it.

    A ticket holds only what survives; a control that keeps other weights needs those too.

    Args:
        path: the ticket's file.
        ticket: what is in it.

    Returns:
        Every parameter and buffer, or None where the dense ticket of the same run is not there.
    """
    beside = path.with_name("round_00.safetensors")
    dense = ticket if ticket.density == 1 else Ticket.load(beside) if beside.exists() else None
    same_run = ("seed", "rewind_step", "architecture", "data")
    if dense is None or dense.density < 1 or any(dense.info[key] != ticket.info[key] for key in same_run):
        return None
    return dense.rewind_point
