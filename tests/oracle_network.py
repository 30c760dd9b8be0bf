"""A second, slow HRDA network: plain functions over a state dict with the published entry names.

Written from the papers (Mix Transformer, arXiv 2105.15203; DAFormer, 2111.14887; HRDA, 2204.13132) and a description of
the released options. It computes in the dtype of its weights.
Everything but the convolutions is spelled out. With ``training`` batch norm uses batch statistics, and the running ones
in the state dict are replaced by their next values.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import conv2d, pad

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

WIDTHS = {"mit_b0": (32, 64, 160, 256), "mit_b1": (64, 128, 320, 512), "mit_b2": (64, 128, 320, 512)}
DEPTHS = {"mit_b0": (2, 2, 2, 2), "mit_b1": (2, 2, 2, 2), "mit_b2": (3, 4, 6, 3)}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
DILATIONS = (1, 6, 12, 18)
SCALE, OUTPUT_STRIDE = 2, 4
ATTENTION = "decode_head.scale_attention"


class Output(NamedTuple):
    logits: Tensor
    detail_logits: Tensor
    context_logits: Tensor
    attention: Tensor | float


def encoder_shapes(widths: tuple[int, ...], depths: tuple[int, ...]) -> Shapes:
    shapes: Shapes = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"backbone.{name}.weight"], shapes[f"backbone.{name}.bias"] = shape, shape[:1]

    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        kernel, below = (7, 3) if i == 0 else (3, widths[i - 1])
        layer(f"patch_embed{i + 1}.proj", width, below, kernel, kernel)
        layer(f"patch_embed{i + 1}.norm", width)
        for j in range(depth):
            block, reduction = f"block{i + 1}.{j}", REDUCTIONS[i]
            layer(f"{block}.norm1", width)
            layer(f"{block}.attn.q", width, width)
            layer(f"{block}.attn.kv", 2 * width, width)
            layer(f"{block}.attn.proj", width, width)
            if reduction > 1:
                layer(f"{block}.attn.sr", width, width, reduction, reduction)
                layer(f"{block}.attn.norm", width)
            layer(f"{block}.norm2", width)
            layer(f"{block}.mlp.fc1", 4 * width, width)
            layer(f"{block}.mlp.dwconv.dwconv", 4 * width, 1, 3, 3)
            layer(f"{block}.mlp.fc2", width, 4 * width)
        layer(f"norm{i + 1}", width)
    return shapes


def head_shapes(name: str, widths: tuple[int, ...], outputs: int, dims: int, *, light: bool = False) -> Shapes:
    """Of the DAFormer head, or of the ``light`` head that attends to scales."""
    shapes: Shapes = {f"{name}.conv_seg.weight": (outputs, dims, 1, 1), f"{name}.conv_seg.bias": (outputs,)}
    for i, width in enumerate(widths):
        shapes[f"{name}.embed_layers.{i}.proj.weight"] = (dims, width)
        shapes[f"{name}.embed_layers.{i}.proj.bias"] = (dims,)

    def conv_bn(part: str, *shape: int) -> None:
        shapes[f"{name}.fuse_layer{part}.conv.weight"] = shape
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.fuse_layer{part}.bn.{entry}"] = shape[:1]
        shapes[f"{name}.fuse_layer{part}.bn.num_batches_tracked"] = ()

    channels = len(widths) * dims
    if light:
        conv_bn("", dims, channels, 1, 1)
        return shapes
    for i, dilation in enumerate(DILATIONS):
        if dilation == 1:
            conv_bn(f".aspp_modules.{i}", dims, channels, 1, 1)
        else:
            conv_bn(f".aspp_modules.{i}.depthwise_conv", channels, 1, 3, 3)
            conv_bn(f".aspp_modules.{i}.pointwise_conv", dims, channels, 1, 1)
    conv_bn(".bottleneck", dims, len(DILATIONS) * dims, 3, 3)
    return shapes


def daformer_shapes(widths: tuple[int, ...], depths: tuple[int, ...], classes: int, dims: int) -> Shapes:
    return encoder_shapes(widths, depths) | head_shapes("decode_head", widths, classes, dims)


def hrda_shapes(
    widths: tuple[int, ...], depths: tuple[int, ...], classes: int, dims: int, maps: int, attention_dims: int
) -> Shapes:
    """Entries of a published file; ``maps`` of the attention head, 0: there is none."""
    shapes = encoder_shapes(widths, depths) | head_shapes("decode_head.head", widths, classes, dims)
    return shapes | (head_shapes(ATTENTION, widths, maps, attention_dims, light=True) if maps else {})


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, half-pixel centres, edges repeated, no antialiasing."""
    rows, columns = _interpolation(x.shape[-2], height, x), _interpolation(x.shape[-1], width, x)
    return torch.einsum("ih,jw,bchw->bcij", rows, columns, x)


def _interpolation(old: int, new: int, like: Tensor) -> Tensor:
    weights = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        centre = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        low = math.floor(centre)
        weights[i, low] += 1 - (centre - low)
        weights[i, min(low + 1, old - 1)] += centre - low
    return weights.to(like)


