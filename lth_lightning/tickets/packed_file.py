"""What can be read of a ticket's file without torch, whose import takes a report a second."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from lth_lightning.errors import TicketError

KEY = "lth_lightning.ticket"  # the only key: safetensors writes several in random order, and bytes would differ


def read_facts(path: Path) -> dict[str, Any]:
    """What a ticket's file says of it, and its masks' `shapes`, without reading the weights; no hash is checked.

    Raises:
        TicketError: no such file, or not a ticket.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(json.loads((file.metadata() or {})[KEY]))
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise damaged(path, error) from error


def read_mask(path: Path, name: str, shape: Sequence[int]) -> np.ndarray:
    """One mask of a ticket's file, bool, of its weight's shape (`read_facts`); no hash is checked.

    Raises:
        TicketError: no such file, or no such mask in it.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return unpack(file.get_tensor(f"mask.{name}"), shape)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from error


def prunable_share(facts: Mapping[str, Any]) -> str:
    """What may be pruned, its share of all parameters, and the weight matrices that are left out, in one line.

    Args:
        facts: of a ticket: `shapes` of its masks by name, how many `parameters` the network has, and the names and
            reasons of what is `left_out`.
    """
    prunable = sum(math.prod(shape) for shape in facts["shapes"].values())
    line = f"{prunable:,} weights, {100 * prunable / facts['parameters']:.3g} % of all parameters"
    by_reason: dict[str, list[str]] = {}
    for name, reason in facts["left_out"].items():
        by_reason.setdefault(reason, []).append(name)
    parts = [f"{reason} ({', '.join(_by_pattern(names))})" for reason, names in by_reason.items()]
    return f"{line}; matrices left out: {', '.join(parts) or 'none'}"


def _by_pattern(names: Iterable[str]) -> list[str]:
    """Names that differ in numbers only as one: `layers.*.weight`, with how many they are."""
    patterns: dict[str, list[str]] = {}
    for name in names:
        patterns.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return [alike[0] if len(alike) == 1 else f"{len(alike)} x {pattern}" for pattern, alike in patterns.items()]


def damaged(path: Path, error: Exception) -> TicketError:
    """The error for a file that cannot be read."""
    return TicketError(f"{path} is not a ticket, or is damaged: {error}.")


def unpack(bits: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A mask from its bits, eight to a byte.

    Raises:
        ValueError: there are more bytes, or fewer, than its shape needs.
    """
    size = int(np.prod(shape))
    if len(bits) != -(-size // 8):
        raise ValueError(f"a mask of {size} entries cannot be packed in {len(bits)} bytes")
    return np.unpackbits(bits, count=size).astype(bool).reshape(tuple(shape))
