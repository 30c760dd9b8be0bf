"""The examples as a user runs them, shortened: on small pictures, for a few steps."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.run_folder import read_metrics
from toy import streets
from toy.data import write_toy_data

EXAMPLES = Path(__file__).parents[1] / "examples"
FAST = ["--steps", 2, "--warmup", 2, "--crop", 32, 48, "--min-pixels", 20]
FAST_STREETS = ["--recipe", "demo", "--warmup", 2, "--steps", 2, "--crop", 64, 128, "--min-pixels", 20]
FAST_STREETS += ["--min-crop-pixels", 10]


def run(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """In a process of its own, where a warning is an error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def run_together(count: int, script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """In so many processes that share the work."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
    command = [*start, EXAMPLES / script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=200)


def main(script: str, *arguments: Any) -> int:
    """In this process; the exit status, also where the parser of arguments refuses."""
    try:
        return importlib.import_module(script.removesuffix(".py")).main([*map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code)


def metrics(run: Path) -> list[dict[str, Any]]:
    """What was learned, without what differs from call to call."""
    return [{name: x for name, x in line.items() if name not in ("seconds", "memory")} for line in read_metrics(run)]


def write(root: Path, count: int = 3, *, labels: bool = True) -> Path:
    """Street-like pictures: sky above road, with a box in between."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels") if labels else ("images",):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        label = np.zeros((48, 64), np.uint8)
        label[24:] = 1
        label[16:32, 8 * i : 8 * i + 16] = 2
        rgb = np.array([(90, 120, 200), (80, 80, 80), (200, 60, 40)])[label] + rng.integers(0, 30, (48, 64, 3))
        Image.fromarray(rgb.astype(np.uint8)).save(root / "images" / f"{i}.png")
        if labels:
            Image.fromarray(label).save(root / "labels" / f"{i}.png")
    return root


def write_streets(root: Path, *, train: int = 4, val: int = 3) -> Path:
    """The toy data, a third as high and wide: ``root/gta`` and ``root/cityscapes``."""
    draw = streets.draw

    def small(domain: str, seed: int, index: int) -> streets.Street:
        street = draw(domain, seed, index)
        return street._replace(image=street.image[::3, ::3], label=street.label[::3, ::3])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streets, "draw", small)
        write_toy_data(root, seed=7, train=train, val=val)
    return root


def picture(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image)
