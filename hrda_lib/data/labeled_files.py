"""Image files with a label file each, and the same images without labels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from hrda_lib.data.classes import LabelClass
from hrda_lib.data.layout import not_found, state_of
from hrda_lib.data.reading import StoredIds, count_ids, ignoring, read_image


class Sample(NamedTuple):
    """A labelled image: (3, H, W) uint8, (H, W) uint8 class ids with 255 ignored, and its name.

    Where a reader of one's own reads images: (K, H, W) uint8 or float32.
    """

    image: Tensor
    label: Tensor
    name: str


class UnlabeledSample(NamedTuple):
    """An image of the target domain as in :class:`Sample`, and its name. There is no label to read by mistake."""

    image: Tensor
    name: str


class LabeledImages(Protocol):
    """What sampling needs of a labelled data set: any class with these methods is one.

    A data set that counts faster than it reads a label may also have ``count(index)``, the pixels of each id.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    def label(self, index: int) -> Tensor:
        """The label (H, W) uint8 alone, without reading the image."""

    def label_file(self, index: int) -> Path:
        """Where the label of an image is expected, for messages."""

    def fingerprint(self) -> str:
        """Changes when any label does, for caches."""


def count_of(dataset: LabeledImages, index: int) -> Tensor:
    """Pixels of each id in a label, (256,) int64, by the data set's own ``count`` if it has one."""
    own: Callable[[int], Tensor] | None = getattr(dataset, "count", None)
    return own(index) if own else count_ids(dataset.label(index))


class UnlabeledImages:
    """Images without any label path: what a target is.

    Args:
        files: image files, in the order in which they are indexed.
        names: the samples' names; None: the files' without ending.
        read_image: gives the image of a file, (K, H, W) uint8 or float32; None: pictures of 8 bits, as (3, H, W) uint8.

    Raises:
        ValueError: on reading, a file is missing or broken, the reader fails, or gives something else. The message
            starts with the file.
    """

    def __init__(
        self,
        files: Sequence[Path],
        names: Sequence[str] | None = None,
        *,
        read_image: Callable[[Path], Tensor] | None = None,
    ) -> None:
        self._files, self._read_image = list(files), read_image
        self._names = [file.stem for file in files] if names is None else list(names)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def files(self) -> list[Path]:
        """The image files, in order."""
        return list(self._files)

    def with_files(self, files: Sequence[Path]) -> "UnlabeledImages":
        """Other files, read in the same way; their samples are named by them."""
        return UnlabeledImages(files, read_image=self._read_image)

    def fingerprint(self) -> str:
        """Changes with any file's name, size or time, but not with where the folder lies; no file is opened."""
        return state_of(self._files)

    def __getitem__(self, index: int) -> UnlabeledSample:
        return UnlabeledSample(_image(self._files[index], self._read_image), self._names[index])


def _image(file: Path, reader: Callable[[Path], Tensor] | None) -> Tensor:
    image = _called(reader or read_image, file)
    wanted = "read_image must give a tensor (K, H, W) of uint8 or float32"
    if not isinstance(image, Tensor):
        raise ValueError(f"{file}: {wanted}, got {type(image).__name__}; torch.from_numpy makes one of an array")
    if image.dim() != 3 or not image.numel() or image.dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"{file}: {wanted}, got {tuple(image.shape)} of {image.dtype}")
    return image.detach()


def _label(file: Path, reader: Callable[[Path], Tensor]) -> Tensor:
    label = _called(reader, file)
    if not isinstance(label, Tensor) or label.dim() != 2 or label.dtype != torch.uint8:
        got = f"{tuple(label.shape)} of {label.dtype}" if isinstance(label, Tensor) else type(label).__name__
        raise ValueError(f"{file}: read_label must give a tensor (H, W) of uint8, got {got}")
    return label


def _called(reader: Callable[[Path], Tensor], file: Path) -> Tensor:
    try:
        return reader(file)
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from error


def label_reader(
    ignore: Sequence[int], read_label: Callable[[Path], Tensor] | None
) -> tuple[Callable[[Path], Tensor], str]:
    """``read_label``, or what reads stored ids, and what tells it from others in a fingerprint.

    Raises:
        ValueError: ids to ignore and a reader are given.
    """
    if read_label is None:
        return StoredIds(ignoring(ignore)), repr(list(ignore))
    if ignore:
        raise ValueError(f"ignore is for stored ids: got {list(ignore)} with read_label, which must give 255 itself")
    return read_label, _identity(read_label)


