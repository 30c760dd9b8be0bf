"""Plain ViTs of timm as networks of the examples: at two scales, or in one pass over the whole crop."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrda_lib import EMATeacher, MultiResSegmenter, ScaleAttentionHead, resize
from hrda_lib.lora import add_lora, merge_lora
from hrda_lib.models import DeconvHead, EncoderDecoder, ViTFeatures
from support.command_line import options_of
from support.domains import NAMES
from support.ending import reason, similar
from support.networks import Network, NetworkSpec

DOWNLOAD = "pretrained"  # in the place of a file of weights: timm's own


@dataclass(frozen=True)
class VitSpec(NetworkSpec):
    """What it takes to build a segmenter around a plain ViT of timm; adapters are merged before it is kept."""

    scales: int = 2  # context and detail; 1: one pass over the whole image
    pos_embed: str = "own"  # or "dinov2", as ViTFeatures says
    head: int = 256  # width of the decoder
    patch: int = 0  # of the ViT in pixels, 0: its own
    depth: int = 0  # blocks, 0: its own
    inside: float = 1.0  # with one pass: how much larger the ViT sees the image, before it is cut to whole patches

    @property
    def cell(self) -> int:
        """Two scales: sides that are whole patches of the context and whole cells of both; one takes any."""
        return 1 if self.scales == 1 else 2 * side_of_patch(self.encoder, self.patch)

    def build(self, weights: str | Path | None = None) -> Network:
        """With random weights, those of a file in timm's format, or what timm downloads for "pretrained".

        Raises:
            ValueError: there is no such ViT, or the weights do not fit.
        """
        vit = vit_of_timm(self.encoder, weights, patch=self.patch, depth=self.depth)
        vit.set_grad_checkpointing(bool(self.recompute))  # type: ignore[operator]
        encoder = ViTFeatures(vit, pos_embed=self.pos_embed)  # type: ignore[arg-type]
        decoder = DeconvHead(encoder.channels, len(self.classes), embed_dims=self.head)
        height, width = self.detail_size
        if self.scales == 1:
            return OnePass(encoder, decoder, window=(2 * height, 2 * width), inside=self.inside)
        attention: nn.Module | float = 0.5 if self.attention is None else self.attention
        if self.attention is None:
            attention = ScaleAttentionHead(encoder.channels, len(self.classes), embed_dims=self.head)
        return MultiResSegmenter(
            encoder,
            decoder,
            attention,
            detail_size=self.detail_size,
            output_stride=encoder.patch / 4,
            multiple_of=encoder.patch,
        )


def vit_spec(settings: Any) -> VitSpec:
    """The network that settings ask for."""
    height, width = settings.crop
    names = [entry.name for entry in fields(VitSpec) if hasattr(settings, entry.name)]
    given = {name: getattr(settings, name) for name in names if name != "classes"}
    return VitSpec(classes=NAMES, detail_size=(height // 2, width // 2), **given)


class OnePass(EncoderDecoder):
    """Images resized to ``inside`` times their size, cut to whole patches, encoder, decoder: VFM-UDA's network."""

    def __init__(self, encoder: ViTFeatures, decoder: nn.Module, *, window: tuple[int, int], inside: float) -> None:
        super().__init__(encoder, decoder)
        self.window, self.inside, self.patch = window, inside, encoder.patch

    def forward(self, images: Tensor, *, return_features: bool = False) -> Any:
        height, width = (max(int(self.inside * side) // self.patch, 1) * self.patch for side in images.shape[-2:])
        return super().forward(resize(images, (height, width)), return_features=return_features)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Its own entries, or those of two scales, whose attention is left out."""
        entries = {name: x for name, x in state_dict.items() if not name.startswith("attention.")}
        return super().load_state_dict(entries, strict=strict, assign=assign)

    def predict(self, images: Tensor, *, window: Any = None, output: Any = "logits", **others: Any) -> Tensor:
        """By windows of the crop's size, unless another one is given."""
        return super().predict(images, window=window or self.window, output=output, **others)


def vit_of_timm(name: str, weights: str | Path | None = None, *, patch: int = 0, depth: int = 0) -> nn.Module:
    """A plain ViT for images of any size.

    Raises:
        ValueError: timm has none of this name, or the weights do not fit.
    """
    settings: dict[str, Any] = {"patch_size": patch} if patch else {}
    settings |= {"depth": depth} if depth else {}
    if weights:
        settings["pretrained"] = True
    if weights and weights != DOWNLOAD:
        if not Path(weights).is_file():
            raise ValueError(f"{weights}: no such file; --weights is a state dict of timm's {name}, or safetensors")
        settings["pretrained_cfg_overlay"] = {"file": str(weights)}
    try:
        import timm
    except ImportError:
        raise ValueError(f"--encoder {name} needs timm: pip install timm") from None
    vit: nn.Module
    try:
        try:
            vit = timm.create_model(name, num_classes=0, dynamic_img_size=True, **settings)
        except TypeError:  # rotary embeddings take any size without being asked
            vit = timm.create_model(name, num_classes=0, **settings)
    except Exception as error:
        known = timm.list_models()
        raise ValueError(f"--encoder {name}: {reason(error)}{'' if name in known else similar(name, known)}") from None
    return vit


def side_of_patch(name: str, patch: int = 0) -> int:
    """Side of a ViT's patches in pixels."""
    if patch:
        return patch
    with torch.device("meta"):
        return ViTFeatures(vit_of_timm(name)).patch


def mirrored(teacher: nn.Module, images: Tensor) -> Tensor:
    """The mean of the softmax on images and on their mirror images, as logits."""
    seen, turned = teacher(images), teacher(images.flip(-1))
    if not isinstance(seen, Tensor):  # both scales, fused
        seen, turned = seen.logits, turned.logits
    mean: Tensor = (seen.float().softmax(1) + turned.flip(-1).float().softmax(1)) / 2
    return mean.log()


def adapt_by_lora(student: nn.Module, rank: int) -> None:
    """Freeze the encoder, and put adapters into its blocks; rank 0: train all of it."""
    if rank:
        body: Any = student.encoder.body  # type: ignore[union-attr]
        body.requires_grad_(False)
        add_lora(body.blocks, rank=rank)


def merge(student: nn.Module, teacher: EMATeacher) -> None:
    """Adapters into the weights of both."""
    if any(name.endswith("lora_up") for name, _ in student.named_parameters()):
        merge_lora(teacher.module)
        merge_lora(student)


def add_vit(parser: argparse.ArgumentParser) -> None:
    """The options that say where the encoder's weights come from, and what it would cost."""
    add, text = options_of(parser, "network").add_argument, "weights of the encoder, a state dict or safetensors"
    add("--weights", dest="encoder_weights", metavar="FILE", help=f"{text} of timm (default: random)")
    text = "let timm download the encoder's weights; they have licences of their own, DINOv3's among them"
    add("--pretrained", dest="encoder_weights", action="store_const", const=DOWNLOAD, help=f"{text} (default: off)")
    text = "print FLOPs and bytes of a step, and do nothing else (default: off)"
    options_of(parser, "output").add_argument("--cost", action="store_true", help=text)
