"""Networks of the examples: a small one to train from scratch, one around any timm encoder, and the paper's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hrda_lib import MultiResSegmenter, ScaleAttentionHead
from hrda_lib.models import EncoderDecoder, daformer, deeplab_v2, hrda, load_encoder_weights

MODELS = ("small", "hrda", "daformer", "deeplab_v2")


def build(
    encoder: str,
    num_classes: int,
    *,
    detail_size: tuple[int, int],
    model: str = "small",
    weights: str | Path | None = None,
    attention: float | None = None,
    channels: int = 3,
) -> MultiResSegmenter | EncoderDecoder:
    """A network for images of some ``channels``; ``weights`` initialises its encoder, a float replaces the attention.

    ``model`` is "small": two scales, our decoder around the encoder "mini" or one of timm; "hrda": the paper's two
    scales around "mit_b0" to "mit_b5"; "daformer": the same at one scale; or "deeplab_v2": one scale, whose encoder is
    "resnet101".

    Raises:
        ValueError: there is no such encoder, it gives no feature pyramid from stride 4, the weights do not fit, or a
            model of the paper is asked for other than three channels.
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    if model != "small" and channels != 3:
        raise ValueError(f"model {model!r} takes images of 3 channels, got {channels}; 'small' takes any number")
    if model == "small" and encoder.startswith("mit_b"):
        raise ValueError(f"encoder {encoder!r}: gta2cityscapes.py takes it with --model hrda")
    if model == "deeplab_v2":
        if encoder != "resnet101":
            raise ValueError(f"encoder of deeplab_v2 must be resnet101, got {encoder!r}")
        deeplab = deeplab_v2(num_classes)
        if weights is not None:
            _load(deeplab.encoder, weights, beside=("fc.",))
        return deeplab
    if model in ("hrda", "daformer"):
        paper = (
            hrda(encoder, num_classes, detail_size=detail_size, fixed_attention=attention)
            if model == "hrda"
            else daformer(encoder, num_classes)
        )
        if weights is not None:
            load_encoder_weights(paper.encoder, weights)
        return paper
    if encoder == "mini":
        network: nn.Module = MiniEncoder(channels)
        widths = MiniEncoder.widths
        if weights is not None:
            _load(network, weights)
    else:
        network = TimmEncoder(encoder, weights, channels)
        widths = network.widths
    decoder = PyramidDecoder(widths, num_classes)
    scale_attention = ScaleAttentionHead(widths, num_classes, embed_dims=16) if attention is None else attention
    return MultiResSegmenter(network, decoder, scale_attention, detail_size=detail_size)


class MiniEncoder(nn.Module):
    """Three levels at strides 4, 8 and 16, 0.5 M parameters."""

    widths: tuple[int, ...] = (32, 64, 96)

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = _conv(channels, 16, stride=2)
        widths = (16, *self.widths)
        self.stages = nn.ModuleList(
            nn.Sequential(_conv(below, width, stride=2), *(ResidualBlock(width) for _ in range(depth)))
            for below, width, depth in zip(widths, self.widths, (1, 2, 2), strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        x: Tensor = self.stem(images)
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity; starts close to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, width)
        nn.init.constant_(self.norm.weight, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm(self.second(self.first(x)))
        return out.relu()


class PyramidDecoder(nn.Module):
    """Embed every level, add the image's mean and a dilated view of the coarsest, and fuse at the finest."""

    def __init__(self, channels: Sequence[int], num_classes: int, *, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.pooled = nn.Conv2d(channels[-1], width, 1)
        self.dilated = _conv(channels[-1], width, dilation=3)
        self.fuse = nn.Sequential(_conv((len(channels) + 1) * width, width, kernel=1), _conv(width, width))
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        levels = [embed(feature) for embed, feature in zip(self.embed, features, strict=True)]
        levels[-1] = levels[-1] + self.pooled(features[-1].mean(dim=(2, 3), keepdim=True))
        levels.append(self.dilated(features[-1]))
        size = features[0].shape[-2:]
        fused = torch.cat([interpolate(x, size=size, mode="bilinear", align_corners=False) for x in levels], dim=1)
        logits: Tensor = self.classifier(self.fuse(fused))
        return logits


class TimmEncoder(nn.Module):
    """The levels of a timm encoder from stride 4 on, channels first."""

    def __init__(self, name: str, weights: str | Path | None, channels: int = 3) -> None:
        super().__init__()
        try:
            import timm
        except ImportError:
            raise ValueError(f"encoder {name!r} needs timm: pip install timm") from None
        settings: dict[str, Any] = {"features_only": True, "in_chans": channels}
        if weights is not None:
            settings |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
        try:
            self.body = timm.create_model(name, **settings)
        except (RuntimeError, OSError, KeyError, AttributeError) as error:
            raise ValueError(f"encoder {name!r} (weights {weights}): {error}") from None
        reductions = self.body.feature_info.reduction()
        if 4 not in reductions:
            raise ValueError(
                f"encoder {name!r} has levels at strides {reductions}; the decoder needs them from stride 4 on"
            )
        self.first = reductions.index(4)
        self.widths = tuple(self.body.feature_info.channels()[self.first :])

    def forward(self, images: Tensor) -> list[Tensor]:
        levels = self.body(images)[self.first :]
        return [
            x if x.shape[1] == width else x.permute(0, 3, 1, 2) for x, width in zip(levels, self.widths, strict=True)
        ]


def _conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False),
        nn.GroupNorm(8, outputs),
        nn.ReLU(),
    )


def _load(encoder: nn.Module, weights: str | Path, *, beside: tuple[str, ...] = ()) -> None:
    """Entries whose names start with one of ``beside`` are left out."""
    try:
        entries = torch.load(weights, map_location="cpu", weights_only=True)
        encoder.load_state_dict({name: x for name, x in entries.items() if not name.startswith(beside or "\0")})
    except Exception as error:
        raise ValueError(f"{weights}: not a state dict of this encoder ({error})") from None
