"""Networks measured on dusk photographs of CamVid, by labels that were drawn for it: docs/target_images.md.

    python benchmarks/dusk.py IMAGES --arm control RUN RUN RUN --arm hrda RUN RUN RUN [--picture FILE]

IMAGES is the folder of the photographs, a RUN a run folder of own_data.py; the runs of an arm are of several seeds, in
the same order. dusk_labels/ has coarse labels of 16 of the photographs: polygons drawn by eye over brightened
photographs, unsure pixels 255, before any network was looked at.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "examples"))

# isort: split
from hrda_lib.data import LabeledFiles
from support.measuring import measure
from support.networks import heads
from support.plots import draw_grid
from support.run_folder import load
from support.tables import class_numbers, class_table

LABELS = Path(__file__).parent / "dusk_labels"
SHOWN = (0, 6, 9, 13)  # of its files, in the picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--arm", nargs="+", action="append", required=True, metavar=("NAME", "RUN"))
    parser.add_argument("--picture", type=Path, help="truth, and what the first run of each arm says")
    options = parser.parse_args()
    labels = sorted(LABELS.glob("*.png"))
    names = [file.name for file in labels]
    photographs = LabeledFiles([options.images / name for name in names], labels, names)
    results, rows = defaultdict(list), [[photographs.label(i)] for i in SHOWN]
    for arm, *runs in options.arm:
        for run in runs:
            model, spec = load(Path(run))
            confusion, attention = measure(model, spec, photographs)
            classes = range(len(spec.classes))
            results[arm].append({"classes": class_numbers(confusion, attention, spec.classes, classes)})
            if options.picture and run == runs[0]:
                for row, i in zip(rows, SHOWN, strict=True):
                    maps = heads(model, spec.feed(photographs[i].image[None]))
                    row.append(maps["fused"][0].argmax(0))
    print(class_table(results))
    if options.picture:
        draw_grid(options.picture, rows, ["drawn labels", *results], spec.classes, range(len(spec.classes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
