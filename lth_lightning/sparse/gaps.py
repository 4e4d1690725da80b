"""Distances between surviving weights, a byte each: in the file for `sparse.load`, and in C source."""

import numpy as np

MARKER = 255
"""The byte that stands for 255 places without a weight."""


def as_bytes(distances: np.ndarray) -> np.ndarray:
    """Return distances of any length as bytes: as many markers as 255 goes into each, and then the rest."""
    markers = distances // MARKER
    found = np.full(len(distances) + int(markers.sum()), MARKER, np.uint8)
    found[np.arange(len(distances)) + markers.cumsum()] = distances % MARKER
    return found
