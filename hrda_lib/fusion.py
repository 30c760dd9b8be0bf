"""Scale attention: fuse context and detail predictions (HRDA, arXiv 2204.13132, section 3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from hrda_lib.geometry import (
    CropBox,
    as_box,
    as_counts,
    check_counts,
    check_rates,
    check_tensor,
    crop,
    feature_channels,
    finest_size,
)


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
        ValueError: shapes, the box or a float attention do not fit.

    Example:
        >>> context, detail = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
        >>> fused = fuse_scales(context, detail, 1.0, box=CropBox(2, 2, 4, 4))
        >>> fused[0, 0, 3].tolist()
        [0.0, 0.0, 0.75, 1.0, 1.0, 0.75, 0.0, 0.0]
    """
    _check_logits(context_logits, detail_logits)
    box = None if box is None else as_box("box", box)
    if isinstance(attention, (int, float)):
        if not 0 <= attention <= 1:
            raise ValueError(f"attention as a number must be in [0, 1], got {attention}")
        attention = context_logits.new_full((len(context_logits), 1, *context_logits.shape[-2:]), attention)
    fine = _fine_size(context_logits, scale)
    _check_sizes(context_logits, detail_logits, attention, fine, box)
    if box is not None:
        attention = _mask_outside(attention, box.scaled(1 / scale))
    fused = _resize((1 - attention) * context_logits, fine)
    share = _resize(attention, fine)
    if box is None:
        return fused + share * detail_logits
    return fused + _surround(crop(share, box) * detail_logits, box, fine)


class ScaleAttentionFusion(nn.Module):
    """:func:`fuse_scales` for raw attention logits and a box in image pixels.

    Args:
        scale: how much coarser the context is than the detail.
        output_stride: image pixels a detail-logit cell.

    Shapes: context logits (B, C, h, w); detail logits (B, C, dh, dw); attention logits (B, C or 1, h, w), passed
    through a sigmoid, or a float in [0, 1] that is used as it is; box in image pixels or None.

    Example:
        >>> fusion = ScaleAttentionFusion(scale=2, output_stride=4)
        >>> logits = torch.zeros(1, 19, 8, 8)
        >>> fusion(logits, logits, logits, CropBox(16, 16, 32, 32)).shape
        torch.Size([1, 19, 16, 16])
    """

    def __init__(self, *, scale: float = 2, output_stride: int = 4) -> None:
        super().__init__()
        if not 1 <= scale < float("inf"):
            raise ValueError(f"scale must be at least 1 and finite, got {scale}")
        if not isinstance(output_stride, int) or output_stride < 1:
            raise ValueError(f"output_stride must be a positive int, got {output_stride!r}")
        self.scale, self.output_stride = scale, output_stride

    def forward(
        self,
        context_logits: Tensor,
        detail_logits: Tensor,
        attention_logits: Tensor | float,
        box: CropBox | None = None,
    ) -> Tensor:
        attention = attention_logits.sigmoid() if isinstance(attention_logits, Tensor) else attention_logits
        cells = None if box is None else as_box("box", box).scaled(1 / self.output_stride)
        return fuse_scales(context_logits, detail_logits, attention, box=cells, scale=self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, output_stride={self.output_stride}"


class ScaleAttentionHead(nn.Module):
    """Predict scale-attention logits from encoder features: the paper's light head (HRDA, section 3.3).

    Each feature is embedded by a 1x1 convolution and upsampled to the finest; their concatenation, fine to coarse,
    goes through 1x1 convolution, batch norm, ReLU, dropout of whole channels and a 1x1 convolution.

    Args:
        in_channels: channels of each feature, in the order in which they come (fine to coarse).
        out_channels: the number of classes, or 1 for an attention that all classes share.
        embed_dims: width of the head.
        dropout: probability of dropping a channel, in [0, 1).

    Raises:
        ValueError: a setting is out of its range, or the features are not a list of as many tensors as
            ``in_channels``, with those channels.

    Example:
        >>> head = ScaleAttentionHead([16, 32], 19, embed_dims=8)
        >>> head([torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)]).shape
        torch.Size([2, 19, 8, 8])
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, *, embed_dims: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        in_channels = as_counts("in_channels", in_channels)
        check_counts(out_channels=out_channels, embed_dims=embed_dims)
        check_rates(dropout=dropout)
        self.embeddings = nn.ModuleList(nn.Conv2d(channels, embed_dims, 1) for channels in in_channels)
        self.fuse = nn.Sequential(
            nn.Conv2d(len(in_channels) * embed_dims, embed_dims, 1, bias=False), nn.BatchNorm2d(embed_dims), nn.ReLU()
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(embed_dims, out_channels, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        expected = [embedding.in_channels for embedding in self.embeddings]
        got = feature_channels(features)
        if got != expected:
            raise ValueError(f"features must be a list of (B, C, h, w) tensors with channels {expected}, got {got}")
        finest = finest_size(features)
        embedded = [
            _resize(embedding(feature), finest) for embedding, feature in zip(self.embeddings, features, strict=True)
        ]
        logits: Tensor = self.classifier(self.dropout(self.fuse(torch.cat(embedded, dim=1))))
        return logits


def _fine_size(context_logits: Tensor, scale: float) -> tuple[int, int]:
    whole = CropBox(0, 0, context_logits.shape[-2], context_logits.shape[-1]).scaled(scale)
    return whole.height, whole.width


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _surround(x: Tensor, box: CropBox, size: Sequence[int]) -> Tensor:
    """Place ``x`` at ``box`` of an otherwise zero canvas of ``size``."""
    top, left, height, width = box
    return pad(x, (left, size[1] - left - width, top, size[0] - top - height))


def _mask_outside(attention: Tensor, box: CropBox) -> Tensor:
    return _surround(crop(attention, box), box, attention.shape[-2:])


def _check_logits(context: Tensor, detail: Tensor) -> None:
    check_tensor("context_logits", context)
    check_tensor("detail_logits", detail)
    if context.dim() != 4 or detail.dim() != 4 or context.shape[:2] != detail.shape[:2]:
        raise ValueError(
            f"context_logits and detail_logits must be (B, C, h, w) with the same B and C, "
            f"got {tuple(context.shape)} and {tuple(detail.shape)}"
        )


def _check_sizes(
    context: Tensor, detail: Tensor, attention: Tensor, fine: tuple[int, int], box: CropBox | None
) -> None:
    check_tensor("attention", attention)
    batch, classes, *size = context.shape
    if tuple(attention.shape) not in ((batch, classes, *size), (batch, 1, *size)):
        raise ValueError(
            f"attention must be {(batch, classes, *size)} or {(batch, 1, *size)} like context_logits, "
            f"got {tuple(attention.shape)}"
        )
    expected = fine if box is None else (box.height, box.width)
    if tuple(detail.shape[-2:]) != expected:
        where = f"box {tuple(box)}" if box else "no box: the detail covers the context"
        raise ValueError(f"detail_logits must be {expected} cells ({where}), got {tuple(detail.shape[-2:])}")
