"""A plain ViT of timm as an encoder, and two necks that bring its coarse maps to a finer stride."""

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from hrda_lib._checks import (
    as_counts,
    at_least_float32,
    check_choice,
    check_counts,
    expect,
    expect_levels,
    is_count,
    laid_out,
    last_map,
    plain,
    short,
)

PositionEmbedding = Literal["own", "dinov2"]


class ViTFeatures(nn.Module):
    """A plain ViT of timm as an encoder: images (B, K, H, W) -> maps (B, D, H/p, W/p) after some of its blocks.

    The last norm of the ViT, where it has one, is applied to each map; class and register tokens are left out.
    ``.channels`` is a tuple with D for each map, ``.patch`` is p, ``.body`` the ViT. Build it for any image size:
    ``timm.create_model("vit_base_patch14_dinov2", num_classes=0, dynamic_img_size=True)``; networks with rotary
    embedding, such as DINOv3, take any by themselves.

    Args:
        vit: a ViT of timm (DINOv2, DINOv3, EVA-02, SAM, CLIP, BEiT and so on), built without ``features_only``.
        out_indices: after which blocks, counted from 0, negative ones from the end; or a number of maps, evenly
            spread, the last block's among them.
        pos_embed: how a position embedding comes to another grid. "own": as timm does; "dinov2": as the hub of DINOv2
            does for its networks without registers, bicubic at scale (n + 0.1) / N without antialiasing, which
            weights tuned with that code, such as those of VFM-UDA, are used to. Both are one at the native grid.

    Raises:
        ValueError: it is no such ViT, has no position embedding to interpolate or not as many blocks; images are not
            float (B, K, H, W), or their sides no multiples of the patch, or not those that the ViT was built for.

    Example:
        >>> import timm
        >>> import torch
        >>> from hrda_lib.models import ViTFeatures
        >>> vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True)
        >>> encoder = ViTFeatures(vit, out_indices=2)
        >>> encoder.channels, encoder.out_indices, encoder.patch
        ((192, 192), (5, 11), 16)
        >>> [tuple(level.shape) for level in encoder(torch.rand(1, 3, 64, 96))]
        [(1, 192, 4, 6), (1, 192, 4, 6)]
    """

    def __init__(
        self, vit: nn.Module, *, out_indices: int | Sequence[int] = 4, pos_embed: PositionEmbedding = "own"
    ) -> None:
        super().__init__()
        blocks = getattr(vit, "blocks", None)
        patch: Any = getattr(vit, "patch_embed", None)
        known = isinstance(blocks, (nn.ModuleList, nn.Sequential)) and hasattr(patch, "patch_size")
        if not known or not hasattr(vit, "forward_intermediates"):
            raise ValueError(
                f"vit must be a plain ViT of timm, with patch_embed, blocks and forward_intermediates, got "
                f"{type(vit).__name__}; build one with timm.create_model(name, num_classes=0), not features_only, or "
                "take hrda_lib.models.TimmEncoder for pyramids"
            )
        check_choice("pos_embed", pos_embed, get_args(PositionEmbedding))
        if pos_embed == "dinov2":
            _check_grid(vit)
        # a stem of convolutions before the patches, as ViTamin has, counts
        size = patch.feat_ratio(as_scalar=False) if hasattr(patch, "feat_ratio") else patch.patch_size
        sides = set(size) if isinstance(size, (tuple, list)) else {size}
        if len(sides) != 1:
            raise ValueError(f"vit must have square patches, got {tuple(size)}")
        self.body, self.pos_embed, self.patch = vit, pos_embed, int(sides.pop())
        self.out_indices = _chosen(out_indices, len(blocks))  # type: ignore[arg-type]
        self.channels = (int(vit.embed_dim),) * len(self.out_indices)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of ``images``.

        Args:
            images: (B, K, H, W) float; H and W are multiples of ``.patch``.

        Returns:
            A list of (B, D, H/p, W/p), one for each of ``.out_indices``, in that order.
        """
        expect("images", images, "BKHW", kind="float")
        height, width = plain(images.shape[-2:])
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images must have sides that are multiples of the patch {self.patch}, got {(height, width)}; give "
                f"MultiResSegmenter multiple_of={self.patch}, or resize them"
            )
        try:
            maps = self._as_the_hub(images) if self.pos_embed == "dinov2" else self._as_timm(images)
        except AssertionError as error:  # of timm: made for a single size
            raise ValueError(
                f"images of {(height, width)} do not fit this ViT ({error or 'timm does not say why'}); build it with "
                "dynamic_img_size=True, or for this size, img_size=(h, w)"
            ) from None
        return [maps[index] for index in self.out_indices]

    def _as_timm(self, images: Tensor) -> dict[int, Tensor]:
        indices = sorted(self.out_indices)  # timm gives them in this order, whatever is asked
        vit: Any = self.body
        # SAM has no last norm, but a neck with other channels under this argument
        normed = hasattr(vit, "norm")
        maps = vit.forward_intermediates(images, indices=indices, norm=normed, stop_early=True, intermediates_only=True)
        return dict(zip(indices, maps, strict=True))

    def _as_the_hub(self, images: Tensor) -> dict[int, Tensor]:
        vit: Any = self.body
        grid = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        x = vit.patch_embed(images)
        x = x.flatten(1, 2) if x.dim() == 4 else x
        prefix = [token.expand(len(x), -1, -1) for token in _prefix_tokens(vit)]
        if vit.no_embed_class:
            x = torch.cat([*prefix, x + _resized(vit.pos_embed, grid)], dim=1)
        else:
            embedded = vit.pos_embed[:, : vit.num_prefix_tokens]
            positions = torch.cat([embedded, _resized(vit.pos_embed[:, embedded.shape[1] :], grid)], dim=1)
            x = torch.cat([*prefix, x], dim=1) + positions
        x = vit.norm_pre(vit.patch_drop(vit.pos_drop(x)))
        maps: dict[int, Tensor] = {}
        for index, block in enumerate(vit.blocks[: max(self.out_indices) + 1]):
            frees = vit.grad_checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if frees else block(x)
            if index in self.out_indices:
                tokens = vit.norm(x)[:, vit.num_prefix_tokens :]
                maps[index] = tokens.transpose(1, 2).reshape(len(x), -1, *grid)
        return maps


class SimplePyramid(nn.Module):
    """The last map of a plain ViT at 4, 2, 1 and 1/2 times its resolution, fine to coarse (ViTDet).

    (Li et al. 2022, arXiv 2203.16527, section 3, in a light form: transposed convolutions and a 1x1 convolution a
    level, without the 3x3 convolutions of a detector.) So :class:`DAFormerHead` and
    :class:`hrda_lib.ScaleAttentionHead` run on it: with patches of 16 the levels have strides 4 to 32, with patches of
    14, 3.5 to 28. ``.channels`` is a tuple of four times ``embed_dims``.

    Args:
        in_channels: D, channels of the last map, at least 2.
        embed_dims: channels of each level.

    Call it with a list of maps, of which it takes the last, or with one map (B, D, h, w): put it between encoder and
    decoder by ``nn.Sequential(encoder, SimplePyramid(encoder.channels[-1]))``.

    Raises:
        ValueError: a setting is out of its range, or the last map has other channels.

    Example:
        >>> import torch
        >>> from hrda_lib.models import SimplePyramid
        >>> pyramid = SimplePyramid(192, embed_dims=64)
        >>> [tuple(level.shape) for level in pyramid([torch.rand(1, 192, 8, 8)])]
        [(1, 64, 32, 32), (1, 64, 16, 16), (1, 64, 8, 8), (1, 64, 4, 4)]
    """

    def __init__(self, in_channels: int, *, embed_dims: int = 256) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, embed_dims=embed_dims)
        half = max(in_channels // 2, 1)
        self.levels = nn.ModuleList(
            [
                nn.Sequential(_twice(in_channels, half), nn.GroupNorm(1, half), nn.GELU(), _twice(half, embed_dims)),
                _twice(in_channels, embed_dims),
                nn.Conv2d(in_channels, embed_dims, 1),
                nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(in_channels, embed_dims, 1)),
            ]
        )
        self.in_channels, self.channels = in_channels, (embed_dims,) * 4

    def forward(self, features: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Four levels of the last of ``features``.

        Args:
            features: a map (B, D, h, w), or a list whose last one it is.

        Returns:
            (B, embed_dims, 4h, 4w), (…, 2h, 2w), (…, h, w) and (…, ⌈h/2⌉, ⌈w/2⌉).
        """
        last = last_map("features", features)
        hint = laid_out(last.shape, self.in_channels)[2:]
        expect("features", last, ("B", self.in_channels, "h", "w"), kind="float", hint=hint)
        return [level(last) for level in self.levels]


