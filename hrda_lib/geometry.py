"""Boxes and windows: the vocabulary that every other room shares, and the checks that go with it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate


class CropBox(NamedTuple):
    """A rectangle in pixels of the tensor that it is applied to.

    >>> CropBox(top=8, left=16, height=32, width=64).scaled(1 / 8)
    CropBox(top=1, left=2, height=4, width=8)
    """

    top: int
    left: int
    height: int
    width: int

    def scaled(self, factor: float) -> "CropBox":
        """The same box on a grid that is ``factor`` times as fine.

        Raises:
            ValueError: a coordinate is not a whole number on that grid.
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
    # by hand, because torch.compile of torch 2.4 cannot trace the module fractions
    for down in range(1, 4097):
        up = round(factor * down)
        if up > 0 and abs(factor * down - up) < 1e-9 * up:
            return up, down
    raise ValueError(f"factor must be a positive quotient of whole numbers up to 4096, got {factor}")


def crop(tensor: Tensor, box: CropBox) -> Tensor:
    """Cut ``box`` out of the last two dimensions of ``tensor`` (a view).

    >>> crop(torch.arange(12).view(3, 4), CropBox(1, 2, 2, 2))
    tensor([[ 6,  7],
            [10, 11]])

    Raises:
        ValueError: the box is empty or reaches beyond the tensor.
    """
    check_tensor("tensor", tensor)
    top, left, height, width = as_box("box", box)
    if tensor.dim() < 2:
        raise ValueError(f"tensor must have at least two dimensions (..., H, W), got shape {tuple(tensor.shape)}")
    rows, columns = tensor.shape[-2:]
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

    >>> window_grid((4, 6), (4, 4), (2, 2))
    [CropBox(top=0, left=0, height=4, width=4), CropBox(top=0, left=2, height=4, width=4)]

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

    >>> resize(torch.tensor([[[[0.0, 4.0]]]]), (1, 4))
    tensor([[[[0., 1., 3., 4.]]]])

    Raises:
        ValueError: ``x`` is not float (B, C, h, w), or a side is not positive.
    """
    size = pair("size", size)
    check_tensor("x", x)
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x must be float (B, C, h, w), got {x.dtype} {tuple(x.shape)}")
    if tuple(x.shape[-2:]) == size:
        return x
    return interpolate(x, size=size, mode="bilinear", align_corners=False)


def at_least_float32(x: Tensor) -> Tensor:
    """What sums are kept in: float16 and bfloat16 become float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pair(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """``size`` as (height, width) of positive ints; an int stands for a square."""
    values = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(values) != 2 or not all(map(is_count, values)):
        raise ValueError(f"{name} must be a positive int or two of them (height, width), got {size!r}")
    return values


def is_count(value: object) -> bool:
    """Whether it is a positive int."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_counts(**values: object) -> None:
    """Refuse what is no positive int: widths, classes, channels."""
    for name, value in values.items():
        if not is_count(value):
            raise ValueError(f"{name} must be a positive int, got {_short(value)}")


def check_rates(**values: object) -> None:
    """Refuse what is no probability below 1: dropout, stochastic depth."""
    for name, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
            raise ValueError(f"{name} must be a number in [0, 1), got {_short(value)}")


def as_counts(name: str, values: object) -> tuple[int, ...]:
    """``values`` as a tuple of positive ints, at least one."""
    found = tuple(values) if isinstance(values, (tuple, list)) else ()
    if not found or not all(map(is_count, found)):
        raise ValueError(f"{name} must be a list of positive ints, at least one, got {_short(values)}")
    return found


def check_images(images: object, channels: int | None = None) -> None:
    """Refuse what is no non-empty batch of float images, of so many channels if given."""
    check_tensor("images", images)
    assert isinstance(images, Tensor)
    wanted = "K" if channels is None else channels
    fits = images.dim() == 4 and 0 not in images.shape and channels in (None, images.shape[1])
    if not fits or not images.is_floating_point():
        raise ValueError(f"images must be float (B, {wanted}, H, W), got {images.dtype} {tuple(images.shape)}")


def feature_channels(features: object) -> object:
    """The channels of each (B, C, h, w) tensor of a list, for comparison with what was expected; else what came."""
    if not isinstance(features, (list, tuple)):  # no union: the compiler of older torch stops at it
        return _short(features) if isinstance(features, Tensor) else type(features).__name__
    return [
        (f.shape[1] if f.dim() == 4 else tuple(f.shape)) if isinstance(f, Tensor) else type(f).__name__
        for f in features
    ]


def finest_size(features: Sequence[Tensor]) -> tuple[int, int]:
    """(h, w) of the feature with the most cells."""
    height, width = features[0].shape[-2:]
    for feature in features:  # no max(key=): the compiler of older torch stops at it
        if feature.shape[-2] * feature.shape[-1] > height * width:
            height, width = feature.shape[-2:]
    return height, width


def as_box(name: str, box: CropBox) -> CropBox:
    """``box`` as a :class:`CropBox`; any four ints will do."""
    if not isinstance(box, (tuple, list)) or len(box) != 4 or any(not isinstance(v, int) for v in box):
        raise ValueError(f"{name} must be four ints (top, left, height, width), got {_short(box)}")
    return CropBox(*box)


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor, with a hint at what was meant."""
    if not isinstance(value, Tensor):
        hint = "see torch.from_numpy"
        if isinstance(value, (dict, tuple)):
            entry = "x[0]" if isinstance(value, tuple) else "x['out']"
            hint = f"pass one of its entries, e.g. {entry}"
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}; {hint}")


def _short(value: object) -> str:
    return f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def check_labels(name: str, labels: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Refuse labels of another type, and (eager mode, CPU) label values that are no class.

    On other devices the values are not looked at: that would make the host wait for the device.
    """
    if labels.dtype not in (torch.uint8, torch.int64):
        raise ValueError(f"{name} must be uint8 or int64, got {labels.dtype}; convert with .long()")
    if torch.compiler.is_compiling() or labels.device.type != "cpu":
        return
    values = labels.int() if labels.dtype == torch.uint8 else labels  # uint8 would compare modulo 256
    outside = (values < 0) | (values >= num_classes)
    if ignore_index is not None:
        outside &= values != ignore_index
    if outside.any():
        value = int(values[outside][0])
        otherwise = "" if ignore_index is None else f" and not the ignore_index {ignore_index}"
        raise ValueError(f"{name} holds the label {value}, outside [0, {num_classes}){otherwise}; map it to a class")


def check_generator(generator: torch.Generator | None) -> None:
    """Boxes, classes and factors are drawn on the CPU, so that no draw waits for a device."""
    if generator is None:
        return
    if not hasattr(generator, "device"):
        raise ValueError(
            f"generator must be a torch.Generator, got {generator!r}; use torch.Generator().manual_seed(...)"
        )
    if generator.device.type != "cpu":
        raise ValueError(f"generator must be a CPU generator, got one on {generator.device}; use torch.Generator()")
