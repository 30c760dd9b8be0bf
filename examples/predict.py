"""Segment images of any size with the network of a run.

    python examples/predict.py RUN INPUT... --out DIR

RUN is a run folder of own_data.py or an arm of gta2cityscapes.py, an INPUT an image or a folder of images. For each
image, DIR gets NAME.png (class ids) and NAME_overlay.png (colours). A file that cannot be read is reported, the rest go
on, and the exit status is 1.
With --labels, NAME.png in that folder is the truth, and the IoU of each class is printed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hrda_lib import ConfusionMatrix, MultiResSegmenter
from hrda_lib.data.folders import image_files, read_image, read_label
from hrda_lib.models import EncoderDecoder
from support.plots import attention_map, overlay
from support.run_files import WEIGHTS, load, normalize


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        model, network = load(options.run, options.weights)
        files = find(options.inputs, options.out)
        options.out.mkdir(parents=True, exist_ok=True)
        model.to(options.device)
        if options.save_attention and not isinstance(model, MultiResSegmenter):
            raise ValueError("--save-attention: this network has one scale, and no attention")
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        print(f"predict.py: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    names, done, confusion = network["class_names"], 0, ConfusionMatrix(len(network["class_names"]))
    try:
        for file in tqdm(files, "predicting"):
            try:
                labels = write(file, model, len(names), options)
                if options.labels:
                    confusion.update(labels, read_label(options.labels / f"{file.stem}.png", ignore=network["ignore"]))
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


def write(file: Path, model: MultiResSegmenter | EncoderDecoder, classes: int, options: argparse.Namespace) -> Tensor:
    """All output of one image; returns its labels (H, W)."""
    image = read_image(file)
    x = normalize(image[None].to(options.device))
    labels = predict(model, x, flip=options.flip)[0].cpu()
    Image.fromarray(labels.numpy()).save(options.out / f"{file.stem}.png")
    Image.fromarray(overlay(image, labels, classes)).save(options.out / f"{file.stem}_overlay.png")
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


def find(inputs: Sequence[Path], out: Path) -> list[Path]:
    """Image files of all inputs; results must overwrite neither an input nor each other."""
    files = [file for path in inputs for file in (image_files(path) if path.is_dir() else [path])]
    taken = {file.resolve() for file in files}
    for file in files:
        results = {(out / f"{file.stem}{ending}.png").resolve() for ending in ("", "_overlay", "_attention")}
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
    parser.add_argument("--flip", action="store_true", help="average with the prediction of the mirrored image")
    parser.add_argument("--save-attention", action="store_true", help="write NAME_attention.png, 255 = all detail")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
