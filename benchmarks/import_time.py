"""`import hrda_lib` once torch is loaded, in fresh processes."""

import subprocess
import sys
from collections.abc import Iterator

from rounds import OURS, Row

CODE = "import time, torch; start = time.perf_counter(); import hrda_lib; print(1000 * (time.perf_counter() - start))"


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    if not small:
        for _ in range(2):  # the first runs write bytecode and fill the disk cache
            subprocess.run([sys.executable, "-c", CODE], check=True, stdout=subprocess.DEVNULL)
    times = [float(subprocess.check_output([sys.executable, "-c", CODE])) for _ in range(rounds)]
    yield Row("import hrda_lib after import torch", "ms", {OURS: times})
