"""The pictures of the gallery, drawn from what its own blocks compute: ``python docs/pictures.py``.

``docs/gallery.md`` is run from top to bottom; each function here draws from the names that its blocks leave behind, so
that the lines beside a picture are those that made it. Every picture exists for a light and for a dark page.

A further picture is a block and ``{{ name_here }}`` in the gallery, a function and an entry of ``PICTURES`` here, and
``{{ name }}`` on a page of the API.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hrda_lib import CropBox, crop
from hrda_lib.data import CITYSCAPES

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from step_diagram import step_diagram

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "_pictures"
WIDTH, DPI = 7.36, 200  # inches: the text column of 736 pixels, twice as fine
# legible on white and on black
BLUE, ORANGE, GREEN, GREY = "#3d9be0", "#e8792b", "#2aa876", "#8a8f98"
COLOURS = np.zeros((256, 3), np.uint8)
COLOURS[: len(CITYSCAPES)] = [entry.colour for entry in CITYSCAPES]
NAMES = [entry.name for entry in CITYSCAPES]
THEMES = {
    "light": {"text": "#1b1f24", "page": "#ffffff"},
    "dark": {"text": "#e3e6ea", "page": "#131416"},
}
Names = dict[str, Any]


class Picture(NamedTuple):
    draw: Callable[[Names], Figure] | None  # None: the step diagram, an SVG
    caption: str
    alt: str


def grid(
    rows: int, columns: int = 2, *, height: float = 0.5
) -> tuple[Figure, list[Axes]]:
    """Panels whose pictures are ``height`` times as high as wide."""
    panel = WIDTH / columns
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(WIDTH, rows * (panel * height + 0.27)),
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)
    return figure, list(np.atleast_1d(axes).flat)


def show(axes: Axes, picture: Any, title: str, **settings: Any) -> Any:
    axes.set_title(title, fontsize=11.5, pad=4)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    picture = picture.detach().numpy() if isinstance(picture, Tensor) else picture
    return axes.imshow(picture, interpolation="nearest", **settings)


def rgb(images: Tensor, index: int = 0) -> Any:
    """(B, 3, H, W) in [0, 1] to (H, W, 3)."""
    return images[index].detach().clamp(0, 1).permute(1, 2, 0).numpy()


def paint(labels: Tensor) -> Any:
    return COLOURS[labels.numpy()]


def outline(
    axes: Axes, box: CropBox, colour: Any, *, inset: float = 0, width: float = 2.5
) -> None:
    corner = (box.left - 0.5 + inset, box.top - 0.5 + inset)
    size = (box.width - 2 * inset, box.height - 2 * inset)
    axes.add_patch(
        Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width)
    )


def frame(axes: Axes, colour: str) -> None:
    axes.spines[:].set(visible=True, color=colour, linewidth=2.5)


def crops(g: Names) -> Figure:
    figure, (whole, context, detail, seen) = grid(2)
    box = g["crops"].detail_box
    show(whole, rgb(g["source"]), "image, 192 x 384")
    outline(whole, g["crops"].context_box, BLUE, inset=1.5)
    outline(whole, box, ORANGE)
    show(context, rgb(g["crops"].context), "context crop, half resolution")
    show(detail, rgb(g["crops"].detail), "detail crop, full resolution")
    show(
        seen,
        rgb(crop(g["crops"].context, box.scaled(1 / 2))),
        "the same part of the context crop",
    )
    for axes, colour in ((context, BLUE), (detail, ORANGE), (seen, BLUE)):
        frame(axes, colour)
    return figure


def windows(g: Names) -> Figure:
    figure, (left, right) = grid(1)
    show(
        left, 0.45 + 0.55 * rgb(g["source"]), f"{len(g['windows'])} windows of 96 x 160"
    )
    colours = matplotlib.colormaps["plasma"](np.linspace(0, 0.85, len(g["windows"])))
    for i, (box, colour) in enumerate(zip(g["windows"], colours, strict=True)):
        outline(left, box, colour, inset=1.5 + i % 3 * 2, width=1.8)
    count = int(g["coverage"].max())
    steps = matplotlib.colormaps["viridis"].resampled(count)
    drawn = show(
        right,
        g["coverage"],
        "windows that see a pixel",
        cmap=steps,
        vmin=0.5,
        vmax=count + 0.5,
    )
    figure.colorbar(drawn, ax=right, ticks=range(1, count + 1), pad=0.02, fraction=0.03)
    return figure


def blend(g: Names) -> Figure:
    figure, (first, *rest) = grid(2)
    show(first, g["whole"][0, 0], "answer to the whole image", cmap="gray")
    answers = {
        "without overlap": g["apart"],
        **{f'blend="{name}"': answer for name, answer in g["shown"].items()},
    }
    for axes, (name, answer) in zip(rest, answers.items(), strict=True):
        error = (answer - g["whole"]).abs()[0, 0]
        drawn = show(
            axes,
            error,
            f"{name}: {error.mean():.3f}; {error.max():.2f}",
            cmap="inferno",
            vmin=0,
            vmax=0.15,
        )
    figure.colorbar(
        drawn, ax=rest[1:], pad=0.02, fraction=0.03, aspect=30, orientation="horizontal"
    )
    return figure


def fusion(g: Names) -> Figure:
    figure, (street, truth, context, detail, attention, fused) = grid(3)
    box = g["box"]
    show(street, rgb(g["source"]), "image; detail box")
    outline(street, g["crops"].detail_box, ORANGE)
    show(truth, paint(g["labels"][0]), "labels")
    show(
        context,
        paint(g["context_logits"].argmax(dim=1)[0]),
        "context: cells of 8 pixels",
    )
    beside = np.full((48, 96, 3), 128, np.uint8)
    top, left, height, width = box
    beside[top : top + height, left : left + width] = paint(
        g["detail_logits"].argmax(dim=1)[0]
    )
    show(detail, beside, "detail: cells of 4 pixels")
    inside = torch.zeros(24, 48)
    crop(inside, box.scaled(1 / 2)).fill_(1)
    show(
        attention,
        g["attention"][0, 0] * inside,
        "attention, 0 outside the box",
        cmap="magma",
        vmin=0,
        vmax=1,
    )
    show(fused, paint(g["fused"].argmax(dim=1)[0]), "fused")
    outline(fused, box, ORANGE)
    return figure


def mixing(g: Names) -> Figure:
    figure, (source, chosen, target, mixed, box, boxed) = grid(3)
    show(source, rgb(g["source"]), "source image, with labels")
    names = [NAMES[c] for c in g["labels"][g["mask"]].unique().tolist()]
    labels = (
        paint(g["labels"][0]) * g["mask"][0].numpy()[..., None]
        + 40 * ~g["mask"][0].numpy()[..., None]
    )
    show(
        chosen,
        labels.astype(np.uint8),
        f"{len(names)} of its {len(g['labels'].unique())} classes, drawn",
    )
    show(target, rgb(g["target"]), "target image, without labels")
    show(mixed, rgb(g["mixed"]), "mixed image")
    show(
        box,
        g["box_mask"][0],
        "a box of half of the area, drawn",
        cmap="gray",
        vmin=-0.5,
        vmax=1,
    )
    show(boxed, rgb(g["boxed"]), "mixed by the box")
    return figure


def augment(g: Names) -> Figure:
    figure, (first, *rest) = grid(2)
    show(first, rgb(g["mixed"]), "mixed image")
    for i, (axes, image) in enumerate(zip(rest, g["draws"], strict=True)):
        show(axes, rgb(image), f"after jitter and blur, draw {i + 1}")
    return figure


def mask(g: Names) -> Figure:
    figure, (first, *rest) = grid(2)
    show(first, rgb(g["target"]), "target image")
    for axes, (ratio, kept) in zip(rest, g["kept"].items(), strict=True):
        share = 1 - kept.float().mean()
        show(axes, rgb(g["target"] * kept), f"ratio={ratio}: {share:.0%} hidden")
    return figure


def pseudo(g: Names) -> Figure:
    figure, axes = grid(4)
    for i, name in enumerate(("sure", "unsure")):
        show(
            axes[i], paint(g["answers"]["batch"][0][i]), f"pseudo label, {name} teacher"
        )
        for row, (per, (_, weight)) in enumerate(g["answers"].items(), start=1):
            mean = (
                f"mean {weight[i].mean():.2f}"
                if per == "pixel"
                else f"{weight[i, 0, 0]:.2f}"
            )
            show(
                axes[2 * row + i],
                weight[i],
                f'weight, per="{per}": {mean}',
                cmap="viridis",
                vmin=0,
                vmax=1,
            )
    return figure


def feature_distance(g: Names) -> Figure:
    figure, (image, labels, *rest) = grid(2)
    show(image, rgb(g["crops"].context), "context crop, cells of 8 pixels")
    show(labels, paint(g["labels"][0]), "labels, at full resolution")
    for axes, (ratio, counted) in zip(rest, g["counted"].items(), strict=True):
        cells = (
            counted[0]
            .repeat_interleave(8, dim=0)
            .repeat_interleave(8, dim=1)
            .numpy()[..., None]
        )
        picture = np.where(
            cells, rgb(g["crops"].context), 0.25 * rgb(g["crops"].context)
        )
        show(
            axes,
            picture,
            f"min_ratio={ratio}: {int(counted.sum())} of {counted.numel()} count",
        )
    for axes in (image, *rest):
        for at in range(8, 192, 8):
            axes.axvline(at - 0.5, color="white", linewidth=0.3, alpha=0.5)
            if at < 96:
                axes.axhline(at - 0.5, color="white", linewidth=0.3, alpha=0.5)
    return figure


def plot(columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, columns, figsize=(WIDTH, 3.3), layout="constrained")
    axes = list(np.atleast_1d(axes))
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def teacher(g: Names) -> Figure:
    figure, (axes,) = plot()
    axes.plot(g["path"], color=GREY, linewidth=0.6, alpha=0.7, label="student")
    axes.plot(
        g["averages"][True],
        color=BLUE,
        linewidth=2.2,
        label="teacher, warmup=True: min(1 - 1/(k+1), 0.999)",
    )
    axes.plot(
        g["averages"][False],
        color=ORANGE,
        linewidth=2.2,
        label="teacher, warmup=False: 0.999 from the start",
    )
    axes.set(xlabel="update k", ylabel="a weight of the network", xlim=(0, 2000))
    axes.legend(loc="lower right", frameon=False, fontsize=11)
    return figure


def loss(g: Names) -> Figure:
    figure, (axes,) = plot()
    for (name, values), colour, style in zip(
        g["losses"].items(), (BLUE, GREEN, ORANGE), ("-", "--", ":"), strict=True
    ):
        axes.plot(
            g["shares"],
            values,
            style,
            color=colour,
            linewidth=2.2,
            label=f'normalize="{name}"',
        )
    axes.set(
        xlabel="confidence weight of all pixels",
        ylabel="loss",
        xlim=(0.1, 1),
        ylim=(0, None),
    )
    axes.legend(frameon=False, fontsize=11)
    return figure


def optim(g: Names) -> Figure:
    figure, (axes,) = plot()
    for values, colour, name in zip(
        zip(*g["rates"], strict=True),
        (BLUE, ORANGE),
        ("encoder", "the rest"),
        strict=True,
    ):
        axes.plot(values, color=colour, linewidth=2.2, label=name)
    axes.axvspan(0, 150, color=GREY, alpha=0.25, linewidth=0)
    axes.text(170, 6.1e-4, "warm-up", fontsize=11, va="center")
    axes.set(xlabel="step", ylabel="learning rate", xlim=(0, 4000), ylim=(0, 6.5e-4))
    axes.legend(frameon=False, fontsize=11)
    return figure


def rare(g: Names) -> Figure:
    figure, (axes,) = plot()
    shares = g["counts"].sum(dim=0) / g["counts"].sum()
    order = [c for c in shares.argsort(descending=True).tolist() if shares[c] > 0]
    series = [("share of all pixels", shares, GREY)]
    colours = (ORANGE, BLUE)
    series += [
        (f"drawn, temperature={t}", p, c)
        for (t, p), c in zip(g["chances"].items(), colours, strict=True)
    ]
    at = np.arange(len(order))
    for i, (name, values, colour) in enumerate(series):
        axes.bar(
            at + 0.27 * (i - 1),
            [values[c].item() for c in order],
            0.26,
            color=colour,
            label=name,
        )
    axes.set_xticks(
        at, [NAMES[c] for c in order], rotation=40, ha="right", rotation_mode="anchor"
    )
    axes.set(ylabel="share, probability", xlim=(-0.6, len(order) - 0.4))
    axes.legend(frameon=False, fontsize=11)
    return figure


def metrics(g: Names) -> Figure:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH, 4), layout="constrained", width_ratios=(1.1, 1)
    )
    matrix = g["matrices"]["context"].matrix
    here = [c for c in range(19) if matrix[c].sum() > 0]
    shares = (matrix[here][:, here] / matrix[here].sum(dim=1, keepdim=True)).numpy()
    drawn = left.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    names = [NAMES[c] for c in here]
    left.set_xticks(
        range(len(here)),
        names,
        rotation=50,
        ha="right",
        rotation_mode="anchor",
        fontsize=10,
    )
    left.set_yticks(range(len(here)), names, fontsize=10)
    left.set(xlabel="predicted by the context", ylabel="label")
    figure.colorbar(
        drawn, ax=left, pad=0.02, fraction=0.04, label="share of the label's pixels"
    )
    at = np.arange(len(here))
    for i, (name, colour) in enumerate((("context", BLUE), ("fused", ORANGE))):
        iou = g["matrices"][name].iou()[here].numpy()
        right.barh(
            at + 0.4 * i - 0.2,
            iou,
            0.38,
            color=colour,
            label=f"{name}: mean {iou.mean():.2f}",
        )
    right.set_yticks(at, [""] * len(here))
    right.set_ylim(len(here) - 0.5, -0.5)  # in line with the rows of the matrix
    right.set(xlabel="IoU", xlim=(0, 1))
    right.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *right.get_legend_handles_labels(),
        loc="outside upper right",
        frameon=False,
        fontsize=11,
        ncols=2,
    )
    return figure


PICTURES = {
    "crops": Picture(
        crops,
        "Two crops of equal size: the context crop (blue) shows everything at half the resolution, the detail crop "
        "(orange) a quarter of it with every pixel. The wheels that it resolves are blurred in the context.",
        "A street with a blue box around all of it and an orange box inside; the two crops; the blurred part of the "
        "context that the detail crop shows sharply.",
    ),
    "windows": Picture(
        windows,
        "The last row and the last column of windows are shifted inwards, so that they end with the image; every "
        "pixel is seen at least once, those in the middle up to four times.",
        "Nine overlapping boxes on a street, and a map of how many windows see each pixel, from one to four.",
    ),
    "blend": Picture(
        blend,
        "A predictor that does not see beyond its window errs at the window's edge. Without overlap the errors meet in "
        "seams; the plain average of overlapping windows spreads them thinner; weighting the middle of a window higher "
        "removes nearly all. Predictor: a blur of 41 pixels; numbers: mean and largest error.",
        "A blurred street, and three error maps: bright seams without overlap, weaker ones with constant blending, "
        "almost none with Gaussian blending.",
    ),
    "fusion": Picture(
        fusion,
        "Where a cell of the context holds several classes, this attention takes the detail, whose cells are half as "
        "wide: inside the box poles and people get their outline back, outside it the context stays. The logits are "
        "shares of the labels in each cell, not a network's.",
        "A street, its labels, coarse context labels, finer detail labels in a box, the attention, bright along the "
        "outlines of objects, and the fused labels, finer inside the box.",
    ),
    "mixing": Picture(
        mixing,
        "Half of the classes of the source image, drawn anew each time, are cut out with their labels and pasted onto "
        "the target image, which keeps its pseudo labels everywhere else. Below, a box in place of classes.",
        "A street of the game, the chosen classes of its labels in colour, a street of the city, and the city with "
        "the chosen parts of the game pasted in; below, a box and the city with that part of the game.",
    ),
    "augment": Picture(
        augment,
        "Brightness, contrast, saturation and hue move, then a Gaussian blur follows: colours and sharpness change, "
        "shapes and labels stay where they are.",
        "The mixed street four times: as it is, and in three other tints with different blur.",
    ),
    "mask": Picture(
        mask,
        "Each block is hidden with the probability `ratio`; a network that must label the hidden part has to use what "
        "is around it.",
        "A street of the city, and the same with about 30, 50 and 70 per cent of its blocks black.",
    ),
    "pseudo_labels": Picture(
        pseudo,
        'The paper\'s weight (`per="batch"`) is one number for both images, the share of pixels that are sure; '
        '`per="image"` trusts the sure teacher more; `per="pixel"` trusts the inside of regions and nothing at their '
        "edges. The logits are shares of the labels in cells of 8 pixels, times 12 and times 7.",
        "Two columns, a sure and an unsure teacher: pseudo labels, and three maps of weights; the first two are flat, "
        "the last is 0 along edges of objects.",
    ),
    "feature_distance": Picture(
        feature_distance,
        "Only cells that one thing class fills to the share `min_ratio` count: with the paper's 0.75 those inside the "
        "car, a rider and a bicycle, at 0.25 people, poles and signs too. They are where the loss has a gradient.",
        "A street under a grid of cells, its labels, and the cells that count, bright on a dark street: more of them "
        "at the smaller ratio.",
    ),
    "teacher": Picture(
        teacher,
        "With the warm-up of the decay the teacher is the plain mean of the student's past at first; with 0.999 from "
        "the start 37 % of it is still the untrained network after 1,000 updates. Both smooth the noise.",
        "A noisy rising curve of a student's weight, a smooth curve close below it, and a second one far below it.",
    ),
    "loss": Picture(
        loss,
        "Divided by all pixels, as in the paper, or by the valid ones, a loss is worth less where the teacher is less "
        'sure; divided by the weights it is not. Half of the labels are ignored here, so `"all"` is half of '
        '`"valid"`.',
        "Three lines of the loss over the confidence weight: two rise from near 0, one twice as steep as the other, "
        "the third is flat.",
    ),
    "optim": Picture(
        optim,
        "A linear warm-up, then a linear decay to 0; the heads learn ten times as fast as the encoder. The paper's "
        "schedule is ten times as long, 40,000 steps with 1,500 of warm-up.",
        "Two learning rates over 4,000 steps: both rise quickly in the first 150 and fall to 0, one ten times as high.",
    ),
    "rare": Picture(
        rare,
        "With the paper's temperature of 0.01 road, sky and buildings are hardly ever drawn and the rarest classes "
        "most; the larger the temperature, the more even. Counted on 12 streets of the game.",
        "Bars for each class, from the most to the least frequent: its share of pixels, and how likely it is drawn at "
        "two temperatures.",
    ),
    "metrics": Picture(
        metrics,
        "In the detail box of the fusion above: left, which classes the context predicts for the pixels of each label; "
        "right, in the same order, the IoU of each class for the context alone and for the fusion.",
        "A confusion matrix with a bright diagonal that is darker for thin classes, and bars of IoU for each class, "
        "higher for the fusion.",
    ),
    "step": Picture(
        None,
        "One step of self-training: the teacher labels the target image, half of the source's classes are pasted onto "
        "it, and the student learns from both. Only the student has gradients.",
        "A diagram of two columns. Student: source image, context and detail crop, fusion, source loss. Teacher: "
        "target image, context and detail windows, fusion, pseudo label and weight. Both lead to class mix, jitter and "
        "blur, the student again, the mixed loss and the optimiser step, after which the teacher is updated.",
    ),
}


def names_of_the_gallery() -> Names:
    """What the blocks of the page compute."""
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    names: Names = {"__name__": "gallery"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in re.findall(
            r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL
        ):
            exec(block, names)
    return names


def style(theme: str) -> dict[str, Any]:
    text, page = THEMES[theme]["text"], THEMES[theme]["page"]
    coloured = (
        "text.color",
        "axes.labelcolor",
        "axes.edgecolor",
        "xtick.color",
        "ytick.color",
    )
    return dict.fromkeys(coloured, text) | {
        "axes.facecolor": page,
        "savefig.facecolor": page,
        "font.size": 11.5,
    }


def save(figure: Figure, file: Path) -> None:
    """A PNG of 256 colours, a third of the size."""
    figure.savefig(file, dpi=DPI)
    plt.close(figure)
    with Image.open(file) as image:
        few = image.convert("RGB").quantize(
            256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
        )
    few.save(file, optimize=True)


def files(name: str) -> dict[str, Path]:
    """Theme -> file."""
    return {
        theme: FOLDER / f"{name}-{theme}.{'svg' if name == 'step' else 'png'}"
        for theme in THEMES
    }


def stale() -> bool:
    """Whether a picture is missing, or older than what it is made of."""
    pictures = [file for name in PICTURES for file in files(name).values()]
    made_of = [
        DOCS / "gallery.md",
        *DOCS.glob("*.py"),
        *(DOCS.parent / "hrda_lib").rglob("*.py"),
    ]
    if not all(file.is_file() for file in pictures):
        return True
    return min(file.stat().st_mtime for file in pictures) < max(
        file.stat().st_mtime for file in made_of
    )


def draw_all() -> None:
    FOLDER.mkdir(exist_ok=True)
    names = names_of_the_gallery()
    for theme, colours in THEMES.items():
        files("step")[theme].write_text(step_diagram(**colours), encoding="utf-8")
        with plt.rc_context(style(theme)):
            for name, picture in PICTURES.items():
                if picture.draw is not None:
                    save(picture.draw(names), files(name)[theme])


def markdown(name: str, picture: Picture, *, linked: bool) -> str:
    """The picture in both themes, with its caption; where ``linked``, with a way to the lines that made it."""
    lines = []
    for theme, file in files(name).items():
        address = f"/{file.relative_to(DOCS).as_posix()}"
        lines += [
            f"```{{image}} {address}",
            f":alt: {picture.alt}",
            f":class: picture only-{theme}",
            "```",
            "",
        ]
    link = (
        f" [Drawn by these lines](#gallery-{name.replace('_', '-')})."
        if linked and name != "step"
        else ""
    )
    return "\n".join([*lines, f"*{picture.caption}*{link}"])


def thumbnails() -> str:
    """Every picture small, with a link to its section, in the order of the page."""
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    sections = re.findall(r"^\(gallery-([\w-]+)\)=\n## (.*)$", text, re.MULTILINE)
    cards = [thumbnail(slug, title) for slug, title in sections]
    return "\n".join(["::::{grid} 2 3 4 4", ":gutter: 2", "", *cards, "::::"])


def thumbnail(slug: str, title: str) -> str:
    card = [f":::{{grid-item-card}}\n:link: gallery-{slug}\n:link-type: ref\n"]
    for theme, file in files(slug.replace("-", "_")).items():
        address = f"/{file.relative_to(DOCS).as_posix()}"
        looks = f":alt: {title}\n:class: thumbnail only-{theme}"
        card.append(f"```{{image}} {address}\n{looks}\n```\n")
    return "\n".join([*card, title, ":::"])


def substitutions() -> dict[str, str]:
    """``{{ crops }}`` for any page, ``{{ crops_here }}`` for the gallery."""
    return {"thumbnails": thumbnails()} | {
        name + ending: markdown(name, picture, linked=linked)
        for name, picture in PICTURES.items()
        for ending, linked in (("", True), ("_here", False))
    }


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(DOCS.parent / "examples"))
    draw_all()
