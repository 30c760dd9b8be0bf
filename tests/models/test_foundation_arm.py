"""Two scales around a ViT with patches of 14, fused at pixels: numbers of VFM-UDA (tue-mps/vfm-uda, its HRDA arm).

Recipe: a DINOv2 of width 48, 4 blocks, 3 heads, native grid 4 x 4, 5 classes, small heads that upsample by 4; images of
140 x 140 pixels, windows of 70; every weight and image is a function of its name (``uniform``). Computed in float64 by
that code and kept at every 7th pixel.
"""

import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hrda_lib import Adapted, CropBox, MultiResSegmenter

timm = pytest.importorskip("timm", reason="needs the extra timm")
load_file = pytest.importorskip("safetensors.torch", reason="needs safetensors").load_file

NUMBERS = load_file(Path(__file__).parents[1] / "data" / "vfm_arm.safetensors")
WIDTH = 48


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """float64 in [-1, 1), by name."""
    bits = np.random.PCG64([0, zlib.crc32(name.encode())])
    return torch.from_numpy(2 * np.random.Generator(bits).random(shape) - 1)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    u = uniform(name, shape)
    if name.endswith(("pos_embed", "cls_token")):
        return 0.5 * u
    if len(shape) > 1:
        return 1.7 * u / np.prod(shape[1:]) ** 0.5
    return 0.1 * u if name.endswith("bias") else 1 + 0.2 * u


def positions(self: nn.Module, x: Tensor) -> Tensor:
    """The hub's interpolation of DINOv2's position embedding: scale (n + 0.1) / N, bicubic."""
    _, height, width, _ = x.shape
    grid = self.pos_embed[:, 1:].reshape(1, 4, 4, WIDTH).permute(0, 3, 1, 2)
    grid = interpolate(grid, scale_factor=((height + 0.1) / 4, (width + 0.1) / 4), mode="bicubic")
    tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(1, 2)], dim=1)
    return tokens + torch.cat([self.pos_embed[:, :1], grid.flatten(2).mT], dim=1)


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model(
            "vit_small_patch14_dinov2",
            num_classes=0,
            img_size=56,
            embed_dim=WIDTH,
            depth=4,
            num_heads=3,
            dynamic_img_size=True,
        )
        self.body._pos_embed = types.MethodType(positions, self.body)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.body.forward_intermediates(x, indices=[3], intermediates_only=True, norm=True)


def head() -> nn.Module:
    up = nn.Upsample(scale_factor=4, mode="bilinear")
    return Adapted(nn.Sequential(nn.Conv2d(WIDTH, 16, 1), up, nn.ReLU(), nn.Conv2d(16, 5, 1)), input=-1)


def arm() -> MultiResSegmenter:
    model = MultiResSegmenter(Vit(), head(), head(), detail_size=70, output_stride=None, multiple_of=14).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            published = name.replace("encoder.body.", "encoder.").replace(".module.", ".")
            published = published.replace("decoder.", "seg_head.").replace("attention.", "attn_head.")
            parameter.copy_(weight(published, tuple(parameter.shape)))
    return model.eval()


def pictures() -> Tensor:
    flat = uniform("hrda.flat", (2, 3, 5, 5)).repeat_interleave(28, 2).repeat_interleave(28, 3)
    return (0.7 * flat + 0.3 * uniform("hrda", (2, 3, 140, 140))) / 2 + 0.5


@torch.no_grad()
def test_the_published_arm() -> None:
    model, images = arm(), pictures()
    crop, whole = model(images, CropBox(35, 21, 70, 70)), model(images, detail="windows")
    near = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(crop.logits[..., ::7, ::7], NUMBERS["hrda.fused"], **near)
    torch.testing.assert_close(crop.detail_logits[..., ::7, ::7], NUMBERS["hrda.detail"], **near)
    # there the attention is upsampled before the sigmoid at test time
    torch.testing.assert_close(whole.logits[..., ::7, ::7], NUMBERS["hrda.inference"], rtol=0, atol=1e-4)
