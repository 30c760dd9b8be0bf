"""Context and detail crops of one image: what HRDA looks at (arXiv 2204.13132, section 3.2)."""

from fractions import Fraction
from math import lcm
from typing import NamedTuple

import torch
from torch import Tensor

from hrda_lib._checks import check_generator, check_scale_and_stride, expect, pair
from hrda_lib.geometry import CropBox, crop, resize, scaled_size


class MultiResCrops(NamedTuple):
    """What :class:`MultiResCropSampler` returns."""

    context: Tensor
    """The context crop, downscaled, (B, K, h/s, w/s)."""
    detail: Tensor
    """The detail crop at full resolution, (B, K, dh, dw)."""
    context_box: CropBox
    """Where the context lies, in image pixels."""
    detail_box: CropBox
    """Where the detail lies, in pixels of the context crop at full resolution."""


class MultiResCropSampler:
    r"""Draw a large low-resolution context crop and, inside it, a small high-resolution detail crop.

    .. math::
        x_c = \zeta(x[b_c],\, 1/s), \qquad x_d = x[b_c][b_d]

    where :math:`\zeta` is bilinear resizing (HRDA, arXiv 2204.13132, section 3.2). Offsets of both boxes are
    uniform over *every* multiple of k that fits, the last included, with k the smallest number of pixels that is whole
    cells of logits at both scales: :math:`k = s \cdot o` where both are whole, 7 for s = 2 and o = 3.5, 12 for
    s = 1.5 and o = 4.

    Args:
        detail_size: detail crop (h, w) in high-resolution pixels, a multiple of k and of ``multiple_of``.
        context_size: context crop (h, w) in high-resolution pixels, a multiple of k and, divided by s, of
            ``multiple_of``; None takes the whole image.
        scale: s, how much coarser the context is (1, 1.5, 2, 4, ...).
        output_stride: o, image pixels a logit cell, at least 1; 3.5 is a patch of 14 upsampled twice.
        multiple_of: what the sides of an encoder's input must be divisible by, such as its patch or its total stride;
            one number or (rows, columns). 1: any side.

    Raises:
        ValueError: a size is no such multiple, or the detail exceeds the context.

    Example:
        >>> import torch
        >>> from hrda_lib import MultiResCropSampler
        >>> sampler = MultiResCropSampler((32, 32), scale=2, output_stride=4)
        >>> crops = sampler(torch.rand(2, 3, 64, 96), torch.Generator().manual_seed(0))
        >>> crops.context.shape, crops.detail.shape
        (torch.Size([2, 3, 32, 48]), torch.Size([2, 3, 32, 32]))
        >>> crops.detail_box
        CropBox(top=24, left=48, height=32, width=32)
    """

    def __init__(
        self,
        detail_size: int | tuple[int, int],
        *,
        context_size: int | tuple[int, int] | None = None,
        scale: float = 2,
        output_stride: float = 4,
        multiple_of: int | tuple[int, int] = 1,
    ) -> None:
        check_scale_and_stride(scale, output_stride)
        self.scale, self.output_stride, self.multiple_of = scale, output_stride, pair("multiple_of", multiple_of)
        ratio, stride = as_fraction("scale", scale), as_fraction("output_stride", output_stride)
        rows, columns = self.multiple_of
        # n / x is whole for a reduced fraction x where its numerator divides n
        self.step = lcm(stride.numerator, (ratio * stride).numerator)
        self.detail_multiple = lcm(self.step, rows), lcm(self.step, columns)
        self.context_multiple = lcm(self.step, (ratio * rows).numerator), lcm(self.step, (ratio * columns).numerator)
        self.detail_size = check_multiple("detail_size", pair("detail_size", detail_size), self.detail_multiple)
        self.context_size = None if context_size is None else pair("context_size", context_size)
        if self.context_size is not None:
            check_multiple("context_size", self.context_size, self.context_multiple)
            self._check_fits(self.context_size)

    def sample(self, size: int | tuple[int, int], generator: torch.Generator | None = None) -> tuple[CropBox, CropBox]:
        """Draw the boxes of both crops.

        Args:
            size: of the image, (H, W) in pixels; an int stands for a square.
            generator: a CPU generator; None: torch's default.

        Returns:
            ``(context_box, detail_box)``, the first in image pixels, the second in pixels of the (full-resolution)
            context crop.

        Raises:
            ValueError: the image is smaller than the crops, or is the context and no multiple of k;
                the generator is not on the CPU.
        """
        check_generator(generator)
        size = pair("size", size)
        context_size = self.context_size or check_multiple("image size", size, self.context_multiple)
        if context_size[0] > size[0] or context_size[1] > size[1]:
            raise ValueError(
                f"image of {size} is smaller than context_size {context_size}; pad it or take a smaller crop"
            )
        self._check_fits(context_size)
        return self._draw(size, context_size, generator), self._draw(context_size, self.detail_size, generator)

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> MultiResCrops:
        """Cut both crops, at one pair of boxes for the whole batch.

        Cut labels by the same boxes: ``crop(crop(labels, context_box), detail_box)``.

        Args:
            image: (B, K, H, W) float.
            generator: a CPU generator for the boxes; None: torch's default.

        Returns:
            :class:`MultiResCrops`.

        Raises:
            ValueError: as :meth:`sample`, or the image is not float (B, K, H, W).
        """
        expect("image", image, "BKHW", kind="float")
        context_box, detail_box = self.sample((image.shape[-2], image.shape[-1]), generator)
        context = crop(image, context_box)
        return MultiResCrops(downscale(context, self.scale), crop(context, detail_box), context_box, detail_box)

    def _draw(self, size: tuple[int, int], box: tuple[int, int], generator: torch.Generator | None) -> CropBox:
        top, left = (
            self.step * int(torch.randint((outer - inner) // self.step + 1, (), generator=generator))
            for outer, inner in zip(size, box, strict=True)
        )
        return CropBox(top, left, *box)

    def _check_fits(self, context_size: tuple[int, int]) -> None:
        if self.detail_size[0] > context_size[0] or self.detail_size[1] > context_size[1]:
            raise ValueError(f"detail_size {self.detail_size} must fit into the context crop of {context_size}")


def as_fraction(name: str, value: float) -> Fraction:
    """``value`` as a quotient of whole numbers, which boxes are scaled by; a ValueError where it is rounded."""
    fraction = Fraction(value).limit_denominator(4096)
    if abs(fraction - Fraction(value)) > Fraction(1, 10**9) * fraction:
        raise ValueError(
            f"{name} must be a quotient of whole numbers up to 4096, got {value}; write it as one, such as 4 / 3"
        )
    return fraction


def check_multiple(
    name: str, size: tuple[int, int], multiple: tuple[int, int], way_out: str = "or pad to it"
) -> tuple[int, int]:
    """``size``, where its sides are multiples; a ValueError where not."""
    if size[0] % multiple[0] or size[1] % multiple[1]:
        wanted = multiple[0] if multiple[0] == multiple[1] else multiple
        fits = tuple(-(-side // cell) * cell for side, cell in zip(size, multiple, strict=True))
        raise ValueError(
            f"{name} must be a multiple of {wanted} (by scale, output_stride and multiple_of), got {tuple(size)}; take "
            f"{fits}, {way_out}"
        )
    return size


def downscale(image: Tensor, scale: float) -> Tensor:
    """Bilinear resizing of (B, K, H, W) to 1/scale (no antialias, as in the released code)."""
    return resize(image, scaled_size(image, 1 / scale))
