"""How image and label files are read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    import PIL.Image  # at run time where a file is opened


def read_image(file: Path) -> Tensor:
    """(3, H, W) uint8, in memory pixel by pixel (channels last); grey and palette images become RGB.

    Raises:
        ValueError: the file is missing or broken, or holds more than 8 bits a channel.
    """
    with open_image(file) as image:
        deep = ";16" in image.info["raw mode"]  # which Pillow cuts to 8 bits
        if deep or image.mode not in ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK"):
            kind = image.info["raw mode"] if deep else image.mode
            raise ValueError(f"{file}: image must have 8 bits a channel, got mode {kind}; convert it")
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


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
        label: uint8 on the CPU, of any shape.

    Returns:
        (256,) int64.

    Raises:
        ValueError: the label is of another type, or on another device.

    Example:
        >>> count_ids(torch.tensor([[0, 2, 2], [2, 255, 255]], dtype=torch.uint8))[[0, 1, 2, 255]]
        tensor([1, 0, 3, 2])
    """
    if not isinstance(label, Tensor) or label.dtype != torch.uint8 or label.device.type != "cpu":
        got = f"{label.dtype} on {label.device}" if isinstance(label, Tensor) else type(label).__name__
        raise ValueError(f"label must be a tensor of uint8 on the CPU, got {got}")
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


Palette = Sequence[tuple[int, ...]]


class StoredIds:
    """Reads labels that are stored as ids in grey or palette PNGs; the file is all that it takes.

    Args:
        table: for each stored id, 0..255, the id to give for it.
        check: (file, the stored ids that occur, the colours of the palette), raises ValueError where they are wrong.
    """

    def __init__(
        self, table: npt.NDArray[np.uint8], check: Callable[[Path, list[int], Palette], None] | None = None
    ) -> None:
        self.table, self.check = table, check

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
        image = open_image(file)
        if image.format == "JPEG":
            image.close()
            raise ValueError(f"{file}: JPEG changes ids, labels must be stored as PNG")
        if image.mode not in ("L", "P", "1") or image.info["raw mode"].endswith(("I", "IR")):  # inverted
            image.close()
            raise ValueError(
                f"{file}: label must be a single-channel 8-bit or palette PNG of ids, got mode {image.mode}"
            )
        return image

    def _ids(self, image: "PIL.Image.Image") -> npt.NDArray[np.uint8]:
        # Pillow spreads grey levels of 2 and 4 bits over 0..255
        spread = {"L;2": 85, "L;4": 17}.get(image.info["raw mode"], 1)
        ids = np.asarray(image, dtype=np.uint8)
        return ids if spread == 1 else ids // spread

    def _checked(self, file: Path, image: "PIL.Image.Image", counts: npt.NDArray[np.int64]) -> None:
        if self.check is not None:
            flat = image.getpalette() or []
            palette = list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
            self.check(file, np.flatnonzero(counts).tolist(), palette)


def open_image(file: Path) -> "PIL.Image.Image":
    """The decoded picture.

    Raises:
        ValueError: the file is missing or broken.
    """
    import PIL.Image

    try:
        image = PIL.Image.open(file)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from None
    try:
        layout = image.tile[0][3] if image.tile else ""
        image.info["raw mode"] = str(layout[0] if isinstance(layout, tuple) else layout or "")
        image.load()
    except (OSError, SyntaxError) as error:
        image.close()
        raise _unreadable(file, error) from None
    if image.mode == "P" and not image.getpalette():
        image.close()
        raise ValueError(f"{file}: a palette PNG without its palette; write it again, with one or as grey levels")
    return image


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file}: cannot be read as an image ({error})")
