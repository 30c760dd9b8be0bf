"""Measure the network of a run on a data set, or write its predictions for a benchmark's server.

    python examples/evaluate.py RUN ROOT [--split val] [--weights teacher] [--head detail]
    python examples/evaluate.py RUN ROOT --scales 0.5 0.75 1 1.25 1.5 1.75 --flip
    python examples/evaluate.py RUN ROOT --split test --export DIR --ids labelTrainIds

RUN is a run folder of own_data.py or an arm of gta2cityscapes.py, ROOT a data set that hrda_lib.data reads. Printed are
the IoU of each class and their mean over the classes that occur; for ACDC, those of each condition too. --export
writes a PNG for each image, of the image's name, and all of them zipped.
"""

import argparse
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from hrda_lib import ConfusionMatrix, MultiResSegmenter
from hrda_lib.data import CITYSCAPES, SYNTHIA_CLASSES, SYNTHIA_CLASSES_13, Acdc, LabeledFiles
from hrda_lib.data.stored_ids import ignoring
from hrda_lib.models import EncoderDecoder
from support.datasets import KINDS, open_all
from support.heads import CELL, head_logits, whole_cells
from support.plots import street_colours
from support.report import HEADS, markdown
from support.run_files import WEIGHTS, load, normalize, reason

IDS = ("labelIds", "labelTrainIds", "color")
CLASSES = {16: SYNTHIA_CLASSES, 13: SYNTHIA_CLASSES_13}
STORED = np.zeros(256, np.uint8)
STORED[: len(CITYSCAPES)] = [entry.id for entry in CITYSCAPES]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        model, network = load(options.run, options.weights)
        if options.head != "fused" and not isinstance(model, MultiResSegmenter):
            raise ValueError(f"--head {options.head}: this network has one scale")
        if options.window and isinstance(model, MultiResSegmenter) and any(side % CELL for side in options.window):
            raise ValueError(f"--window must be multiples of {CELL} for two scales, got {options.window}")
        if options.scales and not all(0 < scale < float("inf") for scale in options.scales):
            raise ValueError(f"--scales must be positive numbers, got {options.scales}")
        street = network["class_names"] == [entry.name for entry in CITYSCAPES]
        if network.get("labels"):
            raise ValueError(
                f"{options.run}: was trained with --{network['labels']}, which predict.py --labels takes too"
            )
        if not street and (options.classes or (options.export and options.ids != "labelTrainIds")):
            raise ValueError("--classes and --ids are for the 19 classes of Cityscapes, which this run has not")
        data = find(options)
        print(f"{options.root}: {type(data).__name__}, {len(data)} images")
        model.to(options.device)
        if options.export:
            export(model, data, options)
        else:
            measure(model, data, network, options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"evaluate.py: {reason(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: interrupted", file=sys.stderr)
        return 130
    return 0


def find(options: argparse.Namespace) -> LabeledFiles:
    """The split that is asked for."""
    return next(iter(open_all(options.root, options.kind, splits=(options.split,)).values()))


def measure(
    model: MultiResSegmenter | EncoderDecoder,
    data: LabeledFiles,
    network: Mapping[str, Any],
    options: argparse.Namespace,
) -> None:
    """Print IoU by class and condition."""
    names, kept = network["class_names"], torch.from_numpy(ignoring(network["ignore"]))
    kinds = data.conditions if isinstance(data, Acdc) else [""] * len(data)
    matrices = {kind: ConfusionMatrix(len(names)) for kind in ("", *kinds)}
    for i in tqdm(range(len(data)), "evaluating"):
        image, truth, _ = data[i]
        labels = predict(model, image, truth.shape, options).argmax(1)[0].cpu()
        for kind in {"", kinds[i]}:
            matrices[kind].update(labels, kept[truth.long()])
    report(names, matrices, options)


