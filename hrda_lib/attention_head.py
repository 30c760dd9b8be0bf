"""The light head that predicts the scale attention (HRDA, arXiv 2204.13132, section 3.3)."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hrda_lib._checks import (
    as_counts,
    check_choice,
    check_counts,
    check_rates,
    expect_levels,
    plain,
)
from hrda_lib._modules import hooked, recomputed
from hrda_lib.geometry import resize


class ScaleAttentionHead(nn.Module):
    """Predict scale-attention logits from encoder features: the paper's light head (HRDA, section 3.3).

    Each feature is embedded by a 1x1 convolution and upsampled to the finest; their concatenation, fine to coarse,
    goes through 1x1 convolution, batch norm, ReLU, dropout of whole channels and a 1x1 convolution.

    Args:
        in_channels: channels of each feature, in the order in which they come (fine to coarse).
        out_channels: the number of classes, or 1 for an attention that all classes share.
        embed_dims: width of the head.
        dropout: probability of dropping a channel, in [0, 1).
        checkpoint: True keeps nothing but the features for backward: the head is computed anew there. False
            keeps its activations.

    Raises:
        ValueError: a setting is out of its range, or the features are not a list of as many tensors as
            ``in_channels``, with those channels.

    Example:
        >>> import torch
        >>> from hrda_lib import ScaleAttentionHead
        >>> head = ScaleAttentionHead([16, 32], 19, embed_dims=8)
        >>> head([torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)]).shape
        torch.Size([2, 19, 8, 8])
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        *,
        embed_dims: int = 256,
        dropout: float = 0.1,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        in_channels = as_counts("in_channels", in_channels)
        check_counts(out_channels=out_channels, embed_dims=embed_dims)
        check_rates(dropout=dropout)
        check_choice("checkpoint", checkpoint, (True, False))
        self.checkpoint = checkpoint
        self.embeddings = nn.ModuleList(nn.Conv2d(channels, embed_dims, 1) for channels in in_channels)
        self.fuse = nn.Sequential(
            nn.Conv2d(len(in_channels) * embed_dims, embed_dims, 1, bias=False),
            nn.BatchNorm2d(embed_dims),
            nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(embed_dims, out_channels, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Attention logits at the finest feature's resolution.

        Args:
            features: a list or tuple of (B, C_i, h_i, w_i), one for each of ``in_channels``, fine to coarse.

        Returns:
            (B, out_channels, h_0, w_0) raw, before the sigmoid.

        Raises:
            ValueError: there are more or fewer features, or they have other channels.
        """
        if not isinstance(features, list | tuple) or hooked(self):
            return self._classified(self.fuse(embed_levels(self.embeddings, features)))
        if self.checkpoint:
            return recomputed(self, lambda *levels: self._recomputing(levels), *features)
        return self._recomputing(features)

    def _recomputing(self, features: Sequence[Tensor]) -> Tensor:
        """Of all between the features and the logits, backward keeps the sums of the convolution in the middle."""
        convolution, norm, relu = self.fuse
        summed = recomputed(self, lambda *levels: convolution(embed_levels(self.embeddings, levels)), *features)
        return recomputed(self, lambda y: self._classified(relu(norm(y))), summed)

    def _classified(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


def embed_levels(embeddings: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    """Each feature through its own convolution, brought to the finest, and all of them concatenated."""
    expected = [cast(int, embedding.in_channels) for embedding in embeddings]
    expect_levels(features, expected)
    finest = features[0]
    for feature in features:  # no max(key=): the compiler of older torch stops at it
        if math.prod(plain(feature.shape[-2:])) > math.prod(plain(finest.shape[-2:])):
            finest = feature
    size = finest.shape[-2:]
    levels = [resize(embed(feature), size) for embed, feature in zip(embeddings, features, strict=True)]
    return torch.cat(levels, dim=1)
