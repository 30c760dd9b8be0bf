"""Pictures of a run: what networks see and say, how classes are spread, and how the losses went."""

import colorsys
import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
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
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

Picture = npt.NDArray[np.uint8]


# names of CamVid's classes -> Cityscapes'
ALIKE = {
    "pavement": "sidewalk",
    "tree": "vegetation",
    "sign": "traffic sign",
    "pedestrian": "person",
    "bicyclist": "rider",
}
# of Okabe and Ito, which readers with any kind of colour blindness tell apart
SERIES = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
# what the curves of a run show: title -> key of metrics.jsonl -> its name in the legend
CURVES = {
    "loss on source images": {"loss_source": "segmentation", "feature_distance": "feature distance"},
    "losses of self-training": {"loss_mixed": "mixed", "loss_masked": "masked"},
    "pseudo labels, share of pixels": {"confidence": "mean weight", "largest_class": "of the largest class"},
    "validation images, share": {
        "val_iou": "mean IoU",
        "label_accuracy": "right pseudo labels",
        "trusted_accuracy": "right among the trusted",
        "trusted": "trusted",
    },
    "gradient norm": {"gradient": ""},
    "learning rate": {"lr": ""},
}
DPI = 90
COSTS = ("step", "seconds", "memory")  # no curves
ATTENTION, WEIGHT = "attention to detail", "weight"  # of a pixel, in [0, 1]
STYLES = ("-", "--", ":", "-.")


def palette(names: Sequence[str]) -> Picture:
    """A colour an id (256, 3): Cityscapes' for its classes and CamVid's, else one of ``others``; black if ignored."""
    colours = np.zeros((256, 3), np.uint8)
    official = {entry.name: entry.colour for entry in CITYSCAPES}
    known = dict[tuple[int, int, int], int]()  # colour -> id
    for i, name in enumerate(names):
        colour = official.get(ALIKE.get(name.lower(), name.lower()))
        if colour and colour not in known:
            colours[i], known[colour] = colour, i
    rest = (colour for colour in others() if all(np.abs(np.subtract(colour, other)).sum() > 60 for other in known))
    for i in range(len(names)):
        if i not in known.values():
            colours[i] = next(rest)
    return colours


