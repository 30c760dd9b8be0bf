"""Which settings of gta2cityscapes.py make sense."""

from collections.abc import Mapping
from typing import Any

import numpy as np

POSITIVE = ("steps", "batch_size", "lr", "head_factor", "temperature", "seeds")
NOT_NEGATIVE = (
    *("seed", "workers", "warmup", "margins", "source_size", "target_size", "weight_decay", "clip"),
    *("min_pixels", "min_crop_pixels", "lr_warmup", "lr_power", "feature_distance"),
)
# whole cells of the encoder, at two scales in the context, at half the resolution
CELLS = {"small": 16, "hrda": 64, "daformer": 32, "deeplab_v2": 8}


def complaint(values: Mapping[str, Any]) -> str:
    """What is wrong with the first setting that is out of its range; empty if all are right."""
    cell = CELLS[values["model"]]
    rules = {
        "must be positive": [(name, values[name] > 0) for name in POSITIVE],
        "must not be negative": [(name, np.min(values[name]) >= 0) for name in NOT_NEGATIVE],
        "must be in [0, 1)": [("ema_decay", 0 <= values["ema_decay"] < 1)],
        "must be in [0, 1]": [("threshold", 0 <= values["threshold"] <= 1)],
        "must be finite": [(name, np.isfinite(x)) for name, x in values.items() if isinstance(x, float)],
        "must be two sides, or 0 0": [
            (name, all(values[name]) or not any(values[name])) for name in ("source_size", "target_size")
        ],
        f"must be positive multiples of {cell}": [
            ("crop", all(side > 0 and side % cell == 0 for side in values["crop"]))
        ],
    }
    for rule, cases in rules.items():
        for name, right in cases:
            if not right:
                return f"--{name.replace('_', '-')} {rule}, got {values[name]}"
    return ""
