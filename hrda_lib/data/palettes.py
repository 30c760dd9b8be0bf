"""Palettes of label files: within one data set an id has one colour."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hrda_lib.data.layout import shown
from hrda_lib.data.pictures import open_label, opened

if TYPE_CHECKING:
    import PIL.Image

Colours = Sequence[tuple[int, ...]]


def colours_of(image: "PIL.Image.Image") -> Colours:
    """The colours of a palette, by id; none of a grey picture."""
    flat = image.getpalette() or []
    return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


class FirstPalette:
    """The palette of a data set: that of its first label that has one, whichever is read first.

    Two files that list colours in another order mean other classes by the same id, and nothing else would tell.

    Args:
        files: all labels, in order.
        max_pixels: as of the readers.
    """

    def __init__(self, files: Sequence[Path], max_pixels: int | None = None) -> None:
        self._files, self._max_pixels = files, max_pixels
        self._known: tuple[Path, dict[int, tuple[int, ...]]] | None = None

    def check(self, file: Path, ids: Sequence[int], colours: Colours) -> None:
        """Compare the colours of the ids that occur in a file.

        Raises:
            ValueError: names both files.
        """
        if self._known is None:
            self._known = self._found(file, ids, colours)
        first, stated = self._known
        for index in ids:
            if index < len(colours) and index in stated and stated[index] != colours[index]:
                raise ValueError(
                    f"{shown(file)}: palette colour of id {index} is {colours[index]}, but {stated[index]} in "
                    f"{shown(first)}; an id must be one class: write both with one palette, or read colours by "
                    "StoredColours"
                )

    def _found(self, file: Path, ids: Sequence[int], colours: Colours) -> tuple[Path, dict[int, tuple[int, ...]]]:
        """The first label with a palette, and what it says; ``file`` itself if none before it has one."""
        for other in self._files:
            if other == file:
                break
            try:
                with opened(other, self._max_pixels) as header:
                    has_palette = header.mode == "P"
                if has_palette:
                    with open_label(other, self._max_pixels) as image:
                        return other, _stated(np.unique(np.asarray(image)).tolist(), colours_of(image))
            except ValueError:  # is named when it is read itself
                continue
        return file, _stated(ids, colours)


def _stated(ids: Sequence[int], colours: Colours) -> dict[int, tuple[int, ...]]:
    # black and grey levels in their order fill up what a program left empty
    return {
        index: colour
        for index, colour in enumerate(colours)
        if index in ids or colour not in ((0, 0, 0), (index, index, index))
    }
