"""The Mix Transformer: sizes, numbers of parameters, stochastic depth, recomputation."""

from typing import Any

import pytest
import torch
from tiny_models import TINY, parameters
from torch import nn

from hrda_lib.models import (
    MixTransformer,
    MixTransformerSize,
)
from hrda_lib.models.mix_transformer import DropPath


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("mit_b0", 3_319_392),
        ("mit_b1", 13_151_424),
        ("mit_b2", 24_196_288),
        ("mit_b3", 44_072_128),
        ("mit_b4", 60_842_688),
        ("mit_b5", 81_443_008),
    ],
)
def test_parameter_counts(size: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(MixTransformer(size)) == count


@pytest.mark.parametrize("size", [(64, 64), (65, 90), (33, 32), (34, 200), (31, 9), (1, 1)])
def test_any_image_size(size: tuple[int, int]) -> None:
    features = MixTransformer(TINY)(torch.rand(2, 3, *size))
    for feature, width, stride in zip(features, TINY.widths, (4, 8, 16, 32), strict=True):
        assert feature.shape == (2, width, -(-size[0] // stride), -(-size[1] // stride))


def test_two_epsilons() -> None:
    for name, module in MixTransformer(TINY).named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-5 if name.endswith(("embed_norm", "reduce_norm")) else 1e-6), name


def test_drop_path_skips_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.ones(4000, 3, 2)
    out = layer(x)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert abs(out.mean() - 1) < 0.03
    assert layer.eval()(x) is x
    rates = [block.drop_path.rate for stage in MixTransformer(TINY, drop_path=0.4).stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_recomputed_stages_have_the_same_gradients() -> None:
    gradients = []
    for stages in ((), (0, 2, 3)):
        torch.manual_seed(0)
        encoder = MixTransformer(TINY, drop_path=0.5, checkpoint_stages=stages)
        torch.manual_seed(1)
        sum(feature.sin().sum() for feature in encoder(torch.rand(2, 3, 64, 64))).backward()
        gradients.append([p.grad for p in encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (
                lambda size=size: MixTransformer(size),
                r"size must be one of mit_b0, mit_b1, .*, or a MixTransformerSize of four",
            )
            for size in (
                *("mit_b6", None, 5, True, [], (5, 5), ((8, 16, 20, 32), (1, 1, 1)), ((8, 16, 20), (1, 1, 1))),
                *(((8, 16, 20, 32), (0, 0, 0, 0)), ((8, 16, 20, -8), (1, 1, 1, 1)), ((8.0, 16, 20, 32), (1, 1, 1, 1))),
                ((8, 16, 20, 32), (True, 1, 1, 1)),
            )
        ),
        (lambda: MixTransformer("mit_b0", drop_path=1), r"drop_path must be a number in \[0, 1\), got 1"),
        *(
            (
                lambda stages=stages: MixTransformer("mit_b0", checkpoint_stages=stages),
                "checkpoint_stages must be a list of stages 0 to 3",
            )
            for stages in ([4], 2, None, True, torch.tensor([0, 1]))
        ),
        (lambda: MixTransformer(TINY, in_channels=2.5), "in_channels must be a positive int, got 2.5"),
        (
            lambda: MixTransformer(TINY)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)),
            "must be float .* got torch.uint8",
        ),
        (
            lambda: MixTransformer(TINY)(torch.rand(0, 3, 32, 32)),
            r"\(B, 3, H, W\) and not empty, got torch.float32 \(0, 3, 32, 32\)",
        ),
        (lambda: MixTransformer(MixTransformerSize((8, 15, 20, 32), (1, 1, 1, 1))), "multiples of the heads"),
        (
            lambda: MixTransformer(TINY)(torch.rand(1, 4, 32, 32)),
            r"images must be float \(B, 3, H, W\), got torch.float32 \(1, 4, 32, 32\)",
        ),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
