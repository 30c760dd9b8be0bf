"""Image files with a label file each."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from hrda_lib.data.layout import not_found, shown, state_of
from hrda_lib.data.pictures import check_max_pixels, picture_size
from hrda_lib.data.readers import OneKind, Reader, called, draft_of, identity, label_of
from hrda_lib.data.samples import LabelClass, Sample
from hrda_lib.data.stored_colours import StoredColours
from hrda_lib.data.stored_ids import StoredIds, count_ids, ignoring
from hrda_lib.data.unlabeled_images import UnlabeledImages


class LabeledFiles:
    """Image files with a label file each; for your own layout, list the files.

    Labels are opened when they are asked for, never before.

    Args:
        images: image files.
        labels: their label files, in the same order.
        names: the samples' names, in the same order.
        read_image: gives the image of a file, (K, H, W) uint8 or float32; None: pictures of 8 bits, as (3, H, W) uint8,
            turned upright by their EXIF orientation.
        read_label: gives the (H, W) uint8 label of a file, with 255 ignored, as :class:`StoredColours` does; None: ids
            are taken as they are stored, and palettes must agree on the colours of the ids that occur.
        settings: whatever the labels depend on besides the files, for the fingerprint.
        layout: where label files are expected, for messages.
        max_pixels: larger pictures are refused before they are decoded; None: Pillow's own limit,
            ``PIL.Image.MAX_IMAGE_PIXELS``. Readers of one's own, other than :class:`StoredColours`, have theirs.

    Raises:
        ValueError: not as many labels or names as images; on reading, a file is missing, broken, too large, of another
            kind than the first, or of another size than its image, a label has an EXIF orientation or another palette
            than the set's first, or a reader fails. The message starts with the file.
    """

    margins: ClassVar[tuple[int, int, int, int]] = (0, 0, 0, 0)
    """Pixels (top, bottom, left, right) of an image where a target wants no pseudo label, for :class:`TargetCrops`."""

    classes: ClassVar[tuple[LabelClass, ...]] = ()
    """The classes that labels name by their train id, or () where the data set does not know them."""

    has_labels: bool = True
    """False where the data set has no published labels for this split, whose images are a target."""

    conditions: list[str]
    """The condition of each image, such as "night", where the data set knows it; else an empty list."""

    def __init__(
        self,
        images: Sequence[Path],
        labels: Sequence[Path],
        names: Sequence[str],
        *,
        read_image: Reader | None = None,
        read_label: Reader | None = None,
        settings: str = "",
        layout: str = "",
        max_pixels: int | None = None,
    ) -> None:
        check_max_pixels(max_pixels)
        if not len(images) == len(labels) == len(names):
            raise ValueError(
                f"images, labels and names must be equally many, got {len(images)}, {len(labels)} and {len(names)}"
            )
        self._images, self._labels, self._names = list(images), list(labels), list(names)
        self._read_image, self.conditions = read_image, []
        self._read_label = _of_set(read_label or StoredIds(ignoring(())), self._labels, max_pixels)
        self._max_pixels, self._kind = max_pixels, OneKind()
        self._settings, self._layout = settings or (identity(read_label) if read_label else ""), layout

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        return self.drafted(index, None)

    def drafted(self, index: int, within: tuple[int, int] | None) -> Sample:
        """The sample, with a draft of its image for ``Resized(..., within, draft=True)``.

        Args:
            index: of the image, from 0.
            within: (h, w) that the image is going to be fitted into; None: the whole image.
        """
        file = self._images[index]
        image, have = draft_of(file, self._read_image, self._max_pixels, within)
        label = self.label(index)
        if have != label.shape:
            if image.shape[:2] == label.shape:
                raise ValueError(
                    f"{shown(file)}: read_image must give (K, H, W), got (H, W, K) = {tuple(image.shape)}; "
                    "permute(2, 0, 1) turns it round"
                )
            raise self._other_size(index, have, tuple(label.shape))
        self._kind.check(file, image)
        return Sample(image, label, self._names[index])

    def check_size(self, index: int) -> None:
        """Compare the sizes of an image and its label by their headers; those that readers of one's own read are not.

        Files that are missing or broken are named when they are read.

        Args:
            index: of the image, from 0.

        Raises:
            ValueError: they differ, a picture is too large, or a label has an EXIF orientation; the message starts
                with the file.
        """
        if self._read_image is not None or not getattr(self._read_label, "reads_pictures", False):
            return
        image = picture_size(self._images[index], self._max_pixels)
        label = picture_size(self._labels[index], self._max_pixels, label=True)
        if image is None or label is None or image == label:
            return
        if image == label[::-1]:
            self[index]  # decides: EXIF may stand at the very end of a PNG
        else:
            raise self._other_size(index, image, label)

    def _other_size(self, index: int, image: tuple[int, ...], label: tuple[int, ...]) -> ValueError:
        return ValueError(f"{shown(self.label_file(index))}: label must have its image's size {image}, got {label}")

    def label(self, index: int) -> Tensor:
        """The label alone, without reading the image.

        Args:
            index: of the image, from 0.

        Returns:
            (H, W) uint8, 255 ignored.
        """
        self._check_file(self._labels[index])
        return label_of(self._labels[index], self._read_label)

    @property
    def names(self) -> list[str]:
        """The samples' names, in order."""
        return list(self._names)

    def count(self, index: int) -> Tensor:
        """Pixels of each id in the label.

        Args:
            index: of the image, from 0.

        Returns:
            (256,) int64; entry 255 counts ignored pixels.
        """
        if not isinstance(self._read_label, StoredIds):
            return count_ids(self.label(index))
        self._check_file(self._labels[index])
        return called(self._read_label.count, self._labels[index])

    def label_file(self, index: int) -> Path:
        """Where the label of an image is expected, for messages.

        Args:
            index: of the image, from 0.
        """
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
        return UnlabeledImages(self._images, self._names, read_image=self._read_image, max_pixels=self._max_pixels)

    def _check_file(self, file: Path) -> None:
        if not file.is_file():
            known = self._layout or file.is_symlink()
            raise not_found(file, self._layout) if known else ValueError(f"{shown(file)}: no such file")


def _of_set(reader: Reader, labels: Sequence[Path], max_pixels: int | None) -> Reader:
    """A reader of ours with what it must know of the data set."""
    if isinstance(reader, StoredIds):
        return reader.of_set(labels, max_pixels)
    return reader.within(max_pixels) if isinstance(reader, StoredColours) else reader
