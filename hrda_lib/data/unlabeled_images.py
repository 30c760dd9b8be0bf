"""Image files without labels."""

from collections.abc import Sequence
from pathlib import Path

from hrda_lib.data.layout import state_of
from hrda_lib.data.pictures import check_max_pixels
from hrda_lib.data.readers import OneKind, Reader, draft_of
from hrda_lib.data.samples import UnlabeledSample


class UnlabeledImages:
    """Images without any label path: what a target is.

    Args:
        files: image files, in the order in which they are indexed.
        names: the samples' names; None: the files' without ending.
        read_image: gives the image of a file, (K, H, W) uint8 or float32; None: pictures of 8 bits, as (3, H, W) uint8,
            turned upright by their EXIF orientation.
        max_pixels: larger pictures are refused before they are decoded; None: Pillow's own limit. Readers of one's own
            have theirs.

    Raises:
        ValueError: on reading, a file is missing, broken or too large, the reader fails, or gives something else, or
            an image of another kind than the first that was read. The message starts with the file.
    """

    def __init__(
        self,
        files: Sequence[Path],
        names: Sequence[str] | None = None,
        *,
        read_image: Reader | None = None,
        max_pixels: int | None = None,
    ) -> None:
        check_max_pixels(max_pixels)
        self._max_pixels = max_pixels
        self._kind: OneKind | None = OneKind()
        self._files, self._read_image = list(files), read_image
        self._names = [file.stem for file in files] if names is None else list(names)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def files(self) -> list[Path]:
        """The image files, in order."""
        return list(self._files)

    def with_files(self, files: Sequence[Path]) -> "UnlabeledImages":
        """Other files, read in the same way; their samples are named by them, and each may be of another kind.

        Args:
            files: image files, in the order in which they are indexed.
        """
        other = UnlabeledImages(files, read_image=self._read_image, max_pixels=self._max_pixels)
        other._kind = None
        return other

    def fingerprint(self) -> str:
        """Changes with any file's name, size or time, but not with where the folder lies; no file is opened."""
        return state_of(self._files)

    def __getitem__(self, index: int) -> UnlabeledSample:
        return self.drafted(index, None)[0]

    def drafted(self, index: int, within: tuple[int, int] | None) -> tuple[UnlabeledSample, tuple[int, ...]]:
        """The sample and its image's size; the image is a draft, for ``ResizedImages(..., within, draft=True)``.

        Args:
            index: of the image, from 0.
            within: (h, w) that the image is going to be fitted into; None: the whole image.

        Returns:
            The sample, and (H, W) of the image as stored.
        """
        file = self._files[index]
        image, have = draft_of(file, self._read_image, self._max_pixels, within)
        if self._kind:
            self._kind.check(file, image)
        return UnlabeledSample(image, self._names[index]), have
