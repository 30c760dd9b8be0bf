"""Look through data sets before a long run: files, sizes, ids, class shares, and a sheet of pictures of each.

    python examples/check_data.py ROOT... [--kind KIND] [--recipe NAME] [--out DIR]
    python examples/check_data.py --source DIR --target DIR [--classes names.txt] [--out DIR]
    python examples/check_data.py --data FILE.py [--out DIR]

A ROOT is a folder of a data set that hrda_lib.data reads (GTA, Cityscapes, plain folders, ...), or a list of lines
image<TAB>label; the other two are what own_data.py takes. Every image and label is opened once. What is wrong is named
file by file, and the exit status is 1; frames of one plain colour are only named. Splits whose labels are not published
are looked at without. Printed are sizes, the share of each class, and how often rare-class sampling draws it, by the
settings that own_data.py has, or by those of a recipe. DIR gets NAME.png, a dozen images with their labels, and
NAME_classes.png, the shares as bars; NAME is the folder's or the file's, or for a street data set its own.
"""

from support.ending import run_main  # first: it catches Ctrl-C from here on

# isort: split
import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gta2cityscapes import Settings
from hrda_lib.data import (
    DATASET_KINDS,
    LabeledImages,
    UnlabeledImages,
    check_sizes,
    count_ids,
    open_labeled_splits,
)
from support.batches import rare_classes
from support.command_line import RECIPES, add_settings, one_of, options_of, read_settings
from support.data_file import add_own_data, open_own_data, unclear
from support.plots import display, draw_grid, draw_shares
from support.progress import bar
from support.tables import share_table, unseen

SHOWN = 20  # problems to print
SAMPLING = ("rare_classes", "temperature", "min_pixels")  # what rare-class sampling hangs on


class Part(NamedTuple):
    """A data set to look through."""

    title: str
    images: LabeledImages | UnlabeledImages
    classes: Sequence[str]  # empty where only the ids are known
    name: str  # of its pictures


def find(options: Mapping[str, Any]) -> Iterator[Part]:
    """Each data set that the command line names."""
    if options["data"] or options["source"]:
        found, _ = open_own_data(options)
        for title, folder in (("source", (options["source"] or [None])[0]), ("target", options["target"])):
            yield Part(title, getattr(found, title), found.names, f"{stem(options['data'] or folder)}_{title}")
        if found.validation:
            place = stem(options["data"] or options["val"])
            yield Part("validation", found.validation, found.names, f"{place}_validation")
    titles, names = Counter[str](), Counter[str]()
    for root in options["roots"]:
        for title, part in open_labeled_splits(root, kind=options["kind"], max_pixels=options["max_pixels"]).items():
            looked_at = part.unlabeled() if options["no_labels"] or not part.has_labels else part
            classes = [entry.name for entry in part.classes]
            name = stem(root) if title == "folders" else title.replace(" ", "_")
            yield Part(numbered(titles, title, " "), looked_at, classes, numbered(names, name, "_"))


def stem(path: Path) -> str:
    """The name of a folder, however it is given, or of a file without its ending."""
    path = path.resolve()
    return path.stem if path.is_file() else path.name


def numbered(seen: Counter[str], name: str, between: str) -> str:
    """A name, with a number from the second time on."""
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}{between}{seen[name]}"


