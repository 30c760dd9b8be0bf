"""Self-training, HRDA and windows written out in plain torch, by which every integration is measured.

Nothing here imports hrda_lib. ``Parts`` are the functions of one network as its own library would call them.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad

Network = Callable[[Tensor], Tensor]
Box = tuple[int, int, int, int]  # top, left, height, width
Size = tuple[int, int]


class Batch(NamedTuple):
    source: Tensor
    labels: Tensor
    target: Tensor
    classes: list[list[int]]  # pasted, one list an image
    source_box: Box
    mixed_box: Box


class Parts(NamedTuple):
    encode: Callable[[Tensor], Any]
    decode: Callable[[Any], Tensor]
    attend: Callable[[Any], Tensor | float]  # attention in [0, 1]
    stride: float | None = 4  # pixels a cell of the logits; None: fused at pixels
    detail: int = 32  # pixels of a detail window
    step: int = 16  # pixels between detail windows


def batches(
    steps: int, *, classes: int, channels: int = 3, side: int = 64, box: int = 32, cell: int = 8
) -> list[Batch]:
    """Batches of two by number, in float64; boxes lie on multiples of ``cell``."""
    made = []
    for step in range(steps):
        g = torch.Generator().manual_seed(step)
        source, target = torch.randn(2, 2, channels, side, side, generator=g, dtype=torch.float64)
        labels = torch.randint(classes, (2, side, side), generator=g)
        labels[:, : side // 16] = 255
        places = range(0, side - box + 1, cell)
        first, second = places[(1 + step) % len(places)], places[-1 - step % len(places)]
        boxes = (first, second, box, box), (second, first, box, box)
        made.append(Batch(source, labels, target, [[0, classes - 1], [1]], *boxes))
    return made


def up(x: Tensor, size: Any) -> Tensor:
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def ce(logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """The mean over all pixels, ignored ones too."""
    losses = cross_entropy(up(logits, labels.shape[-2:]), labels, ignore_index=255, reduction="none")
    return (losses if weight is None else losses * weight).mean()


def cut(x: Tensor, box: Box) -> Tensor:
    top, left, height, width = box
    return x[..., top : top + height, left : left + width]


def starts(size: int, window: int, stride: int) -> list[int]:
    return [min(k * stride, size - window) for k in range(max(size - window + stride - 1, 0) // stride + 1)]


def grid(image: Tensor, window: Size, stride: Size) -> list[Box]:
    rows, columns = (starts(n, w, s) for n, w, s in zip(image.shape[-2:], window, stride, strict=True))
    return [(top, left, *window) for top in rows for left in columns]


def slide(network: Network, image: Tensor, window: Size, stride: Size) -> Tensor:
    """mmseg's ``slide_inference``: windows upsampled to pixels, summed, divided by how many cover a pixel."""
    total: Tensor | None = None
    count = torch.zeros(1, 1, *image.shape[-2:], dtype=image.dtype)
    for box in grid(image, window, stride):
        logits = up(network(cut(image, box)), window)
        total = image.new_zeros(len(image), logits.shape[1], *image.shape[-2:]) if total is None else total
        cut(total, box).add_(logits)
        cut(count, box).add_(1)
    assert total is not None
    return total / count


def padded(run: Network, image: Tensor, size: Size) -> Tensor:
    """``run`` on the image padded at the bottom and right, its answer cut back."""
    rows, columns = image.shape[-2:]
    return run(pad(image, (0, size[1] - columns, 0, size[0] - rows)))[..., :rows, :columns]


def pseudo(teacher_logits: Tensor, size: Any, threshold: float, processes: int = 1) -> tuple[Tensor, Tensor]:
    """The share of sure pixels is that of the batch; of several processes, each has its own."""
    probability, label = up(teacher_logits, size).softmax(1).max(1)
    sure = (probability >= threshold).to(probability)
    shares = [part.mean().expand(part.shape) for part in sure.chunk(processes)]
    return label, torch.cat(shares)


