"""Labels that are stored as ids."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hrda_lib.data.layout import shown
from hrda_lib.data.palettes import Colours, FirstPalette, colours_of
from hrda_lib.data.pictures import check_max_pixels, open_label

if TYPE_CHECKING:
    import PIL.Image  # at run time where a file is opened


def ignoring(ignore: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The table that leaves ids as they are, but those to ignore become 255.

    Raises:
        ValueError: one is no label of 8 bits.
    """
    if any(not 0 <= value <= 255 for value in ignore):
        raise ValueError(f"ignore must hold label ids in [0, 255], got {list(ignore)}")
    table = np.arange(256, dtype=np.uint8)
    table[list(ignore)] = 255
    return table


def renumbered(ids: npt.NDArray[np.uint8], table: npt.NDArray[np.uint8]) -> Tensor:
    """``table[ids]``, by bytes and so faster."""
    return torch.from_numpy(np.frombuffer(bytearray(ids).translate(table.tobytes()), np.uint8).reshape(ids.shape))


def count_ids(label: Tensor) -> Tensor:
    """How many pixels of a label have each id.

    Args:
        label: uint8 or int64 on the CPU, of any shape, with ids in [0, 255].

    Returns:
        (256,) int64.

    Raises:
        ValueError: the label is of another type, on another device, or holds another id.

    Example:
        >>> import torch
        >>> from hrda_lib.data import count_ids
        >>> count_ids(torch.tensor([[0, 2, 2], [2, 255, 255]]))[[0, 1, 2, 255]]
        tensor([1, 0, 3, 2])
    """
    if not isinstance(label, Tensor) or label.dtype not in (torch.uint8, torch.int64) or label.device.type != "cpu":
        got = f"{label.dtype} on {label.device}" if isinstance(label, Tensor) else type(label).__name__
        raise ValueError(f"label must be a tensor of uint8 or int64 on the CPU, got {got}")
    if label.dtype != torch.uint8 and label.numel() and not 0 <= label.min() <= label.max() <= 255:
        raise ValueError(f"label must hold ids in [0, 255], got {int(label.min())} to {int(label.max())}")
    return torch.from_numpy(counted(label.numpy()))


def counted(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """:func:`count_ids` of an array: one count for a run of equal pixels, of which labels have few."""
    flat = ids.ravel()
    if not flat.size:
        return np.zeros(256, np.int64)
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
    counts = np.zeros(256, np.int64)
    np.add.at(counts, flat[ends], np.diff(ends, prepend=-1))
    return counts


class StoredIds:
    """Reads labels that are stored as ids in grey or palette PNGs; the file is all that it takes.

    Args:
        table: for each stored id, 0..255, the id to give for it.
        check: (file, the stored ids that occur, the colours of the palette), raises ValueError where they are wrong.
        official: ``check`` knows the colours, so that files of one set need not agree on those of other ids.
        max_pixels: larger labels are refused; None: Pillow's own limit.
        first: what the palettes of a set must agree with.
    """

    reads_pictures = True

    def __init__(
        self,
        table: npt.NDArray[np.uint8],
        check: Callable[[Path, list[int], Colours], None] | None = None,
        *,
        official: bool = False,
        max_pixels: int | None = None,
        first: FirstPalette | None = None,
    ) -> None:
        check_max_pixels(max_pixels)
        self.table, self.check, self.official = table, check, official
        self.max_pixels, self.first = max_pixels, first

    def of_set(self, files: Sequence[Path], max_pixels: int | None) -> "StoredIds":
        """The same for the labels of one data set, whose palettes must agree."""
        first = None if self.official else FirstPalette(files, max_pixels)
        return StoredIds(self.table, self.check, official=self.official, max_pixels=max_pixels, first=first)

    def __call__(self, file: Path) -> Tensor:
        """The label, (H, W) uint8."""
        with self._opened(file) as image:
            ids = self._ids(image)
            self._checked(file, image, counted(ids))
            return renumbered(ids, self.table)

    def count(self, file: Path) -> Tensor:
        """Pixels of each id, (256,) int64, without making the label."""
        with self._opened(file) as image:
            as_stored = image.mode in ("L", "P") and image.info["raw mode"] not in ("L;2", "L;4")
            # Pillow's histogram copies nothing: several threads would wait for each other's memory
            counts = np.array(image.histogram()) if as_stored else counted(self._ids(image))
            self._checked(file, image, counts)
        stored, given = torch.from_numpy(counts), torch.from_numpy(self.table).long()
        return torch.zeros(256, dtype=torch.int64).index_add_(0, given, stored)

    def _opened(self, file: Path) -> "PIL.Image.Image":
        image = open_label(file, self.max_pixels)
        if image.format in ("JPEG", "MPO"):
            image.close()
            raise ValueError(f"{shown(file)}: JPEG changes ids, labels must be stored as PNG")
        if image.mode not in ("L", "P", "1") or image.info["raw mode"].endswith(("I", "IR")):  # inverted
            image.close()
            advice = "; colours? see StoredColours" if image.mode.startswith("RGB") else ""
            raise ValueError(
                f"{shown(file)}: label must be a single-channel 8-bit or palette PNG of ids, got mode {image.mode}"
                f"{advice}"
            )
        return image

    def _ids(self, image: "PIL.Image.Image") -> npt.NDArray[np.uint8]:
        # Pillow spreads grey levels of 2 and 4 bits over 0..255
        spread = {"L;2": 85, "L;4": 17}.get(image.info["raw mode"], 1)
        ids = np.asarray(image, dtype=np.uint8)
        return ids if spread == 1 else ids // spread

    def _checked(self, file: Path, image: "PIL.Image.Image", counts: npt.NDArray[np.int64]) -> None:
        first = self.first if image.mode == "P" else None
        if self.check is None and first is None:
            return
        ids, colours = np.flatnonzero(counts).tolist(), colours_of(image)
        if self.check is not None:
            self.check(file, ids, colours)
        if first is not None:
            first.check(file, ids, colours)
