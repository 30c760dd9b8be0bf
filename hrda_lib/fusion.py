"""Scale attention: fuse context and detail predictions (HRDA, arXiv 2204.13132, section 3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hrda_lib._checks import check_finite, check_scale_and_stride, expect, is_number, plain, readable
from hrda_lib.geometry import CropBox, as_box, crop, resize, scaled_size


def fuse_scales(
    context_logits: Tensor,
    detail_logits: Tensor,
    attention: Tensor | float,
    *,
    box: CropBox | None = None,
    scale: float = 2,
) -> Tensor:
    r"""Blend two scales by an attention that weights the detail prediction.

    .. math::
        \hat y = \zeta((1 - a') \odot \hat y_c,\, s) + \zeta(a', s) \odot \hat y_d', \qquad
        a' = a \text{ inside the box}, 0 \text{ elsewhere}

    with :math:`\hat y_d'` the detail logits padded with zeros to the context's extent and :math:`\zeta(\cdot, s)`
    bilinear upsampling (HRDA, arXiv 2204.13132, section 3.3). The mask comes before upsampling, so the blend
    reaches one cell past the edge of the box.

    Args:
        context_logits: (B, C, h, w).
        detail_logits: (B, C, dh, dw), cells ``scale`` times as fine as the context's.
        attention: (B, C, h, w) or (B, 1, h, w) in [0, 1], or one float: 0 keeps the context, 1 takes the detail
            inside the box, 0.5 averages.
        box: where the detail lies, in detail-logit cells, of the size of ``detail_logits``;
            None: the detail covers the whole context.
        scale: s of the equation.

    Returns:
        Fused logits (B, C, h*s, w*s).

    Raises:
        ValueError: shapes, the box or a float attention do not fit, or (on the CPU) logits are not finite or an
            attention is outside [0, 1].

    Example:
        >>> import torch
        >>> from hrda_lib import CropBox, fuse_scales
        >>> context, detail = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
        >>> fused = fuse_scales(context, detail, 1.0, box=CropBox(2, 2, 4, 4))
        >>> fused[0, 0, 3].tolist()
        [0.0, 0.0, 0.75, 1.0, 1.0, 0.75, 0.0, 0.0]
    """
    expect("context_logits", context_logits, "BChw")
    expect("detail_logits", detail_logits, (*context_logits.shape[:2], "h", "w"), like="context_logits")
    check_scale_and_stride(scale, 1)
    box = None if box is None else as_box("box", box)
    if isinstance(attention, (int, float)):
        if not is_number(attention) or not 0 <= attention <= 1:
            raise ValueError(f"attention as a number must be in [0, 1], got {attention}")
        attention = context_logits.new_full((context_logits.shape[0], 1, *context_logits.shape[-2:]), attention)
    fine = scaled_size(context_logits, scale)
    _check(context_logits, detail_logits, attention, fine, box)
    if box is not None:
        attention = _mask_outside(attention, box.scaled(1 / scale))
    fused = resize((1 - attention) * context_logits, fine)
    share = resize(attention, fine)
    if box is None:
        return fused + share * detail_logits
    return fused + _surround(crop(share, box) * detail_logits, box, fine)


def share_of(attention_logits: Tensor) -> Tensor:
    """What the detail gets of each cell, in [0, 1], by raw attention logits of any shape."""
    return attention_logits.sigmoid()


class ScaleAttentionFusion(nn.Module):
    """:func:`fuse_scales` for raw attention logits and a box in image pixels.

    Args:
        scale: s, how much coarser the context is than the detail.
        output_stride: image pixels a detail-logit cell, at least 1.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from hrda_lib import CropBox, ScaleAttentionFusion
        >>> fusion = ScaleAttentionFusion(scale=2, output_stride=4)
        >>> logits = torch.zeros(1, 19, 8, 8)
        >>> fusion(logits, logits, logits, CropBox(16, 16, 32, 32)).shape
        torch.Size([1, 19, 16, 16])
    """

    def __init__(self, *, scale: float = 2, output_stride: int = 4) -> None:
        super().__init__()
        check_scale_and_stride(scale, output_stride)
        self.scale, self.output_stride = scale, output_stride

    def forward(
        self,
        context_logits: Tensor,
        detail_logits: Tensor,
        attention_logits: Tensor | float,
        box: CropBox | None = None,
    ) -> Tensor:
        """Fused logits, as :func:`fuse_scales` gives.

        Args:
            context_logits: (B, C, h, w).
            detail_logits: (B, C, dh, dw), cells ``scale`` times as fine.
            attention_logits: (B, C or 1, h, w), passed through a sigmoid, or a float in [0, 1] that is used as it is.
            box: where the detail lies, in image pixels, on whole cells; None: it covers the whole context.

        Returns:
            (B, C, h*s, w*s).

        Raises:
            ValueError: as :func:`fuse_scales`, or the box does not lie on whole cells.
        """
        attention = share_of(attention_logits) if isinstance(attention_logits, Tensor) else attention_logits
        cells = None if box is None else as_box("box", box).scaled(1 / self.output_stride)
        return fuse_scales(context_logits, detail_logits, attention, box=cells, scale=self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, output_stride={self.output_stride}"


def _surround(x: Tensor, box: CropBox, size: Sequence[int]) -> Tensor:
    """Place ``x`` at ``box`` of an otherwise zero canvas of ``size``."""
    top, left, height, width = box
    return pad(x, (left, size[1] - left - width, top, size[0] - top - height))


def _mask_outside(attention: Tensor, box: CropBox) -> Tensor:
    return _surround(crop(attention, box), box, attention.shape[-2:])


def _check(context: Tensor, detail: Tensor, attention: Tensor, fine: tuple[int, int], box: CropBox | None) -> None:
    batch, classes, *size = context.shape
    expect("attention", attention, (batch, classes, *size), (batch, 1, *size), like="context_logits")
    expected = fine if box is None else (box.height, box.width)
    if plain(detail.shape[-2:]) != expected:
        where = f"box {tuple(box)}" if box else "no box: the detail covers the context"
        raise ValueError(f"detail_logits must be {expected} cells ({where}), got {tuple(detail.shape[-2:])}")
    check_finite("context_logits", context)
    check_finite("detail_logits", detail)
    if readable(attention) and not ((attention >= 0) & (attention <= 1)).all():
        low, high = torch.aminmax(attention.detach())
        raise ValueError(f"attention must be in [0, 1], got {low:.4g} to {high:.4g}; pass it after a sigmoid")
