"""Every arm on several seeds: mean and spread of what each part of HRDA adds, as a table, a panel and curves.

    python examples/ablation.py                                          all arms on three seeds of the toy data
    python examples/ablation.py --arms control hrda context --seeds 1
    python examples/ablation.py --gta DIR --cityscapes DIR [--recipe NAME]

Options are those of gta2cityscapes.py. What is complete is kept: a call that adds arms or seeds trains only these.
"""

from support.ending import run_main  # first: it catches Ctrl-C from here on

# isort: split
import argparse
import sys
from collections.abc import Sequence
from typing import Any

import gta2cityscapes
from gta2cityscapes import assemble, parse, train
from support.arms import Arm, run_arms
from support.command_line import options_of

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "context": ("context alone", {"objective": "context", "fixed_attention": 0.0}),
    "detail": ("detail alone", {"objective": "detail", "fixed_attention": 1.0}),
    "average": ("both, fixed average", {"fixed_attention": 0.5}),
    "separate": (
        "both, separate losses",
        {"objective": "separate", "detail_weight": 0.5, "fixed_attention": 0.5},
    ),
}
ARMS = {**gta2cityscapes.ARMS, "control-long": Arm("source only, as much time as hrda", "source", length=2.6)}
for _name, (_title, _changes) in VARIANTS.items():
    ARMS[f"{_name}-source"] = Arm(f"{_title}, source only", changes=_changes)
    ARMS[_name] = ARMS["hrda"]._replace(title=_title, start=f"{_name}-source", changes=_changes)
MASKED = {"mask_ratio": 0.7, "mask_block": 32}
ARMS["mic"] = ARMS["hrda"]._replace(title="HRDA with masked images (MIC)", changes=MASKED)
ARMS["bf16"] = ARMS["hrda"]._replace(title="HRDA in bfloat16", changes={"precision": "bf16"})
ALL = ("source", "control", "control-long", "oracle", *VARIANTS, "mic", "hrda")


@run_main
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(arms=ALL)
    text = "number of seeds, from --seed on (default: %(default)s)"
    options_of(parser, "training").add_argument("--seeds", type=int, metavar="N", default=3, help=text)
    settings, running, folders, options = parse(parser, arguments, ARMS)
    if options["seeds"] < 1:
        parser.error(f"--seeds must be positive, got {options['seeds']}")
    seeds, stats = options["seeds"], options["class_stats"]
    return run_arms(train, assemble, ARMS, settings, running, folders, stats=stats, seeds=seeds)


if __name__ == "__main__":
    sys.exit(main())