def _identity(reader: Callable[[Path], Tensor]) -> str:
    """A function of a module by its name, anything else by its ``repr``: in doubt, it differs from run to run."""
    name = getattr(reader, "__qualname__", "<")
    return repr(reader) if "<" in name or hasattr(reader, "__self__") else f"{reader.__module__}.{name}"


class LabeledFiles:
    """Image files with a label file each; for your own layout, list the files.

    Labels are opened when they are asked for, never before.

    Args:
        images: image files.
        labels: their label files, in the same order.
        names: the samples' names, in the same order.
        read_image: gives the image of a file, (K, H, W) uint8 or float32; None: pictures of 8 bits, as (3, H, W) uint8.
        read_label: gives the (H, W) uint8 label of a file, with 255 ignored, as :class:`StoredColours` does; None: ids
            are taken as they are stored.
        settings: whatever the labels depend on besides the files, for the fingerprint.
        layout: where label files are expected, for messages.

    Raises:
        ValueError: not as many labels or names as images; on reading, a file is missing, broken, of another kind, or
            of another size than its image, or a reader fails. The message starts with the file.
    """

    margins: ClassVar[tuple[int, int, int, int]] = (0, 0, 0, 0)
    """Pixels (top, bottom, left, right) of an image where a target wants no pseudo label, for :class:`TargetCrops`."""

    classes: ClassVar[tuple[LabelClass, ...]] = ()
    """The classes that labels name by their train id, or () where the data set does not know them."""

    conditions: list[str]
    """The condition of each image, such as "night", where the data set knows it; else an empty list."""

    def __init__(
        self,
        images: Sequence[Path],
        labels: Sequence[Path],
        names: Sequence[str],
        *,
        read_image: Callable[[Path], Tensor] | None = None,
        read_label: Callable[[Path], Tensor] | None = None,
        settings: str = "",
        layout: str = "",
    ) -> None:
        if not len(images) == len(labels) == len(names):
            raise ValueError(
                f"images, labels and names must be equally many, got {len(images)}, {len(labels)} and {len(names)}"
            )
        self._images, self._labels, self._names = list(images), list(labels), list(names)
        self._read_image, self.conditions = read_image, []
        self._read_label: Callable[[Path], Tensor] = read_label or StoredIds(ignoring(()))
        self._settings, self._layout = settings or (_identity(read_label) if read_label else ""), layout

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        image, label = _image(self._images[index], self._read_image), self.label(index)
        if image.shape[1:] != label.shape:
            if image.shape[:2] == label.shape:
                raise ValueError(
                    f"{self._images[index]}: read_image must give (K, H, W), got (H, W, K) = {tuple(image.shape)}; "
                    "permute(2, 0, 1) turns it round"
                )
            raise ValueError(
                f"{self.label_file(index)}: label must have its image's size {tuple(image.shape[1:])}, "
                f"got {tuple(label.shape)}"
            )
        return Sample(image, label, self._names[index])

    def label(self, index: int) -> Tensor:
        """The label (H, W) uint8 alone, without reading the image."""
        self._check_file(self._labels[index])
        return _label(self._labels[index], self._read_label)

    @property
    def names(self) -> list[str]:
        """The samples' names, in order."""
        return list(self._names)

    def count(self, index: int) -> Tensor:
        """Pixels of each id in the label, (256,) int64."""
        if not isinstance(self._read_label, StoredIds):
            return count_ids(self.label(index))
        self._check_file(self._labels[index])
        return _called(self._read_label.count, self._labels[index])

    def label_file(self, index: int) -> Path:
        """Where the label of an image is expected."""
        return self._labels[index]

    def check_files(self) -> None:
        """Look for every label file, without opening it.

        Raises:
            ValueError: names the first that is missing.
        """
        for file in self._labels:
            self._check_file(file)

    def fingerprint(self) -> str:
        """Changes with any label file's name, size or time and with settings, but not with where the folder lies."""
        return state_of(self._labels, self._settings)

    def unlabeled(self) -> UnlabeledImages:
        """The same images without any label path."""
        return UnlabeledImages(self._images, self._names, read_image=self._read_image)

    def _check_file(self, file: Path) -> None:
        if not file.is_file():
            known = self._layout or file.is_symlink()
            raise not_found(file, self._layout) if known else ValueError(f"{file}: no such file")
