"""The paper's step, HRDA on mit_b5 with 2 + 2 images of 1024², on a GPU: milliseconds and memory by precision.

    python benchmarks/recipe_step.py [--encoder mit_b5] [--side 1024] [--device cuda] [--steps 10] [--limit GIB]

Random weights and images; the network of the feature distance is kept beside. One JSON line a way.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from self_training import OurStep, ReleasedStep, network

ALL = (0, 1, 2, 3)
WAYS = {
    "the released way, fp32": (None, ()),
    "fp32": (torch.float32, ()),
    "bf16": (torch.bfloat16, ()),
    "fp16": (torch.float16, ()),
    "bf16, checkpoint_stages": (torch.bfloat16, ALL),
}


def measure(step: Callable[[], object], device: torch.device, steps: int) -> dict[str, object]:
    """Median and extremes of a step's time after three others, and the peak of allocated memory."""
    cuda, times = device.type == "cuda", list[float]()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3 + steps):
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    kept = times[3:]
    found: dict[str, object] = {
        "ms": round(statistics.median(kept), 1),
        "spread": [round(f(kept), 1) for f in (min, max)],
    }
    if cuda:
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="mit_b5")
    parser.add_argument("--side", type=int, default=1024, help="of the context crop, in pixels")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--limit", type=float, help="GiB that may be used")
    options = parser.parse_args()
    if options.limit:
        torch.cuda.set_per_process_memory_fraction(options.limit * 2**30 / torch.cuda.mem_get_info()[1])
    for name, (precision, stages) in WAYS.items():
        student = network(options.encoder, options.side, stages).to(options.device)
        if precision is None:
            step: Callable[[], None] = ReleasedStep(student, options.side)
        else:
            step = OurStep(student, options.side, precision)
        try:
            found = measure(step, options.device, options.steps)
            found["finite"] = all(bool(p.isfinite().all()) for p in student.parameters())
        except torch.cuda.OutOfMemoryError:
            found = {"ms": None, "why": "out of memory"}
        print(json.dumps({"way": name, "encoder": options.encoder, "side": options.side, **found}), flush=True)
        del student, step
        if options.device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
