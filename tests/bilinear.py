"""Bilinear resizing written out, the oracle that several rooms share."""

from math import floor

import numpy as np


def resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The last two dimensions of ``x`` resized to ``size`` in float64, align_corners=False, no antialias."""
    rows, columns = _weights(x.shape[-2], size[0]), _weights(x.shape[-1], size[1])
    return rows @ np.asarray(x, dtype=np.float64) @ columns.T


def _weights(length: int, new_length: int) -> np.ndarray:
    """(new_length, length): what each new cell takes from each old one. The centre of cell i lies at i + 1/2."""
    weights = np.zeros((new_length, length))
    for i in range(new_length):
        position = max((i + 0.5) * length / new_length - 0.5, 0.0)
        low = floor(position)
        weights[i, low] += 1 - (position - low)
        weights[i, min(low + 1, length - 1)] += position - low
    return weights