class DeconvHead(nn.Module):
    """A light decoder of a plain ViT: its maps, concatenated, upsampled by transposed convolutions, to logits.

    A 1x1 convolution to ``embed_dims`` channels, a transposed convolution for each doubling, each with group norm and
    GELU, and a 1x1 convolution to the classes. With ``upsample=4`` the logits have stride 4 for patches of 16, 3.5 for
    patches of 14. It costs next to nothing beside the ViT; a pyramid with the DAFormer head costs half of a ViT-B.

    Args:
        in_channels: channels of each map, such as ``encoder.channels``.
        num_classes: C, channels of the logits.
        embed_dims: width of the head.
        upsample: how much finer the logits are than the maps: 1, 2, 4, 8 and so on.

    Call it with a list of as many maps (B, C_i, h, w) of one size.

    Raises:
        ValueError: a setting is out of its range, or the maps are others.

    Example:
        >>> import torch
        >>> from hrda_lib.models import DeconvHead
        >>> head = DeconvHead([192, 192], 19, embed_dims=64)
        >>> head([torch.rand(1, 192, 8, 8), torch.rand(1, 192, 8, 8)]).shape
        torch.Size([1, 19, 32, 32])
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, embed_dims: int = 256, upsample: int = 4
    ) -> None:
        super().__init__()
        self.in_channels = as_counts("in_channels", in_channels)
        check_counts(num_classes=num_classes, embed_dims=embed_dims)
        if not is_count(upsample) or upsample & (upsample - 1):
            raise ValueError(f"upsample must be a power of two: 1, 2, 4 and so on, got {short(upsample)}")
        layers: list[nn.Module] = [nn.Conv2d(sum(self.in_channels), embed_dims, 1), *_normed(embed_dims)]
        for _ in range(upsample.bit_length() - 1):
            layers += [_twice(embed_dims, embed_dims), *_normed(embed_dims)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(embed_dims, num_classes, 1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits of ``features``.

        Args:
            features: a list of (B, C_i, h, w), as many and as wide as ``in_channels``, all of one size.

        Returns:
            (B, C, upsample * h, upsample * w).
        """
        expect_levels(features, self.in_channels)
        sizes = {plain(level.shape[-2:]) for level in features}
        if len(sizes) != 1:
            raise ValueError(
                f"features must be maps of one size, as a plain ViT gives them, got {sorted(sizes)}; take DAFormerHead "
                "for a pyramid"
            )
        logits: Tensor = self.layers(torch.cat(list(features), dim=1))
        return logits