def check(part: Part, out: Path, settings: Settings) -> int:
    """Print what there is to know; how many files are wrong."""
    title, dataset, names, name = part
    if not isinstance(dataset, UnlabeledImages):  # of a large set, this is known much sooner than the rest
        try:
            check_sizes(dataset, lambda x: bar(x, f"{title}, sizes"))
        except ValueError as error:
            print(f"{title}, by the headers of the files: {plain(str(error))}")
    sizes, problems, suspicious = Counter[tuple[int, ...]](), list[str](), list[str]()
    rows, shown = list[Tensor](), list[tuple[Tensor, Tensor]]()
    dozen = {i * len(dataset) // 12 for i in range(12)}
    for i in bar(range(len(dataset)), title):
        try:
            image, *label, frame = dataset[i]
        except ValueError as error:
            problems.append(plain(str(error)))
            continue
        sizes[tuple(image.shape[1:])] += 1
        ids = label[0] if label else torch.full(image.shape[1:], 255, dtype=torch.uint8)
        if names and len(outside := ids[(ids >= len(names)) & (ids < 255)]):
            problems.append(f"{frame}: label {outside[0]} is none of the {len(names)} classes")
        rows.append(count_ids(ids))
        if is_blank(image):
            suspicious.append(plain(frame))
        if i in dozen:
            shown.append((image, ids))
    print(f"{title}: {len(dataset)} images, {len(problems)} with a problem")
    common = ", ".join(f"{size}: {number}" for size, number in sizes.most_common(5))
    print(f"  sizes (h, w): {common}" if sizes else "  none of them can be used: no sizes, no shares and no pictures")
    show(problems)
    show([f"suspicious, not counted as a problem: {name} is one plain colour" for name in suspicious])
    counts = torch.stack(rows) if rows else torch.zeros(1, 256, dtype=torch.int64)
    found = counts[:, :255].sum(dim=0).nonzero().flatten().tolist()
    names = list(names) or [str(i) for i in range(max(found, default=-1) + 1)]
    if found:
        shares(names, counts, out / f"{name}_classes.png", settings)
    if shown:
        draw_sheet(out / f"{name}.png", shown, names, labels=not isinstance(dataset, UnlabeledImages))
    return len(problems)


def draw_sheet(file: Path, shown: Sequence[tuple[Tensor, Tensor]], names: Sequence[str], *, labels: bool) -> None:
    """Images, four in a row, or three with their labels."""
    across = 3 if labels else 4
    pictures = [(display(image), label) if labels else (display(image),) for image, label in shown]
    sheet = [[x for part in pictures[i : i + across] for x in part] for i in range(0, len(pictures), across)]
    titles = (("image", "label") if labels else ("image",)) * min(across, len(shown))
    draw_grid(file, sheet, titles, names, range(len(names)) if labels else ())


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


def shares(names: Sequence[str], counts: Tensor, file: Path, settings: Settings) -> None:
    """How often each class occurs, and how often rare-class sampling draws it in training."""
    of_classes, ignored = counts[:, : len(names)], counts[:, 255].sum() / counts.sum()
    probabilities = None
    try:
        rare = rare_classes(settings, of_classes)
        probabilities = rare.probabilities if rare else None
    except ValueError as error:
        print(f"  rare-class sampling: {error}")
    print(share_table(names, of_classes, probabilities), end="")
    print(f"{100 * ignored:.2f} % of the pixels are ignored")
    if missing := unseen(names, of_classes):
        print(f"no label shows {', '.join(missing)}")
    draw_shares(file, names, of_classes, probabilities)


@run_main
def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    settings = read_settings(Settings, options["recipe"], {name: options[name] for name in SAMPLING})
    out: Path = options["out"]
    out.mkdir(parents=True, exist_ok=True)
    notes, log = logging.StreamHandler(sys.stdout), logging.getLogger("hrda_lib.data")
    log.addHandler(notes)  # which files are left out
    try:
        return int(sum(check(part, out, settings) for part in find(options)) > 0)
    finally:
        log.removeHandler(notes)


def parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    usage = "%(prog)s [ROOT ...] [option ...]"
    parser = argparse.ArgumentParser(
        usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", nargs="*", type=Path, metavar="ROOT", help="folders of data sets, or lists of files")
    add_own_data(parser)
    add, text = options_of(parser, "data").add_argument, "kind of every ROOT"
    text = f"{text} ({one_of(DATASET_KINDS)}; default: by what the folder holds)"
    add("--kind", choices=DATASET_KINDS, metavar="KIND", help=text)
    add("--no-labels", action="store_true", help="look at the images of every ROOT alone (default: off)")
    text = "take what rare-class sampling hangs on, where it is not given, from examples/recipes/NAME.toml"
    text = f"{text} ({one_of(list(RECIPES))}; default: %(default)s)"
    add("--recipe", choices=RECIPES, metavar="NAME", default="own_data", help=text)
    but = {entry.name for entry in fields(Settings)} - {*SAMPLING}
    add_settings(parser, Settings, but=but, recipe="own_data")
    text = "folder of the pictures (default: %(default)s)"
    options_of(parser, "output").add_argument(
        "--out", type=Path, metavar="DIR", default=Path("runs/check_data"), help=text
    )
    options = vars(parser.parse_args(arguments))
    own = any(options[name] for name in ("source", "target", "classes", "val", "data"))
    if not own and not options["roots"]:
        parser.error("a ROOT, --source DIR --target DIR or --data FILE.py is needed")
    if own and (problem := unclear(options)):
        parser.error(problem)
    return options


if __name__ == "__main__":
    sys.exit(main())