def layer_norm(w: Weights, name: str, tokens: Tensor, epsilon: float) -> Tensor:
    """Over the channels of (B, N, C)."""
    centred = tokens - tokens.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / (variance + epsilon).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def batch_norm(w: Weights, name: str, x: Tensor, training: bool) -> Tensor:
    if training:
        mean = x.mean((0, 2, 3))
        variance = (x - mean[:, None, None]).square().mean((0, 2, 3))
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            for entry, new in (("running_mean", mean), ("running_var", variance * count / (count - 1))):
                w[f"{name}.{entry}"] = 0.9 * w[f"{name}.{entry}"] + 0.1 * new
            w[f"{name}.num_batches_tracked"] = w[f"{name}.num_batches_tracked"] + 1
    else:
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    normal = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    return normal * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def linear(w: Weights, name: str, tokens: Tensor) -> Tensor:
    return torch.einsum("bnc,dc->bnd", tokens, w[f"{name}.weight"]) + w[f"{name}.bias"]


def conv(w: Weights, name: str, x: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
    """Depthwise where the entry has one input channel and the image more."""
    weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias")
    return conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1] // weight.shape[1])


def to_tokens(x: Tensor) -> Tensor:
    return rearrange(x, "b c h w -> b (h w) c")


def to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    return rearrange(tokens, "b (h w) c -> b c h w", h=height, w=width)


def self_attention(w: Weights, name: str, x: Tensor, height: int, width: int, heads: int, reduction: int) -> Tensor:
    """softmax(Q K^T / sqrt d) V, with keys and values of a grid that is ``reduction`` times as coarse."""
    shared = x
    if reduction > 1:
        grid = to_image(x, height, width)
        rows, columns = max(height, reduction), max(width, reduction)
        padded = torch.zeros(*grid.shape[:2], rows, columns, dtype=grid.dtype)
        padded[:, :, :height, :width] = grid
        shared = to_tokens(conv(w, f"{name}.sr", padded, stride=reduction))
        shared = layer_norm(w, f"{name}.norm", shared, 1e-5)
    queries, both = linear(w, f"{name}.q", x), linear(w, f"{name}.kv", shared)
    width_of_head = queries.shape[-1] // heads
    keys, values = both.split(queries.shape[-1], -1)
    results = []
    for head in range(heads):
        of_head = slice(head * width_of_head, (head + 1) * width_of_head)
        scores = torch.einsum("bqd,bkd->bqk", queries[..., of_head], keys[..., of_head]) / math.sqrt(width_of_head)
        powers = (scores - scores.amax(-1, keepdim=True)).exp()
        results.append(torch.einsum("bqk,bkd->bqd", powers / powers.sum(-1, keepdim=True), values[..., of_head]))
    return linear(w, f"{name}.proj", torch.cat(results, -1))


def mix_ffn(w: Weights, name: str, x: Tensor, height: int, width: int) -> Tensor:
    hidden = to_image(linear(w, f"{name}.fc1", x), height, width)
    hidden = to_tokens(conv(w, f"{name}.dwconv.dwconv", hidden, padding=1))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return linear(w, f"{name}.fc2", hidden)


