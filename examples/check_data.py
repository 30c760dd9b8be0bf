"""Look through data sets before a long run: files, sizes, ids, class shares, and a sheet of pictures of each.

    python examples/check_data.py ROOT... [--kind KIND] [--out DIR]
    python examples/check_data.py --data FILE.py [--out DIR]

A ROOT is a folder of a data set that hrda_lib.data reads (GTA, Cityscapes, plain folders, ...), or a list of lines
image<TAB>label; FILE.py is what own_data.py takes. Every image and label is opened once. What is wrong is named file by
file, and the exit status is 1; frames of one plain colour are only named. Splits whose labels are not published are
looked at without. Printed are sizes, the share of each class, and how often rare-class sampling would draw it. DIR gets
NAME.png, a dozen images with their labels, and NAME_classes.png, the shares as bars.
"""

from support.ending import run_main  # first: it catches Ctrl-C from here on

# isort: split
import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from hrda_lib.data import (
    DATASET_KINDS,
    LabeledImages,
    RareClasses,
    UnlabeledImages,
    check_sizes,
    count_ids,
    open_labeled_splits,
)
from support.data_file import read_data_file
from support.plots import display, draw_grid, draw_shares, paint
from support.tables import share_table, unseen

SHOWN = 20  # problems to print
Named = tuple[str, LabeledImages | UnlabeledImages, Sequence[str]]


def find(
    roots: Sequence[Path], file: Path | None, kind: str | None, *, labels: bool, max_pixels: int | None
) -> Iterator[Named]:
    """Each data set with its name and its classes', which are empty where only the ids are known."""
    seen = Counter[str]()
    if file:
        source, target, names, validation = read_data_file(file)
        yield "source", source, names
        yield "target", target, names
        if validation:
            yield "validation", validation, names
    for root in roots:
        for name, part in open_labeled_splits(root, kind=kind, max_pixels=max_pixels).items():
            seen[name] += 1
            title = name if seen[name] == 1 else f"{name} {seen[name]}"
            looked_at = part if labels and part.has_labels else part.unlabeled()
            yield title, looked_at, [entry.name for entry in part.classes]


def check(
    title: str, dataset: LabeledImages | UnlabeledImages, names: Sequence[str], out: Path, rare: tuple[float, int]
) -> int:
    """Print what there is to know; how many files are wrong."""
    if not isinstance(dataset, UnlabeledImages):  # of a large set, this is known much sooner than the rest
        try:
            check_sizes(dataset, lambda x: tqdm(x, f"{title}, sizes"))
        except ValueError as error:
            print(f"{title}, by the headers of the files: {plain(str(error))}")
    sizes, problems, suspicious = Counter[tuple[int, ...]](), list[str](), list[str]()
    rows, shown = list[Tensor](), list[tuple[Tensor, Tensor]]()
    dozen = {i * len(dataset) // 12 for i in range(12)}
    for i in tqdm(range(len(dataset)), title):
        try:
            image, *label, name = dataset[i]
        except ValueError as error:
            problems.append(plain(str(error)))
            continue
        sizes[tuple(image.shape[1:])] += 1
        ids = label[0] if label else torch.full(image.shape[1:], 255, dtype=torch.uint8)
        if names and len(outside := ids[(ids >= len(names)) & (ids < 255)]):
            problems.append(f"{name}: label {outside[0]} is none of the {len(names)} classes")
        rows.append(count_ids(ids))
        if is_blank(image):
            suspicious.append(plain(name))
        if i in dozen:
            shown.append((image, ids))
    print(f"{title}: {len(dataset)} images, {len(problems)} with a problem")
    print("  sizes (h, w): " + ", ".join(f"{size}: {number}" for size, number in sizes.most_common(5)))
    show(problems)
    show([f"suspicious, not counted as a problem: {name} is one plain colour" for name in suspicious])
    counts = torch.stack(rows) if rows else torch.zeros(1, 256, dtype=torch.int64)
    found = counts[:, :255].sum(dim=0).nonzero().flatten().tolist()
    names = list(names) or [str(i) for i in range(max(found, default=-1) + 1)]
    file = out / title.replace(" ", "_")
    if found:
        shares(names, counts, file.with_name(f"{file.name}_classes.png"), rare)
    if shown:
        pictures = [(display(image), paint(label, names)) for image, label in shown]
        sheet = [[x for pair in pictures[i : i + 3] for x in pair] for i in range(0, len(pictures), 3)]
        titles = ("image", "label") * (len(sheet[0]) // 2)
        draw_grid(file.with_name(f"{file.name}.png"), sheet, titles, names, range(len(names)))
    return len(problems)


def is_blank(image: Tensor) -> bool:
    """Whether every pixel of an image has the same colour, or nearly: a frame that was never drawn."""
    values = image.flatten(1)
    return image.dtype == torch.uint8 and bool((values.amax(1) - values.amin(1) <= 3).all())


def show(lines: Sequence[str]) -> None:
    """The first of many lines."""
    print("".join(f"  {text}\n" for text in lines[:SHOWN]), end="")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more")


def plain(text: str) -> str:
    """File names may hold what steers a terminal; such letters are shown by their escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shares(names: Sequence[str], counts: Tensor, file: Path, rare: tuple[float, int]) -> None:
    """How often each class occurs, and how often rare-class sampling would draw it."""
    of_classes, ignored = counts[:, : len(names)], counts[:, 255].sum() / counts.sum()
    probabilities = None
    try:
        probabilities = RareClasses(of_classes, temperature=rare[0], min_pixels=rare[1]).probabilities
    except ValueError as error:
        print(f"  rare-class sampling: {error}")
    print(share_table(names, of_classes, probabilities), end="")
    print(f"{100 * ignored:.2f} % of the pixels are ignored")
    if missing := unseen(names, of_classes):
        print(f"no label shows {', '.join(missing)}")
    draw_shares(file, names, of_classes, probabilities)


@run_main
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, metavar="ROOT")
    parser.add_argument("--data", type=Path, metavar="FILE.py", help="look through its source, target and validation")
    parser.add_argument("--kind", choices=DATASET_KINDS, help="default: by what the folder holds")
    parser.add_argument("--out", type=Path, default=Path("runs/check_data"), help="default: %(default)s")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="let in larger pictures of a ROOT than Pillow does")
    parser.add_argument("--no-labels", action="store_true", help="look at images only: a target")
    parser.add_argument("--temperature", type=float, default=0.01, help="of rare-class sampling; default: %(default)s")
    parser.add_argument("--min-pixels", type=int, default=3000, help="of a class drawn there; default: %(default)s")
    options = parser.parse_args(arguments)
    if not options.roots and not options.data:
        parser.error("a ROOT or --data FILE.py is needed")
    options.out.mkdir(parents=True, exist_ok=True)
    rare, labels = (options.temperature, options.min_pixels), not options.no_labels
    parts = find(options.roots, options.data, options.kind, labels=labels, max_pixels=options.max_pixels)
    notes, log = logging.StreamHandler(sys.stdout), logging.getLogger("hrda_lib.data")
    log.addHandler(notes)  # which files are left out
    try:
        return int(sum(check(*part, options.out, rare) for part in parts) > 0)
    finally:
        log.removeHandler(notes)


if __name__ == "__main__":
    sys.exit(main())
