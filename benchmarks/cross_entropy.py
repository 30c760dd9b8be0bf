"""Weighted cross-entropy of upsampled logits, forward and backward, beside interpolate and cross_entropy."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from hrda_lib import confidence_weighted_ce
from rounds import OURS, Row, alternate, peak_memory

PLAIN = "interpolate, cross_entropy"
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    scores = interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    return (cross_entropy(scores, target, reduction="none") * weight).mean()


def prepared(loss: Loss, classes: int, cells: int, pixels: int) -> Callable[[], None]:
    """Forward and backward on a batch of two; the first call, on few pixels, has been made."""
    torch.manual_seed(0)

    def batch(cells: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.randn(2, classes, cells, cells, requires_grad=True)
        return logits, torch.randint(classes, (2, pixels, pixels)), torch.rand(2, pixels, pixels)

    def run(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        inputs[0].grad = None
        loss(*inputs).backward()

    run(batch(8, 32))
    inputs = batch(cells, pixels)
    return lambda: run(inputs)


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    sizes = (19, 16, 64) if small else (19, 256, 1024)
    title = f"2 x {sizes[0]} x {sizes[1]}² logits, {sizes[2]}² labels"
    ways = {OURS: (confidence_weighted_ce, *sizes), PLAIN: (plain, *sizes)}
    runs = {name: prepared(*given) for name, given in ways.items()}
    yield alternate(f"{title}, time", runs, rounds=rounds, targets={PLAIN: 0.40})
    yield peak_memory(f"{title}, peak memory", prepared, ways, targets={PLAIN: 0.15})
