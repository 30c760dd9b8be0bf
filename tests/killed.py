"""Runs of own_data.py that are killed at random moments, in one process and in two, and resumed: nothing may be lost.

For tests/verify.py, which shows what came; `python tests/killed.py [COUNT] [COUNT in two processes]` runs it alone.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path[:0] = [str(EXAMPLES), str(Path(__file__).parent)]
SAVE_EVERY = 3
SETTINGS = ["--warmup", "7", "--steps", "12", "--crop", "32", "48", "--min-pixels", "20", "--batch-size", "2"]
SETTINGS += ["--save-every", str(SAVE_EVERY)]


class Killed(NamedTuple):
    """How a run that was killed once, and resumed, compares with one that was not."""

    lost: int  # steps that were made twice
    same: bool  # every bit of the weights, and every number of the log


def command(data: Path, out: Path, *, processes: int, resume: bool = False) -> list[str]:
    arguments = ["--source", data / "source", "--target", data / "target", "--out", out, *SETTINGS]
    arguments += ["--resume"] if resume else []
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*start, str(EXAMPLES / "own_data.py"), *map(str, arguments)]


def start(line: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(line, env=environment, stdout=nowhere, stderr=nowhere, start_new_session=True)


def finished(line: Sequence[str]) -> None:
    with start(line) as process:
        if status := process.wait(timeout=300):
            raise RuntimeError(f"exit status {status}: {' '.join(line)}")


def logged(out: Path) -> list[dict[str, float]]:
    """The whole lines of the log, without what differs from call to call."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}\n")]
    return [{name: x for name, x in row.items() if name not in ("seconds", "memory")} for row in rows]


def kept(out: Path) -> dict[str, torch.Tensor]:
    parts = torch.load(out / "last.pt", weights_only=True)
    return {f"{part} {name}": x for part in ("model", "teacher") for name, x in parts[part].items()}


def killed_once(data: Path, whole: Path, out: Path, moment: int, *, processes: int) -> Killed:
    """Kill a run, and all its processes, some milliseconds after its ``moment``-th step; go on with it."""
    delay = random.Random(moment).random() * 0.2
    with start(command(data, out, processes=processes)) as process:
        while len(logged(out)) < moment and process.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    made = len(logged(out))
    there = torch.load(out / "last.pt", weights_only=True)["step"] if (out / "last.pt").exists() else 0
    finished([*command(data, out, processes=processes, resume=True), "--workers", "1"])
    before, after = kept(whole), kept(out)
    same = before.keys() == after.keys() and all(torch.equal(x, after[name]) for name, x in before.items())
    return Killed(max(made - there, 0), same and logged(whole) == logged(out))


def runs(count: int, *, processes: int) -> list[Killed]:
    """So many killed runs, each at another moment."""
    from scripts import write

    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        write(data / "source")
        write(data / "target", labels=False)
        finished(command(data, data / "whole", processes=processes))
        moments = random.Random(processes).choices(range(19), k=count)
        return [
            killed_once(data, data / "whole", data / f"killed{i}", moment, processes=processes)
            for i, moment in enumerate(moments)
        ]


if __name__ == "__main__":
    for processes, count in enumerate(map(int, sys.argv[1:]), 1):
        found = runs(count, processes=processes)
        print(f"{processes} processes: {found}")
