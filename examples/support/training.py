"""What a training loop of the examples stands on: whole steps, finite numbers, and warnings that come in time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hrda_lib import StrongAugment, patch_mask, sample_box_mask
from hrda_lib.data import IMAGENET_MEAN, IMAGENET_STD
from support.batches import Batch, Batches
from support.ending import reason
from support.networks import jitter_and_blur
from support.run_folder import RunFolder


@contextmanager
def whole_step(run: RunFolder, batches: Batches, batch: Batch, *networks: nn.Module) -> Iterator[None]:
    """A step that is made or not: if it fails, buffers are as before, and what is left can be saved and go on.

    Numbers that are not finite name step and images, the batch is kept as ``bad_batch.pt``, and where ``--skip`` allows
    it, training goes on without the step.

    Raises:
        ValueError: with step and images, in place of one that came without.
    """
    buffers = [buffer for network in networks for buffer in network.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
        run.made(batch.step)
    except BaseException as error:
        with torch.no_grad():
            for buffer, was in zip(buffers, before, strict=True):
                buffer.copy_(was)
        for network in networks:
            network.zero_grad()
        if not isinstance(error, ValueError | FloatingPointError):
            raise
        text = f"{reason(error)}; its images: {batches.names(batch.step)}{run.keep_batch(batch)}"
        # of several processes, all must leave it out
        may = isinstance(error, NotFinite) or (run.group is None and "finite" in str(error))
        if run.skips < 1 or not may:
            raise ValueError(text) from error
        run.skips -= 1
        run.made(batch.step)
        run.say(f"step {batch.step} is left out, {run.skips} more may be: {text}")


class NotFinite(ValueError):
    """Of a step's losses or gradients, which all processes know alike."""


def check_finite(values: Mapping[str, float], network: nn.Module, *, scaled: bool) -> None:
    """Refuse a step whose losses, gradients or running statistics are not finite.

    Of scaled losses, the scaler looks after the gradients.

    Raises:
        NotFinite: names the first.
    """
    for name, value in values.items():
        if not abs(value) < float("inf") and not (scaled and name == "gradient"):
            raise NotFinite(
                f"{name} is not finite; choose a smaller --lr, or look at the images: check_data.py; --skip N goes on"
            )
    statistics = [buffer.isfinite().all() for buffer in network.buffers() if buffer.is_floating_point()]
    if statistics and not torch.stack(statistics).all():
        raise NotFinite("running statistics are not finite; look at the images: check_data.py; --skip N goes on")


def warn(run: RunFolder, settings: Any, values: Mapping[str, float]) -> None:
    """Say so where, in a hundred steps, the teacher trusted hardly a pixel or called nearly all of them one class."""
    if "confidence" not in values or run.next % 100:
        return
    recent = [line for line in (*run.recent, values) if "confidence" in line][-100:]
    trusted, most = (sum(line[name] for line in recent) / len(recent) for name in ("confidence", "largest_class"))
    text = f"{len(recent)} steps of adaptation:"
    if trusted < 0.01:
        run.say(
            f"{text} only {100 * trusted:.2f} % of the target's pixels are trusted enough to teach; a longer --warmup "
            f"or a lower --threshold than {settings.threshold} helps"
        )
    elif most > 0.95:
        run.say(
            f"{text} {100 * most:.1f} % of an image's pseudo labels are of one class: the teacher collapses; a longer "
            "--warmup, a smaller --lr or --rare-classes 1 helps"
        )


def largest(labels: Tensor) -> float:
    """The share of the most frequent class."""
    return labels.flatten().bincount().max().item() / labels.numel()


def clip(network: nn.Module, limit: float) -> float:
    """Limit the norm of all gradients, where a limit is given; returns what it was."""
    return float(nn.utils.clip_grad_norm_(network.parameters(), limit or float("inf")))


def parts_of(size: int, generator: torch.Generator | None, *batch: Tensor) -> Iterator[Sequence[Tensor]]:
    """A batch by parts of ``size`` images, 0: all at once; each part draws the same box."""
    assert generator is not None
    state, count = generator.get_state(), len(batch[0])
    for start in range(0, count, size or count):
        generator.set_state(state)
        yield [x[start : start + (size or count)] for x in batch]


def boxes(mix: str, generator: torch.Generator | None, labels: Tensor, group: Any) -> Tensor | None:
    """Where the source is pasted, if it is in boxes; None: by classes."""
    if mix == "classes":
        return None
    height, width = labels.shape[-2:]
    return sample_box_mask((height, width), generator, batch=len(labels), group=group).to(labels.device)


def to_mask(
    settings: Any,
    augment: Callable[[Tensor], Tensor],
    generator: torch.Generator | None,
    images: Tensor,
    labels: Tensor,
    target: Tensor,
    pseudo_labels: Tensor,
    weight: Tensor,
    run: RunFolder,
) -> tuple[Tensor, Tensor, Tensor]:
    """MIC's images with patches hidden, their labels and weights.

    They are augmented target images, or half of each domain's as they are.
    """
    first, count = len(images) * run.rank, len(images) * run.running.world
    if settings.mask_on == "separate":
        mine = (first + torch.arange(len(images), device=run.device) < count // 2)[:, None, None]
        shown, labels = torch.where(mine[..., None], images, target), torch.where(mine, labels.long(), pseudo_labels)
        weight = torch.where(mine, 1.0, weight)
    else:
        shown, labels = augment(target), pseudo_labels
    size = shown.shape[-2], shown.shape[-1]
    kept = patch_mask(size, batch=count, ratio=settings.mask_ratio, block=settings.mask_block, generator=generator)
    return shown * kept[first : first + len(images)].to(shown), labels, weight


def augmentation(settings: Any, *, pictures: bool) -> Callable[..., Tensor]:
    """Of mixed images, and of the source's; of images that are no pictures, contrast and blur alone."""
    width = settings.jitter
    if not pictures:
        return partial(jitter_and_blur, width=width, blur=settings.blur)
    colours = partial(StrongAugment, brightness=width, contrast=width, saturation=width, hue=settings.hue)
    return colours(mean=IMAGENET_MEAN, std=IMAGENET_STD, blur=settings.blur)
