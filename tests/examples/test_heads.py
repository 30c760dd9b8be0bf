"""What the heads of a network say about whole images."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hrda_lib import MultiResSegmenter
from hrda_lib.models import EncoderDecoder
from support.heads import head_logits
from support.networks import build
from support.report import HEADS

SIZES = [(64, 64), (50, 75), (7, 9), (130, 90)]


def network(model: str = "small", attention: float | None = None) -> MultiResSegmenter | EncoderDecoder:
    torch.manual_seed(0)
    encoder = "mini" if model == "small" else "mit_b0"
    built = build(encoder, 5, detail_size=(32, 32), model=model, attention=attention)
    torch.nn.init.normal_(built.decoder.classifier.weight)
    return built


def enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", SIZES)
def test_windows(size: tuple[int, int]) -> None:
    """Against windows by hand: half a window apart, the last one shifted, each of their pixels counted."""
    model, (rows, columns) = network().eval(), size
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    padded = pad(x, (0, -columns % 8, 0, -rows % 8))
    sums, count = torch.zeros(2, 21, *padded.shape[-2:]), torch.zeros(padded.shape[-2:])
    tops, lefts = ({min(i, max(side - 64, 0)) for i in range(0, max(side - 32, 1), 32)} for side in padded.shape[-2:])
    with torch.no_grad():
        for top in tops:
            for left in lefts:
                part = padded[..., top : top + 64, left : left + 64]
                out = model(part, detail="windows")
                cells = (out.logits.shape[-2], out.logits.shape[-1])
                context, attention = enlarged(out.context_logits, cells), enlarged(out.attention, cells)
                paid = torch.zeros(2, 1, *cells)
                for c in range(5):
                    paid += attention[:, c : c + 1] * (out.logits.argmax(1, keepdim=True) == c)
                maps = [out.logits, context, out.detail_logits, context / 2 + out.detail_logits / 2, paid]
                maps = [enlarged(x, (part.shape[-2], part.shape[-1])) for x in maps]
                sums[..., top : top + 64, left : left + 64] += torch.cat(maps, 1)
                count[top : top + 64, left : left + 64] += 1
    expected = dict(zip([*HEADS, "attention"], (sums / count)[..., :rows, :columns].split(5, dim=1), strict=True))
    heads = head_logits(model, x)
    assert list(heads) == list(expected)
    for head, logits in heads.items():
        assert torch.allclose(logits, expected[head], atol=1e-5), head
    assert torch.allclose(heads["fused"], model.predict(x), atol=1e-5)


def test_a_window_as_large_as_the_image_is_one_pass() -> None:
    model, x = network().eval(), torch.rand(1, 3, 96, 136)
    with torch.no_grad():
        out = model(x, detail="windows")
    heads = head_logits(model, x, (96, 136))
    assert torch.allclose(heads["detail"], enlarged(out.detail_logits, (96, 136)), atol=1e-5)
    assert not torch.allclose(heads["fused"], head_logits(model, x)["fused"], atol=1e-3)


@pytest.mark.parametrize("attention", [0.0, 0.25, 1.0])
def test_fixed_attention(attention: float) -> None:
    heads = head_logits(network(attention=attention), torch.rand(1, 3, 50, 75))
    mix = (1 - attention) * heads["context"] + attention * heads["detail"]
    assert torch.allclose(heads["fused"], mix, atol=1e-5)
    assert torch.allclose(heads["attention"], torch.full((1, 1, 50, 75), attention))


def test_one_scale_has_one_head() -> None:
    model, x = network("daformer"), torch.rand(1, 3, 50, 75)
    heads = head_logits(model, x)
    assert list(heads) == ["fused"]
    assert torch.equal(heads["fused"], model.predict(x))
    assert torch.equal(head_logits(model, x, (32, 32))["fused"], model.predict(x, window=(32, 32)))
