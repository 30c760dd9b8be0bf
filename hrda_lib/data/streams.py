"""Endless, resumable streams of training crops from a source and a target."""

import math
from collections.abc import Sized
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from hrda_lib._checks import check_up_to, is_count, is_number, pair
from hrda_lib.data.layout import shown
from hrda_lib.data.rare_class import RareClasses
from hrda_lib.data.samples import LabeledImages, Sample, UnlabeledSample
from hrda_lib.data.skipping import OnError, Skipped, first_readable
from hrda_lib.data.stored_ids import count_ids
from hrda_lib.data.unlabeled_images import UnlabeledImages
from hrda_lib.geometry import CropBox, crop


class SourceCrop(NamedTuple):
    """What :class:`SourceCrops` gives: a crop of an image and of its label."""

    image: Tensor
    """(K, h, w) as the data set reads images, uint8 (3, h, w) as a rule."""
    label: Tensor
    """(h, w) uint8, 255 ignored and where the image was padded."""


class TargetCrop(NamedTuple):
    """What :class:`TargetCrops` gives: a crop of an image, and where a pseudo label is wanted."""

    image: Tensor
    """As in :class:`SourceCrop`."""
    valid: Tensor
    """(h, w) bool, False in margins and padding."""


class Stream:
    """What samples that are numbered without end share: sample k depends on (seed, number, k) alone.

    Args:
        seed: not negative.
        length: how many samples there are; None: no end.
        number: of the stream, so that two of one seed draw independently.

    Raises:
        ValueError: ``seed`` or ``length`` is out of its range.

    Example:
        >>> from hrda_lib.data.streams import Stream
        >>> stream = Stream(seed=0, length=3, number=1)
        >>> len(stream), stream.generator(2).initial_seed() == stream.generator(2).initial_seed()
        (3, True)
    """

    def __init__(self, seed: int, length: int | None, number: int) -> None:
        if length is not None and length < 1:
            raise ValueError(f"length must be positive, got {length}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.seed, self.length, self.number = seed, length, number

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("an endless stream has no length; give it one, or take its samples by StepBatches")
        return self.length

    def generator(self, k: int) -> torch.Generator:
        """The randomness of sample k.

        Raises:
            IndexError: there is no such sample; iteration ends there.
        """
        if k < 0 or (self.length is not None and k >= self.length):
            last = "" if self.length is None else self.length - 1
            raise IndexError(f"sample {k} is outside 0..{last} of this stream")
        state = np.random.SeedSequence((self.seed, self.number, k)).generate_state(1)
        return torch.Generator().manual_seed(int(state[0]))


class SourceCrops(Dataset[SourceCrop]):
    """Random crops of labelled images, flipped half of the time.

    Sample k depends on (seed, k) alone: the stream is the same for any number of workers, and a run resumes at any k.
    A crop is drawn anew, up to ``tries`` times, while one class fills more than ``max_class_share`` of its labelled
    pixels, or (with ``rare_classes``) while it has at most ``min_crop_pixels`` of the drawn class (DAFormer,
    arXiv 2111.14887, section 4). Images smaller than the crop are padded with 0 and label 255, bottom and right.

    Args:
        dataset: labelled images.
        size: crop (h, w) in pixels; an int stands for a square.
        length: number of samples; None: endless, for :class:`StepBatches`.
        seed: seed of the stream, 0 or more.
        rare_classes: how to draw images; None: uniformly.
        min_crop_pixels: see above; None: half of ``rare_classes.min_pixels``.
        max_class_share: see above, in (0, 1]; 1 takes every crop.
        tries: how many crops are drawn at most, at least 1; the last is taken as it is.
        on_error: what an image or label does that cannot be read: "raise", or "skip": another image is drawn in its
            place, it is logged once, and ``.skipped`` names it.

    Raises:
        ValueError: a setting is out of its range, or there is no image; on reading, what the data set raises.
    """

    def __init__(
        self,
        dataset: LabeledImages,
        size: int | tuple[int, int],
        *,
        length: int | None = None,
        seed: int = 0,
        rare_classes: RareClasses | None = None,
        min_crop_pixels: int | None = None,
        max_class_share: float = 0.75,
        tries: int = 10,
        on_error: OnError = "raise",
    ) -> None:
        if not is_number(max_class_share) or not 0 < max_class_share <= 1 or not is_count(tries):
            raise ValueError(f"max_class_share must be in (0, 1] and tries positive, got {max_class_share}, {tries}")
        self.dataset, self.size = dataset, pair("size", size)
        self._stream, self._skipped = Stream(seed, length, 0), Skipped(len(dataset), on_error)
        if rare_classes is not None and rare_classes.num_images != len(dataset):
            raise ValueError(
                f"rare_classes must have the counts of dataset's {len(dataset)} images, got {rare_classes.num_images}"
            )
        self.rare_classes, self.max_class_share, self.tries = rare_classes, max_class_share, tries
        half = rare_classes.min_pixels // 2 if rare_classes else 0
        self.min_crop_pixels = half if min_crop_pixels is None else min_crop_pixels
        check_up_to(math.inf, min_crop_pixels=self.min_crop_pixels)

    def __len__(self) -> int:
        return len(self._stream)

    @property
    def skipped(self) -> list[int]:
        """The images that were left out so far, by their index in the data set."""
        return self._skipped.indices()

    def name(self, k: int) -> str:
        """The name of the image which sample k is a crop of; the image is read once more.

        Args:
            k: number of the sample, from 0.
        """
        return self._drawn(self._stream.generator(k))[0].name

    def _drawn(self, generator: torch.Generator) -> tuple[Sample, int | None]:
        """An image, and the class that it was drawn for."""

        def draw() -> tuple[int, int | None]:
            if self.rare_classes is None:
                return _any_index(self.dataset, generator), None
            return self.rare_classes.draw(generator)

        return first_readable(draw, self.dataset.__getitem__, self._skipped)

    def __getitem__(self, k: int) -> SourceCrop:
        """Sample k of the stream.

        Args:
            k: its number, from 0.

        Returns:
            :class:`SourceCrop`: the image (K, h, w) as the data set reads it, not normalised, and the label (h, w)
            uint8.

        Raises:
            IndexError: k is outside 0..length - 1.
        """
        generator = self._stream.generator(k)
        (image, label, name), wanted = self._drawn(generator)
        if image.shape[1:] != label.shape:
            raise ValueError(
                f"{shown(name)}: label must have its image's size {tuple(image.shape[1:])}, got {tuple(label.shape)}"
            )
        image, label = _padded(image, self.size, 0), _padded(label, self.size, 255)
        for _ in range(self.tries):
            box = _random_box(label, self.size, generator)
            if self._accepts(crop(label, box), wanted):
                break
        return SourceCrop(*_flipped((crop(image, box), crop(label, box)), generator))

    def _accepts(self, label: Tensor, wanted: int | None) -> bool:
        counts = count_ids(label)[:255]
        if int(counts.max()) > self.max_class_share * int(counts.sum()):
            return False
        return wanted is None or int(counts[wanted]) > self.min_crop_pixels


class TargetCrops(Dataset[TargetCrop]):
    """Random crops of unlabelled images, flipped half of the time; sample k depends on (seed, k) alone.

    Args:
        dataset: images without labels.
        size: crop (h, w) in pixels; an int stands for a square.
        length: number of samples; None: endless, for :class:`StepBatches`.
        seed: seed of the stream, 0 or more.
        margins: pixels (top, bottom, left, right) of the full image where no pseudo label is wanted, for example the
            bonnet of the car (DAFormer, arXiv 2111.14887, section 4).
        on_error: as of :class:`SourceCrops`.

    Raises:
        ValueError: a setting is out of its range, there is no image, or the margins leave nothing of one; on reading,
            what the data set raises.
    """

    def __init__(
        self,
        dataset: UnlabeledImages,
        size: int | tuple[int, int],
        *,
        length: int | None = None,
        seed: int = 0,
        margins: tuple[int, int, int, int] = (0, 0, 0, 0),
        on_error: OnError = "raise",
    ) -> None:
        if len(margins) != 4 or min(margins) < 0:
            raise ValueError(
                f"margins must be four numbers of pixels (top, bottom, left, right), 0 for none, got {margins}"
            )
        self.dataset, self.size = dataset, pair("size", size)
        self._stream, self._skipped = Stream(seed, length, 1), Skipped(len(dataset), on_error)
        self.margins = margins

    def __len__(self) -> int:
        return len(self._stream)

    @property
    def skipped(self) -> list[int]:
        """The images that were left out so far, by their index in the data set."""
        return self._skipped.indices()

    def name(self, k: int) -> str:
        """The name of the image which sample k is a crop of; the image is read once more.

        Args:
            k: number of the sample, from 0.
        """
        return self._drawn(self._stream.generator(k)).name

    def _drawn(self, generator: torch.Generator) -> UnlabeledSample:
        def draw() -> tuple[int, None]:
            return _any_index(self.dataset, generator), None

        return first_readable(draw, self.dataset.__getitem__, self._skipped)[0]

    def __getitem__(self, k: int) -> TargetCrop:
        """Sample k of the stream.

        Args:
            k: its number, from 0.

        Returns:
            :class:`TargetCrop`: the image (K, h, w) as the data set reads it, not normalised, and where it is valid.

        Raises:
            IndexError: k is outside 0..length - 1.
        """
        generator = self._stream.generator(k)
        image, name = self._drawn(generator)
        top, bottom, left, right = self.margins
        height, width = image.shape[1:]
        if top + bottom >= height or left + right >= width:
            raise ValueError(
                f"margins {self.margins} leave nothing of {shown(name)}, which has {(height, width)} pixels; take "
                "smaller ones (top, bottom, left, right), or leave the image out"
            )
        valid = torch.zeros(height, width, dtype=torch.bool)
        valid[top : height - bottom, left : width - right] = True
        image, valid = _padded(image, self.size, 0), _padded(valid, self.size, 0)
        box = _random_box(valid, self.size, generator)
        return TargetCrop(*_flipped((crop(image, box), crop(valid, box)), generator))


def _any_index(dataset: Sized, generator: torch.Generator) -> int:
    return int(torch.randint(len(dataset), (), generator=generator))


def _padded(x: Tensor, size: tuple[int, int], value: int) -> Tensor:
    rows, columns = (max(want - have, 0) for want, have in zip(size, x.shape[-2:], strict=True))
    return pad(x, (0, columns, 0, rows), value=value) if rows or columns else x


def _random_box(x: Tensor, size: tuple[int, int], generator: torch.Generator) -> CropBox:
    top, left = (
        int(torch.randint(have - want + 1, (), generator=generator))
        for want, have in zip(size, x.shape[-2:], strict=True)
    )
    return CropBox(top, left, *size)


def _flipped(tensors: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    flip = bool(torch.rand((), generator=generator) < 0.5)
    first, second = ((tensor.flip(-1) if flip else tensor).contiguous() for tensor in tensors)
    return first, second
