"""DeepLab-v2 over ResNet-101."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet101

from hrda_lib import EMATeacher, FeatureDistance, MultiResSegmenter, ScaleAttentionHead, SelfTraining
from hrda_lib.models import (
    DeepLabV2Head,
    ResNet101,
    deeplab_v2,
)


def test_deeplab_at_two_scales() -> None:
    torch.manual_seed(0)
    network = deeplab_v2(5)
    names = {name for name, _ in network.encoder.named_parameters()}
    with torch.device("meta"):
        expected = resnet101()
    assert names | {"fc.weight", "fc.bias"} == {name for name, _ in expected.named_parameters()}
    assert network(torch.rand(2, 3, 65, 96)).shape == (2, 5, 9, 12)
    attention = ScaleAttentionHead(network.encoder.channels, 5, embed_dims=8)
    model = MultiResSegmenter(network.encoder, network.decoder, attention, detail_size=(32, 32), output_stride=8)
    training = SelfTraining(
        model, EMATeacher(model), feature_distance=FeatureDistance(network.encoder, classes=None, num_classes=5)
    )
    images, labels = torch.rand(2, 3, 64, 64), torch.randint(5, (2, 64, 64))
    for _, loss in training.losses(images, labels, images):
        loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_deeplab_head_is_the_sum_of_its_branches() -> None:
    torch.manual_seed(0)
    head = DeepLabV2Head(4, 3, dilations=(2, 3)).double()
    feature = torch.rand(1, 4, 7, 9, dtype=torch.float64)
    around = nn.functional.pad(feature, (3, 3, 3, 3))
    expected = torch.zeros(1, 3, 7, 9, dtype=torch.float64)
    for branch, dilation in zip(head.branches, (2, 3), strict=True):
        expected += branch.bias[:, None, None]
        for i in range(3):
            for j in range(3):
                top, left = 3 + dilation * (i - 1), 3 + dilation * (j - 1)
                window = around[:, :, top : top + 7, left : left + 9]
                expected += torch.einsum("bchw,oc->bohw", window, branch.weight[:, :, i, j])
    assert torch.allclose(head([feature]), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ResNet101("nonsense"), "weights must be None or one of IMAGENET1K_V1, .*, got 'nonsense'"),
        (lambda: ResNet101(True), "weights must be None or one of"),
        (lambda: DeepLabV2Head(8, 5, dilations=()), "dilations must be a list of positive ints, at least one"),
        (lambda: DeepLabV2Head(8, 5)([torch.rand(1, 9, 4, 4)]), r"last is \(B, 8, h, w\), got channels \[9\]"),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
