"""Compare runs on images without labels: does one see there what it was taught?

    python examples/compare.py IMAGES CONTROL HRDA ...

Each RUN is a run folder of own_data.py or an arm of gta2cityscapes.py, all with the same classes. Images that are no
RGB pictures are read as the target of the FILE.py that the runs were trained with: give it by --data. Printed are:

    agreement   mean IoU of its prediction and the first run's: how much adaptation changed
    flip, blur  mean IoU of its prediction and that of the mirrored, or of the slightly blurred image: what a network
                has understood does not hang on either
    sure        share of pixels with a probability of 0.9 or more
    classes     share of the pixels that it calls by each class, beside the share in the labels that it learned from

No such number says which run is right. They say where to look: docs/self_training_hurts.md.
"""

from support.ending import run_main  # first: it catches Ctrl-C from here on

# isort: split
import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrda_lib import ConfusionMatrix, gaussian_blur
from hrda_lib.data import image_files, read_counts
from support.command_line import ALONE, add_device, add_max_pixels, options_of, read_running
from support.data_file import add_read_as, check_readable, open_as_trained
from support.networks import Network, NetworkSpec
from support.progress import bar
from support.run_folder import load
from support.tables import markdown

SURE = 0.9
SIGMA = 1.0  # pixels
MEASURES = ("agreement", "flip", "blur", "sure")


@run_main
def main(arguments: Sequence[str] | None = None) -> int:
    usage = "%(prog)s IMAGES RUN... [option ...]"
    parser = argparse.ArgumentParser(
        usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder with images of the target in images/")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the first is what others are compared with")
    add_read_as(parser)
    add_max_pixels(parser)
    add_device(parser)
    text = "write the numbers there, too (default: they are only printed)"
    options_of(parser, "output").add_argument("--json", type=Path, metavar="FILE", help=text)
    options = parser.parse_args(arguments)
    device = torch.device(read_running({**ALONE._asdict(), "device": options.device}).device)
    loaded = [load(run) for run in options.runs]
    names = loaded[0][1].classes
    for run, (_, spec) in zip(options.runs, loaded, strict=True):
        if spec.classes != names:
            raise ValueError(f"{run}: its classes are not those of {options.runs[0]}")
    check_readable([spec for _, spec in loaded], options.data)
    files = image_files(options.images / "images", any_ending=bool(options.data))
    images = open_as_trained(files, options.data, options.max_pixels)
    found = look(loaded, images, len(names), device)
    print(table(options.runs, found, names))
    if options.json:
        kept = {str(run): numbers for run, numbers in zip(options.runs, found, strict=True)}
        options.json.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return 0


@torch.no_grad()
def look(
    loaded: Sequence[tuple[Network, NetworkSpec]], images: Any, classes: int, device: torch.device
) -> list[dict[str, Any]]:
    """The measures of each run, and what share of the pixels it calls by each class."""
    matrices = [{name: ConfusionMatrix(classes) for name in MEASURES[:3]} for _ in loaded]
    sure, pixels, share = [0.0] * len(loaded), 0, [torch.zeros(classes) for _ in loaded]
    for model, _ in loaded:
        model.to(device).eval()
    for sample in bar(images, "comparing"):
        first: Tensor | None = None
        pixels += sample.image[0].numel()
        for i, (model, spec) in enumerate(loaded):
            x = spec.feed(sample.image[None], device)
            probability, labels = model.predict(x).softmax(dim=1).max(dim=1)
            first = labels if first is None else first
            sure[i] += (probability >= SURE).sum().item()
            share[i] += labels.flatten().bincount(minlength=classes).cpu()
            blurred = gaussian_blur(x, torch.full((len(x),), SIGMA, device=device))
            others = {"agreement": first, "blur": model.predict(blurred).argmax(dim=1)}
            others["flip"] = model.predict(x.flip(-1)).flip(-1).argmax(dim=1)
            for name, other in others.items():
                matrices[i][name].update(labels.cpu(), other.cpu())
    return [
        {name: matrix.mean_iou() for name, matrix in found.items()}
        | {"sure": trusted / pixels, "classes": (counted / pixels).tolist()}
        for found, trusted, counted in zip(matrices, sure, share, strict=True)
    ]


def table(runs: Sequence[Path], found: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A row a measure and a class, a column a run; beside the classes, their share in the first run's labels."""
    learned = shares_of_labels(runs[0] / "label_counts.json", len(names))
    rows = [["%", *(run.name for run in runs), *(["labels"] if learned else [])]]
    empty = [""] if learned else []
    rows += [[name, *(f"{100 * numbers[name]:.1f}" for numbers in found), *empty] for name in MEASURES]
    for i, name in enumerate(names):
        shares = [numbers["classes"][i] for numbers in found] + learned[i : i + 1]
        rows.append([name, *(f"{100 * share:.2f}" for share in shares)])
    return markdown(rows)


def shares_of_labels(file: Path, classes: int) -> list[float]:
    """What own_data.py counted; nothing where there is no such file."""
    if not file.exists():
        return []
    pixels = read_counts(file).sum(dim=0)[:classes].double()
    shares: list[float] = (pixels / pixels.sum()).tolist()
    return shares


if __name__ == "__main__":
    sys.exit(main())
