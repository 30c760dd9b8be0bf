"""Measure the network of a run on labelled images.

    python examples/evaluate.py RUN ROOT [--split val] [--weights teacher] [--head detail]
    python examples/evaluate.py RUN ROOT --scales 0.5 0.75 1 1.25 1.5 1.75 --flip
    python examples/evaluate.py RUN IMAGES --labels DIR
    python examples/evaluate.py RUN --data FILE.py

RUN is a run folder of own_data.py or an arm of gta2cityscapes.py; ROOT a data set that hrda_lib.data reads, IMAGES a
folder whose labels are PNGs of the same names in DIR, and FILE.py what own_data.py takes, with labelled images
``validation`` in it. Printed are the IoU of each class and their mean over the classes that occur; for a data set with
conditions, as ACDC, those of each condition too.
"""

from support.ending import run_main  # first: it catches Ctrl-C from here on

# isort: split
import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from tqdm import tqdm

from hrda_lib import ConfusionMatrix, EMATeacher, MultiResSegmenter, SelfTraining, resize
from hrda_lib.data import (
    CITYSCAPES,
    DATASET_KINDS,
    SYNTHIA_CLASSES,
    SYNTHIA_CLASSES_13,
    LabeledFiles,
    LabeledImages,
    UnlabeledImages,
    image_files,
    open_dataset,
)
from support.command_line import DEVICE
from support.data_file import read_data_file
from support.networks import CELL, HEADS, Network, NetworkSpec, heads
from support.run_folder import WEIGHTS, load
from support.tables import markdown

MEASURED = {19: tuple(range(19)), 16: SYNTHIA_CLASSES, 13: SYNTHIA_CLASSES_13}
Say = Callable[[Network, Tensor, Sequence[int]], Mapping[str, Tensor]]


