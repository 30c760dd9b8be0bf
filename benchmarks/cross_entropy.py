"""`confidence_weighted_ce` beside interpolate and cross_entropy: time and memory of forward and backward.

    python benchmarks/cross_entropy.py

Both take turns in one process for the time; memory is what the peak of a process of its own rises by.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from hrda_lib import confidence_weighted_ce

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    scores = interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    return (cross_entropy(scores, target, reduction="none") * weight).mean()


WAYS: dict[str, Loss] = {"plain": plain, "hrda_lib": confidence_weighted_ce}


def batch(classes: int, cells: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(2, classes, cells, cells, requires_grad=True)
    return logits, torch.randint(classes, (2, pixels, pixels)), torch.rand(2, pixels, pixels)


def seconds(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    inputs[0].grad = None
    start = time.perf_counter()
    loss(*inputs).backward()
    return time.perf_counter() - start


def megabytes(way: str, sizes: tuple[int, int, int], threads: int) -> float:
    """What the first forward and backward add to the peak of a fresh process."""
    torch.set_num_threads(threads)
    seconds(WAYS[way], batch(sizes[0], 8, 32))
    inputs = batch(*sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds(WAYS[way], inputs)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--cells", type=int, default=256)
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    sizes = given.classes, given.cells, given.pixels
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {way: pool.apply(megabytes, (way, sizes, given.threads)) for way in WAYS}
    torch.set_num_threads(given.threads)
    inputs = batch(*sizes)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(given.rounds + 1):
        for way, loss in WAYS.items():
            times[way] += [seconds(loss, inputs)] * (turn > 0)
    for way, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        print(
            f"{way:10s}{1e3 * statistics.median(values):8.0f} ms ({1e3 * low:.0f} to {1e3 * high:.0f})"
            f"{memory[way]:8.0f} MB"
        )
    ratios = [ours / theirs for ours, theirs in zip(times["hrda_lib"], times["plain"], strict=True)]
    print(f"ratio{statistics.median(ratios):13.2f}{memory['hrda_lib'] / memory['plain']:24.2f}")


if __name__ == "__main__":
    main()
