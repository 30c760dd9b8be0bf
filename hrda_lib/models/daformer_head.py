"""Decoders over a pyramid of features: the DAFormer head and its simpler relatives."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hrda_lib._checks import as_counts, check_choice, check_counts, check_rates
from hrda_lib.attention_head import embed_levels

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
        dropout: probability of dropping a whole channel before the classifier.

    Raises:
        ValueError: a setting is out of its range, or features have other channels.

    Example:
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
    ) -> None:
        super().__init__()
        in_channels, dilations = as_counts("in_channels", in_channels), as_counts("dilations", dilations)
        check_counts(num_classes=num_classes, embed_dims=embed_dims)
        check_rates(dropout=dropout)
        check_choice("context_layer", context_layer, get_args(ContextLayer))
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
        logits: Tensor = self.classifier(self.dropout(self.fuse(embed_levels(self.embeddings, features))))
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
        out: Tensor = self.bottleneck(torch.cat([branch(x) for branch in self.branches], dim=1))
        return out


def conv_bn_relu(inputs: int, outputs: int, *, kernel: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, batch norm, ReLU; it starts as in the released code."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(outputs), relu=nn.ReLU()))