def others() -> Iterator[tuple[int, int, int]]:
    """Colours for what has none of its own: those of ``SERIES``, the same darker and lighter, and then any."""
    seen = {(0, 0, 0)}
    for share, white in ((1.0, 0), (0.5, 0), (0.5, 127)):
        for red, green, blue in SERIES:
            colour = int(share * red + white), int(share * green + white), int(share * blue + white)
            seen.add(colour)
            yield colour
    for i in count():
        parts = colorsys.hsv_to_rgb(i * 0.61803 % 1, (0.85, 0.55)[i // 3 % 2], (0.95, 0.7, 0.5)[i % 3])
        colour = int(255 * parts[0]), int(255 * parts[1]), int(255 * parts[2])
        if colour not in seen:
            seen.add(colour)
            yield colour


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
        said = [maps[head][0].argmax(0) for head in ("fused", "context", "detail")]
        rows.append([display(image), *said, maps["attention"][0, 0], label[0], weight[0]])
    titles = ("image", "prediction", "context alone", "detail alone", ATTENTION, "pseudo label", WEIGHT)
    draw_grid(file, rows, titles, spec.classes, range(len(spec.classes)))


@torch.no_grad()
def draw_step(
    file: Path,
    student: Network,
    teacher: EMATeacher,
    training: SelfTraining,
    spec: NetworkSpec,
    batch: Batch,
    *,
    mask: Tensor | None = None,
) -> None:
    """A row an image of a step: source, target, pseudo label, weight, mix, and what the student says of it.

    ``mask``: where the source is pasted (B, H, W); None: by classes.
    """
    device, modes = next(student.parameters()).device, (student.training, teacher.training)
    images, labels = spec.feed(batch.source[0], device), batch.source[1].to(device)
    shown: list[list[Any]] = [[display(image)] for image in batch.source[0]]
    titles, seen = ["source"], images
    teacher.eval()
    student.eval()
    if batch.target:
        target, valid = spec.feed(batch.target[0], device), batch.target[1].to(device)
        guess, weight = training.pseudo_label(target, valid=valid)
        pasted = None if mask is None else mask.to(device)
        seen = training.mix(images, labels, target, guess, weight, mask=pasted).images
        for row, image, label, trust, mixed in zip(shown, batch.target[0], guess, weight, seen, strict=True):
            row += [display(image), label.cpu(), trust.cpu(), display(mixed.cpu())]
        titles += ["target", "pseudo label", WEIGHT, "mix"]
    maps = {name: x.cpu() for name, x in heads(student, seen).items()}
    for i, row in enumerate(shown):
        row += [maps[head][i].argmax(0) for head in ("fused", "context", "detail") if head in maps]
        row += [maps["attention"][i, 0]] if "attention" in maps else []
    titles += ["prediction", "context alone", "detail alone", ATTENTION] if "attention" in maps else ["prediction"]
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
        pictures: list[Any] = [display(image), truth]
        for model, spec in models.values():
            maps = {name: resize(x, truth.shape) for name, x in heads(model, spec.feed(image[None])).items()}
            pictures.append(maps["fused"][0].argmax(0))
        if "context" in maps:
            pictures += [*(maps[head][0].argmax(0) for head in ("context", "detail")), maps["attention"][0, 0]]
        rows.append(pictures)
    scales = [f"{name}, {text}" for name in list(models)[-1:] for text in ("context alone", "detail alone", ATTENTION)]
    titles = ["image", "truth", *models, *scales][: len(rows[0])]
    draw_grid(file, rows, titles, spec.classes, shown)


def draw_grid(
    file: Path, rows: Sequence[Sequence[Any]], titles: Sequence[str], names: Sequence[str], shown: Collection[int]
) -> None:
    """A grid of what is seen and said.

    Args:
        file: the PNG.
        rows: pictures (H, W, 3), class ids (H, W) of integers, and shares (H, W) in [0, 1]; the last may be shorter.
        titles: of the columns; one of shares gets a bar of its colours.
        names: of the classes.
        shown: ids that the legend has.
    """
    height, width = rows[0][0].shape[:2]
    colours = palette(names) / 255
    handles = [Patch(color=colours[i], label=name) for i, name in enumerate(names) if i in shown]
    lines = math.ceil(len(handles) / max(7 * len(titles) // 4, 1))
    maps = [[torch.as_tensor(x).numpy() for x in row] for row in rows]
    shares = {j for row in maps for j, x in enumerate(row) if x.ndim == 2 and x.dtype.kind == "f"}
    # inches: of a cell, between cells, above the first, below the last
    high, gap, above, below = 2.5 * height / width, 0.1, 0.35, 0.2 + 0.2 * lines
    below += 0.5 if shares else 0
    size = (2.5 + gap) * len(titles) + gap, (high + gap) * len(rows) - gap + above + below
    space = {"wspace": gap / 2.5, "hspace": gap / high, "left": gap / size[0], "right": 1 - gap / size[0]}
    space |= {"bottom": below / size[1], "top": 1 - above / size[1]}
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False, gridspec_kw=space)
    for row, cells in zip(axes, maps, strict=True):
        for j, (axis, cell) in enumerate(zip(row, cells, strict=False)):
            if j in shares:
                drawn = axis.imshow(cell, cmap="viridis", vmin=0, vmax=1)
            elif cell.ndim == 2:  # the colour of a class is never mixed with another's
                axis.imshow(palette(names)[cell], interpolation="nearest")
            else:
                axis.imshow(cell)
    for j in sorted(shares):
        left, bottom = (gap + j * (2.5 + gap)) / size[0], (below - 0.17) / size[1]
        place = figure.add_axes((left, bottom, 2.5 / size[0], 0.08 / size[1]), label="bar")
        bar = figure.colorbar(drawn, cax=place, orientation="horizontal", ticks=(0, 0.5, 1))
        bar.ax.set_xticklabels(("context", "0.5", "detail") if ATTENTION in titles[j] else ("0", "0.5", "1"))
        for text, side in zip(bar.ax.get_xticklabels(), ("left", "center", "right"), strict=True):
            text.set_horizontalalignment(side)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.legend(
        handles=handles, loc="lower center", ncols=math.ceil(len(handles) / max(lines, 1)) or 1, frameon=False
    )
    _save(figure, file)


def draw_legend(file: Path, names: Sequence[str]) -> None:
    """The name of each class beside its colour."""
    handles = [Patch(color=colour, label=name) for name, colour in zip(names, palette(names) / 255, strict=False)]
    figure = plt.figure(dpi=DPI)
    legend = figure.legend(handles=handles, loc="center", ncols=math.ceil(len(names) / 20), frameon=False)
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    figure.set_size_inches(math.ceil(box.width) / DPI, math.ceil(box.height) / DPI)
    _save(figure, file)


def _save(figure: Any, file: Path, *, endings: Sequence[str] = (".png",)) -> None:
    """Each file gets its name when it is complete; a PNG has the colours that were drawn, none is rounded."""
    for ending in endings:
        place = file.with_suffix(ending)
        part = place.with_name(f"{place.name}.part")
        try:
            undated = {"CreationDate": None} if ending == ".pdf" else {}
            figure.savefig(part, dpi=DPI, format=ending[1:], metadata=undated)
            if ending == ".png":
                with Image.open(part) as image:
                    image.convert("RGB").save(part, format="png", optimize=True)
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
    plt.close(figure)


def draw_shares(file: Path, names: Sequence[str], counts: Tensor, probabilities: Tensor | None) -> None:
    """Bars a class, of a logarithmic scale: its share of the pixels (N, C), and of what rare-class sampling draws."""
    pixels = counts.sum(dim=0)
    bars = {"of all pixels": pixels / pixels.sum()} | ({} if probabilities is None else {"drawn": probabilities})
    figure, axis = plt.subplots(figsize=(max(0.5 * len(names), 5), 4), layout="constrained")
    _bars(axis, names, {title: [[x] for x in (100 * part).clamp(min=1e-3).tolist()] for title, part in bars.items()})
    axis.set_yscale("log")
    axis.set_ylim(top=100)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.set_ylabel("share, %")
    axis.set_title("How often classes occur" + (", and how often they are drawn" if len(bars) > 1 else ""))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, file)


def draw_classes(file: Path, results: Results) -> None:
    """Class by class: every arm, both scales of the last arm, and the attention that it gives to the detail.

    Of several seeds, bars are means with standard deviations, and each seed is a dot. A PDF lies beside the PNG.
    """
    names, last = shown(results), list(results)[-1]
    panels = {"IoU of the arms": {arm: (runs, "fused") for arm, runs in results.items()}}
    if "context" in results[last][0]["classes"]:
        scales = {head: (results[last], head) for head in ("fused", "context", "detail")}
        panels[f"IoU of {last}, and of its two scales alone"] = scales
        panels[f"Attention of {last} to the detail"] = {"attention": (results[last], "attention")}
    size = (9, 8 / 3 * len(panels))
    figure, axes = plt.subplots(len(panels), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axis, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        _bars(axis, names, {x: [class_values(*bar, name) for name in names] for x, bar in bars.items()})
        axis.set_title(title)
        axis.set_ylabel(f"{title.split()[0]}, %")
        axis.set_ylim(bottom=0)
        if len(bars) > 1:
            axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    seeds = len(results[last])
    if seeds > 1:
        figure.supxlabel(f"mean and standard deviation of {seeds} seeds, a dot each", fontsize="medium")
    _save(figure, file, endings=(".png", ".pdf"))


def _bars(axis: Any, names: Sequence[str], groups: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """A bar a class and group; of several values, their mean, their standard deviation and a dot each."""
    width = 0.8 / len(groups)
    for i, (label, values) in enumerate(groups.items()):
        places = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
        heights = [statistics.mean(x) if x else 0.0 for x in values]
        axis.bar(places, heights, width, label=label, color=_series(i))
        if any(len(x) > 1 for x in values):
            spreads = [statistics.stdev(x) if len(x) > 1 else 0.0 for x in values]
            axis.errorbar(places, heights, spreads, fmt="none", ecolor="black", elinewidth=1, capsize=1.5)
            dots = [(place, y) for place, x in zip(places, values, strict=True) for y in x]
            axis.scatter(*zip(*dots, strict=True), s=6, color="white", edgecolors="black", linewidths=0.5, zorder=3)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right")


def _series(i: int) -> tuple[float, float, float]:
    red, green, blue = SERIES[i % len(SERIES)]
    return red / 255, green / 255, blue / 255


def draw_curves(file: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """What the metrics of runs hold against the step, a colour a run, all but seconds and memory; with a PDF beside."""
    keys = {key for metrics in runs.values() for line in metrics for key in line}
    known = {key for curves in CURVES.values() for key in curves}
    panels = CURVES | {key: {key: ""} for key in sorted(keys - known - {*COSTS})}
    panels = {title: found for title, x in panels.items() if (found := {k: v for k, v in x.items() if k in keys})}
    rows, columns = math.ceil(max(len(panels), 1) / 3), min(max(len(panels), 1), 3)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.8 * rows), squeeze=False, layout="constrained")
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        for key, style in zip(curves, STYLES, strict=False):
            for i, metrics in enumerate(runs.values()):
                points = [(line["step"], line[key]) for line in metrics if key in line]
                _curve(axis, points, _series(i), style, noisy=key != "lr")
        axis.set_title(title)
        axis.set_xlabel("step")
        if len(curves) > 1:
            lines = [Line2D([], [], color="black", linestyle=style) for style in STYLES[: len(curves)]]
            axis.legend(lines, curves.values(), fontsize="small", framealpha=0.6)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    if len(runs) > 1:
        handles = [Line2D([], [], color=_series(i), label=name) for i, name in enumerate(runs)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(runs), frameon=False)
    _save(figure, file, endings=(".png", ".pdf"))


def _curve(axis: Any, points: Sequence[tuple[int, float]], colour: Any, style: str, *, noisy: bool) -> None:
    """Thin as it is, and the mean over a 25th of the steps where it is noisy; few points are dots too."""
    if not points:
        return
    steps, values = zip(*points, strict=True)
    window = max(len(values) // 25, 1) if noisy else 1
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    if window > 1:
        axis.plot(steps, values, linewidth=0.5, alpha=0.4, color=colour)
    axis.plot(steps[window - 1 :], smooth, style, color=colour, marker="." if len(points) < 25 else None)
