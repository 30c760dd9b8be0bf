"""Readers of one's own, called so that what goes wrong is an error that names the file."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hrda_lib.data.layout import plain, shown
from hrda_lib.data.pictures import read_draft, read_image
from hrda_lib.data.stored_ids import StoredIds, ignoring

Reader = Callable[[Path], Tensor]


def image_of(file: Path, reader: Reader | None, max_pixels: int | None = None) -> Tensor:
    """The image of a file by ``reader``, or by :func:`read_image`.

    Raises:
        ValueError: starts with the file: it cannot be read, is no (K, H, W) of uint8 or float32, or is not finite.
    """
    if reader is None:
        return read_image(file, max_pixels)
    image = called(reader, file)
    wanted = "read_image must give a tensor (K, H, W) of uint8 or float32"
    if not isinstance(image, Tensor):
        raise ValueError(f"{shown(file)}: {wanted}, got {type(image).__name__}; torch.from_numpy makes one of an array")
    if image.dim() != 3 or not image.numel() or image.dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"{shown(file)}: {wanted}, got {tuple(image.shape)} of {image.dtype}")
    if image.is_floating_point() and not image.isfinite().all():
        raise ValueError(f"{shown(file)}: image holds values that are not finite; let read_image replace them")
    return image.detach()


def draft_of(
    file: Path, reader: Reader | None, max_pixels: int | None, within: tuple[int, int] | None
) -> tuple[Tensor, tuple[int, ...]]:
    """The image, and the size that it is of: readers of one's own make no drafts.

    Raises:
        ValueError: as :func:`image_of`.
    """
    if reader is None:
        return read_draft(file, within, max_pixels)
    image = image_of(file, reader)
    return image, tuple(image.shape[1:])


def label_of(file: Path, reader: Reader) -> Tensor:
    """The label of a file by ``reader``.

    Raises:
        ValueError: starts with the file: it cannot be read, or is no (H, W) of uint8.
    """
    label = called(reader, file)
    if not isinstance(label, Tensor) or label.dim() != 2 or label.dtype != torch.uint8:
        got = f"{tuple(label.shape)} of {label.dtype}" if isinstance(label, Tensor) else type(label).__name__
        raise ValueError(f"{shown(file)}: read_label must give a tensor (H, W) of uint8, got {got}")
    return label


def called(reader: Reader, file: Path) -> Tensor:
    """``reader(file)``.

    Raises:
        ValueError: starts with the file: the reader fails.
    """
    try:
        return reader(file)
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith((str(file), shown(file))):
            if str(error) == plain(str(error)):
                raise
            raise ValueError(plain(str(error).replace(str(file), shown(file)))) from error
        text = " ".join(str(error).split())
        raise ValueError(f"{shown(file)}: cannot be read ({type(error).__name__}: {plain(text)})") from error


def label_reader(ignore: Sequence[int], read_label: Reader | None) -> tuple[Reader, str]:
    """``read_label``, or what reads stored ids, and what tells it from others in a fingerprint.

    Raises:
        ValueError: ids to ignore and a reader are given.
    """
    if read_label is None:
        return StoredIds(ignoring(ignore)), repr(list(ignore))
    if ignore:
        raise ValueError(f"ignore is for stored ids: got {list(ignore)} with read_label, which must give 255 itself")
    return read_label, identity(read_label)


def identity(reader: Reader) -> str:
    """A function of a module by its name, anything else by its ``repr``: in doubt, it differs from run to run."""
    name = getattr(reader, "__qualname__", "<")
    return repr(reader) if "<" in name or hasattr(reader, "__self__") else f"{reader.__module__}.{name}"


class OneKind:
    """All images of a data set have the channels and the type of the one that was read first."""

    def __init__(self) -> None:
        self._first: tuple[Path, int, torch.dtype] | None = None

    def check(self, file: Path, image: Tensor) -> None:
        """Compare an image with the first.

        Raises:
            ValueError: it is of another kind; names both files.
        """
        if self._first is None:
            self._first = file, len(image), image.dtype
        first, *kind = self._first
        if kind != [len(image), image.dtype]:
            raise ValueError(
                f"{shown(file)}: image must have {kind[0]} channels of {kind[1]}, as {shown(first)} in the same data "
                f"set, got {len(image)} of {image.dtype}"
            )
