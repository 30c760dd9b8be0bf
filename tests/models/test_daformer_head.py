"""The DAFormer head and its simpler relatives."""

from typing import Any

import pytest
import torch
from torch import nn

from hrda_lib.models import (
    DAFormerHead,
)


@pytest.mark.parametrize("context_layer", ["sepaspp", "aspp", "conv1"])
def test_head(context_layer: Any) -> None:
    torch.manual_seed(0)
    head = DAFormerHead([8, 16], 5, embed_dims=8, context_layer=context_layer, dropout=0).eval()
    features = [torch.rand(2, 8, 16, 12), torch.rand(2, 16, 8, 6)]
    logits = head(features)
    assert logits.shape == (2, 5, 16, 12)
    levels = []
    for feature, embed in zip(features, head.embeddings, strict=True):
        level = torch.einsum("bchw,oc->bohw", feature, embed.weight[:, :, 0, 0]) + embed.bias[:, None, None]
        levels.append(nn.functional.interpolate(level, size=(16, 12), mode="bilinear"))
    expected = head.classifier(head.fuse(torch.cat(levels, 1)))
    assert torch.allclose(logits, expected, atol=1e-5)
    assert [m.p for m in head.modules() if isinstance(m, nn.Dropout2d)] == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DAFormerHead([8], 5)(None), r"channels \[8\], got NoneType"),
        (lambda: DAFormerHead([], 5), "in_channels must be a list of positive ints"),
        (lambda: DAFormerHead([8], 5, context_layer="isa"), "context_layer must be one of"),
        (lambda: DAFormerHead([8], 5, dilations=(6.5,)), "dilations must be a list of positive ints"),
        (lambda: DAFormerHead([8], 5)([torch.rand(1, 9, 4, 4)]), r"with channels \[8\], got \[9\]"),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
