"""Boxes, windows and resizing: the vocabulary that every other module shares."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hrda_lib._checks import check_tensor, expect, pair, plain, short


class CropBox(NamedTuple):
    """A rectangle in pixels of the tensor that it is applied to.

    >>> from hrda_lib import CropBox
    >>> CropBox(top=8, left=16, height=32, width=64).scaled(1 / 8)
    CropBox(top=1, left=2, height=4, width=8)
    """

    top: int
    """First row, from 0."""
    left: int
    """First column, from 0."""
    height: int
    """Number of rows."""
    width: int
    """Number of columns."""

    def scaled(self, factor: float) -> "CropBox":
        """The same box on a grid that is ``factor`` times as fine.

        Args:
            factor: positive, a quotient of whole numbers up to 4096: 1 / 4 for a grid of one cell every four pixels.

        Raises:
            ValueError: ``factor`` is none, or a coordinate is not a whole number on that grid.
        """
        up, down = _ratio(factor)
        top, left, height, width = (value * up for value in self)
        if top % down or left % down or height % down or width % down:
            raise ValueError(
                f"box {tuple(self)} times {up}/{down} does not lie on whole cells; "
                f"use a box whose coordinates are multiples of {down}"
            )
        return CropBox(top // down, left // down, height // down, width // down)


def _ratio(factor: float) -> tuple[int, int]:
    """The smallest whole numbers whose quotient is ``factor``."""
    if isinstance(factor, (bool, str)) or not 0 < factor < math.inf:
        raise ValueError(f"factor must be a positive quotient of whole numbers up to 4096, got {factor!r}")
    # by hand, because torch.compile of torch 2.4 cannot trace the module fractions
    for down in range(1, 4097):
        up = round(factor * down)
        if up > 0 and abs(factor * down - up) < 1e-9 * up:
            return up, down
    raise ValueError(f"factor must be a positive quotient of whole numbers up to 4096, got {factor}")


def crop(tensor: Tensor, box: CropBox) -> Tensor:
    """Cut ``box`` out of the last two dimensions of ``tensor`` (a view).

    Args:
        tensor: (..., H, W), of any type.
        box: in pixels of the tensor; any four ints (top, left, height, width) will do.

    Returns:
        (..., box.height, box.width), sharing the tensor's memory.

    Raises:
        ValueError: the box is empty or reaches beyond the tensor.

    Example:
        >>> import torch
        >>> from hrda_lib import CropBox, crop
        >>> crop(torch.arange(12).view(3, 4), CropBox(1, 2, 2, 2))
        tensor([[ 6,  7],
                [10, 11]])
    """
    check_tensor("tensor", tensor)
    top, left, height, width = as_box("box", box)
    if tensor.dim() < 2:
        raise ValueError(f"tensor must have at least two dimensions (..., H, W), got shape {tuple(tensor.shape)}")
    rows, columns = plain(tensor.shape[-2:])
    inside = top >= 0 and left >= 0 and height > 0 and width > 0 and top + height <= rows and left + width <= columns
    if not inside:
        raise ValueError(f"box {tuple(box)} must be non-empty and lie inside the tensor of {rows}x{columns} pixels")
    return tensor[..., top : top + height, left : left + width]


def window_grid(
    size: int | tuple[int, int], window: int | tuple[int, int], stride: int | tuple[int, int]
) -> list[CropBox]:
    """Windows that cover an image, row by row; the last row and column are shifted inwards.

    A window larger than the image is cut to the image, so all windows have one size.

    Args:
        size: image size (H, W) in pixels. A single int stands for a square, here and below.
        window: window size (h, w).
        stride: step between windows, at most the window (a larger step would leave gaps).

    >>> from hrda_lib import window_grid
    >>> window_grid((4, 6), (4, 4), (2, 2))
    [CropBox(top=0, left=0, height=4, width=4), CropBox(top=0, left=2, height=4, width=4)]

    Returns:
        Boxes of one size inside the image, in pixels, row by row.

    Raises:
        ValueError: a size is not positive, or the stride exceeds the window.
    """
    size, window, stride = pair("size", size), pair("window", window), pair("stride", stride)
    if stride[0] > window[0] or stride[1] > window[1]:
        raise ValueError(f"stride {stride} must not exceed the window {window}: pixels between windows would be missed")
    height, width = min(window[0], size[0]), min(window[1], size[1])
    rows, columns = _starts(size[0], height, stride[0]), _starts(size[1], width, stride[1])
    return [CropBox(top, left, height, width) for top in rows for left in columns]


def _starts(size: int, window: int, stride: int) -> list[int]:
    return [*range(0, size - window, stride), size - window]


def resize(x: Tensor, size: int | Sequence[int]) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to ``size``, without antialias: ``align_corners=False``, as everywhere here.

    Args:
        x: (B, C, h, w) float. It is returned itself where it has that size already.
        size: (H, W); an int stands for a square.

    >>> import torch
    >>> from hrda_lib import resize
    >>> resize(torch.tensor([[[[0.0, 4.0]]]]), (1, 4))
    tensor([[[[0., 1., 3., 4.]]]])

    Returns:
        (B, C, H, W), of the dtype of ``x``.

    Raises:
        ValueError: ``x`` is not float (B, C, h, w), or a side is not positive.
    """
    target = pair("size", plain(size) if isinstance(size, (tuple, list)) else size)
    expect("x", x, "BChw", kind="float")
    if plain(x.shape[-2:]) == target:
        return x
    if torch.jit.is_tracing() and isinstance(size, Sequence):  # type: ignore[attr-defined, no-untyped-call]
        target = tuple(size)  # type: ignore[assignment]  # as it was read: the trace follows that of other images
    return interpolate(x, size=target, mode="bilinear", align_corners=False)


def scaled_size(x: Tensor, factor: float) -> tuple[int, int]:
    """(h, w) of ``x`` on a grid that is ``factor`` times as fine, in whole cells or a ValueError."""
    whole = CropBox(0, 0, *plain(x.shape[-2:])).scaled(factor)
    return whole.height, whole.width


def as_box(name: str, box: CropBox) -> CropBox:
    """``box`` as a :class:`CropBox`; any four ints will do."""
    four = isinstance(box, (tuple, list)) and len(box) == 4
    if not four or any(not isinstance(v, int) or isinstance(v, bool) for v in box):
        raise ValueError(f"{name} must be four ints (top, left, height, width), got {short(box)}")
    return CropBox(*box)
