"""Several data sets as one."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from hrda_lib.data.samples import LabeledImages, Sample, check_size_of, count_of


class Concatenated:
    """Several labelled data sets, one after the other: for example a source and a few labelled target images.

    Args:
        datasets: at least one, with one set of class ids; their images are numbered through, in this order.

    Raises:
        ValueError: there is no data set.
    """

    def __init__(self, datasets: Sequence[LabeledImages]) -> None:
        self._datasets = list(datasets)
        if not self._datasets:
            raise ValueError("datasets must hold at least one data set, got none")
        self._where = [(dataset, index) for dataset in self._datasets for index in range(len(dataset))]

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> Sample:
        dataset, inner = self._where[index]
        return dataset[inner]

    def label(self, index: int) -> Tensor:
        """The label alone, without reading the image.

        Args:
            index: of the image, from 0.

        Returns:
            (H, W) uint8, 255 ignored.
        """
        dataset, inner = self._where[index]
        return dataset.label(inner)

    def count(self, index: int) -> Tensor:
        """Pixels of each id in the label.

        Args:
            index: of the image, from 0.

        Returns:
            (256,) int64; entry 255 counts ignored pixels.
        """
        dataset, inner = self._where[index]
        return count_of(dataset, inner)

    def label_file(self, index: int) -> Path:
        """Where the label of an image is expected, for messages.

        Args:
            index: of the image, from 0.
        """
        dataset, inner = self._where[index]
        return dataset.label_file(inner)

    def check_size(self, index: int) -> None:
        """Compare the sizes of an image and its label as stored, by their headers, where the data set can.

        Args:
            index: of the image, from 0.

        Raises:
            ValueError: they differ.
        """
        dataset, inner = self._where[index]
        check_size_of(dataset, inner)

    def fingerprint(self) -> str:
        """Changes when any label of any part does."""
        return " ".join(dataset.fingerprint() for dataset in self._datasets)
