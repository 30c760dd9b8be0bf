"""Labels that are stored as colours."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hrda_lib.data.layout import shown
from hrda_lib.data.pictures import check_max_pixels, open_label

if TYPE_CHECKING:
    import PIL.Image


class StoredColours:
    """Reads colour-coded label pictures, RGB or palette PNGs, as ids: a ``read_label`` of :class:`LabeledFiles`.

    Transparency does not count; a grey picture has the colours (g, g, g).

    Args:
        colours: (red, green, blue) -> id, each in [0, 255]; the id 255 is ignored.
        max_pixels: larger labels are refused; None: the limit of the data set, or Pillow's own.

    Call it with a file; it returns (H, W) uint8.

    Raises:
        ValueError: no colour is named, or one is out of range; on reading, the file is missing, broken or no picture
            of 8 bits, or shows a colour that is not named. The message then starts with the file.

    Example:
        >>> from hrda_lib.data import StoredColours
        >>> StoredColours({(255, 0, 0): 0, (0, 0, 255): 1, (0, 0, 0): 255})
        StoredColours({(0, 0, 0): 255, (0, 0, 255): 1, (255, 0, 0): 0})
    """

    reads_pictures = True

    def __init__(self, colours: Mapping[tuple[int, int, int], int], *, max_pixels: int | None = None) -> None:
        check_max_pixels(max_pixels)
        self.max_pixels = max_pixels
        for colour, label in colours.items():
            if len(colour) != 3 or any(not 0 <= value <= 255 for value in (*colour, label)):
                raise ValueError(
                    f"colours must map (red, green, blue) to an id, all in [0, 255], got {colour}: {label}"
                )
        if not colours:
            raise ValueError("colours must name at least one colour, got none")
        self.colours = dict(sorted(colours.items()))
        packed, labels = (
            _packed(np.array(list(self.colours), np.uint8)),
            np.array(list(self.colours.values()), np.uint8),
        )
        self._ids = np.full(1 << 24, 255, np.uint8)  # an entry for every colour: one look-up a pixel
        self._ids[packed] = labels
        self._ignored = packed[labels == 255]

    def __repr__(self) -> str:
        return f"StoredColours({self.colours})"

    def within(self, max_pixels: int | None) -> "StoredColours":
        """The same under a data set's limit, where it has none of its own.

        Args:
            max_pixels: larger labels are refused; None: Pillow's own limit.
        """
        other = copy.copy(self)
        other.max_pixels = max_pixels if self.max_pixels is None else self.max_pixels
        return other

    def __call__(self, file: Path) -> Tensor:
        """Read a label.

        Args:
            file: a picture of 8 bits a channel.

        Returns:
            (H, W) uint8.

        Raises:
            ValueError: as above; the message starts with the file.
        """
        with open_label(file, self.max_pixels) as image:
            if image.mode not in ("RGB", "RGBA", "P", "PA", "L", "LA", "1") or ";16" in image.info["raw mode"]:
                raise ValueError(f"{shown(file)}: colours of 8 bits a channel are expected, got mode {image.mode}")
            if image.mode == "P":
                packed = _of_palette(image)
            else:
                packed = _packed(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))
            ids = self._ids.take(packed)
            unknown = packed[ids == 255]
            unknown = unknown[~np.isin(unknown, self._ignored)]
            if len(unknown):
                raise ValueError(f"{shown(file)}: {_advice(unknown, image.format)}")
        return torch.from_numpy(ids)


def _packed(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Colours (..., 3) as one number each."""
    packed = pixels[..., 0].astype(np.uint32)
    for channel in (1, 2):
        packed <<= 8
        packed |= pixels[..., channel]
    return packed


def _of_palette(image: "PIL.Image.Image") -> npt.NDArray[np.uint32]:
    # Image.convert would warn where a palette is transparent
    palette = np.zeros((256, 3), np.uint8)
    stored = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    palette[: len(stored)] = stored
    packed: npt.NDArray[np.uint32] = _packed(palette)[np.asarray(image)]
    return packed


def _advice(unknown: npt.NDArray[np.uint32], kind: str | None) -> str:
    values, counts = np.unique(unknown, return_counts=True)
    value, pixels = int(values[counts.argmax()]), counts.max()
    others = f", and {len(values) - 1} more" if len(values) > 1 else ""
    advice = "name it, with 255 to ignore it"
    if kind in ("JPEG", "MPO"):
        advice = "JPEG changes colours, labels must be stored as PNG"
    colour = (value >> 16, value >> 8 & 255, value & 255)
    return f"colour {colour} of {pixels} pixels is not among those named{others}; {advice}"
