"""Look through data sets before a long run: files, sizes, ids, class shares, and a sheet of pictures of each.

    python examples/check_data.py ROOT... [--kind KIND] [--out DIR]

A ROOT is a folder of a data set that hrda_lib.data reads (GTA, Cityscapes, plain folders, ...), or a list of lines
image<TAB>label. Every image and label is opened once. What is wrong is named file by file, and the exit status is 1;
DIR gets NAME.png, a dozen images with their labels.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from hrda_lib.data import CITYSCAPES, Folders, LabeledFiles, ListFile
from support.datasets import KINDS, open_all
from support.plots import Picture, colour, draw_grid, palette, street_colours

SHOWN = 20  # problems to print


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path, metavar="ROOT")
    parser.add_argument("--kind", choices=KINDS, help="default: by what the folder holds")
    parser.add_argument("--out", type=Path, default=Path("runs/check_data"), help="default: %(default)s")
    parser.add_argument("--no-labels", action="store_true", help="look at images only: a target")
    options = parser.parse_args(arguments)
    problems = 0
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for root in options.roots:
            for name, data in open_all(root, options.kind).items():
                problems += check(name, data, options.out, labels=not options.no_labels)
    except (ValueError, OSError) as error:
        print(f"check_data.py: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("check_data.py: interrupted", file=sys.stderr)
        return 130
    return 1 if problems else 0


def check(name: str, data: LabeledFiles, out: Path, *, labels: bool) -> int:
    """Print what there is to know; how many files are wrong."""
    images, sizes, problems = data.unlabeled(), Counter[tuple[int, int]](), []
    counts, shown = torch.zeros(256, dtype=torch.int64), list[tuple[Tensor, Tensor]]()
    for i in tqdm(range(len(data)), name):
        try:
            if labels:
                image, label, _ = data[i]
            else:
                image = images[i].image
                label = torch.full(image.shape[1:], 255, dtype=torch.uint8)
        except ValueError as error:
            problems.append(str(error))
            continue
        sizes[image.shape[1], image.shape[2]] += 1
        counts += label.flatten().bincount(minlength=256)
        if i % max(len(data) // 12, 1) == 0:
            shown.append((image, label))
    print(f"{name}: {len(data)} images, {len(problems)} with a problem")
    print("  sizes (h, w): " + ", ".join(f"{size}: {number}" for size, number in sizes.most_common(5)))
    for text in problems[:SHOWN]:
        print(f"  {text}")
    if len(problems) > SHOWN:
        print(f"  and {len(problems) - SHOWN} more")
    classes = int(counts[:255].nonzero().max()) + 1 if counts[:255].any() else 0
    street = bool(classes) and not isinstance(data, Folders | ListFile)
    for label_id in range(len(CITYSCAPES) if street else classes):
        title = CITYSCAPES[label_id].name if street else str(label_id)
        print(f"  {title:16} {100 * counts[label_id] / counts.sum():7.3f} %")
    if classes:
        print(f"  {'ignored (255)':16} {100 * counts[255] / counts.sum():7.3f} %")
    if shown:
        colours = {entry.name: entry.colour for entry in CITYSCAPES} if street else {}
        colours = colours or {str(i): tuple(row) for i, row in enumerate(palette(classes)[:classes].tolist())}
        rows = [
            [
                x
                for image, label in shown[i : i + 3]
                for x in (image.permute(1, 2, 0).numpy(), paint(label, classes, street))
            ]
            for i in range(0, len(shown), 3)
        ]
        while len(rows[-1]) < len(rows[0]):
            rows[-1].append(0 * rows[0][0])
        draw_grid(out / f"{name.replace(' ', '_')}.png", rows, ("image", "label") * (len(rows[0]) // 2), colours)
    return len(problems)


def paint(label: Tensor, classes: int, street: bool) -> Picture:
    return street_colours(label) if street else colour(label, classes)


if __name__ == "__main__":
    sys.exit(main())
