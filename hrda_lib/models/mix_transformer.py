"""The Mix Transformer encoder of SegFormer: a pyramid of four stages at strides 4, 8, 16 and 32."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from hrda_lib._checks import check_counts, check_rates, expect, is_count, plain
from hrda_lib._modules import recomputed


class MixTransformerSize(NamedTuple):
    """Channels and blocks of each stage."""

    widths: tuple[int, int, int, int]
    """Channels of each of the four stages, fine to coarse."""
    depths: tuple[int, int, int, int]
    """Blocks of each."""


SIZES = {
    "mit_b0": MixTransformerSize((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": MixTransformerSize((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": MixTransformerSize((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": MixTransformerSize((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": MixTransformerSize((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": MixTransformerSize((64, 128, 320, 512), (3, 6, 40, 3)),
}


def as_size(size: str | MixTransformerSize) -> MixTransformerSize:
    """A named size, or one of your own, checked.

    Raises:
        ValueError: there is no such name, or widths and depths are not four positive ints each.
    """
    if isinstance(size, str) and size in SIZES:
        return SIZES[size]
    parts = size if isinstance(size, tuple) and len(size) == 2 else ((), ())
    if any(not isinstance(part, (tuple, list)) or len(part) != 4 or not all(map(is_count, part)) for part in parts):
        raise ValueError(
            f"the encoder's size must be one of {', '.join(SIZES)}, or a MixTransformerSize of four widths and four "
            f"depths, got {size!r}"
        )
    return MixTransformerSize(*size)


class MixTransformer(nn.Module):
    r"""Images to features at strides 4, 8, 16 and 32 (SegFormer, arXiv 2105.15203, section 3.1).

    Each stage embeds overlapping patches, then runs pre-norm blocks of attention and a feed-forward part with a 3x3
    depthwise convolution, which takes the place of position codes:

    .. math::
        x \leftarrow x + \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt{d}}\right) V, \qquad
        x \leftarrow x + W_2\, \mathrm{GELU}(\mathrm{DWConv}(W_1 x))

    K and V come from a feature map that a strided convolution reduced by 8, 4, 2 and 1 a side in the four stages.

    Args:
        size: "mit_b0" to "mit_b5", or a :class:`MixTransformerSize` of your own.
        in_channels: channels of the images.
        drop_path: probability that the last block skips a branch, per sample, in [0, 1); it grows linearly from 0
            at the first.
        checkpoint_stages: stages (0 to 3) whose blocks keep no activations: they are computed anew in
            backward. Empty: none.

    Images (B, in_channels, H, W) float of any size. Stage i has ceil(H / s) x ceil(W / s) cells for s = 4, 8, 16, 32.
    Off the multiples of 32, borders are padded with zeros inside the convolutions, the reduction leaves out a rest of
    cells at the bottom and right, and cells no longer lie exactly under each other: pad images to multiples of 32 where
    that matters. Below 32 pixels, maps that are smaller than their reduction are padded to it with zeros.

    ``.widths`` are the channels of the features, for a decoder.

    Raises:
        ValueError: the size is unknown, a setting is out of its range, or images have other channels.

    Example:
        >>> import torch
        >>> from hrda_lib.models import MixTransformer
        >>> encoder = MixTransformer("mit_b0")
        >>> [tuple(feature.shape) for feature in encoder(torch.rand(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 160, 4, 6), (1, 256, 2, 3)]
    """

    def __init__(
        self,
        size: str | MixTransformerSize = "mit_b5",
        *,
        in_channels: int = 3,
        drop_path: float = 0.1,
        checkpoint_stages: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.widths, self.depths = as_size(size)
        heads = (1, 2, 5, 8)
        check_counts(in_channels=in_channels)
        check_rates(drop_path=drop_path)
        if not isinstance(checkpoint_stages, list | tuple | set | frozenset | range) or any(
            isinstance(stage, bool) or stage not in range(4) for stage in checkpoint_stages
        ):
            raise ValueError(f"checkpoint_stages must be a list of stages 0 to 3, got {checkpoint_stages!r}")
        self.in_channels, self.checkpoint_stages = in_channels, frozenset(checkpoint_stages)
        blocks = sum(self.depths)
        rates = [drop_path * i / max(blocks - 1, 1) for i in range(blocks)]
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            below = in_channels if i == 0 else self.widths[i - 1]
            first = sum(self.depths[:i])
            self.stages.append(
                Stage(
                    below,
                    width,
                    rates[first : first + depth],
                    kernel=7 if i == 0 else 3,
                    stride=4 if i == 0 else 2,
                    heads=heads[i],
                    reduction=(8, 4, 2, 1)[i],
                )
            )
        self.apply(_initialise)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of four stages, fine to coarse.

        Args:
            images: (B, in_channels, H, W) float.

        Returns:
            A list of four tensors (B, widths[i], ceil(H/s), ceil(W/s)), s = 4, 8, 16, 32.

        Raises:
            ValueError: images have other channels or another type.
        """
        expect("images", images, ("B", self.in_channels, "H", "W"), kind="float")
        features: list[Tensor] = []
        x = images
        for i, stage in enumerate(self.stages):
            x = stage(x, i in self.checkpoint_stages and torch.is_grad_enabled())
            features.append(x)
        return features


class Stage(nn.Module):
    """Patch embedding, blocks and a last norm."""

    def __init__(
        self, below: int, width: int, rates: Sequence[float], *, kernel: int, stride: int, heads: int, reduction: int
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(below, width, kernel, stride, padding=kernel // 2)
        self.embed_norm = nn.LayerNorm(width)  # eps 1e-5 here and in Attention.reduce_norm, 1e-6 everywhere else
        self.blocks = nn.ModuleList(Block(width, rate, heads=heads, reduction=reduction) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, recompute: bool) -> Tensor:
        x = self.embed(x)
        height, width = x.shape[-2:]
        x = self.embed_norm(_tokens(x))
        for block in self.blocks:
            x = checkpoint(block, x, height, width, use_reentrant=False) if recompute else block(x, height, width)
        out: Tensor = _grid(self.norm(x), height, width)
        return out


class Block(nn.Module):
    """Attention, then the feed-forward part, each beside the identity."""

    def __init__(self, width: int, drop_path: float, *, heads: int, reduction: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads=heads, reduction=reduction)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = FeedForward(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.drop_path(self.attention(self.attention_norm(x), height, width))
        out: Tensor = x + self.drop_path(self.feed_forward(self.feed_forward_norm(x), height, width))
        return out


class Attention(nn.Module):
    """Multi-head attention whose keys and values are spatially reduced."""

    def __init__(self, width: int, *, heads: int, reduction: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"widths must be multiples of the heads 1, 2, 5 and 8, got {width} for {heads}")
        self.heads, self.reduction = heads, reduction
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.reduce: nn.Module | None = None
        if reduction > 1:
            self.reduce = nn.Conv2d(width, width, reduction, stride=reduction)
            self.reduce_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        query = rearrange(self.query(x), "b n (heads d) -> b heads n d", heads=self.heads)
        if self.reduce is not None:
            grid = _grid(x, height, width)
            rows, columns = (max(self.reduction - side, 0) for side in plain((height, width)))
            if rows or columns:  # a small image: fewer cells than one reduction
                grid = pad(grid, (0, columns, 0, rows))
            x = self.reduce_norm(_tokens(self.reduce(grid)))
        both = rearrange(self.key_value(x), "b n (two heads d) -> two b heads n d", two=2, heads=self.heads)
        key, value = both.unbind()
        mixed = scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(rearrange(mixed, "b heads n d -> b n (heads d)"))
        return out


class FeedForward(nn.Module):
    """Two linear layers with a 3x3 depthwise convolution and GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.activation = nn.GELU()

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        hidden = self.depthwise(_grid(self.expand(x), height, width))
        return recomputed(self, lambda y: self.contract(self.activation(_tokens(y))), hidden)


class DropPath(nn.Module):
    """Stochastic depth: the whole branch of a sample is 0 with probability ``rate``, else divided by 1 - ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * (keep.to(x.dtype) / (1 - self.rate))


def _tokens(grid: Tensor) -> Tensor:
    return rearrange(grid, "b c h w -> b (h w) c")


def _grid(x: Tensor, height: int, width: int) -> Tensor:
    """(B, height * width, C) tokens as (B, C, height, width), in channels-last memory."""
    # no rearrange: of one image it sets other strides, and the convolutions then round otherwise
    return x.transpose(1, 2).view(x.shape[0], x.shape[2], height, width)


def _initialise(module: nn.Module) -> None:
    """What vision transformers start from: truncated normal, fan-out normal for convolutions, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
