"""Networks of the examples: what a run keeps of one, a small one to train from scratch, and what any of them says."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import lcm
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrda_lib import MultiResSegmenter, ScaleAttentionHead, gaussian_blur, resize
from hrda_lib.data import IMAGENET_MEAN, IMAGENET_STD, normalize
from hrda_lib.models import EncoderDecoder, TimmEncoder, daformer, deeplab_v2, hrda, load_encoder_weights
from support.ending import reason, similar

Network = MultiResSegmenter | EncoderDecoder
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of forward and backward passes
MODELS = ("small", "hrda", "daformer", "deeplab_v2")
HEADS = ("fused", "context", "detail", "average")
CELL = 8  # sides that two scales take are multiples of it, and of more around some encoders: scale 2, output stride 4


@dataclass(frozen=True)
class NetworkSpec:
    """What it takes to build a network and to feed it."""

    classes: tuple[str, ...]  # their names, in the order of the ids
    detail_size: tuple[int, int]
    model: str = "small"  # two scales and our decoder around "mini" or a timm encoder; or one of the papers'
    encoder: str = "mini"  # or a name of timm; mit_b0 to mit_b5 for hrda and daformer; resnet101 for deeplab_v2
    attention: float | None = None  # a fixed mix of context (0) and detail (1); None: learned
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    ignore: tuple[int, ...] = ()  # ids of its labels that mean no class, beside 255
    recompute: bool = False  # activations of hrda and daformer in backward

    @property
    def takes_pictures(self) -> bool:
        """Whether its images are RGB pictures of 8 bits."""
        return (self.channels, tuple(self.mean)) == (3, IMAGENET_MEAN)

    @property
    def cell(self) -> int:
        """What sides of images are multiples of: whole cells at both scales, and halves that the encoder takes."""
        return lcm(CELL, 2 * side_multiple(self.encoder, self.channels)) if self.model == "small" else CELL

    def build(self, weights: str | Path | None = None) -> Network:
        """With random weights, or those of a file in its encoder.

        Raises:
            ValueError: there is no such network, or the weights do not fit.
        """
        count, network = len(self.classes), self.model
        if network != "small" and self.channels != 3:
            raise ValueError(f"model {network!r} takes images of 3 channels, got {self.channels}; 'small' takes any")
        built: Network
        stages = (0, 1, 2, 3) if self.recompute else ()
        match network, self.encoder:
            case "small", _:
                return self._small(weights)
            case "hrda", encoder:
                built = hrda(
                    encoder,
                    count,
                    detail_size=self.detail_size,
                    fixed_attention=self.attention,
                    checkpoint_stages=stages,
                )
            case "daformer", encoder:
                built = daformer(encoder, count, checkpoint_stages=stages)
            case "deeplab_v2", "resnet101":
                built = deeplab_v2(count)
            case "deeplab_v2", encoder:
                raise ValueError(f"encoder of deeplab_v2 must be resnet101, got {encoder!r}")
            case _:
                raise ValueError(f"model must be one of {', '.join(MODELS)}, got {network!r}")
        if weights and network == "deeplab_v2":
            _load(built.encoder, weights, beside=("fc.",))
        elif weights:
            load_encoder_weights(built.encoder, weights)
        return built

    def _small(self, weights: str | Path | None) -> MultiResSegmenter:
        encoder: MiniEncoder | FromStrideFour
        if self.encoder.startswith("mit_b"):
            raise ValueError(f"encoder {self.encoder!r}: gta2cityscapes.py takes it with --model hrda")
        if self.encoder == "mini":
            encoder = MiniEncoder(self.channels)
            if weights:
                _load(encoder, weights)
        else:
            encoder = FromStrideFour(_of_timm(self.encoder, self.channels, weights))
        count, widths = len(self.classes), encoder.channels
        decoder = PyramidDecoder(widths, count)
        attention = ScaleAttentionHead(widths, count, embed_dims=16) if self.attention is None else self.attention
        multiple = side_multiple(self.encoder, self.channels)
        return MultiResSegmenter(encoder, decoder, attention, detail_size=self.detail_size, multiple_of=multiple)

    def feed(self, images: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """(B, K, H, W) as data sets give them, to what the network takes.

        Raises:
            ValueError: they have other channels.
        """
        if images.shape[1] != self.channels:
            raise ValueError(f"images must have {self.channels} channels for this network, got {images.shape[1]}")
        return normalize(images.to(device), self.mean, self.std)


@cache
def side_multiple(encoder: str, channels: int = 3) -> int:
    """What the sides of an encoder's images must be multiples of, found by trying it without memory.

    1 for our own; the coarsest stride of one of timm, which even those that take any side need of small images; or the
    one size that it is made for.

    Raises:
        ValueError: there is no such encoder.
    """
    if encoder == "mini" or encoder.startswith("mit_b"):
        return 1
    with torch.device("meta"):
        body = _of_timm(encoder, channels).eval()
    stride: int = max(body.strides)
    try:
        body(torch.empty(1, channels, 3 * stride, 2 * stride, device="meta"))
    except (ValueError, RuntimeError):
        made_for: dict[str, Any] = body.body.pretrained_cfg  # type: ignore[assignment]
        return int(made_for["input_size"][-1])
    return stride


class MiniEncoder(nn.Module):
    """Three levels at strides 4, 8 and 16, 0.5 M parameters."""

    channels: tuple[int, ...] = (32, 64, 96)

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = _conv(in_channels, 16, stride=2)
        widths = (16, *self.channels)
        self.stages = nn.ModuleList(
            nn.Sequential(_conv(below, width, stride=2), *(ResidualBlock(width) for _ in range(depth)))
            for below, width, depth in zip(widths, self.channels, (1, 2, 2), strict=False)
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


class FromStrideFour(nn.Module):
    """The levels of an encoder from stride 4 on."""

    def __init__(self, body: TimmEncoder) -> None:
        super().__init__()
        if 4 not in body.strides:
            raise ValueError(f"encoder must have a level at stride 4 for the decoder, it has strides {body.strides}")
        self.body, self.first = body, body.strides.index(4)
        self.channels: tuple[int, ...] = body.channels[self.first :]

    def forward(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.body(images)
        return levels[self.first :]


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
        size = (features[0].shape[-2], features[0].shape[-1])
        logits: Tensor = self.classifier(self.fuse(torch.cat([resize(x, size) for x in levels], dim=1)))
        return logits


def heads(model: Network, x: Tensor, window: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Logits (B, C, H, W) of every head of a network, by name.

    They are "fused", "context", "detail" and "average", the plain average of these two, with "attention" (B, 1, H, W),
    what the predicted class pays to the detail; one scale has "fused" alone.
    """
    if isinstance(model, EncoderDecoder):
        return {"fused": model.predict(x, window=window)}
    fused, context, detail, attention = model.predict_scales(x, window=window)
    predicted = fused.argmax(dim=1, keepdim=True) % attention.shape[1]  # one map may be that of all classes
    average = (context + detail) / 2
    paid = attention.gather(1, predicted)
    return {"fused": fused, "context": context, "detail": detail, "average": average, "attention": paid}