def _twice(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)


def _normed(channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(math.gcd(32, channels), channels), nn.GELU()]


def _chosen(out_indices: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """The numbers of the blocks, counted from 0."""
    if isinstance(out_indices, int) and is_count(out_indices) and out_indices <= depth:
        return tuple(depth * (i + 1) // out_indices - 1 for i in range(out_indices))
    given = out_indices if isinstance(out_indices, (tuple, list)) else []
    found = [operator.index(x) if hasattr(x, "__index__") and not isinstance(x, bool) else depth for x in given]
    chosen = [x + depth if x < 0 else x for x in found]
    if not chosen or not all(0 <= x < depth for x in chosen) or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"out_indices must be different blocks in [0, {depth}), or how many maps, at most {depth}, got "
            f"{short(out_indices)}"
        )
    return tuple(chosen)


def _prefix_tokens(vit: Any) -> list[Tensor]:
    tokens = (getattr(vit, name, None) for name in ("cls_token", "dist_token", "reg_token"))
    return [token for token in tokens if token is not None]


def _check_grid(vit: Any) -> None:
    """Whether there is an embedding of a square grid, and the parts of timm's plain ViT around it."""
    parts = ("pos_embed", "num_prefix_tokens", "no_embed_class", "pos_drop", "patch_drop", "norm_pre", "norm")
    embedding = getattr(vit, "pos_embed", None)
    plain = all(getattr(vit, part, None) is not None for part in parts) and getattr(vit, "rope", None) is None
    if not plain or not isinstance(embedding, Tensor) or embedding.dim() != 3:
        raise ValueError(
            f"pos_embed='dinov2' is for a VisionTransformer of timm with a learned position embedding, got "
            f"{type(vit).__name__}; take pos_embed='own'"
        )
    cells = embedding.shape[1] - (0 if vit.no_embed_class else vit.num_prefix_tokens)
    if math.isqrt(cells) ** 2 != cells:
        raise ValueError(f"pos_embed='dinov2' needs a square native grid, got {cells} cells; take pos_embed='own'")


def _resized(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, N², D) at another grid, (1, h * w, D), the way of DINOv2's hub."""
    side = math.isqrt(embedding.shape[1])
    if grid == (side, side):
        return embedding
    maps = at_least_float32(embedding).transpose(1, 2).reshape(1, -1, side, side)
    scale = (float((grid[0] + 0.1) / side), float((grid[1] + 0.1) / side))
    resized = interpolate(maps, scale_factor=scale, mode="bicubic")
    return resized.flatten(2).transpose(1, 2).to(embedding.dtype)
