"""Data sets at another resolution."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hrda_lib._checks import pair
from hrda_lib.data.samples import LabeledImages, Sample, UnlabeledSample, check_size_of
from hrda_lib.data.unlabeled_images import UnlabeledImages


class Resized:
    """Labelled images resized to fit into ``size``, each with its aspect ratio kept.

    Images are interpolated bilinearly, without antialiasing, uint8 rounded to uint8; a new label pixel (i, j) has
    the id of (floor(i H / h'), floor(j W / w')), as in the released code.

    Args:
        dataset: labelled images.
        size: (h, w) to fit into: H x W pixels become as many as ``min(h / H, w / W)`` gives, each side rounded.

    Raises:
        ValueError: ``size`` is not positive.
    """

    def __init__(self, dataset: LabeledImages, size: int | tuple[int, int]) -> None:
        self.dataset, self.size = dataset, pair("size", size)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, label, name = self.dataset[index]
        return Sample(_resized_image(image, self.size), _resized_label(label, self.size), name)

    def label(self, index: int) -> Tensor:
        """The resized label (h', w') uint8 alone, without reading the image."""
        return _resized_label(self.dataset.label(index), self.size)

    def label_file(self, index: int) -> Path:
        """Where the label of an image is expected."""
        return self.dataset.label_file(index)

    def check_size(self, index: int) -> None:
        """Compare the sizes of an image and its label as stored, by their headers, where the data set can."""
        check_size_of(self.dataset, index)

    def fingerprint(self) -> str:
        """Changes with the size, and when any label does."""
        return f"{self.dataset.fingerprint()} in {self.size[0]}x{self.size[1]}"


class ResizedImages(UnlabeledImages):
    """Images without any label path, resized as :class:`Resized` does.

    Args:
        dataset: images without labels.
        size: (h, w) to fit into.

    Raises:
        ValueError: ``size`` is not positive.
    """

    def __init__(self, dataset: UnlabeledImages, size: int | tuple[int, int]) -> None:
        self.dataset, self.size = dataset, pair("size", size)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def files(self) -> list[Path]:
        """The image files, in order."""
        return self.dataset.files

    def with_files(self, files: Sequence[Path]) -> "ResizedImages":
        """Other files, read and resized in the same way; their samples are named by them."""
        return ResizedImages(self.dataset.with_files(files), self.size)

    def fingerprint(self) -> str:
        """Changes with the size, and when any image file does."""
        return f"{self.dataset.fingerprint()} in {self.size[0]}x{self.size[1]}"

    def __getitem__(self, index: int) -> UnlabeledSample:
        image, name = self.dataset[index]
        return UnlabeledSample(_resized_image(image, self.size), name)


def _fitted(have: tuple[int, int], within: tuple[int, int]) -> tuple[int, int]:
    """The size to give to an image of size ``have``.

    >>> _fitted((1052, 1914), (1440, 2560))
    (1407, 2560)
    """
    factor = min(within[0] / have[0], within[1] / have[1])
    return max(int(have[0] * factor + 0.5), 1), max(int(have[1] * factor + 0.5), 1)


def _resized_image(image: Tensor, within: tuple[int, int]) -> Tensor:
    size = _fitted((image.shape[1], image.shape[2]), within)
    # channels last, in strides that torch recognises as such, for its fast kernel
    batch = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    return interpolate(batch, size, mode="bilinear")[0]


def _resized_label(label: Tensor, within: tuple[int, int]) -> Tensor:
    height, width = label.shape
    new_height, new_width = _fitted((height, width), within)
    rows = np.arange(new_height) * height // new_height
    columns = np.arange(new_width) * width // new_width
    # columns first: rows are then copied whole
    return torch.from_numpy(label.numpy().take(columns, axis=1).take(rows, axis=0))
