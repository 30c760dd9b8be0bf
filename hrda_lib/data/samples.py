"""What data sets give, and what sampling needs of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from hrda_lib.data.stored_ids import count_ids


class Sample(NamedTuple):
    """A labelled image: (3, H, W) uint8, (H, W) uint8 class ids with 255 ignored, and its name.

    Where a reader of one's own reads images: (K, H, W) uint8 or float32.
    """

    image: Tensor
    """(3, H, W) uint8, as a rule."""
    label: Tensor
    """(H, W) uint8 class ids, 255 ignored."""
    name: str
    """Of the image."""


class UnlabeledSample(NamedTuple):
    """An image of the target domain as in :class:`Sample`, and its name. There is no label to read by mistake."""

    image: Tensor
    """(3, H, W) uint8, as a rule."""
    name: str
    """Of the image."""


class LabelClass(NamedTuple):
    """A class: its name, the id that files store, the id to train with, and the (red, green, blue) to draw it in."""

    name: str
    """As its data set spells it."""
    id: int
    """In stored files."""
    train_id: int
    """In labels that the library gives."""
    colour: tuple[int, int, int]
    """(red, green, blue), each in [0, 255]."""


class LabeledImages(Protocol):
    """What sampling needs of a labelled data set: any class with these methods is one.

    ``len(dataset)`` is the number of images, and ``dataset[index]`` gives a :class:`Sample`. A data set that
    counts faster than it reads a label may also have ``count(index)``, the pixels of each id, (256,) int64, and
    ``check_size(index)``, which raises ValueError where headers give image and label other sizes.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    def label(self, index: int) -> Tensor:
        """The label alone, without reading the image.

        Args:
            index: of the image, from 0.

        Returns:
            (H, W) uint8, 255 ignored.
        """

    def label_file(self, index: int) -> Path:
        """Where the label of an image is expected, for messages.

        Args:
            index: of the image, from 0.
        """

    def fingerprint(self) -> str:
        """Changes when any label does, for caches."""


def count_of(dataset: LabeledImages, index: int) -> Tensor:
    """Pixels of each id in a label, (256,) int64, by the data set's own ``count`` if it has one."""
    own: Callable[[int], Tensor] | None = getattr(dataset, "count", None)
    return own(index) if own else count_ids(dataset.label(index))


def check_size_of(dataset: LabeledImages, index: int) -> None:
    """Compare the sizes of an image and its label, by the data set's own ``check_size`` if it has one.

    Raises:
        ValueError: they differ.
    """
    own: Callable[[int], None] | None = getattr(dataset, "check_size", None)
    if own:
        own(index)
