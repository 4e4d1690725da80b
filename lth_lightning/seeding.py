"""Seeds: every random draw is a pure function of the run's seed and a purpose given in words.

A single network can therefore be retrained from its ticket, without repeating the networks before it.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Derive a seed in [0, 2**63) for one purpose, e.g. `derive_seed(1, "order", round)`; the same on every machine.

    SHA-256 keeps the streams of neighbouring seeds and rounds apart, where seed + round would make run 1's
    round 2 the same as run 2's round 1.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_global_generators(seed: int) -> None:
    """Seed Python, NumPy and torch (every device), which dropout and stock DataLoaders draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # which keeps a stack trace for devices that cannot come: 2 ms an epoch
        torch.default_generator.manual_seed(seed)


def generators() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators as numbers, text and tensors, for checkpoints."""
    version, numbers, next_gauss = random.getstate()
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": (version, torch.tensor(numbers), next_gauss),  # pickling 625 numbers one by one takes 5 ms
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_generators(state: dict[str, Any]) -> None:
    """Restore the states that `generators` returned, in this version or one that kept Python's numbers in a tuple."""
    version, numbers, next_gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist() if isinstance(numbers, torch.Tensor) else numbers), next_gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the global generators on exit, even after an exception."""
    before = generators()
    try:
        yield
    finally:
        restore_generators(before)