def report(names: Sequence[str], matrices: Mapping[str, ConfusionMatrix], options: argparse.Namespace) -> None:
    """IoU by class, of several conditions side by side, and the means; the matrix of everything is named ""."""
    counted, absent = list(CLASSES.get(options.classes, range(len(names)))), float(options.absent)
    columns = {kind: matrix.iou(absent=absent).tolist() for kind, matrix in matrices.items()}
    shown = [i for i in counted if columns[""][i] == columns[""][i]]  # nan differs from itself
    if len(matrices) > 2:
        columns["all"] = columns.pop("")
        cells = [[f"{100 * x[i]:.1f}" if x[i] == x[i] else "-" for x in columns.values()] for i in shown]
        rows = [[names[i], *row] for i, row in zip(shown, cells, strict=True)]
        print(markdown([["IoU, %", *columns], *rows]), end="")
    else:
        for i in shown:
            print(f"{100 * columns[''][i]:6.1f}  {names[i]}")
    for kind, matrix in matrices.items():
        print(f"{100 * matrix.mean_iou(counted, absent=absent):6.1f}  mean IoU{f', {kind}' if kind else ''}, in %")


def export(model: MultiResSegmenter | EncoderDecoder, data: LabeledFiles, options: argparse.Namespace) -> None:
    """A PNG for each image in DIR/IDS, and DIR/IDS.zip."""
    folder, images = options.export / options.ids, data.unlabeled()
    names = Counter(file.stem for file in images.files)
    if len(names) < len(images):
        raise ValueError(f"--export: {names.most_common(1)[0][0]}.png would be written for more than one image")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(options.export / f"{options.ids}.zip", "w") as archive:
        for i in tqdm(range(len(images)), "predicting"):
            image = images[i].image
            labels = predict(model, image, image.shape[1:], options).argmax(1)[0].byte().cpu()
            written = street_colours(labels) if options.ids == "color" else labels.numpy()
            written = STORED[written] if options.ids == "labelIds" else written
            file = folder / f"{images.files[i].stem}.png"
            Image.fromarray(written).save(file)
            archive.write(file, f"{options.ids}/{file.name}")


@torch.no_grad()
def predict(
    model: MultiResSegmenter | EncoderDecoder, image: Tensor, size: Sequence[int], options: argparse.Namespace
) -> Tensor:
    """Logits (1, C, H, W) of one image, at the truth's own size; with ``--scales`` probabilities."""
    x, views = normalize(image[None].to(options.device)), []
    for scale in options.scales or (1.0,):
        sides = [max(round(side * scale), CELL) for side in image.shape[1:]]
        resized = x if scale == 1 else resize(x, sides)
        for axes in ((), (-1,)) if options.flip else ((),):
            logits = resize(whole(model, resized.flip(axes), options).flip(axes), size)
            views.append(logits.softmax(1) if options.scales else logits)
    return sum(views[1:], views[0]) / len(views)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, to (h, w)."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def whole(model: MultiResSegmenter | EncoderDecoder, x: Tensor, options: argparse.Namespace) -> Tensor:
    """Logits of a whole image by one head."""
    rows, columns = whole_cells(x).shape[-2:]
    window = (rows, columns) if options.whole else options.window
    return model.predict(x, window=window) if options.head == "fused" else head_logits(model, x, window)[options.head]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--kind", choices=KINDS, help="of the data set; default: by what the folder holds")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument("--head", choices=HEADS, default="fused", help="of a network with two scales")
    parser.add_argument("--weights", choices=WEIGHTS, default="student", help="default: %(default)s")
    windows = parser.add_mutually_exclusive_group()
    windows.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="default: that of the model's predict")
    windows.add_argument("--whole", action="store_true", help="one window as large as the image")
    text = "average the probabilities of resized images, as the released code's --aug-test does"
    parser.add_argument("--scales", type=float, nargs="+", metavar="SCALE", help=text)
    text = "average with the mirrored image: the logits, with --scales the probabilities"
    parser.add_argument("--flip", action="store_true", help=text)
    parser.add_argument("--classes", type=int, choices=(16, 13), help="mean over SYNTHIA's classes only")
    text = "IoU of classes neither in the truth nor predicted; nan: not in the mean (default)"
    parser.add_argument("--absent", choices=("nan", "0"), default="nan", help=text)
    parser.add_argument("--export", type=Path, metavar="DIR", help="write predictions instead of measuring")
    parser.add_argument("--ids", choices=IDS, default="labelTrainIds", help="what is written; default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
