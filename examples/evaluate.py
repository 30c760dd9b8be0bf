"""Measure the network of a run on a data set, or write its predictions for a benchmark's server.

    python examples/evaluate.py RUN ROOT [--split val] [--head fused] [--flip]
    python examples/evaluate.py RUN ROOT --split test --export DIR --ids labelTrainIds

RUN is a run folder of own_data.py or an arm of gta2cityscapes.py, ROOT a data set that hrda_lib.data reads. Printed are
the IoU of each class and their mean over the classes that occur; for ACDC, the mean of each condition too. --export
writes a PNG for each image, of the image's name, and all of them zipped.
"""

import argparse
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from hrda_lib import ConfusionMatrix, MultiResSegmenter
from hrda_lib.data import CITYSCAPES, SYNTHIA_CLASSES, SYNTHIA_CLASSES_13, Acdc, LabeledFiles
from hrda_lib.models import EncoderDecoder
from support.datasets import KINDS, open_all, open_split
from support.heads import head_logits
from support.plots import street_colours
from support.report import HEADS
from support.run_files import load, normalize

IDS = ("labelIds", "labelTrainIds", "color")
CLASSES = {16: SYNTHIA_CLASSES, 13: SYNTHIA_CLASSES_13}
STORED = np.zeros(256, np.uint8)
STORED[: len(CITYSCAPES)] = [entry.id for entry in CITYSCAPES]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        model, network = load(options.run)
        if options.head != "fused" and not isinstance(model, MultiResSegmenter):
            raise ValueError(f"--head {options.head}: this network has one scale")
        data = find(options)
        model.to(options.device)
        if options.export:
            export(model, data, options)
        else:
            measure(model, data, network["class_names"], options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"evaluate.py: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: interrupted", file=sys.stderr)
        return 130
    return 0


def find(options: argparse.Namespace) -> LabeledFiles:
    """The split that is asked for."""
    if options.kind:
        return open_split(options.kind, options.root, options.split)
    found = open_all(options.root, splits=(options.split,))
    return next(iter(found.values()))


def measure(
    model: MultiResSegmenter | EncoderDecoder, data: LabeledFiles, names: Sequence[str], options: argparse.Namespace
) -> None:
    """Print IoU by class, and the mean by condition."""
    kinds = data.conditions if isinstance(data, Acdc) else [""] * len(data)
    matrices = {kind: ConfusionMatrix(len(names)) for kind in ("", *kinds)}
    for i in tqdm(range(len(data)), "evaluating"):
        image, truth, _ = data[i]
        labels = predict(model, image, truth.shape, options).argmax(1)[0].cpu()
        for kind in {"", kinds[i]}:
            matrices[kind].update(labels, truth.long())
    counted = list(CLASSES.get(options.classes, range(len(names))))
    for i, (name, iou) in enumerate(zip(names, matrices[""].iou().tolist(), strict=True)):
        if i in counted and iou == iou:
            print(f"{100 * iou:6.1f}  {name}")
    for kind, matrix in matrices.items():
        print(f"{100 * matrix.mean_iou(counted):6.1f}  mean IoU{f', {kind}' if kind else ''}, in %")


def export(model: MultiResSegmenter | EncoderDecoder, data: LabeledFiles, options: argparse.Namespace) -> None:
    """A PNG for each image in DIR/IDS, and DIR/IDS.zip."""
    folder, images = options.export / options.ids, data.unlabeled()
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
    """Logits (1, C, H, W) of one image, at the truth's own size; ``--flip`` averages with the mirrored image's."""
    x = normalize(image[None].to(options.device))
    logits = whole(model, x, options.head)
    if options.flip:
        logits = (logits + whole(model, x.flip(-1), options.head).flip(-1)) / 2
    if tuple(logits.shape[-2:]) != tuple(size):
        logits = interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
    return logits


def whole(model: MultiResSegmenter | EncoderDecoder, x: Tensor, head: str) -> Tensor:
    """Logits of a whole image by one head."""
    return model.predict(x) if head == "fused" else head_logits(model, x)[head]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--kind", choices=KINDS, help="of the data set; default: by what the folder holds")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument("--head", choices=HEADS, default="fused", help="of a network with two scales")
    parser.add_argument("--flip", action="store_true", help="average with the prediction of the mirrored image")
    parser.add_argument("--classes", type=int, choices=(16, 13), help="mean over SYNTHIA's classes only")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write predictions instead of measuring")
    parser.add_argument("--ids", choices=IDS, default="labelTrainIds", help="what is written; default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
