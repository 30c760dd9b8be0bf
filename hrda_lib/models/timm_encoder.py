"""Any feature pyramid of timm as an encoder. timm is imported when an encoder is built by name, not before."""

import logging
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from hrda_lib._checks import check_counts, expect, plain
from hrda_lib.models.weight_files import read_entries


class TimmEncoder(nn.Module):
    """An encoder of timm: images (B, in_channels, H, W) -> list of (B, C_i, h_i, w_i), fine to coarse.

    All levels that timm gives are returned, channels first, whatever their layout in timm. ``.channels`` and
    ``.strides`` are tuples, one number a level; ``.body`` is timm's module. An encoder by name takes images of any size
    where timm can build it so (Swin, ViT with whole patches); one that is made for a single size takes that, or
    another after ``TimmEncoder(timm.create_model(name, features_only=True, img_size=(512, 512)))``.

    Args:
        name_or_model: a name of timm such as "resnet18", or what ``timm.create_model(..., features_only=True)`` built.
        weights: a file of the encoder's weights as timm stores them, with or without classifier; None: random ones.
            For a name only.
        in_channels: channels of the images. For a name only.

    Raises:
        ValueError: timm is missing, has no such encoder or cannot load the weights; the model was not built with
            ``features_only=True``; images are not float (B, in_channels, H, W), or their sides do not fit.

    Example:
        >>> import torch
        >>> from hrda_lib.models import TimmEncoder
        >>> encoder = TimmEncoder("resnet18", in_channels=4)
        >>> encoder.channels, encoder.strides
        ((64, 64, 128, 256, 512), (2, 4, 8, 16, 32))
        >>> [tuple(level.shape) for level in encoder(torch.rand(1, 4, 64, 96))][:2]
        [(1, 64, 32, 48), (1, 64, 16, 24)]
    """

    def __init__(
        self, name_or_model: str | nn.Module, *, weights: str | Path | None = None, in_channels: int = 3
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels)
        self.in_channels: int | None
        if isinstance(name_or_model, str):
            self.body, self.in_channels = _created(name_or_model, weights, in_channels), in_channels
        elif weights is not None or in_channels != 3:
            raise ValueError("weights and in_channels are for a name; give them to timm.create_model with a model")
        else:
            self.body, self.in_channels = name_or_model, None
        info: Any = getattr(self.body, "feature_info", None)
        if not isinstance(self.body, nn.Module) or not hasattr(info, "channels"):
            raise ValueError(
                f"name_or_model must be a name of timm or a model with levels, got {type(self.body).__name__}; "
                "pass what timm.create_model(..., features_only=True) built"
            )
        self.channels, self.strides = tuple(info.channels()), tuple(info.reduction())
        self.layout = str(getattr(self.body, "output_fmt", "NCHW")).removeprefix("Format.")  # timm's enum, if any
        if self.layout not in ("NCHW", "NHWC"):
            raise ValueError(f"levels must be maps, NCHW or NHWC, got {self.layout}; choose a feature pyramid of timm")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of all levels that timm gives, fine to coarse.

        Args:
            images: (B, in_channels, H, W) float, normalised as the weights want it.

        Returns:
            A list of (B, channels[i], h_i, w_i), about H / strides[i] by W / strides[i].

        Raises:
            ValueError: images have other channels or another type, or their sides do not fit the encoder.
        """
        expect("images", images, ("B", self.in_channels or "K", "H", "W"), kind="float")
        try:
            answer = self.body(images)
        except AssertionError as error:  # of timm: one size only, or whole patches only
            raise ValueError(
                f"images of {plain(images.shape[-2:])} do not fit this encoder ({error or 'timm does not say why'}); "
                "use sides that fit, or timm.create_model(..., features_only=True, img_size=...)"
            ) from None
        levels = list(answer.values() if isinstance(answer, dict) else answer)
        for axis in (1, 3) if self.layout == "NCHW" else (3, 1):  # what timm states first: it is wrong with some hooks
            if tuple(plain(x.shape)[axis] if x.dim() == 4 else 0 for x in levels) == self.channels:
                return levels if axis == 1 else [rearrange(x, "b h w c -> b c h w") for x in levels]
        raise ValueError(
            f"levels must be maps of {self.channels} channels, as timm states, got {[tuple(x.shape) for x in levels]}; "
            "build the model without feature_cls, or with feature_cls='getter'"
        )


def _created(name: str, weights: str | Path | None, in_channels: int) -> nn.Module:
    settings: dict[str, Any] = {"features_only": True, "in_chans": in_channels}
    if weights is None:
        return _built(name, settings)
    read_entries("weights", weights)  # timm's own errors about a file say little
    settings |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
    log = logging.getLogger("timm.models._builder")
    log.addFilter(_is_no_surplus)
    try:
        body = _built(name, settings)
        # timm only logs what a file lacks. That stays random, and so differs in a second encoder
        with torch.random.fork_rng(devices=[]):
            again = dict(_built(name, settings).named_parameters())
    finally:
        log.removeFilter(_is_no_surplus)
    lacking = [key for key, tensor in body.named_parameters() if not torch.equal(tensor, again[key])]
    if lacking:
        raise ValueError(
            f"{weights}: no weights of encoder {name!r}: it leaves {lacking[0]} and {len(lacking) - 1} others random"
        )
    return body


def _is_no_surplus(record: logging.LogRecord) -> bool:
    """Whether timm says something else than that a file has more than the encoder, such as the classifier: it may."""
    return not record.getMessage().startswith("Unexpected keys")


def _built(name: str, settings: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ValueError(f"encoder {name!r} needs timm: pip install timm") from None
    # what takes any image size only if asked: the word differs by encoder and by version of timm
    words: list[dict[str, bool]] = [{"dynamic_img_size": True}, {"strict_img_size": False}]
    try:
        known = timm.get_pretrained_cfg(name)
        for word in words if known and known.fixed_input_size else []:
            try:
                return timm.create_model(name, **settings, **word)  # type: ignore[no-any-return]
            except TypeError:
                continue
        return timm.create_model(name, **settings)  # type: ignore[no-any-return]
    except Exception as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise ValueError(f"encoder {name!r} cannot be built (timm.list_models() has the names): {reason}") from None
