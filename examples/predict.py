"""Segment images of any size with the network of a run.

    python examples/predict.py RUN INPUT... --out DIR

RUN is a run folder of own_data.py or an arm of gta2cityscapes.py, an INPUT an image or a folder of images. For each
image, DIR gets NAME.png (class ids) and NAME_overlay.png (colours). A file that cannot be read is reported, the rest go
on, and the exit status is 1.
With --labels, NAME.png in that folder is the truth, and the IoU of each class is printed; --palette and --ids say how
it is stored, as for own_data.py. What was trained with --read needs it again: a checkpoint never says what code to run.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hrda_lib import ConfusionMatrix, MultiResSegmenter
from hrda_lib.data import LabeledFiles, Relabeled, UnlabeledImages
from hrda_lib.data.folders import image_files
from hrda_lib.data.readers import label_reader
from hrda_lib.models import EncoderDecoder
from support.channels import display, reader_of
from support.own_files import read_ids, read_palette
from support.plots import attention_map, overlay
from support.run_files import WEIGHTS, load, normalize, reason


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        model, network = load(options.run, options.weights, pictures=False)
        reader = reader_of(network, options.read)
        files = find(options.inputs, options.out, any_ending=reader is not None)
        images, truth = UnlabeledImages(files, read_image=reader), open_truth(files, network, options)
        options.out.mkdir(parents=True, exist_ok=True)
        model.to(options.device)
        if options.save_attention and not isinstance(model, MultiResSegmenter):
            raise ValueError("--save-attention: this network has one scale, and no attention")
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        print(f"predict.py: {reason(error)}", file=sys.stderr)
        return 2
    names, done, confusion = network["class_names"], 0, ConfusionMatrix(len(network["class_names"]))
    try:
        for i, file in enumerate(tqdm(files, "predicting")):
            try:
                labels = write(file, images[i].image, model, network, options)
                if truth:
                    confusion.update(labels, truth.label(i))
                done += 1
            except (ValueError, OSError) as error:
                tqdm.write(f"predict.py: {file}: {str(error).removeprefix(f'{file}: ')}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"predict.py: interrupted after {done} of {len(files)} images", file=sys.stderr)
        return 130
    print(f"{options.out}: {done} of {len(files)} images")
    if options.labels:
        for name, iou in zip(names, confusion.iou().tolist(), strict=True):
            print(f"{100 * iou:6.1f}  {name}")
        print(f"{100 * confusion.mean_iou():6.1f}  mean IoU of the classes that occur, in %")
    return 0 if done == len(files) else 1


def open_truth(
    files: Sequence[Path], network: Mapping[str, Any], options: argparse.Namespace
) -> LabeledFiles | Relabeled | None:
    """The labels to measure against, if there are any."""
    if not options.labels:
        if options.palette or options.ids:
            raise ValueError("--palette and --ids say how --labels are stored, which is not given")
        return None
    names: list[str] = network["class_names"]
    colours, read_label = read_palette(options.palette) if options.palette else ([], None)
    ids = read_ids(options.ids) if options.ids else {}
    if colours and not ids and colours != names:
        raise ValueError(f"{options.palette}: its classes {', '.join(colours)} are not the run's {', '.join(names)}")
    if outside := [new for new in ids.values() if len(names) <= new < 255]:
        raise ValueError(f"{options.ids}: new id {outside[0]} is none of the run's {len(names)} classes")
    stems = [file.stem for file in files]
    labels = [options.labels / f"{stem}.png" for stem in stems]
    reader, _ = label_reader([] if ids or read_label else network["ignore"], read_label)
    truth = LabeledFiles(files, labels, stems, read_label=reader)
    return Relabeled(truth, ids) if ids else truth


def write(
    file: Path,
    image: Tensor,
    model: MultiResSegmenter | EncoderDecoder,
    network: Mapping[str, Any],
    options: argparse.Namespace,
) -> Tensor:
    """All output of one image; returns its labels (H, W)."""
    x = normalize(image[None].to(options.device), network.get("mean"), network.get("std"))
    labels = predict(model, x, flip=options.flip)[0].cpu()
    Image.fromarray(labels.numpy()).save(options.out / f"{file.stem}.png")
    Image.fromarray(overlay(display(image), labels, len(network["class_names"]))).save(
        options.out / f"{file.stem}_overlay.png"
    )
    if options.save_attention and isinstance(model, MultiResSegmenter):
        attention = attention_map(model, x).cpu()
        Image.fromarray((255 * attention).byte().numpy()).save(options.out / f"{file.stem}_attention.png")
    return labels


def predict(model: MultiResSegmenter | EncoderDecoder, x: Tensor, *, flip: bool) -> Tensor:
    """Labels (B, H, W); ``flip`` averages the probabilities with those of the mirrored image."""
    if not flip:
        return model.predict(x, output="labels")
    probs = model.predict(x, output="probs") + model.predict(x.flip(-1), output="probs").flip(-1)
    return probs.argmax(dim=1).byte()


def find(inputs: Sequence[Path], out: Path, *, any_ending: bool) -> list[Path]:
    """Image files of all inputs; results must overwrite neither an input nor each other."""
    files = [
        file for path in inputs for file in (image_files(path, any_ending=any_ending) if path.is_dir() else [path])
    ]
    taken = {os.path.realpath(file) for file in files}
    for file in files:
        results = {os.path.realpath(out / f"{file.stem}{ending}.png") for ending in ("", "_overlay", "_attention")}
        if results & taken:
            raise ValueError(f"{file}: its results would overwrite an input or another result; choose another --out")
        taken |= results
    return files


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", choices=WEIGHTS, default="student", help="default: %(default)s")
    parser.add_argument("--labels", type=Path, help="folder of true labels: print the IoU of each class")
    parser.add_argument("--palette", type=Path, help="JSON file of class names and the colours of --labels")
    parser.add_argument("--ids", type=Path, help="JSON file of the ids of --labels and the run's")
    parser.add_argument("--read", metavar="FILE.py:NAME", help="function that reads an image, as for own_data.py")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image's probabilities")
    parser.add_argument("--save-attention", action="store_true", help="write NAME_attention.png, 255 = all detail")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
