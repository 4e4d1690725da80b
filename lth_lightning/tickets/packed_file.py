"""Reads a ticket's file without torch, whose import would add a second to every report."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from lth_lightning.errors import TicketError

KEY = "lth_lightning.ticket"  # the only key: safetensors writes several in random order, so bytes would differ


def read_facts(path: Path) -> dict[str, Any]:
    """Read a ticket's facts and its masks' `shapes`, without reading the weights or checking the hash.

    Raises:
        TicketError: the file does not exist, or is not a ticket.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(json.loads((file.metadata() or {})[KEY]))
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise damaged(path, error) from error


def read_mask(path: Path, name: str, shape: Sequence[int]) -> np.ndarray:
    """Read one mask, bool, in its weight's shape (`read_facts`), without checking the hash.

    Raises:
        TicketError: the file or the mask does not exist.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return unpack(file.get_tensor(f"mask.{name}"), shape)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from error


def prunable_share(facts: Mapping[str, Any]) -> str:
    """Describe in one line the prunable weights, their share of all parameters, and the matrices left out.

    Args:
        facts: a ticket's facts: the `shapes` of its masks by name, the number of `parameters` of the network, and
            the `left_out` matrices with their reasons.
    """
    prunable = sum(math.prod(shape) for shape in facts["shapes"].values())
    line = f"{prunable:,} weights, {100 * prunable / facts['parameters']:.3g} % of all parameters"
    by_reason: dict[str, list[str]] = {}
    for name, reason in facts["left_out"].items():
        by_reason.setdefault(reason, []).append(name)
    parts = [f"{reason} ({', '.join(_by_pattern(names))})" for reason, names in by_reason.items()]
    return f"{line}; matrices left out: {', '.join(parts) or 'none'}"


def _by_pattern(names: Iterable[str]) -> list[str]:
    """Join names that differ only in numbers into one pattern with a count: `3 x layers.*.weight`."""
    patterns: dict[str, list[str]] = {}
    for name in names:
        patterns.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return [alike[0] if len(alike) == 1 else f"{len(alike)} x {pattern}" for pattern, alike in patterns.items()]


def damaged(path: Path, error: Exception) -> TicketError:
    """Return the error for a file that cannot be read."""
    return TicketError(f"{path} is not a ticket, or is damaged: {error}.")


def unpack(bits: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Unpack a mask from its bits, eight to a byte.

    Raises:
        ValueError: the number of bytes does not match the shape.
    """
    size = int(np.prod(shape))
    if len(bits) != -(-size // 8):
        raise ValueError(f"a mask of {size} entries cannot be packed in {len(bits)} bytes")
    return np.unpackbits(bits, count=size).astype(bool).reshape(tuple(shape))
