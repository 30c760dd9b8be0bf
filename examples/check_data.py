"""Look through data sets before a long run: files, sizes, ids, class shares, and a sheet of pictures of each.

    python examples/check_data.py ROOT... [--kind KIND] [--out DIR]

A ROOT is a folder of a data set that hrda_lib.data reads (GTA, Cityscapes, plain folders, ...), or a list of lines
image<TAB>label. Every image and label is opened once. What is wrong is named file by file, and the exit status is 1.
Printed are sizes, the share of each class, and how often rare-class sampling would draw it. DIR gets NAME.png, a dozen
images with their labels, and NAME_classes.png, the shares as bars.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from hrda_lib.data import CITYSCAPES, Folders, LabeledFiles, ListFile, RareClasses, count_ids
from support.datasets import KINDS, open_all
from support.plots import Picture, colour, draw_grid, draw_shares, palette, street_colours
from support.report import share_table, unseen
from support.run_files import reason

SHOWN = 20  # problems to print


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path, metavar="ROOT")
    parser.add_argument("--kind", choices=KINDS, help="default: by what the folder holds")
    parser.add_argument("--out", type=Path, default=Path("runs/check_data"), help="default: %(default)s")
    parser.add_argument("--no-labels", action="store_true", help="look at images only: a target")
    parser.add_argument("--temperature", type=float, default=0.01, help="of rare-class sampling; default: %(default)s")
    parser.add_argument("--min-pixels", type=int, default=3000, help="of a class drawn there; default: %(default)s")
    options = parser.parse_args(arguments)
    problems, seen = 0, Counter[str]()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for root in options.roots:
            for name, data in open_all(root, options.kind).items():
                seen[name] += 1
                problems += check(name if seen[name] == 1 else f"{name} {seen[name]}", data, options)
    except (ValueError, OSError) as error:
        print(f"check_data.py: {reason(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("check_data.py: interrupted", file=sys.stderr)
        return 130
    return 1 if problems else 0


def check(name: str, data: LabeledFiles, options: argparse.Namespace) -> int:
    """Print what there is to know; how many files are wrong."""
    images, sizes, problems = data.unlabeled(), Counter[tuple[int, int]](), []
    rows, shown = list[Tensor](), list[tuple[Tensor, Tensor]]()
    dozen = {i * len(data) // 12 for i in range(12)}
    for i in tqdm(range(len(data)), name):
        try:
            if options.no_labels:
                image = images[i].image
                label = torch.full(image.shape[1:], 255, dtype=torch.uint8)
            else:
                image, label, _ = data[i]
        except ValueError as error:
            problems.append(str(error))
            continue
        sizes[image.shape[1], image.shape[2]] += 1
        rows.append(count_ids(label))
        if i in dozen:
            shown.append((image, label))
    print(f"{name}: {len(data)} images, {len(problems)} with a problem")
    print("  sizes (h, w): " + ", ".join(f"{size}: {number}" for size, number in sizes.most_common(5)))
    for text in problems[:SHOWN]:
        print(f"  {text}")
    if len(problems) > SHOWN:
        print(f"  and {len(problems) - SHOWN} more")
    file = options.out / name.replace(" ", "_")
    counts = torch.stack(rows) if rows else torch.zeros(1, 256, dtype=torch.int64)
    found = counts[:, :255].sum(dim=0).nonzero().flatten().tolist()
    street = bool(found) and not isinstance(data, Folders | ListFile)
    names = [entry.name for entry in CITYSCAPES] if street else [str(i) for i in range(max(found, default=-1) + 1)]
    if names:
        shares(names, counts, file.with_name(f"{file.name}_classes.png"), options)
    if shown:
        sheet(names, shown, file.with_name(f"{file.name}.png"), street=street)
    return len(problems)


def shares(names: Sequence[str], counts: Tensor, file: Path, options: argparse.Namespace) -> None:
    """How often each class occurs, and how often rare-class sampling would draw it."""
    of_classes, ignored = counts[:, : len(names)], counts[:, 255].sum() / counts.sum()
    probabilities = None
    try:
        rare = RareClasses(of_classes, temperature=options.temperature, min_pixels=options.min_pixels)
        probabilities = rare.probabilities
    except ValueError as error:
        print(f"  rare-class sampling: {error}")
    print(share_table(names, of_classes, probabilities), end="")
    print(f"{100 * ignored:.2f} % of the pixels are ignored")
    if missing := unseen(names, of_classes):
        print(f"no label shows {', '.join(missing)}")
    draw_shares(file, names, of_classes, probabilities)


def sheet(names: Sequence[str], shown: Sequence[tuple[Tensor, Tensor]], file: Path, *, street: bool) -> None:
    """A dozen images with their labels."""
    colours = {entry.name: entry.colour for entry in CITYSCAPES} if street else {}
    colours = colours or dict(zip(names, map(tuple, palette(len(names)).tolist()), strict=False))
    rows = [
        [
            x
            for image, label in shown[i : i + 3]
            for x in (image.permute(1, 2, 0).numpy(), paint(label, len(names), street))
        ]
        for i in range(0, len(shown), 3)
    ]
    while len(rows[-1]) < len(rows[0]):
        rows[-1].append(0 * rows[0][0])
    draw_grid(file, rows, ("image", "label") * (len(rows[0]) // 2), colours)


def paint(label: Tensor, classes: int, street: bool) -> Picture:
    return street_colours(label) if street else colour(label, classes)


if __name__ == "__main__":
    sys.exit(main())