def every_head(model: Network, x: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
    """Logits of ``size`` by head, and "attention"."""
    return {name: resize(y, (size[0], size[1])) for name, y in heads(model, x).items()}


@torch.no_grad()
def measure(
    model: Network,
    spec: NetworkSpec,
    dataset: LabeledImages,
    *,
    say: Say = every_head,
    images: UnlabeledImages | None = None,
    indices: Iterable[int] | None = None,
) -> tuple[dict[str, ConfusionMatrix], Tensor]:
    """A confusion matrix a head, and (C,) the mean attention that is paid to the detail on each class's pixels.

    Args:
        model, spec: as :func:`support.run_folder.load` gives them.
        dataset: images with their truth, at whose size is measured.
        say: (model, its input, (h, w)) -> logits of that size by head, and perhaps "attention".
        images: the same images as the network shall see them, perhaps resized; None: those of ``dataset``.
        indices: of the images to look at; None: all.
    """
    count, device = len(spec.classes), next(model.parameters()).device
    confusion = defaultdict[str, ConfusionMatrix](lambda: ConfusionMatrix(count))
    paid, pixels = torch.zeros(256, dtype=torch.float64), torch.zeros(256)
    ignored = torch.tensor(spec.ignore, dtype=torch.uint8)
    for i in tqdm(range(len(dataset)) if indices is None else indices, "evaluating"):
        if images is None:
            image, truth, _ = dataset[i]
        else:
            image, truth = images[i].image, dataset.label(i)
        truth = torch.where(torch.isin(truth, ignored), 255, truth)
        maps = dict(say(model, spec.feed(image[None], device), truth.shape))
        attention = maps.pop("attention", torch.zeros(1)).cpu().double().flatten()
        paid += truth.flatten().bincount(attention.expand(truth.numel()), minlength=256)
        pixels += truth.flatten().bincount(minlength=256)
        for head, logits in maps.items():
            confusion[head].update(logits.cpu().argmax(1)[0], truth.long())
    return dict(confusion), (paid / pixels)[:count]


def average(
    model: Network,
    x: Tensor,
    size: Sequence[int],
    *,
    head: str = "fused",
    window: tuple[int, int] | None = None,
    whole: bool = False,
    scales: Sequence[float] = (),
    flip: bool = False,
    cell: int = CELL,
) -> dict[str, Tensor]:
    """Logits of one head, averaged with the mirrored image's; with ``scales``, probabilities of resized images."""
    views = []
    for scale in scales or (1.0,):
        y = resize(x, (max(round(scale * x.shape[2]), cell), max(round(scale * x.shape[3]), cell)))
        if whole:
            window = (y.shape[2] + -y.shape[2] % cell, y.shape[3] + -y.shape[3] % cell)
        for axes in ((), (-1,)) if flip else ((),):
            z = y.flip(axes)
            logits = model.predict(z, window=window) if head == "fused" else heads(model, z, window)[head]
            logits = resize(logits.flip(axes), (size[0], size[1]))
            views.append(logits.softmax(1) if scales else logits)
    return {head: sum(views[1:], views[0]) / len(views)}


@torch.no_grad()
def label_quality(
    training: SelfTraining, teacher: EMATeacher, spec: NetworkSpec, dataset: LabeledImages, images: UnlabeledImages
) -> dict[str, float]:
    """How right the teacher's labels are on a dozen labelled images: drawn, and used for nothing."""
    right, trusted, both, pixels = 0, 0, 0, 0
    device = next(teacher.parameters()).device
    teacher.eval()
    for i in range(0, len(dataset), max(len(dataset) // 12, 1)):
        x, truth = spec.feed(images[i].image[None], device), dataset.label(i)
        rows, columns = x.shape[-2:]
        labels, weight = training.pseudo_label(pad(x, (0, -columns % spec.cell, 0, -rows % spec.cell)))
        # both at the size of the truth; the images may have been resized
        maps = torch.stack([labels[0].float(), weight[0]])[:, :rows, :columns].cpu()
        labels, weight = interpolate(maps[None], size=truth.shape, mode="nearest")[0]
        known, hit, trust = truth != 255, labels == truth, weight > 0
        pixels, right = pixels + int(known.sum()), right + int((known & hit).sum())
        trusted, both = trusted + int((known & trust).sum()), both + int((known & hit & trust).sum())
    teacher.train()
    return {
        "label_accuracy": right / max(pixels, 1),
        "trusted": trusted / max(pixels, 1),
        "trusted_accuracy": both / max(trusted, 1),
    }


@run_main
def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    model, spec = load(options.run, options.weights)
    if options.head != "fused" and not isinstance(model, MultiResSegmenter):
        raise ValueError(f"--head {options.head}: this network has one scale")
    if options.window and isinstance(model, MultiResSegmenter) and any(side % spec.cell for side in options.window):
        raise ValueError(f"--window must be multiples of {spec.cell} for two scales, got {options.window}")
    if not all(0 < scale < float("inf") for scale in options.scales):
        raise ValueError(f"--scales must be positive numbers, got {options.scales}")
    if options.classes and list(spec.classes) != [entry.name for entry in CITYSCAPES]:
        raise ValueError("--classes is for the 19 classes of Cityscapes, which this run has not")
    which = {"split": options.split, "kind": options.kind, "max_pixels": options.max_pixels}
    data = find(spec, options.root, options.labels, options.data, **which)
    print(f"{options.data or options.root}: {type(data).__name__}, {len(data)} images")
    settings = {name: getattr(options, name) for name in ("head", "window", "whole", "scales", "flip")}
    say = partial(average, cell=spec.cell, **settings)
    kinds = getattr(data, "conditions", []) or [""] * len(data)
    matrices = {}
    for kind in dict.fromkeys(kinds):
        indices = [i for i, other in enumerate(kinds) if other == kind]
        found, _ = measure(model.to(options.device), spec, data, say=say, indices=indices)
        matrices[kind] = found[options.head]
    everything = ConfusionMatrix(len(spec.classes))
    everything.matrix = torch.stack([matrix.matrix for matrix in matrices.values()]).sum(dim=0)
    chosen = MEASURED[options.classes] if options.classes else range(len(spec.classes))
    report(spec.classes, {"": everything} | matrices, chosen, float(options.absent))
    return 0


def find(
    spec: NetworkSpec,
    root: Path | None,
    labels: Path | None,
    file: Path | None,
    *,
    split: str,
    kind: str | None,
    max_pixels: int | None,
) -> LabeledImages:
    """The labelled images that the command line names."""
    if (root is None) == (file is None):
        raise ValueError("either ROOT or --data FILE.py is needed, which say what is measured on")
    if file:
        validation = read_data_file(file).validation
        if validation is None:
            raise ValueError(f"{file}: defines no validation, labelled images to measure on")
        return validation
    assert root is not None
    if not spec.takes_pictures:
        raise ValueError("this run takes no pictures of 8 bits; give --data FILE.py as in training, with a validation")
    if labels is None:
        return open_dataset(root, split, kind=kind, max_pixels=max_pixels)
    images = image_files(root) if root.is_dir() else [root]
    names = [image.stem for image in images]
    return LabeledFiles(images, [labels / f"{name}.png" for name in names], names, max_pixels=max_pixels)


def report(
    names: Sequence[str], matrices: Mapping[str, ConfusionMatrix], classes: Iterable[int], absent: float
) -> None:
    """IoU by class, of several conditions side by side, and the means; the matrix of everything is named ""."""
    columns = {kind: matrix.iou(absent=absent).tolist() for kind, matrix in matrices.items()}
    shown = [i for i in classes if columns[""][i] == columns[""][i]]  # nan differs from itself
    if len(matrices) > 2:
        columns["all"] = columns.pop("")
        cells = [[f"{100 * x[i]:.1f}" if x[i] == x[i] else "-" for x in columns.values()] for i in shown]
        rows = [[names[i], *row] for i, row in zip(shown, cells, strict=True)]
        print(markdown([["IoU, %", *columns], *rows]), end="")
    else:
        print("".join(f"{100 * columns[''][i]:6.1f}  {names[i]}\n" for i in shown), end="")
    for kind, matrix in matrices.items():
        print(
            f"{100 * matrix.mean_iou(list(classes), absent=absent):6.1f}  mean IoU{f', {kind}' if kind else ''}, in %"
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("root", type=Path, nargs="?", metavar="ROOT", help="data set, or with --labels images")
    parser.add_argument("--labels", type=Path, help="folder of the true labels of images in ROOT")
    parser.add_argument("--data", type=Path, metavar="FILE.py", help="measure on its validation")
    parser.add_argument("--kind", choices=DATASET_KINDS, help="of the data set; default: by what the folder holds")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="let in larger pictures than Pillow does")
    parser.add_argument("--head", choices=HEADS, default="fused", help="of a network with two scales")
    parser.add_argument("--weights", choices=WEIGHTS, default="student", help="default: %(default)s")
    windows = parser.add_mutually_exclusive_group()
    windows.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="default: that of the model's predict")
    windows.add_argument("--whole", action="store_true", help="one window as large as the image")
    text = "average the probabilities of resized images, as the released code's --aug-test does"
    parser.add_argument("--scales", type=float, nargs="+", default=[], metavar="SCALE", help=text)
    text = "average with the mirrored image: the logits, with --scales the probabilities"
    parser.add_argument("--flip", action="store_true", help=text)
    parser.add_argument("--classes", type=int, choices=(16, 13), help="mean over SYNTHIA's classes only")
    text = "IoU of classes neither in the truth nor predicted; nan: not in the mean (default)"
    parser.add_argument("--absent", choices=("nan", "0"), default="nan", help=text)
    parser.add_argument("--device", default=DEVICE)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
