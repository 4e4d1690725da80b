"""Lengths of training, written as in OpenLTH: `50000it`, `20ep`, and `5%` for a rewind point."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from lth_lightning.errors import SettingError

_UNITS = {"it": "optimizer steps", "ep": "passes over the training data", "%": "percent of train_for"}


@dataclass(frozen=True)
class Length:
    """A length of training: `amount` in the unit `it` (optimizer steps), `ep` (epochs) or `%` (of a round)."""

    amount: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str, setting: str, units: tuple[str, ...]) -> "Length":
        """Read `text`, the value given for `setting`, where only `units` are allowed.

        Raises:
            SettingError: the text is no such length.
        """
        match = re.fullmatch(r"(\d{1,15})(it|ep)|(\d{1,15}(?:\.\d{1,12})?)(%)", str(text).strip(), re.ASCII)
        amount, unit = [group for group in match.groups() if group is not None] if match else ("", "")
        if unit not in units:
            examples = {"it": "500it", "ep": "2ep", "%": "5%"}
            allowed = ", ".join(f"{examples[unit]} ({_UNITS[unit]})" for unit in units)
            raise SettingError(f"{setting}: {text!r} is not a length; write a number and its unit: {allowed}.")
        return cls(Fraction(amount), unit)

    def steps(self, steps_per_epoch: int, round_steps: int | None = None) -> int:
        """This length in optimizer steps; `round_steps` is the length of a round, which `%` refers to."""
        if self.unit == "it":
            return int(self.amount)
        if self.unit == "ep":
            return int(self.amount) * steps_per_epoch
        assert round_steps is not None
        return int(self.amount * round_steps / 100)

    def __str__(self) -> str:
        amount = Decimal(self.amount.numerator) / self.amount.denominator  # exact: `parse` takes 27 digits at most
        return f"{amount:f}{self.unit}"
