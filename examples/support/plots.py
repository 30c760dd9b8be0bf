"""Pictures of a run: what the network sees and says, and how the losses went."""

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from hrda_lib import MultiResSegmenter, SegmenterOutput, pseudo_labels
from hrda_lib.data import CITYSCAPES
from support.channels import display
from support.heads import whole_cells
from support.report import Results, class_values, shown
from support.run_files import normalize

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

Picture = npt.NDArray[np.uint8]
STREET = np.zeros((256, 3), np.uint8)  # the official colours; ignored pixels are black
STREET[: len(CITYSCAPES)] = [entry.colour for entry in CITYSCAPES]


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


def street_colours(labels: Tensor) -> Picture:
    """(H, W) Cityscapes train ids to (H, W, 3)."""
    picture: Picture = STREET[labels.numpy()]
    return picture


def overlay(image: Tensor, labels: Tensor, count: int) -> Picture:
    """Class colours over a (3, H, W) uint8 image."""
    return (0.5 * image.permute(1, 2, 0).numpy() + 0.5 * colour(labels, count)).astype(np.uint8)


def draw_panel(
    file: Path,
    model: MultiResSegmenter,
    images: Sequence[Tensor],
    names: Sequence[str],
    *,
    threshold: float,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """A row an image: image, prediction, context, detail, attention to the detail, pseudo label, its weight."""
    titles = ("image", "prediction", "context", "detail", "attention", "pseudo label", "weight")
    rows = [
        _pictures(model, normalize(image[None], mean, std), display(image), len(names), threshold) for image in images
    ]
    draw_grid(file, rows, titles, dict(zip(names, palette(len(names)).tolist(), strict=False)))


def draw_grid(
    file: Path, rows: Sequence[Sequence[Any]], titles: Sequence[str], colours: Mapping[str, Sequence[int]]
) -> None:
    """Pictures (H, W, 3), and maps (H, W) in [0, 1], under titles; the legend names the ``colours``."""
    height, width = rows[0][0].shape[:2]
    size = (2.6 * len(titles), (2.6 * height / width + 0.15) * len(rows) + 0.5)
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False)
    for row, pictures in zip(axes, rows, strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, **({"cmap": "viridis", "vmin": 0, "vmax": 1} if picture.ndim == 2 else {}))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set_axis_off()
    handles = [Patch(color=np.array(rgb) / 255, label=name) for name, rgb in colours.items()]
    figure.legend(handles=handles, loc="lower center", ncols=min(len(colours), 7 * len(titles) // 4), frameon=False)
    figure.tight_layout(rect=(0, 0.35 / size[1], 1, 1))
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    """256 colours: a third of the size, and no difference that one sees."""
    part = file.with_name(f"{file.name}.part")
    figure.savefig(part, dpi=90, format="png")
    plt.close(figure)
    with Image.open(part) as image:
        image.convert("RGB").quantize(256).save(part, format="png", optimize=True)
    os.replace(part, file)


@torch.no_grad()
def _pictures(model: MultiResSegmenter, x: Tensor, image: Tensor, count: int, threshold: float) -> list[Any]:
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
    out: SegmenterOutput = model.eval()(whole_cells(x), detail="windows")
    return out


def draw_shares(file: Path, names: Sequence[str], counts: Tensor, probabilities: Tensor | None) -> None:
    """Bars a class, of a logarithmic scale: its share of the pixels (N, C), and of what rare-class sampling draws."""
    pixels = counts.sum(dim=0)
    figure, axis = plt.subplots(figsize=(max(0.5 * len(names), 5), 4))
    bars = {"of all pixels": pixels / pixels.sum()} | ({} if probabilities is None else {"drawn": probabilities})
    for i, (title, values) in enumerate(bars.items()):
        axis.bar(np.arange(len(names)) + 0.4 * (i - 0.5), (100 * values).clamp(min=1e-3).numpy(), 0.4, label=title)
    axis.set_yscale("log")
    axis.set_ylabel("%")
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    figure.tight_layout()
    _save(figure, file)


def draw_classes(file: Path, results: Results) -> None:
    """Class by class: every arm, both scales of the last arm, and the attention that it gives to the detail."""
    names, last = shown(results), list(results)[-1]
    panels = {"IoU of the arms, %": {arm: (runs, "fused") for arm, runs in results.items()}}
    if "context" in results[last][0]["classes"]:
        panels[f"IoU of {last} and of its two scales alone, %"] = {
            head: (results[last], head) for head in ("fused", "context", "detail")
        }
        panels[f"attention of {last} to the detail, %"] = {"attention": (results[last], "attention")}
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 8 / 3 * len(panels)), sharex=True, squeeze=False)
    for axis, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        width = 0.8 / len(bars)
        for i, (label, (runs, key)) in enumerate(bars.items()):
            heights = [statistics.mean(class_values(runs, key, name)) for name in names]
            axis.bar(np.arange(len(names)) + (i - (len(bars) - 1) / 2) * width, heights, width, label=label)
        axis.set_title(title)
        if len(bars) > 1:
            axis.legend()
    axes[-1, 0].set_xticks(range(len(names)), names, rotation=40, ha="right")
    figure.tight_layout()
    _save(figure, file)


def draw_curves(file: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Losses and the confidence share against the step."""
    draw_runs(file, {"": metrics})


def draw_runs(file: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Everything that the runs' metrics hold against the step, a curve a run."""
    keys = list(dict.fromkeys(key for metrics in runs.values() for line in metrics for key in line))
    keys = [key for key in keys if key not in ("step", "seconds")] or [""]
    figure, axes = plt.subplots(1, len(keys), figsize=(4 * len(keys), 3), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        for i, (name, metrics) in enumerate(runs.items()):
            points = [(line["step"], line[key]) for line in metrics if key in line]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            window = max(len(values) // 25, 1)
            smooth = np.convolve(values, np.ones(window) / window, mode="valid")
            axis.plot(steps, values, linewidth=0.5, alpha=0.4 if window > 1 else 1, color=f"C{i}")
            axis.plot(steps[window - 1 :], smooth, color=f"C{i}", label=name)
        axis.set_title(key)
        axis.set_xlabel("step")
    if len(runs) > 1:
        axes[0][0].legend()
    figure.tight_layout()
    _save(figure, file)
