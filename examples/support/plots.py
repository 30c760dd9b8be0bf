"""Pictures of a run: what the network sees and says, and how the losses went."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hrda_lib import MultiResSegmenter, SegmenterOutput, pseudo_labels
from support.run_files import normalize

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

Picture = npt.NDArray[np.uint8]


def palette(count: int) -> Picture:
    """``count`` distinct colours (count, 3), the last row of 256 black for ignored pixels."""
    hues = np.arange(256) * 0.61803 % 1
    values = np.array([0.95, 0.7, 0.5])[np.arange(256) % 3]
    saturations = np.array([0.85, 0.55])[np.arange(256) // 3 % 2]
    colours = matplotlib.colors.hsv_to_rgb(np.stack([hues, saturations, values], axis=1))
    colours[count:] = 0
    return (255 * colours).astype(np.uint8)


def colour(labels: Tensor, count: int) -> Picture:
    """(H, W) class ids to (H, W, 3)."""
    picture: Picture = palette(count)[labels.numpy()]
    return picture


def overlay(image: Tensor, labels: Tensor, count: int) -> Picture:
    """Class colours over a (3, H, W) uint8 image."""
    return (0.5 * image.permute(1, 2, 0).numpy() + 0.5 * colour(labels, count)).astype(np.uint8)


def draw_panel(
    file: Path, model: MultiResSegmenter, images: Sequence[Tensor], names: Sequence[str], *, threshold: float
) -> None:
    """A row an image: image, prediction, context, detail, attention to the detail, pseudo label, its weight."""
    titles = ("image", "prediction", "context", "detail", "attention", "pseudo label", "weight")
    figure, axes = plt.subplots(len(images), len(titles), figsize=(2.6 * len(titles), 2.1 * len(images)), squeeze=False)
    for row, image in zip(axes, images, strict=True):
        for axis, picture in zip(row, _pictures(model, image, len(names), threshold), strict=True):
            grey = picture.ndim == 2
            axis.imshow(picture, **({"cmap": "viridis", "vmin": 0, "vmax": 1} if grey else {}))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set_axis_off()
    handles = [Patch(color=rgb / 255, label=name) for rgb, name in zip(palette(len(names)), names, strict=False)]
    figure.legend(handles=handles, loc="lower center", ncols=min(len(names), 12), frameon=False)
    figure.tight_layout(rect=(0, 0.25 / len(images), 1, 1))
    figure.savefig(file, dpi=90)
    plt.close(figure)


@torch.no_grad()
def _pictures(model: MultiResSegmenter, image: Tensor, count: int, threshold: float) -> list[Any]:
    x = normalize(image[None])
    out, (height, width) = _whole(model, x), image.shape[1:]
    size = out.logits.shape[-2] * model.output_stride, out.logits.shape[-1] * model.output_stride
    context, detail = (pseudo_labels(logits, size=size)[0] for logits in (out.context_logits, out.detail_logits))
    pseudo, weight = pseudo_labels(out.logits, size=size, threshold=threshold, per="pixel")
    maps = [colour(x[0, :height, :width], count) for x in (model.predict(x, output="labels"), context, detail, pseudo)]
    attention = _attention(model, out, (height, width)).numpy()
    return [image.permute(1, 2, 0).numpy(), *maps[:3], attention, maps[3], weight[0, :height, :width].numpy()]


@torch.no_grad()
def attention_map(model: MultiResSegmenter, x: Tensor) -> Tensor:
    """(H, W) in [0, 1] for one image (1, 3, H, W): how far the detail decides about the class predicted there."""
    return _attention(model, _whole(model, x), (x.shape[-2], x.shape[-1]))


def _attention(model: MultiResSegmenter, out: SegmenterOutput, size: tuple[int, int]) -> Tensor:
    height, width = size
    if not isinstance(out.attention, Tensor):
        return torch.full((height, width), float(out.attention))
    side = round(model.scale * model.output_stride)
    attention = interpolate(out.attention, scale_factor=side, mode="bilinear", align_corners=False)
    labels = pseudo_labels(out.logits, size=(attention.shape[-2], attention.shape[-1]))[0][:, None] % attention.shape[1]
    return attention.gather(1, labels)[0, 0, :height, :width]


def _whole(model: MultiResSegmenter, x: Tensor) -> SegmenterOutput:
    """One pass over the whole image, padded to whole cells."""
    cell = round(model.scale * model.output_stride)
    padded = pad(x, (0, -x.shape[-1] % cell, 0, -x.shape[-2] % cell))
    out: SegmenterOutput = model.eval()(padded, detail="windows")
    return out


def draw_curves(file: Path, metrics: Sequence[dict[str, Any]]) -> None:
    """Losses and the confidence share against the step."""
    keys = sorted({key for line in metrics for key in line if key.startswith("loss_") or key == "confidence"})
    figure, axes = plt.subplots(1, max(len(keys), 1), figsize=(4 * max(len(keys), 1), 3), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=False):
        points = [(line["step"], line[key]) for line in metrics if key in line]
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, linewidth=0.5, alpha=0.4)
        window = max(len(values) // 25, 1)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axis.plot(steps[window - 1 :], smooth)
        axis.set_title(key)
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)
