"""Writes docs/tables/integrations.md: what is shown of each code base, from its page and the names of its tests.

python tests/integrations_table.py
"""

import ast
from pathlib import Path

from documents import DOCS
from integration_pages import glue

TABLE = DOCS / "tables" / "integrations.md"
TESTS = Path(__file__).parent / "integrations"
PAGES = {
    "torchvision": "torchvision",
    "transformers": "transformers",
    "segmentation_models": "segmentation-models-pytorch",
    "timm": "timm",
    "monai": "MONAI",
    "lightning": "Lightning",
    "fabric_accelerate": "Fabric, Accelerate",
    "ddp": "plain DDP",
    "semi_supervised": "a semi-supervised code base",
}
LOOPS = ("a_plain_loop", "as_the_network_alone", "are_one_written_out")
SHOWN = {  # a column: what the name of a test holds that shows it
    "one scale": ("self_training_is_that", "losses_and_averages_are", *LOOPS),
    "two scales": ("hrda_is_that", *LOOPS),
    "odd size": ("odd_size",),
    "resume": ("resume",),
    "compiled": ("compiled",),
}


def tests_of(page: str) -> list[str]:
    tree = ast.parse((TESTS / f"test_{page}.py").read_text(encoding="utf-8"))
    return [part.name for part in tree.body if isinstance(part, ast.FunctionDef) and part.name.startswith("test_")]


def row(page: str, title: str) -> list[str]:
    names = tests_of(page)
    shown = ["yes" if any(word in name for word in words for name in names) else "" for words in SHOWN.values()]
    lines = ", ".join(f"{label} {count}" for label, count in glue(page).items())
    return [title, lines, *shown]


def table() -> str:
    rows = [["code base", "lines of glue", *SHOWN], ["---"] * (2 + len(SHOWN))]
    rows += [row(page, title) for page, title in PAGES.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
