"""A data set under other class ids."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hrda_lib.data.samples import LabeledImages, Sample, check_size_of, count_of
from hrda_lib.data.stored_ids import renumbered


class Relabeled:
    """Labels by an explicit map, the rest ignored: for a source and a target whose classes differ.

    Args:
        dataset: labelled images.
        ids: old id -> new id; every other id, and 255, becomes 255.

    Raises:
        ValueError: an id is no label of 8 bits, or no id is kept.
    """

    def __init__(self, dataset: LabeledImages, ids: Mapping[int, int]) -> None:
        if not ids or any(not 0 <= value <= 255 for pair in ids.items() for value in pair):
            raise ValueError(f"ids must map label ids in [0, 255] to others, at least one, got {dict(ids)}")
        self.dataset, self.ids = dataset, dict(ids)
        table = np.full(256, 255, np.uint8)
        table[list(ids)] = list(ids.values())
        self._table = table

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, label, name = self.dataset[index]
        return Sample(image, self._renamed(label), name)

    def label(self, index: int) -> Tensor:
        """The label alone, without reading the image.

        Args:
            index: of the image, from 0.

        Returns:
            (H, W) uint8, 255 ignored.
        """
        return self._renamed(self.dataset.label(index))

    def count(self, index: int) -> Tensor:
        """Pixels of each new id in the label.

        Args:
            index: of the image, from 0.

        Returns:
            (256,) int64; entry 255 counts ignored pixels.
        """
        new = torch.from_numpy(self._table).long()
        return torch.zeros(256, dtype=torch.int64).index_add_(0, new, count_of(self.dataset, index))

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
        """Changes with the map, and when any label does."""
        return f"{self.dataset.fingerprint()} as {sorted(self.ids.items())}"

    def _renamed(self, label: Tensor) -> Tensor:
        return renumbered(label.numpy(), self._table)
