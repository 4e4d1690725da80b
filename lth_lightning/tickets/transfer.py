"""Trains tickets from files instead of finding new ones, on the same data or on other data.

Zhou et al. 2019 (arXiv:1905.01067) ask how much a ticket's mask, its signs and its values each contribute; Morcos et
al. 2019 (arXiv:1906.02773) ask whether tickets transfer to other data and optimizers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lth_lightning.errors import SettingError, TicketError, unknown_name
from lth_lightning.files import content_hash
from lth_lightning.pruning.masks import Masks, check_masks
from lth_lightning.pruning.prunable import prunable_weights
from lth_lightning.pruning.state import State, full_state, parameters_by_name
from lth_lightning.tickets.ticket import Ticket

TRANSFERS = ("mask", "mask_and_sign", "mask_and_weights")
MISMATCHES = ("refuse", "reinitialise")


@dataclass(frozen=True)
class Taken:
    """The parts of a ticket that a run takes over, under the names of its module.

    Args:
        masks: the ticket's masks; all True for a layer whose shape differs.
        start: the weights to start from.
        whole: `start` with the weights that the ticket has pruned, or None if they are not known.
        info: the ticket's facts.
        rewind_step: the step that training starts at.
        rates: the learning rates to hold, for a ticket that was fine-tuned.
        seed: the seed for data order and controls; None for the run's own seed.
    """

    masks: Masks
    start: State
    whole: State | None
    info: Mapping[str, Any]
    rewind_step: int
    rates: list[list[float]] | None
    seed: int | None


class GivenTickets:
    """The tickets from files that a run trains instead of finding its own.

    Args:
        path: a ticket, or a folder of tickets.
        transfer: what to take over: `mask_and_weights`; `mask_and_sign`, which combines the ticket's signs with fresh
            magnitudes; or only the `mask`, on fresh weights. Everything not prunable is treated like the weights.
        on_mismatch: what to do with a layer whose shape differs: `refuse`, or `reinitialise` it and keep all of it.

    Attributes:
        files: each ticket's file, by its round.
        latest_rewind_step: the latest step that a ticket starts at; set by `check`.
        reinitialised: the parameters whose shapes differ, in words by name; set by `check`.

    Raises:
        SettingError: no ticket is found, one cannot be read, two are of the same round, or a choice is unknown.
    """

    def __init__(self, path: Path, transfer: str = "mask_and_weights", on_mismatch: str = "refuse") -> None:
        for setting, given, allowed in (("transfer", transfer, TRANSFERS), ("on_mismatch", on_mismatch, MISMATCHES)):
            if given not in allowed:
                raise unknown_name(f"lottery.{setting}", given, allowed)
        self.transfer, self.on_mismatch = transfer, on_mismatch
        self.files = ticket_files(path)
        self.latest_rewind_step = 0
        self.reinitialised: dict[str, str] = {}

    @property
    def needs_fresh_weights(self) -> bool:
        """Whether `load` needs weights drawn by this run."""
        return self.transfer != "mask_and_weights" or self.on_mismatch == "reinitialise"

    @property
    def asks_for_fresh_weights(self) -> str:
        """The setting that makes them needed, with its value."""
        if self.transfer != "mask_and_weights":
            return f"lottery.transfer: {self.transfer}"
        return f"lottery.on_mismatch: {self.on_mismatch}"

    def load(self, round: int, module: nn.Module, fresh: State | None) -> Taken:
        """Load the parts of a round's ticket that this run takes over.

        Args:
            round: a key of `files`.
            module: the network to train.
            fresh: newly drawn weights of `module`, if `needs_fresh_weights`.

        Raises:
            TicketError: the file cannot be read, or does not fit the module.
        """
        written = Ticket.load(self.files[round])
        filling = fresh if self.on_mismatch == "reinitialise" else None
        self.reinitialised |= written.misshapen(full_state(module))  # none, or `fit_to` refuses
        ticket, whole = written.fit_to(module, filling), whole_rewind_point(self.files[round], written)
        if whole is not None:
            whole = Ticket(written.masks, whole).fit_to(module, filling).rewind_point
        if self.transfer == "mask_and_weights":
            step, rates, seed = int(ticket.info["rewind_step"]), ticket.info["learning_rates"], int(ticket.info["seed"])
            return Taken(ticket.masks, ticket.rewind_point, whole, ticket.info, step, rates, seed)
        assert fresh is not None
        if self.transfer == "mask":
            return Taken(ticket.masks, fresh, fresh, ticket.info, 0, None, None)
        signed = with_signs(fresh, ticket.rewind_point, ticket.masks)
        whole = None if whole is None else with_signs(fresh, whole, ticket.masks)
        return Taken(ticket.masks, signed, whole, ticket.info, 0, None, None)

    def check(
        self, module: nn.Module, weights: Mapping[str, Tensor], controls: Sequence[str], fresh: State | None
    ) -> None:
        """Check all tickets before any training, so that nothing fails rounds later.

        Raises:
            SettingError: a ticket does not fit the module or its prunable weights, or lacks weights that a control
                needs.
        """
        for round, path in self.files.items():
            try:
                taken = self.load(round, module, fresh)
            except TicketError as error:
                if self.on_mismatch == "refuse" and Ticket.load(path).misshapen(full_state(module)):
                    hint = "To reinitialise layers whose shapes differ, set --lottery.on_mismatch reinitialise."
                    error.args = (f"{error} {hint}",)  # not a new error: the command line prints the innermost one
                raise
            check_masks(taken.masks, weights)
            if taken.whole is None and "random_mask" in controls:
                raise SettingError(
                    f"lottery.controls: random_mask needs weights that {path.name} has pruned and does not hold. Put "
                    "its run's round_00.safetensors beside it, or leave random_mask out."
                )
            self.latest_rewind_step = max(self.latest_rewind_step, taken.rewind_step)

    def weights(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Return the weights of `module` that the tickets mask; if the tickets are for another network, return the
        default prunable weights, so that `check` raises the error."""
        target = full_state(module)
        names = Ticket.load(next(iter(self.files.values()))).names_in(target)
        return parameters_by_name(module, [name for name in target if name in names]) or prunable_weights(module)

    def contents(self) -> dict[str, str]:
        """Return the start of each file's hash, by file name: it identifies the tickets, wherever they are."""
        return {f"content of {path.name}": content_hash(path)[:12] for path in self.files.values()}


