"""Decoders over a pyramid of features: the DAFormer head and its simpler relatives."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hrda_lib._checks import as_counts, check_choice, check_counts, check_rates
from hrda_lib._modules import hooked, recomputed
from hrda_lib.attention_head import embed_levels
from hrda_lib.models.depthwise import DepthwiseConv2d

Parts = tuple[Tensor, Any, Any]  # logits of a convolution, and the batch norm and the ReLU after it
ContextLayer = Literal["sepaspp", "aspp", "conv1"]


class DAFormerHead(nn.Module):
    r"""Embed every level, bring all to the finest, and fuse them with a look at several distances.

    .. math::
        \hat y = W\, g\big(\mathrm{concat}_i\, \mathrm{up}(E_i f_i)\big)

    with 1x1 embeddings :math:`E_i`, levels in the order in which they come (fine to coarse), and g an ASPP of
    depthwise-separable convolutions without image pooling (DAFormer, arXiv 2111.14887, section 3.2).

    Args:
        in_channels: channels of each level.
        num_classes: channels of the logits.
        embed_dims: channels of each embedding and of the fused features.
        context_layer: "sepaspp" (DAFormer); "aspp", whose dilated convolutions are not separable; "conv1", one 1x1
            convolution, as in SegFormer.
        dilations: of the branches of an ASPP; 1 stands for a 1x1 convolution.
        dropout: probability of dropping a whole channel before the classifier, in [0, 1).
        checkpoint: True keeps nothing but the features for backward: the head is computed anew there. False keeps what
            convolutions give, and computes batch norms, ReLUs and dropout anew.

    Raises:
        ValueError: a setting is out of its range, or features have other channels.

    Example:
        >>> import torch
        >>> from hrda_lib.models import DAFormerHead
        >>> head = DAFormerHead([32, 64], num_classes=5, embed_dims=16)
        >>> head([torch.rand(2, 32, 16, 16), torch.rand(2, 64, 8, 8)]).shape
        torch.Size([2, 5, 16, 16])
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        embed_dims: int = 256,
        context_layer: ContextLayer = "sepaspp",
        dilations: Sequence[int] = (1, 6, 12, 18),
        dropout: float = 0.1,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        in_channels, dilations = as_counts("in_channels", in_channels), as_counts("dilations", dilations)
        check_counts(num_classes=num_classes, embed_dims=embed_dims)
        check_rates(dropout=dropout)
        check_choice("context_layer", context_layer, get_args(ContextLayer))
        check_choice("checkpoint", checkpoint, (True, False))
        self.checkpoint = checkpoint
        self.embeddings = nn.ModuleList(nn.Conv2d(channels, embed_dims, 1) for channels in in_channels)
        width = len(in_channels) * embed_dims
        self.fuse: nn.Module
        if context_layer == "conv1":
            self.fuse = conv_bn_relu(width, embed_dims)
        else:
            self.fuse = Aspp(width, embed_dims, dilations, separable=context_layer == "sepaspp")
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(embed_dims, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits at the finest level's resolution.

        Args:
            features: a list or tuple of (B, C_i, h_i, w_i), one for each of ``in_channels``, fine to coarse.

        Returns:
            (B, num_classes, h_0, w_0) raw.

        Raises:
            ValueError: there are more or fewer features, or they have other channels.
        """
        if self.checkpoint and isinstance(features, list | tuple):
            return recomputed(self, lambda *levels: self._logits(levels), *features)
        return self._logits(features)

    def _logits(self, features: Sequence[Tensor]) -> Tensor:
        x = embed_levels(self.embeddings, features)
        if hooked(self):
            return self._classified(self.fuse(x))
        summed, norm, relu = self.fuse.in_parts(x) if isinstance(self.fuse, Aspp) else _in_parts(self.fuse, x)
        return recomputed(self, lambda y: self._classified(relu(norm(y))), summed)

    def _classified(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


class Aspp(nn.Module):
    """Parallel dilated convolutions, concatenated and fused by a 3x3 convolution; no image pooling."""

    def __init__(self, channels: int, width: int, dilations: Sequence[int], *, separable: bool) -> None:
        super().__init__()
        branches: list[nn.Module] = []
        for dilation in dilations:
            if dilation == 1:
                branches.append(conv_bn_relu(channels, width))
            elif separable:
                depthwise = conv_bn_relu(channels, channels, kernel=3, dilation=dilation, groups=channels)
                pointwise = conv_bn_relu(channels, width)
                branches.append(nn.Sequential(OrderedDict(depthwise_conv=depthwise, pointwise_conv=pointwise)))
            else:
                branches.append(conv_bn_relu(channels, width, kernel=3, dilation=dilation))
        self.branches = nn.ModuleList(branches)
        self.bottleneck = conv_bn_relu(len(branches) * width, width, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        if hooked(self):
            out: Tensor = self.bottleneck(torch.cat([branch(x) for branch in self.branches], dim=1))
            return out
        summed, norm, relu = self.in_parts(x)
        finished: Tensor = relu(norm(summed))
        return finished

    def in_parts(self, x: Tensor) -> Parts:
        """Of all that a ReLU gives, backward keeps what the batch norm before it got, and no more."""
        branches = [_in_parts(branch, x) for branch in self.branches]

        last: Any = self.bottleneck

        def fused(*maps: Tensor) -> Tensor:
            done = [relu(norm(y)) for (_, norm, relu), y in zip(branches, maps, strict=True)]
            summed: Tensor = last.conv(torch.cat(done, dim=1))
            return summed

        return recomputed(self, fused, *[y for y, _, _ in branches]), last.bn, last.relu


def _in_parts(block: Any, x: Tensor) -> Parts:
    """What the last convolution of a block gives, and its batch norm and ReLU."""
    if hasattr(block, "pointwise_conv"):
        first, last = block.depthwise_conv, block.pointwise_conv
        return recomputed(block, lambda y: last.conv(first.relu(first.bn(y))), first.conv(x)), last.bn, last.relu
    return block.conv(x), block.bn, block.relu


def conv_bn_relu(inputs: int, outputs: int, *, kernel: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, batch norm, ReLU; it starts as in the released code."""
    convolution: nn.Conv2d
    if groups == inputs == outputs and kernel == 3:
        convolution = DepthwiseConv2d(inputs, dilation=dilation)
    else:
        padding = dilation * (kernel // 2)
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(outputs), relu=nn.ReLU(inplace=True)))
