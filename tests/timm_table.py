"""The table of timm's networks in the docs: what comes out of each, and which image sides go in. Nothing is computed.

Writes it: ``python tests/timm_table.py``
"""

from collections.abc import Iterator
from pathlib import Path

import timm
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
HEAD = ("name", "channels", "strides", "timm answers", "image sides")


def takes(encoder: TimmEncoder, height: int, width: int) -> bool:
    """Whether images of this size go through, and every level covers them at its stride."""
    try:
        levels = encoder(torch.empty(1, 3, height, width, device="meta"))
    except (ValueError, RuntimeError):
        return False
    sizes = zip(levels, encoder.strides, strict=True)
    return all(abs(n * o - side) < o for x, o in sizes for n, side in zip(x.shape[2:], (height, width), strict=True))


def trials(multiple: int) -> Iterator[tuple[int, int]]:
    """Image sizes from 64 pixels on whose sides are odd and even multiples of a number."""
    first = -(-64 // multiple)
    for more in ((0, 1), (1, 0), (3, 2), (7, 12), (31, 2)):
        yield (first + more[0]) * multiple, (first + more[1]) * multiple


def sides(encoder: TimmEncoder, own: int) -> str:
    """Of what all multiples fit, found by trying; ``own``: the side of the images that it is made for."""
    for multiple in (*sorted({1, 2, 4, *encoder.strides, *(2 * stride for stride in encoder.strides)}), own):
        if all(takes(encoder, *size) for size in (trials(multiple) if multiple < own else ((own, 2 * own), (own, own)))):
            return "any" if multiple == 1 else f"multiples of {multiple}"
    return f"{own} only" if takes(encoder, own, own) else "?"


def row(name: str) -> str:
    with torch.device("meta"):
        encoder = TimmEncoder(name).eval()
    fits = sides(encoder, timm.get_pretrained_cfg(name).input_size[-1])
    channels, strides = (", ".join(map(str, numbers)) for numbers in (encoder.channels, encoder.strides))
    return f"| `{name}` | {channels} | {strides} | channels {'first' if encoder.layout == 'NCHW' else 'last'} | {fits} |"


def table() -> list[str]:
    head = [f"| {' | '.join(columns)} |" for columns in (HEAD, ["---"] * len(HEAD))]
    return [*head, *map(row, NAMES)]


if __name__ == "__main__":
    FILE.write_text("\n".join(table()) + "\n")