def jitter_and_blur(
    images: Tensor,
    generator: torch.Generator | None = None,
    *,
    group: Any = None,
    width: float = 0.2,
    blur: float = 0.5,
) -> Tensor:
    """For images of any channels: brightness, contrast and blur of (B, K, H, W), as often as StrongAugment's.

    ``group``: processes that share a batch; each takes its own of what is drawn for all images. ``width``: of contrast;
    ``blur``: its probability.
    """
    rank, world = (group.rank(), group.size()) if group else (0, 1)
    mine, count = slice(rank * len(images), (rank + 1) * len(images)), world * len(images)
    jittered, blurred = (torch.rand(2, generator=generator) < torch.tensor([0.8, blur])).tolist()
    if jittered:
        brightness, contrast = (2 * torch.rand(2, count, 1, 1, 1, generator=generator)[:, mine] - 1).to(images)
        images = images * (1 + width * contrast) + 2.5 * width * brightness
    if blurred:
        images = gaussian_blur(images, 0.15 + torch.rand(count, generator=generator)[mine])
    return images


def _conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False),
        nn.GroupNorm(8, outputs),
        nn.ReLU(),
    )


def _of_timm(name: str, channels: int, weights: str | Path | None = None) -> TimmEncoder:
    try:
        return TimmEncoder(name, weights=weights or None, in_channels=channels)
    except ValueError as error:
        known = _names_of_timm()
        raise ValueError(f"{error}{'' if name in known else similar(name, known)}") from None


def _names_of_timm() -> list[str]:
    try:
        import timm
    except ImportError:  # as the error before says
        return ["mini"]
    return ["mini", *timm.list_models()]


def _load(encoder: nn.Module, weights: str | Path, *, beside: tuple[str, ...] = ()) -> None:
    """Entries whose names start with one of ``beside`` are left out."""
    try:
        entries = torch.load(weights, map_location="cpu", weights_only=True)
        encoder.load_state_dict({name: x for name, x in entries.items() if not name.startswith(beside or "\0")})
    except Exception as error:
        raise ValueError(f"{weights}: not a state dict of this encoder ({reason(error)})") from None
