"""What the steps of a run learn from: any step's batch, from the seed and its number alone."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader

from hrda_lib import data
from support import SIGNALS
from support.command_line import Running
from support.domains import fitted
from support.ending import printable

Pair = tuple[Tensor, Tensor]


class Batch(NamedTuple):
    """Of one step of one process: (images, labels) of the source, (images, valid) of the target if there is one."""

    step: int
    source: Pair
    target: Pair | None


class Batches:
    """Batches of labelled crops, those of rare classes more often, and of crops without labels.

    What step k takes depends on the seed and k alone: neither on the step that a run goes on from, nor on workers, and
    processes share the batch that one process would have.
    """

    def __init__(
        self,
        labeled: data.LabeledImages,
        counts: Tensor,
        images: data.UnlabeledImages,
        settings: Any,
        running: Running,
        *,
        adapts: bool,
    ) -> None:
        labeled = data.Resized(labeled, settings.source_size) if all(settings.source_size) else labeled
        images, rare = fitted(images, settings.target_size), rare_classes(settings, counts)
        enough = settings.min_crop_pixels if settings.min_crop_pixels >= 0 else None
        both = {"size": settings.crop, "seed": settings.seed, "on_error": running.on_error}
        self.source = data.SourceCrops(labeled, rare_classes=rare, min_crop_pixels=enough, **both)
        self.target = data.TargetCrops(images, margins=settings.margins, **both) if adapts else None
        self.steps, self.workers, self.adapts = settings.steps, running.workers, adapts
        self.place = {"rank": running.rank, "world": running.world}
        if settings.batch_size % running.world:
            raise ValueError(
                f"--batch-size must be a multiple of the {running.world} processes that share it, got "
                f"{settings.batch_size}"
            )
        self.batch_size = settings.batch_size // running.world

    def since(self, start: int) -> Iterator[Batch]:
        """The batches from a step on."""
        samples = data.StepBatches(self.batch_size, self.steps, start=start, **self.place)
        source = iter(self._loader(self.source, samples))
        target = iter(self._loader(self.target, samples)) if self.target is not None else None
        for step in range(start, self.steps):
            yield Batch(step, _pair(next(source)), _pair(next(target)) if target else None)

    def _loader(self, crops: data.SourceCrops | data.TargetCrops, samples: data.StepBatches) -> DataLoader[Any]:
        return DataLoader(
            crops,
            batch_sampler=samples,
            num_workers=self.workers,
            worker_init_fn=leave_signals if self.workers else None,
        )

    def names(self, step: int) -> str:
        """The images that a step takes, read once more."""
        (places,) = data.StepBatches(self.batch_size, step + 1, start=step, **self.place)
        streams = (self.source, self.target) if self.target is not None else (self.source,)
        return "; ".join(", ".join(printable(stream.name(k)) for k in places) for stream in streams)


def leave_signals(_: int) -> None:
    """In a loader's process: the one that started it answers them, and ends it by SIGTERM."""
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


def _pair(batch: Sequence[Tensor]) -> Pair:
    first, second = batch
    return first, second


def rare_classes(settings: Any, counts: Tensor) -> data.RareClasses | None:
    if not settings.rare_classes:
        return None
    return data.RareClasses(counts, temperature=settings.temperature, min_pixels=settings.min_pixels)
