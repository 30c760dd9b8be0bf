"""Whether draws follow their probabilities."""

from collections.abc import Sequence

import numpy as np


def surprise(drawn: Sequence[int], probabilities: Sequence[float]) -> float:
    """Pearson's chi-square of the draws, as standard deviations of a normal variable (Wilson and Hilferty)."""
    observed = np.bincount(drawn, minlength=len(probabilities))
    expected = len(drawn) * np.asarray(probabilities)
    assert not observed[expected == 0].any()
    kept = expected > 0
    chi_square, degrees = ((observed - expected)[kept] ** 2 / expected[kept]).sum(), kept.sum() - 1
    spread = 2 / (9 * degrees)
    return float(((chi_square / degrees) ** (1 / 3) - (1 - spread)) / spread**0.5)
