"""Other primitives beside what one would write or take in their place."""

from collections.abc import Callable, Iterator

import torch
from kornia.augmentation import AugmentationSequential, ColorJitter, RandomGaussianBlur
from torch import Tensor
from torch.nn.functional import interpolate, softmax
from torchmetrics.classification import MulticlassConfusionMatrix

from hrda_lib import (
    ConfusionMatrix,
    CropBox,
    StrongAugment,
    class_mix,
    fuse_scales,
    patch_mask,
    pseudo_labels,
    sample_class_mask,
)
from rounds import OURS, Row, alternate, peak_memory

WRITTEN = "written out"


def pseudo_labels_written_out(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    scores = interpolate(logits, size, mode="bilinear", align_corners=False)
    probability, labels = softmax(scores, dim=1).max(dim=1)
    return labels, (probability >= 0.968).float().mean() * torch.ones(labels.shape)


def fusion_written_out(context: Tensor, detail: Tensor, attention: Tensor, box: CropBox) -> Tensor:
    top, left, height, width = box
    canvas = torch.zeros(*detail.shape[:2], *(2 * side for side in context.shape[-2:]))
    canvas[..., top : top + height, left : left + width] = detail
    mask = torch.zeros_like(attention)
    mask[..., top // 2 : (top + height) // 2, left // 2 : (left + width) // 2] = 1
    share = attention * mask
    fused = interpolate((1 - share) * context, scale_factor=2, mode="bilinear", align_corners=False)
    return fused + interpolate(share, scale_factor=2, mode="bilinear", align_corners=False) * canvas


def mixing_image_by_image(source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    mixed = []
    for image, other, label in zip(source, target, labels, strict=True):
        ids = torch.unique(label)
        chosen = ids[torch.randperm(len(ids))[: (len(ids) + 1) // 2]]
        mask = (label[None] == chosen[:, None, None]).sum(dim=0)
        mixed.append(mask * image + (1 - mask) * other)
    return torch.stack(mixed)


def prepared(way: Callable[..., object], *shape: int) -> Callable[[], object]:
    logits = torch.randn(shape)
    return lambda: way(logits, size=(4 * shape[2], 4 * shape[3]))


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    side = 64 if small else 512
    cells = side // 4
    logits, labels = torch.randn(2, 19, cells, cells), torch.randint(19, (2, 1, side // 16, side // 16))
    labels = interpolate(labels.float(), (side, side))[:, 0].long()
    images, others = torch.rand(2, 2, 3, side, side).unbind()

    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: pseudo_labels(logits, size=(side, side)),
        WRITTEN: lambda: pseudo_labels_written_out(logits, (side, side)),
    }
    yield alternate(f"pseudo_labels, 2 x 19 x {side}²", ways, rounds=rounds)
    shape = (2, 19, cells, cells)
    peaks = {OURS: (pseudo_labels, *shape), WRITTEN: (pseudo_labels_written_out, *shape)}
    yield peak_memory(f"pseudo_labels, 2 x 19 x {side}², peak memory", prepared, peaks)

    attention, box = torch.rand(2, 19, cells, cells), CropBox(cells // 2, cells // 2, cells, cells)
    ways = {
        OURS: lambda: fuse_scales(logits, logits, attention, box=box),
        WRITTEN: lambda: fusion_written_out(logits, logits, attention, box),
    }
    yield alternate(f"fuse_scales, 2 x 19 x {cells}² and a box", ways, rounds=rounds)

    ways = {
        OURS: lambda: class_mix(images, others, sample_class_mask(labels)),
        "image by image": lambda: mixing_image_by_image(images, others, labels),
    }
    yield alternate(f"sample_class_mask and class_mix, 2 x 3 x {side}²", ways, rounds=rounds)
    yield alternate(f"patch_mask, 2 x {side}²", {OURS: lambda: patch_mask((side, side), batch=2)}, rounds=rounds)

    augment = StrongAugment(mean=(0, 0, 0), std=(1, 1, 1), jitter=1, blur=1)
    kernel = side // 10 // 2 * 2 + 1
    kornias = AugmentationSequential(
        ColorJitter(0.2, 0.2, 0.2, 0.2, p=1.0), RandomGaussianBlur((kernel, kernel), (0.15, 1.15), p=1.0)
    )
    ways = {OURS: lambda: augment(images), "kornia ColorJitter, RandomGaussianBlur": lambda: kornias(images)}
    yield alternate(f"StrongAugment, jitter and blur of 2 x 3 x {side}²", ways, rounds=rounds)

    guessed, ours = torch.randint(19, labels.shape), ConfusionMatrix(19)
    metric = MulticlassConfusionMatrix(19, ignore_index=255)
    ways = {
        OURS: lambda: ours.update(guessed, labels),
        "torchmetrics MulticlassConfusionMatrix": lambda: metric.update(guessed, labels),
    }
    yield alternate(f"ConfusionMatrix.update, 2 x {side}²", ways, rounds=rounds)
