"""Context and detail crops of one image: what HRDA looks at (arXiv 2204.13132, section 3.2)."""

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from hrda_lib._checks import check_generator, check_scale_and_stride, expect, pair
from hrda_lib.geometry import CropBox, crop, resize, scaled_size


class MultiResCrops(NamedTuple):
    """What :class:`MultiResCropSampler` returns."""

    context: Tensor
    detail: Tensor
    context_box: CropBox
    detail_box: CropBox


class MultiResCropSampler:
    r"""Draw a large low-resolution context crop and, inside it, a small high-resolution detail crop.

    .. math::
        x_c = \zeta(x[b_c],\, 1/s), \qquad x_d = x[b_c][b_d]

    where :math:`\zeta` is bilinear resizing (HRDA, arXiv 2204.13132, section 3.2). Offsets of both boxes are
    uniform over *every* multiple of :math:`k = s \cdot o` that fits, the last included, so that a box has
    whole cells in the context logits (:math:`o`: output stride). Fusing at a fractional scale needs whole cells in the
    detail logits too: give the sampler the output stride times the denominator of the scale then.

    Args:
        detail_size: detail crop (h, w) in high-resolution pixels, a multiple of k.
        context_size: context crop (h, w) in high-resolution pixels, a multiple of k; None takes the whole image.
        scale: s, how much coarser the context is (1, 1.5, 2, 4, ...).
        output_stride: o, image pixels a logit cell.

    Raises:
        ValueError: k is not a whole number, a size is not a multiple of k, or the detail exceeds the context.

    Example:
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
        output_stride: int = 4,
    ) -> None:
        check_scale_and_stride(scale, output_stride)
        cell = Fraction(scale).limit_denominator(1 << 16) * output_stride
        if cell.denominator != 1:
            raise ValueError(f"scale * output_stride must be a whole number, got {scale} * {output_stride} = {cell}")
        self.scale, self.cell = scale, int(cell)
        self.detail_size = self._aligned("detail_size", detail_size)
        self.context_size = None if context_size is None else self._aligned("context_size", context_size)
        if self.context_size is not None:
            self._check_fits(self.context_size)

    def sample(self, size: int | tuple[int, int], generator: torch.Generator | None = None) -> tuple[CropBox, CropBox]:
        """Draw ``(context_box, detail_box)`` for an image of ``size`` (H, W).

        ``context_box`` is in image pixels, ``detail_box`` in pixels of the (full-resolution) context crop.

        Raises:
            ValueError: the image is smaller than the crops, or is the context and no multiple of k;
                the generator is not on the CPU.
        """
        check_generator(generator)
        size = pair("size", size)
        context_size = self.context_size or self._aligned("image size", size)
        if context_size[0] > size[0] or context_size[1] > size[1]:
            raise ValueError(
                f"image of {size} is smaller than context_size {context_size}; pad it or take a smaller crop"
            )
        self._check_fits(context_size)
        return self._draw(size, context_size, generator), self._draw(context_size, self.detail_size, generator)

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> MultiResCrops:
        """Cut both crops out of ``image`` (B, K, H, W), one pair of boxes for the whole batch.

        Cut labels by the same boxes: ``crop(crop(labels, context_box), detail_box)``.
        """
        expect("image", image, "BKHW", kind="float")
        context_box, detail_box = self.sample((image.shape[-2], image.shape[-1]), generator)
        context = crop(image, context_box)
        return MultiResCrops(downscale(context, self.scale), crop(context, detail_box), context_box, detail_box)

    def _draw(self, size: tuple[int, int], box: tuple[int, int], generator: torch.Generator | None) -> CropBox:
        top, left = (
            self.cell * int(torch.randint((outer - inner) // self.cell + 1, (), generator=generator))
            for outer, inner in zip(size, box, strict=True)
        )
        return CropBox(top, left, *box)

    def _aligned(self, name: str, size: int | tuple[int, int]) -> tuple[int, int]:
        height, width = pair(name, size)
        if height % self.cell or width % self.cell:
            raise ValueError(f"{name} must be a multiple of scale * output_stride = {self.cell}, got {(height, width)}")
        return height, width

    def _check_fits(self, context_size: tuple[int, int]) -> None:
        if self.detail_size[0] > context_size[0] or self.detail_size[1] > context_size[1]:
            raise ValueError(f"detail_size {self.detail_size} must fit into the context crop of {context_size}")


def downscale(image: Tensor, scale: float) -> Tensor:
    """Bilinear resizing of (B, K, H, W) to 1/scale (no antialias, as in the released code)."""
    return resize(image, scaled_size(image, 1 / scale))
