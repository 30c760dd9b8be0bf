"""How time and memory grow with the size of images, the number of classes and the batch."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hrda_lib import SlidingWindowInferer, confidence_weighted_ce, fuse_scales
from rounds import OURS, Row, alternate, peak_memory, quartiles

Sizes = tuple[int, int, int]  # batch, classes, side in pixels
SIDES, CLASSES, BATCHES = (512, 1024, 2048, 4096), (2, 19, 50, 150), (1, 2, 4, 8)


def loss(batch: int, classes: int, side: int) -> Callable[[], object]:
    logits = torch.randn(batch, classes, side // 4, side // 4, requires_grad=True)
    labels = torch.randint(classes, (batch, side, side))

    def run() -> Tensor | None:
        logits.grad = None
        confidence_weighted_ce(logits, labels).backward()
        return logits.grad

    return run


def windows(batch: int, classes: int, side: int) -> Callable[[], object]:
    window = min(512, side // 2)
    image, said = torch.zeros(batch, 1, side, side), torch.randn(1, classes, window, window)
    infer = SlidingWindowInferer(window, batch_size=1, output="labels", label_dtype=torch.uint8)
    return lambda: infer(image, lambda _: said)


def fusion(batch: int, classes: int, side: int) -> Callable[[], object]:
    context = torch.randn(batch, classes, side // 8, side // 8)
    attention, detail = torch.rand(context.shape), torch.randn(batch, classes, side // 4, side // 4)
    return lambda: fuse_scales(context, detail, attention)


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    side, sides = (64, (64, 128)) if small else (512, SIDES)
    cases = {"confidence_weighted_ce": loss, "windows to labels": windows, "fuse_scales": fusion}
    axes: dict[str, list[Sizes]] = {
        "side": [(1, 19, s) for s in sides],
        "classes": [(1, c, side) for c in CLASSES],
        "batch": [(b, 19, side) for b in BATCHES],
    }
    for name, prepare in cases.items():
        for axis, sizes in axes.items():
            index = {"batch": 0, "classes": 1, "side": 2}[axis]
            for measure in (time_of, memory_of):
                curve = {size[index]: measure(name, prepare, size, max(rounds // 3, 1)) for size in sizes}
                for at, row in curve.items():
                    last = at == max(curve)
                    note = f"grows as {axis} to the power of {power(curve):.2f}" if last else ""
                    yield row._replace(
                        title=f"{name}, {axis} {at}, {'time' if row.unit == 'ms' else 'memory'}", note=note
                    )


def time_of(name: str, prepare: Callable[..., Callable[[], object]], size: Sizes, rounds: int) -> Row:
    return alternate(name, {OURS: prepare(*size)}, rounds=rounds)


def memory_of(name: str, prepare: Callable[..., Callable[[], object]], size: Sizes, rounds: int) -> Row:
    return peak_memory(name, prepare, {OURS: size})


def power(rows: dict[int, Row]) -> float:
    """The slope between the first and the last, both axes logarithmic."""
    first, last = min(rows), max(rows)
    low, high = (max(quartiles(rows[at].values[OURS])[0], 1e-3) for at in (first, last))
    return math.log(high / low) / math.log(last / first)
