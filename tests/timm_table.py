"""The table of timm's networks in the docs: what comes out of each, and which image sides go in. Nothing is computed.

Writes it: ``python tests/timm_table.py``
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from hrda_lib.models import TimmEncoder

FILE = Path(__file__).parents[1] / "docs" / "tables" / "timm.md"
NAMES = (
    *("resnet18", "resnext50_32x4d", "regnety_002", "vgg11", "densenet121", "efficientnet_b0"),
    *("mobilenetv4_conv_small", "hgnetv2_b0", "hrnet_w18_small", "convnext_tiny", "convnextv2_atto"),
    *("mambaout_femto", "fastvit_t8", "efficientvit_b0", "caformer_s18", "pvt_v2_b0"),
    *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "maxvit_tiny_tf_224", "hiera_tiny_224"),
    *("vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "samvit_base_patch16"),
    "beit_base_patch16_224",
)
HEAD = ("name", "channels", "strides", "timm answers", "image sides", "from")


@torch.no_grad()
def takes(encoder: TimmEncoder, height: int, width: int) -> bool:
    """Whether images of this size go through, and every level covers them at its stride."""
    try:
        levels = encoder(torch.empty(1, 3, height, width, device="meta"))
    except (ValueError, RuntimeError):
        return False
    for level, stride in zip(levels, encoder.strides, strict=True):
        rows, columns = level.shape[2:]
        if abs(rows * stride - height) >= stride or abs(columns * stride - width) >= stride:
            return False
    return True


def multiples(number: int, own: int) -> Iterator[tuple[int, int]]:
    """Image sizes from 64 pixels on whose sides are odd and even multiples of a number."""
    if number == own:
        yield from ((own, 2 * own), (2 * own, own))
        return
    first = -(-64 // number)
    for more in ((0, 1), (1, 0), (3, 2), (7, 12), (31, 2)):
        yield (first + more[0]) * number, (first + more[1]) * number


def sides(encoder: TimmEncoder, own: int) -> tuple[str, int]:
    """Of what all multiples fit, and the smallest; ``own``: the side of the images that the network is made for."""
    for number in (*sorted({1, 2, 4, *encoder.strides}), own):
        if all(takes(encoder, *size) for size in multiples(number, own)):
            smallest = next(side for i in range(8) if takes(encoder, side := number << i, side))
            return "any" if number == 1 else f"multiples of {number}", smallest
    assert takes(encoder, own, own)
    return f"{own} only", own


def row(name: str) -> str:
    """What comes out of a network, and what goes in."""
    with torch.device("meta"):
        encoder = TimmEncoder(name).eval()
    channels, strides = (", ".join(map(str, numbers)) for numbers in (encoder.channels, encoder.strides))
    layout = "channels first" if encoder.layout == "NCHW" else "channels last"
    fit, smallest = sides(encoder, encoder.body.pretrained_cfg["input_size"][-1])
    return f"| `{name}` | {channels} | {strides} | {layout} | {fit} | {smallest} |"


def table() -> list[str]:
    return [f"| {' | '.join(columns)} |" for columns in (HEAD, ["---"] * len(HEAD))] + [row(name) for name in NAMES]


if __name__ == "__main__":
    FILE.write_text("\n".join(table()) + "\n")
