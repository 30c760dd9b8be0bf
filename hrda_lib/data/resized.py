"""Data sets at another resolution."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hrda_lib._checks import pair
from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.pictures import fitted
from hrda_lib.data.samples import LabeledImages, Sample, UnlabeledSample, check_size_of
from hrda_lib.data.unlabeled_images import UnlabeledImages

T = TypeVar("T")


class Resized:
    """Labelled images resized to fit into ``size``, each with its aspect ratio kept.

    Images are interpolated bilinearly, without antialiasing, uint8 rounded to uint8; a new label pixel (i, j) has
    the id of (floor(i H / h'), floor(j W / w')), as in the released code.

    Args:
        dataset: labelled images.
        size: (h, w) to fit into: H x W pixels become as many as ``min(h / H, w / W)`` gives, each side rounded.
        draft: True: a JPEG that is at least twice as large as it is going to be is decoded at a half, a quarter or an
            eighth of its size: faster, and smoother than without, which leaves pixels out. Readers of one's own, and
            other formats, are as without.

    Raises:
        ValueError: ``size`` is not positive, or ``draft`` is wanted of a data set that decodes no files itself.
    """

    def __init__(self, dataset: LabeledImages, size: int | tuple[int, int], *, draft: bool = False) -> None:
        self.dataset, self.size = dataset, pair("size", size)
        self._drafts = _drafts_of(dataset, LabeledFiles, draft)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, label, name = self._drafts.drafted(index, self.size) if self._drafts else self.dataset[index]
        size = fitted(label.shape if self._drafts else image.shape[1:], self.size)
        return Sample(_resized_image(image, size), _resized_label(label, self.size), name)

    def label(self, index: int) -> Tensor:
        """The resized label alone, without reading the image.

        Args:
            index: of the image, from 0.

        Returns:
            (h', w') uint8, 255 ignored.
        """
        return _resized_label(self.dataset.label(index), self.size)

    def label_file(self, index: int) -> Path:
        """Where the label of an image is expected, for messages.

        Args:
            index: of the image, from 0.
        """
        return self.dataset.label_file(index)

    def check_size(self, index: int) -> None:
        """Compare the sizes of an image and its label as stored, by their headers, where the data set can.

        Args:
            index: of the image, from 0.

        Raises:
            ValueError: they differ.
        """
        check_size_of(self.dataset, index)

    def fingerprint(self) -> str:
        """Changes with the size, and when any label does."""
        return f"{self.dataset.fingerprint()} in {self.size[0]}x{self.size[1]}"


class ResizedImages(UnlabeledImages):
    """Images without any label path, resized as :class:`Resized` does.

    Args:
        dataset: images without labels.
        size: (h, w) to fit into.
        draft: as of :class:`Resized`.

    Raises:
        ValueError: ``size`` is not positive, or ``draft`` is wanted of a data set that decodes no files itself.
    """

    def __init__(self, dataset: UnlabeledImages, size: int | tuple[int, int], *, draft: bool = False) -> None:
        self.dataset, self.size, self.draft = dataset, pair("size", size), draft
        self._drafts = _drafts_of(dataset, UnlabeledImages, draft)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def files(self) -> list[Path]:
        """The image files, in order."""
        return self.dataset.files

    def with_files(self, files: Sequence[Path]) -> "ResizedImages":
        """Other files, read and resized in the same way; their samples are named by them.

        Args:
            files: image files, in the order in which they are indexed.
        """
        return ResizedImages(self.dataset.with_files(files), self.size, draft=self.draft)

    def fingerprint(self) -> str:
        """Changes with the size and ``draft``, and when any image file does."""
        way = ", drafts" if self.draft else ""
        return f"{self.dataset.fingerprint()} in {self.size[0]}x{self.size[1]}{way}"

    def __getitem__(self, index: int) -> UnlabeledSample:
        if self._drafts:
            (image, name), have = self._drafts.drafted(index, self.size)
        else:
            image, name = self.dataset[index]
            have = tuple(image.shape[1:])
        return UnlabeledSample(_resized_image(image, fitted(have, self.size)), name)


def _resized_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    # channels last, in strides that torch recognises as such, for its fast kernel
    batch = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    return interpolate(batch, size, mode="bilinear")[0]


def _resized_label(label: Tensor, within: tuple[int, int]) -> Tensor:
    height, width = label.shape
    new_height, new_width = fitted((height, width), within)
    rows = np.arange(new_height) * height // new_height
    columns = np.arange(new_width) * width // new_width
    # columns first: rows are then copied whole
    return torch.from_numpy(label.numpy().take(columns, axis=1).take(rows, axis=0))


def _drafts_of(dataset: object, kind: type[T], draft: bool) -> T | None:
    """The data set, if drafts are wanted, which only that can make that decodes files."""
    if not draft:
        return None
    if not isinstance(dataset, kind) or isinstance(dataset, ResizedImages):
        raise ValueError(
            f"draft must be False for {type(dataset).__name__}, which decodes no files itself; "
            "resize what it is made of"
        )
    return dataset
