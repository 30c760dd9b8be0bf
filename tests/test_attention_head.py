import re
from typing import Any

import numpy as np
import pytest
import torch
from bilinear import resize
from torch import Tensor, nn

from hrda_lib import ScaleAttentionHead


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_head(channels: list[int], maps: int = 3, width: int = 4) -> ScaleAttentionHead:
    """A head in float64 whose every parameter and running statistic is random."""
    head = ScaleAttentionHead(channels, maps, embed_dims=width).double()
    for number, (name, tensor) in enumerate(head.state_dict().items()):
        if tensor.is_floating_point():
            values = random(*tensor.shape, seed=number)
            tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return head


def before_batch_norm(head: ScaleAttentionHead, features: list[Tensor]) -> np.ndarray:
    finest = max((tuple(feature.shape[-2:]) for feature in features), key=np.prod)
    levels = []
    for embedding, feature in zip(head.embeddings, features, strict=True):
        weight, bias = embedding.weight.detach().numpy()[:, :, 0, 0], embedding.bias.detach().numpy()
        embedded = np.einsum("ec,bchw->behw", weight, feature.numpy()) + bias[:, None, None]
        levels.append(resize(embedded, finest))
    return np.einsum("ec,bchw->behw", head.fuse[0].weight.detach().numpy()[:, :, 0, 0], np.concatenate(levels, axis=1))


FEATURES = {
    "one": ([3], [(3, 5)]),
    "pyramid": ([2, 3, 5, 4], [(8, 12), (4, 6), (2, 3), (1, 2)]),
    "odd sizes": ([4, 1, 3], [(7, 5), (4, 3), (2, 2)]),
    "same size": ([2, 2], [(3, 4), (3, 4)]),
    "coarse first": ([2, 5], [(2, 3), (4, 6)]),
}


@pytest.mark.parametrize(("channels", "sizes"), FEATURES.values(), ids=FEATURES)
def test_head_is_the_papers_light_head(channels: list[int], sizes: list[tuple[int, int]]) -> None:
    head = make_head(channels).eval()
    features = [random(2, c, *size, seed=c) for c, size in zip(channels, sizes, strict=True)]

    norm, classifier = head.fuse[1], head.classifier
    mean, variance, gain, shift = (
        x.detach().numpy()[:, None, None] for x in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    hidden = np.maximum((before_batch_norm(head, features) - mean) / np.sqrt(variance + 1e-5) * gain + shift, 0)
    weight, bias = classifier.weight.detach().numpy()[:, :, 0, 0], classifier.bias.detach().numpy()
    expected = np.einsum("ce,behw->bchw", weight, hidden) + bias[:, None, None]

    np.testing.assert_allclose(head(features).detach(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(head(tuple(features)).detach(), expected, rtol=1e-10, atol=1e-10)


def test_head_in_training_moves_batch_norm_and_drops_whole_channels() -> None:
    head = make_head([2, 3], maps=16, width=16)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.eye(16)[:, :, None, None])
        head.classifier.bias.zero_()
        head.fuse[1].bias.fill_(10)  # every channel is alive, so a zero map was dropped
    features = [random(8, 2, 4, 6), random(8, 3, 2, 3, seed=1)]
    mean = head.fuse[1].running_mean.clone()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        maps = head(features).flatten(2)

    batch_mean = before_batch_norm(head, features).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(head.fuse[1].running_mean, 0.9 * mean.numpy() + 0.1 * batch_mean, rtol=1e-10)
    dropped = (maps == 0).all(dim=2)
    assert (dropped | (maps > 0).any(dim=2)).all()
    assert 2 <= dropped.sum() <= 28  # of 128 maps, each with probability 0.1: more than 3 sigma around 12.8

    mean = head.fuse[1].running_mean.clone()
    head.eval()
    assert torch.equal(head(features), head(features))
    assert torch.equal(head.fuse[1].running_mean, mean)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_parameter_of_the_head(training: bool) -> None:
    head = make_head([2, 3]).train(training)
    features = [random(2, 2, 4, 6).requires_grad_(), random(2, 3, 2, 3, seed=1).requires_grad_()]
    head(features).square().sum().backward()
    for name, tensor in [*head.named_parameters(), *((f"feature {i}", f) for i, f in enumerate(features))]:
        assert tensor.grad is not None, name
        cancelled = training and name.startswith("embeddings") and name.endswith("bias")  # by the batch mean
        assert cancelled or tensor.grad.abs().max() > 0, name


def test_head_starts_near_an_even_mix() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = ScaleAttentionHead([8, 16], 19).eval()
        attention = head([torch.randn(1, 8, 4, 4), torch.randn(1, 16, 2, 2)]).sigmoid()
    assert isinstance(head.fuse[1], nn.BatchNorm2d)
    assert head.fuse[1].num_features == 256
    torch.testing.assert_close(attention, torch.full_like(attention, 0.5), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("features", "got"),
    [
        ([torch.zeros(1, 2, 4, 4)], "[2]"),
        ([torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)], "[2, 3, 3]"),
        ([torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 4, 4)], "[3, 2]"),
        (torch.zeros(1, 2, 4, 4), "a tensor of (1, 2, 4, 4)"),
        (torch.zeros(2, 3, 4, 4), "a tensor of (2, 3, 4, 4)"),
        ([], "[]"),
        ([torch.zeros(1, 2, 4, 4), None], "[2, 'NoneType']"),
        ([torch.zeros(2, 4, 4), torch.zeros(3, 2, 2)], "["),
    ],
    ids=["too few", "too many", "order", "a tensor", "a tensor of two", "none", "no tensor", "no batch"],
)
def test_head_refuses_features(features: object, got: str) -> None:
    message = f"features must be a list of (B, C, h, w) tensors with channels [2, 3], got {got}"
    with pytest.raises(ValueError, match=re.escape(message)):
        ScaleAttentionHead([2, 3], 1, embed_dims=4)(features)


IN_CHANNELS = "in_channels must be a list of positive ints, at least one, got "


@pytest.mark.parametrize(
    ("channels", "maps", "settings", "message"),
    [
        ([], 1, {}, IN_CHANNELS + "[]"),
        ([2, 0], 1, {}, IN_CHANNELS + "[2, 0]"),
        (2, 1, {}, IN_CHANNELS + "2"),
        ([2.0], 1, {}, IN_CHANNELS + "[2.0]"),
        ([2], 0, {}, "out_channels must be a positive int, got 0"),
        ([2], True, {}, "out_channels must be a positive int, got True"),
        ([2], 1, {"embed_dims": "8"}, "embed_dims must be a positive int, got '8'"),
        ([2], 1, {"dropout": 1}, "dropout must be a number in [0, 1), got 1"),
        ([2], 1, {"dropout": float("nan")}, "dropout must be a number in [0, 1), got nan"),
        ([2], 1, {"dropout": None}, "dropout must be a number in [0, 1), got None"),
    ],
)
def test_head_refuses_settings(channels: Any, maps: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ScaleAttentionHead(channels, maps, **settings)