def ticket_files(path: Path) -> dict[int, Path]:
    """Return the ticket at `path`, or all tickets in that folder, by round.

    Raises:
        SettingError: no ticket is found, one cannot be read, or two are of the same round.
    """
    paths = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not paths:
        raise SettingError(f"lottery.tickets: the folder {path} contains no ticket (*.safetensors).")
    files: dict[int, Path] = {}
    for file in paths:
        round = int(Ticket.load(file).info["round"])
        if round in files:
            raise SettingError(f"lottery.tickets: {files[round]} and {file} are both of round {round}.")
        files[round] = file
    return files


def whole_rewind_point(path: Path, ticket: Ticket) -> State | None:
    """Read the rewind point, including the weights that the ticket has pruned, from the dense ticket beside it.

    A ticket holds only the surviving weights; a control that keeps other weights needs the pruned ones too.

    Args:
        path: the ticket's file.
        ticket: the ticket in that file.

    Returns:
        Every parameter and buffer, or None if the dense ticket of the same run is missing.
    """
    beside = path.with_name("round_00.safetensors")
    dense = ticket if ticket.density == 1 else Ticket.load(beside) if beside.exists() else None
    same_run = ("seed", "rewind_step", "architecture", "data")
    if dense is None or dense.density < 1 or any(dense.info[key] != ticket.info[key] for key in same_run):
        return None
    return dense.rewind_point


def with_signs(magnitudes: State, signs: State, masks: Masks) -> State:
    """Give masked weights of `magnitudes` the signs of `signs`, entry by entry; other tensors do not change.

    Zhou et al. 2019 (arXiv:1905.01067), section 4: the initial signs matter more than the values.
    """
    return {
        name: value.abs() * signs[name].to(value.device).sign() if name in masks else value
        for name, value in magnitudes.items()
    }