def encoder(w: Weights, images: Tensor, depths: tuple[int, ...]) -> list[Tensor]:
    """Four levels, strides 4 to 32."""
    x, features = images, []
    for i, depth in enumerate(depths):
        kernel, stride = (7, 4) if i == 0 else (3, 2)
        embed = f"backbone.patch_embed{i + 1}"
        x = conv(w, f"{embed}.proj", x, stride=stride, padding=kernel // 2)
        height, width = x.shape[-2:]
        tokens = layer_norm(w, f"{embed}.norm", to_tokens(x), 1e-5)
        for j in range(depth):
            block = f"backbone.block{i + 1}.{j}"
            normal = layer_norm(w, f"{block}.norm1", tokens, 1e-6)
            tokens = tokens + self_attention(w, f"{block}.attn", normal, height, width, HEADS[i], REDUCTIONS[i])
            normal = layer_norm(w, f"{block}.norm2", tokens, 1e-6)
            tokens = tokens + mix_ffn(w, f"{block}.mlp", normal, height, width)
        x = to_image(layer_norm(w, f"backbone.norm{i + 1}", tokens, 1e-6), height, width)
        features.append(x)
    return features


def conv_bn_relu(w: Weights, name: str, x: Tensor, training: bool, padding: int = 0, dilation: int = 1) -> Tensor:
    x = conv(w, f"{name}.conv", x, padding=padding, dilation=dilation)
    return batch_norm(w, f"{name}.bn", x, training).clamp(min=0)


def embedded(w: Weights, name: str, features: list[Tensor]) -> Tensor:
    """A linear layer a level, all at the size of the finest, fine to coarse."""
    height, width = features[0].shape[-2:]
    levels = []
    for i, feature in enumerate(features):
        level = linear(w, f"{name}.embed_layers.{i}.proj", to_tokens(feature))
        levels.append(resize(to_image(level, *feature.shape[-2:]), height, width))
    return torch.cat(levels, 1)


def daformer_head(w: Weights, name: str, features: list[Tensor], training: bool) -> Tensor:
    x, branches = embedded(w, name, features), []
    for i, dilation in enumerate(DILATIONS):
        branch = f"{name}.fuse_layer.aspp_modules.{i}"
        if dilation == 1:
            branches.append(conv_bn_relu(w, branch, x, training))
            continue
        of_channel = conv_bn_relu(w, f"{branch}.depthwise_conv", x, training, padding=dilation, dilation=dilation)
        branches.append(conv_bn_relu(w, f"{branch}.pointwise_conv", of_channel, training))
    x = conv_bn_relu(w, f"{name}.fuse_layer.bottleneck", torch.cat(branches, 1), training, padding=1)
    return conv(w, f"{name}.conv_seg", x)


def attention_head(w: Weights, features: list[Tensor], training: bool) -> Tensor:
    """Before the sigmoid."""
    x = conv_bn_relu(w, f"{ATTENTION}.fuse_layer", embedded(w, ATTENTION, features), training)
    return conv(w, f"{ATTENTION}.conv_seg", x)


def daformer(w: Weights, images: Tensor, depths: tuple[int, ...], *, training: bool = False) -> Tensor:
    return daformer_head(w, "decode_head", encoder(w, images, depths), training)


def starts(length: int, window: int, stride: int) -> list[int]:
    """Of windows along one side: every ``stride``, the last one ends with the image."""
    result = [0]
    while result[-1] + window < length:
        result.append(min(result[-1] + stride, length - window))
    return result


def grid(size: tuple[int, int], window: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Boxes (top, left, height, width) that overlap by half; a window beyond the image is cut to it."""
    (height, width), (down, right) = (
        (min(size[0], window[0]), min(size[1], window[1])),
        (window[0] // 2, window[1] // 2),
    )
    return [
        (top, left, height, width) for top in starts(size[0], height, down) for left in starts(size[1], width, right)
    ]


def average(parts: list[Tensor], boxes: list[tuple[int, int, int, int]], height: int, width: int) -> Tensor:
    total = parts[0].new_zeros(*parts[0].shape[:2], height, width)
    count = parts[0].new_zeros(height, width)
    for part, (top, left, rows, columns) in zip(parts, boxes, strict=True):
        total[:, :, top : top + rows, left : left + columns] += part
        count[top : top + rows, left : left + columns] += 1
    return total / count


def hrda(
    w: Weights,
    images: Tensor,
    depths: tuple[int, ...],
    detail: tuple[int, int],
    *,
    attention: float | None = None,
    box: tuple[int, int, int, int] | None = None,
    training: bool = False,
) -> Output:
    """One forward pass: ``box`` (top, left, height, width) of the detail crop in pixels, or None for all windows."""
    batch, _, height, width = images.shape
    head = "decode_head.head"
    features = encoder(w, resize(images, height // SCALE, width // SCALE), depths)
    context = daformer_head(w, head, features, training)
    mix: Tensor | float
    if attention is None:
        logits = attention_head(w, features, training)
        mix = 1 / (1 + (-logits).exp())
    else:
        mix = attention

    boxes = grid((height, width), detail) if box is None else [box]
    patches = torch.cat([images[:, :, t : t + h, left : left + v] for t, left, h, v in boxes])
    fine = daformer_head(w, head, encoder(w, patches, depths), training)
    cells = [tuple(n // OUTPUT_STRIDE for n in b) for b in boxes]
    size = height // OUTPUT_STRIDE, width // OUTPUT_STRIDE
    if box is None:
        inserted = fine = average(list(fine.split(batch)), cells, *size)
        masked = torch.zeros_like(context) + mix
    else:
        (top, left, rows, columns), k = cells[0], SCALE
        inserted = torch.zeros(batch, fine.shape[1], *size, dtype=fine.dtype)
        inserted[:, :, top : top + rows, left : left + columns] = fine
        inside = torch.zeros_like(context)
        inside[:, :, top // k : (top + rows) // k, left // k : (left + columns) // k] = 1
        masked = inside * mix
    logits = resize((1 - masked) * context, *size) + resize(masked, *size) * inserted
    return Output(logits, fine, context, mix)


def predict(
    w: Weights, images: Tensor, depths: tuple[int, ...], detail: tuple[int, int], *, attention: float | None = None
) -> Tensor:
    """Logits of images of any size, at every pixel: windows of the context crop's size, each fused, averaged."""
    height, width = images.shape[-2:]
    cell = SCALE * OUTPUT_STRIDE
    images = pad(images, (0, -width % cell, 0, -height % cell))
    size = tuple(images.shape[-2:])
    boxes = grid(size, (SCALE * detail[0], SCALE * detail[1]))
    parts = []
    for top, left, rows, columns in boxes:
        window = images[:, :, top : top + rows, left : left + columns]
        logits = hrda(w, window, depths, detail, attention=attention).logits
        parts.append(resize(logits, rows, columns))
    return average(parts, boxes, *size)[:, :, :height, :width]
