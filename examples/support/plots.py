"""Pictures of a run: what networks see and say, how classes are spread, and how the losses went."""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from hrda_lib import EMATeacher, MultiResSegmenter, SelfTraining, pseudo_labels, resize
from hrda_lib.data import CITYSCAPES, LabeledFiles, UnlabeledImages
from support.batches import Batch
from support.networks import Network, NetworkSpec, heads
from support.tables import Results, class_values, shown

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

Picture = npt.NDArray[np.uint8]


def palette(names: Sequence[str]) -> Picture:
    """A colour an id (256, 3): the official ones of Cityscapes' classes, else distinct ones; black where ignored."""
    colours = np.zeros((256, 3), np.uint8)
    official = {entry.name: entry.colour for entry in CITYSCAPES}
    if names and official.keys() >= set(names):
        colours[: len(names)] = [official[name] for name in names]
        return colours
    index = np.arange(len(names))
    hues, values = index * 0.61803 % 1, np.array([0.95, 0.7, 0.5])[index % 3]
    saturations = np.array([0.85, 0.55])[index // 3 % 2]
    hsv = np.stack([hues, saturations, values], axis=1)
    colours[: len(names)] = 255 * matplotlib.colors.hsv_to_rgb(hsv)
    return colours


def paint(labels: Tensor, names: Sequence[str]) -> Picture:
    """(H, W) class ids to (H, W, 3)."""
    picture: Picture = palette(names)[labels.numpy()]
    return picture


def display(image: Tensor) -> Picture:
    """(H, W, 3) to look at: a picture as it is, of others the first three channels or one in grey, stretched."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    if len(image) != 3 or image.dtype != torch.uint8:
        low, high = np.percentile(shown.flatten(1).numpy(), (1, 99), axis=1, keepdims=True)
        low, high = (torch.from_numpy(value).float()[..., None] for value in (low, high))
        shown = (255 * ((shown.float() - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)).byte()
    picture: Picture = shown.permute(1, 2, 0).numpy()
    return picture


def draw_panel(
    file: Path, model: MultiResSegmenter, spec: NetworkSpec, images: Iterable[Tensor], *, threshold: float
) -> None:
    """A row an image: image, prediction, context, detail, attention to the detail, pseudo label, its weight."""
    rows, device = [], next(model.parameters()).device
    for image in images:
        maps = {name: x.cpu() for name, x in heads(model, spec.feed(image[None], device)).items()}
        label, weight = pseudo_labels(maps["fused"], threshold=threshold, per="pixel")
        pictures = [paint(maps[head][0].argmax(0), spec.classes) for head in ("fused", "context", "detail")]
        pictures += [maps["attention"][0, 0].numpy(), paint(label[0], spec.classes), weight[0].numpy()]
        rows.append([display(image), *pictures])
    titles = ("image", "prediction", "context", "detail", "attention", "pseudo label", "weight")
    draw_grid(file, rows, titles, spec.classes, range(len(spec.classes)))


@torch.no_grad()
def draw_step(
    file: Path, student: Network, teacher: EMATeacher, training: SelfTraining, spec: NetworkSpec, batch: Batch
) -> None:
    """A row an image of a step: source, target, pseudo label, weight, mix, and what the student says of it."""
    device, modes = next(student.parameters()).device, (student.training, teacher.training)
    images, labels = spec.feed(batch.source[0], device), batch.source[1].to(device)
    shown = [[display(image)] for image in batch.source[0]]
    titles, seen = ["source"], images
    teacher.eval()
    student.eval()
    if batch.target:
        target, valid = spec.feed(batch.target[0], device), batch.target[1].to(device)
        guess, weight = training.pseudo_label(target, valid=valid)
        seen = training.mix(images, labels, target, guess, weight).images
        for row, image, label, trust, mixed in zip(shown, batch.target[0], guess, weight, seen, strict=True):
            row += [display(image), paint(label.cpu(), spec.classes), trust.cpu().numpy(), display(mixed.cpu())]
        titles += ["target", "pseudo label", "weight", "mix"]
    maps = {name: x.cpu() for name, x in heads(student, seen).items()}
    for i, row in enumerate(shown):
        row += [paint(maps[head][i].argmax(0), spec.classes) for head in ("fused", "context", "detail") if head in maps]
        row += [maps["attention"][i, 0].numpy()] if "attention" in maps else []
    titles += ["fused", "context", "detail", "attention"] if "attention" in maps else ["prediction"]
    student.train(modes[0])
    teacher.train(modes[1])
    draw_grid(file, shown, titles, spec.classes, range(len(spec.classes)))


def draw_arms(
    file: Path, models: Mapping[str, tuple[Network, NetworkSpec]], dataset: LabeledFiles, images: UnlabeledImages
) -> None:
    """A row an image: image, truth, every model's prediction, and what the two scales of the last one say."""
    rows, shown = [], set[int]()
    # validation images come city by city: one from the middle of each third
    for i in sorted({i * len(dataset) // 6 for i in (1, 3, 5)}):
        image, truth = images[i].image, dataset.label(i)
        shown |= set(truth.unique().tolist())
        pictures = [display(image), paint(truth, next(iter(models.values()))[1].classes)]
        for model, spec in models.values():
            maps = {name: resize(x, truth.shape) for name, x in heads(model, spec.feed(image[None])).items()}
            pictures.append(paint(maps["fused"][0].argmax(0), spec.classes))
        if "context" in maps:
            pictures += [paint(maps[head][0].argmax(0), spec.classes) for head in ("context", "detail")]
            pictures.append(maps["attention"][0, 0].numpy())
        rows.append(pictures)
    titles = ["image", "truth", *models, "its context", "its detail", "its attention"][: len(rows[0])]
    draw_grid(file, rows, titles, spec.classes, shown)


def draw_grid(
    file: Path, rows: Sequence[Sequence[Any]], titles: Sequence[str], names: Sequence[str], shown: Collection[int]
) -> None:
    """Pictures (H, W, 3), and maps (H, W) in [0, 1], under titles; the legend has the ids that are ``shown``."""
    height, width = rows[0][0].shape[:2]
    colours = palette(names) / 255
    handles = [Patch(color=colours[i], label=name) for i, name in enumerate(names) if i in shown]
    columns = min(len(handles), 7 * len(titles) // 4)
    legend = 0.15 + 0.2 * math.ceil(len(handles) / max(columns, 1))  # inches
    size = (2.6 * len(titles), (2.6 * height / width + 0.15) * len(rows) + 0.15 + legend)
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False)
    for row, pictures in zip(axes, rows, strict=True):
        for axis, picture in zip(row, pictures, strict=False):  # the last row may be shorter
            axis.imshow(picture, **({"cmap": "viridis", "vmin": 0, "vmax": 1} if picture.ndim == 2 else {}))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False)
    figure.tight_layout(rect=(0, legend / size[1], 1, 1))
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    """256 colours: a third of the size, and no difference that one sees."""
    part = file.with_name(f"{file.name}.part")
    try:
        figure.savefig(part, dpi=90, format="png")
        plt.close(figure)
        with Image.open(part) as image:
            image.convert("RGB").quantize(256).save(part, format="png", optimize=True)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def draw_shares(file: Path, names: Sequence[str], counts: Tensor, probabilities: Tensor | None) -> None:
    """Bars a class, of a logarithmic scale: its share of the pixels (N, C), and of what rare-class sampling draws."""
    pixels = counts.sum(dim=0)
    bars = {"of all pixels": pixels / pixels.sum()} | ({} if probabilities is None else {"drawn": probabilities})
    figure, axis = plt.subplots(figsize=(max(0.5 * len(names), 5), 4))
    _bars(axis, names, {title: (100 * values).clamp(min=1e-3).tolist() for title, values in bars.items()})
    axis.set_yscale("log")
    axis.set_ylabel("%")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    figure.tight_layout()
    _save(figure, file)


def draw_classes(file: Path, results: Results) -> None:
    """Class by class: every arm, both scales of the last arm, and the attention that it gives to the detail."""
    names, last = shown(results), list(results)[-1]
    panels = {"IoU of the arms, %": {arm: (runs, "fused") for arm, runs in results.items()}}
    if "context" in results[last][0]["classes"]:
        scales = {head: (results[last], head) for head in ("fused", "context", "detail")}
        panels[f"IoU of {last} and of its two scales alone, %"] = scales
        panels[f"attention of {last} to the detail, %"] = {"attention": (results[last], "attention")}
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 8 / 3 * len(panels)), sharex=True, squeeze=False)
    for axis, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        heights = {x: [statistics.mean(class_values(*bar, name)) for name in names] for x, bar in bars.items()}
        _bars(axis, names, heights)
        axis.set_title(title)
        if len(bars) > 1:
            axis.legend()
    figure.tight_layout()
    _save(figure, file)


def _bars(axis: Any, names: Sequence[str], groups: Mapping[str, Sequence[float]]) -> None:
    width = 0.8 / len(groups)
    for i, (label, heights) in enumerate(groups.items()):
        axis.bar(np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width, heights, width, label=label)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right")


def draw_curves(file: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Everything that the metrics of runs hold against the step, a curve a run."""
    keys = list(dict.fromkeys(key for metrics in runs.values() for line in metrics for key in line if key != "step"))
    figure, axes = plt.subplots(1, max(len(keys), 1), figsize=(4 * max(len(keys), 1), 3), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=False):
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
