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
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from hrda_lib import ConfusionMatrix, MultiResSegmenter
from hrda_lib.data import (
    CITYSCAPES,
    DATASET_KINDS,
    LabeledFiles,
    LabeledImages,
    image_files,
    open_dataset,
)
from support.command_line import ALONE, add_device, add_max_pixels, one_of, options_of, read_running
from support.data_file import read_data_file
from support.measuring import MEASURED, average, measure
from support.networks import HEADS, NetworkSpec
from support.run_folder import WEIGHTS, load
from support.tables import markdown


@run_main
def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    running = read_running({**ALONE._asdict(), "device": options.device})
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
        found, _ = measure(model.to(options.device), spec, data, say=say, indices=indices, running=running)
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
    usage = "%(prog)s RUN [ROOT] [option ...]"
    parser = argparse.ArgumentParser(
        usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("root", type=Path, nargs="?", metavar="ROOT", help="data set, or with --labels its images")
    add, text = options_of(parser, "data").add_argument, "measure on the validation images of this file"
    add("--data", type=Path, metavar="FILE.py", help=f"{text} (default: on ROOT)")
    text = "folder with the true labels of the images in ROOT (default: ROOT holds both)"
    add("--labels", type=Path, metavar="DIR", help=text)
    text = f"kind of the data set ({one_of(DATASET_KINDS)}; default: by what the folder holds)"
    add("--kind", choices=DATASET_KINDS, metavar="KIND", help=text)
    add("--split", metavar="NAME", default="val", help="split of it to measure on (default: %(default)s)")
    add_max_pixels(parser)
    add_network(parser)
    add, text = options_of(parser, "output").add_argument, "classes that the mean is over, those of SYNTHIA"
    add("--classes", type=int, choices=(16, 13), metavar="N", help=f"{text} (16 or 13; default: all)")
    text = "IoU of classes neither in the truth nor predicted (0, or nan, which is not in the mean; default: nan)"
    add("--absent", choices=("nan", "0"), metavar="IOU", default="nan", help=text)
    return parser.parse_args(arguments)


def add_network(parser: argparse.ArgumentParser) -> None:
    """The options that say what predicts, and how."""
    group = options_of(parser, "network")
    add, text = group.add_argument, f"weights of the run to use ({one_of(WEIGHTS)}; default: %(default)s)"
    add("--weights", choices=WEIGHTS, metavar="WHICH", default="student", help=text)
    text = f"prediction of a network with two scales ({one_of(HEADS)}; default: %(default)s)"
    add("--head", choices=HEADS, metavar="WHICH", default="fused", help=text)
    windows, text = group.add_mutually_exclusive_group(), "size of the windows (default: that of the model's predict)"
    windows.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help=text)
    windows.add_argument("--whole", action="store_true", help="take one window as large as the image (default: off)")
    text = "average the probabilities of images resized by these factors, as the released code's --aug-test does"
    add("--scales", type=float, nargs="+", default=[], metavar="X", help=f"{text} (default: none)")
    text = "average with the mirrored image: the logits, with --scales the probabilities"
    add("--flip", action="store_true", help=f"{text} (default: off)")
    add_device(parser)


if __name__ == "__main__":
    sys.exit(main())
