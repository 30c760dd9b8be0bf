"""The networks of the examples: built from what a run keeps of them, and what their heads say about whole images."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hrda_lib.data import normalize
from support.networks import HEADS, MiniEncoder, Network, NetworkSpec, heads, jitter_and_blur, side_multiple

SIZES = [(64, 64), (50, 75), (7, 9), (130, 90)]
CLASSES = ("a", "b", "c", "d", "e")
TINY = NetworkSpec(CLASSES, (32, 32))


def network(model: str = "small", attention: float | None = None) -> Network:
    torch.manual_seed(0)
    encoder = "mini" if model == "small" else "mit_b0"
    built = NetworkSpec(CLASSES, (32, 32), model, encoder, attention).build()
    torch.nn.init.normal_(built.decoder.classifier.weight)
    return built


def enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size=size, mode="bilinear", align_corners=False)


# What they say


@pytest.mark.parametrize("size", SIZES)
def test_windows(size: tuple[int, int]) -> None:
    """Against windows by hand: half a window apart, the last one shifted, each of their pixels counted."""
    model, (rows, columns) = network().eval(), size
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    padded = pad(x, (0, -columns % 8, 0, -rows % 8))
    sums, count = torch.zeros(2, 25, *padded.shape[-2:]), torch.zeros(padded.shape[-2:])
    tops, lefts = ({min(i, max(side - 64, 0)) for i in range(0, max(side - 32, 1), 32)} for side in padded.shape[-2:])
    with torch.no_grad():
        for top in tops:
            for left in lefts:
                part = padded[..., top : top + 64, left : left + 64]
                out = model(part, detail="windows")
                cells = (out.logits.shape[-2], out.logits.shape[-1])
                context, attention = enlarged(out.context_logits, cells), enlarged(out.attention, cells)
                maps = [out.logits, context, out.detail_logits, context / 2 + out.detail_logits / 2, attention]
                maps = [enlarged(x, (part.shape[-2], part.shape[-1])) for x in maps]
                sums[..., top : top + 64, left : left + 64] += torch.cat(maps, 1)
                count[top : top + 64, left : left + 64] += 1
    expected = dict(zip([*HEADS, "attention"], (sums / count)[..., :rows, :columns].split(5, dim=1), strict=True))
    found = heads(model, x)
    paid = torch.zeros(2, 1, *size)  # by the class that is predicted
    for c in range(5):
        paid += expected["attention"][:, c : c + 1] * (found["fused"].argmax(1, keepdim=True) == c)
    expected["attention"] = paid
    assert list(found) == list(expected)
    for head, logits in found.items():
        assert torch.allclose(logits, expected[head], atol=1e-5), head
    assert torch.allclose(found["fused"], model.predict(x), atol=1e-5)


def test_a_window_as_large_as_the_image_is_one_pass() -> None:
    model, x = network().eval(), torch.rand(1, 3, 96, 136)
    with torch.no_grad():
        out = model(x, detail="windows")
    found = heads(model, x, (96, 136))
    assert torch.allclose(found["detail"], enlarged(out.detail_logits, (96, 136)), atol=1e-5)
    assert not torch.allclose(found["fused"], heads(model, x)["fused"], atol=1e-3)


@pytest.mark.parametrize("attention", [0.0, 0.25, 1.0])
def test_fixed_attention(attention: float) -> None:
    found = heads(network(attention=attention), torch.rand(1, 3, 50, 75))
    mix = (1 - attention) * found["context"] + attention * found["detail"]
    assert torch.allclose(found["fused"], mix, atol=1e-5)
    assert torch.allclose(found["attention"], torch.full((1, 1, 50, 75), attention))


def test_one_map_of_attention_is_that_of_every_class() -> None:
    model, x = network(), torch.rand(1, 3, 50, 75)
    model.attention = torch.nn.Sequential(model.attention, torch.nn.Conv2d(5, 1, 1))
    assert torch.equal(heads(model, x)["attention"], model.predict_scales(x).attention)


def test_one_scale_has_one_head() -> None:
    model, x = network("daformer"), torch.rand(1, 3, 50, 75)
    found = heads(model, x)
    assert list(found) == ["fused"]
    assert torch.equal(found["fused"], model.predict(x))
    assert torch.equal(heads(model, x, (32, 32))["fused"], model.predict(x, window=(32, 32)))


# How they are built


def test_what_a_run_keeps_builds_the_same_network() -> None:
    spec = replace(TINY, channels=4, mean=(1.0, 2.0, 3.0, 4.0), std=(1.0, 1.0, 2.0, 0.5), attention=0.25, ignore=(3,))
    again = NetworkSpec(**asdict(spec))
    assert again == spec
    first, second = spec.build(), again.build()
    second.load_state_dict(first.state_dict())
    x = torch.rand(1, 4, 64, 64)
    assert torch.equal(first.predict(x), second.predict(x))


def test_images_of_other_channels() -> None:
    spec = replace(TINY, channels=5)
    images = torch.zeros(1, 5, 64, 64)
    assert spec.build().predict(images).shape == (1, 5, 64, 64)
    with pytest.raises(ValueError, match=r"model 'hrda' takes images of 3 channels, got 5; 'small' takes any"):
        replace(spec, model="hrda", encoder="mit_b0").build()
    pytest.importorskip("timm")
    large = replace(spec, detail_size=(64, 64), encoder="resnet10t").build()
    assert large.predict(torch.zeros(1, 5, 128, 128)).shape[1] == 5


def test_sides_that_an_encoder_takes() -> None:
    pytest.importorskip("timm")
    assert side_multiple("mini") == 1
    assert replace(TINY, model="hrda", encoder="mit_b0").cell == TINY.cell == 8
    stride = {"resnet10t": 32, "hrnet_w18_small": 32, "convmixer_768_32": 7, "hiera_tiny_224": 224}
    assert {name: side_multiple(name) for name in stride} == stride
    assert [replace(TINY, encoder=name).cell for name in stride] == [64, 64, 56, 448]
    one_size = replace(TINY, encoder="hiera_tiny_224", detail_size=(224, 224), attention=0.5).build()
    assert one_size.predict(torch.zeros(1, 3, 50, 301), output="labels").shape == (1, 50, 301)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "unet"}, "model must be one of small, hrda, daformer, deeplab_v2, got 'unet'"),
    "encoder": ({"encoder": "nonsense"}, "encoder 'nonsense'"),
    "of the other model": (
        {"encoder": "mit_b5"},
        "encoder 'mit_b5': gta2cityscapes.py takes it with --model hrda",
    ),
    "of deeplab": (
        {"model": "deeplab_v2", "encoder": "resnet50"},
        "encoder of deeplab_v2 must be resnet101, got 'resnet50'",
    ),
    "without stride 4": (
        {"encoder": "vit_tiny_patch16_224"},
        "encoder must have a level at stride 4 for the decoder, it has strides (16, 16, 16)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_network(case: str) -> None:
    changes, message = BAD[case]
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(TINY, **changes).build()


def test_weights_of_the_small_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder, file = MiniEncoder(), tmp_path / "mini.pth"
    torch.save(encoder.state_dict(), file)
    torch.manual_seed(1)
    kept = TINY.build(file).encoder.state_dict()
    assert all(torch.equal(kept[name], x) for name, x in encoder.state_dict().items())
    for broken in ({"stem.0.weight": torch.zeros(1)}, [1]):
        torch.save(broken, file)
        with pytest.raises(ValueError, match=re.escape(f"{file}: not a state dict of this encoder (")):
            TINY.build(file)


# What they are fed


def test_pictures_are_fed_as_imagenet_s_and_others_by_their_own_numbers() -> None:
    images = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert TINY.takes_pictures
    assert torch.equal(TINY.feed(images), normalize(images))
    own = replace(TINY, channels=2, mean=(1.0, 0.0), std=(1.0, 0.5))
    assert not own.takes_pictures
    assert not replace(TINY, mean=(0.0, 0.0, 0.0)).takes_pictures
    assert own.feed(torch.ones(1, 2, 3, 3))[0, :, 0, 0].tolist() == [0, 2]


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_jitter_and_blur(channels: int) -> None:
    flat = torch.zeros(2, channels, 16, 24)
    drawn = [jitter_and_blur(flat, torch.Generator().manual_seed(seed)) for seed in range(40)]
    for images in drawn:  # brightness alone: of one image all pixels and channels alike
        assert images.shape == flat.shape
        assert (images - images[:, :1, :1, :1]).abs().max() < 1e-6
    shifts = torch.stack([images[:, 0, 0, 0] for images in drawn])
    assert 0.3 < shifts.abs().max() <= 0.5
    assert 0.6 < (shifts != 0).any(dim=1).float().mean() < 0.95
    noise = torch.randn(2, channels, 16, 24, generator=torch.Generator().manual_seed(0))
    first, again = (jitter_and_blur(noise, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    changed = [jitter_and_blur(noise, torch.Generator().manual_seed(seed)) for seed in range(40)]
    contrast = torch.stack([(x.std((1, 2, 3)) / noise.std((1, 2, 3))) for x in changed])
    # neighbours of noise differ by more than itself, unless they are blurred
    before, *rough = (x.diff(dim=-1).std((1, 2, 3)) / x.std((1, 2, 3)) for x in (noise, *changed))
    sharp = (torch.stack(rough) - before).abs() < 1e-3
    assert 0.3 < sharp.all(dim=1).float().mean() < 0.7
    assert 0.8 <= contrast[sharp].min() < 0.9
    assert 1.1 < contrast[sharp].max() <= 1.2001