def mixture(batch: Batch, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    chosen = [torch.isin(y, torch.tensor(ids)) for y, ids in zip(batch.labels, batch.classes, strict=True)]
    mask = torch.stack(chosen)
    images = torch.where(mask[:, None], batch.source, batch.target)
    return images, torch.where(mask, batch.labels, label), torch.where(mask, torch.ones_like(weight), weight)


def fuse(yc: Tensor, yd: Tensor, attention: Tensor | float, inside: Tensor) -> Tensor:
    """``yd`` fills the image; ``inside`` is 1 in the cells of the context that lie in the detail crop."""
    a = attention * inside
    return up((1 - a) * yc, yd.shape[-2:]) + up(a * torch.ones_like(yc), yd.shape[-2:]) * yd


def size_in_cells(x: Tensor, cell: float) -> Size:
    return int(x.shape[-2] / cell), int(x.shape[-1] / cell)


def at_box(net: Parts, x: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Fused and detail logits of a crop."""
    rows, columns = x.shape[-2:]
    features = net.encode(up(x, (rows // 2, columns // 2)))
    yc, attention = net.decode(features), net.attend(features)
    yd = net.decode(net.encode(cut(x, box)))
    cell = net.stride or 1
    assert all((n / cell).is_integer() for n in (rows, columns, *box))
    if net.stride is None:
        yc, yd = up(yc, (rows, columns)), up(yd, box[2:])
        attention = up(attention, (rows, columns)) if isinstance(attention, Tensor) else attention
    coarse = rows // yc.shape[-2]
    inside, canvas = x.new_zeros(1, 1, *yc.shape[-2:]), x.new_zeros(*yc.shape[:2], *size_in_cells(x, cell))
    cut(inside, tuple(n // coarse for n in box)).fill_(1)  # type: ignore[arg-type]
    cut(canvas, tuple(int(n / cell) for n in box)).copy_(yd)  # type: ignore[arg-type]
    return fuse(yc, canvas, attention, inside), yd


def everywhere(net: Parts, x: Tensor) -> Tensor:
    """Fused logits with detail windows all over the image, all in one batch, averaged cell by cell."""
    rows, columns = x.shape[-2:]
    features = net.encode(up(x, (rows // 2, columns // 2)))
    yc, attention = net.decode(features), net.attend(features)
    cell = net.stride or 1
    boxes = grid(x, (min(net.detail, rows), min(net.detail, columns)), (net.step, net.step))
    answers = net.decode(net.encode(torch.cat([cut(x, box) for box in boxes])))
    total = count = x.new_zeros(len(x), answers.shape[1], *size_in_cells(x, cell))
    total, count = total.clone(), count.clone()
    for box, answer in zip(boxes, answers.split(len(x)), strict=True):
        cells: Box = tuple(int(n / cell) for n in box)  # type: ignore[assignment]
        cut(total, cells).add_(up(answer, cells[2:]))
        cut(count, cells).add_(1)
    if net.stride is None:
        yc = up(yc, (rows, columns))
        attention = up(attention, (rows, columns)) if isinstance(attention, Tensor) else attention
    return fuse(yc, total / count, attention, torch.ones_like(yc))


def plain_terms(student: Network, teacher: Network, batch: Batch, threshold: float) -> Iterator[Tensor]:
    yield ce(student(batch.source), batch.labels, None)
    with torch.no_grad():
        label, weight = pseudo(teacher(batch.target), batch.labels.shape[-2:], threshold)
    images, labels, weight = mixture(batch, label, weight)
    yield ce(student(images), labels, weight)


def hrda_terms(student: Parts, teacher: Parts, batch: Batch, threshold: float, processes: int = 1) -> Iterator[Tensor]:
    def loss(images: Tensor, labels: Tensor, weight: Tensor, box: Box) -> Tensor:
        fused, detail = at_box(student, images, box)
        return 0.9 * ce(fused, labels, weight) + 0.1 * ce(detail, cut(labels, box), cut(weight, box))

    sure = torch.ones(batch.labels.shape, dtype=batch.source.dtype)
    yield loss(batch.source, batch.labels, sure, batch.source_box)
    with torch.no_grad():
        label, weight = pseudo(everywhere(teacher, batch.target), batch.labels.shape[-2:], threshold, processes)
    yield loss(*mixture(batch, label, weight), batch.mixed_box)


def averaged_copy(student: nn.Module) -> nn.Module:
    """The teacher before the first step: batch norm on the batch, dropout off."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    for part in teacher.modules():
        part.training = isinstance(part, nn.modules.batchnorm._BatchNorm)
    return teacher


@torch.no_grad()
def average(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.copy_(decay * old + (1 - decay) * new)


def train(
    student: nn.Module,
    terms: Callable[[nn.Module, nn.Module, Batch], Iterator[Tensor]],
    steps: list[Batch],
    *,
    rate: float = 0.01,
) -> list[float]:
    """A few steps of SGD, the losses of all their terms; dropout is drawn anew from the step's number."""
    teacher = averaged_copy(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=rate)
    losses = []
    for step, batch in enumerate(steps):
        torch.manual_seed(step)
        if step > 0:
            average(teacher, student, min(1 - 1 / (step + 1), 0.999))
        for loss in terms(student, teacher, batch):
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses
