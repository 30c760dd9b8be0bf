"""The tutorials run as scripts, cell by cell, and the notebooks hold the same code."""

import sys
from pathlib import Path

import pytest
import torch
from documents import DOCS

sys.path.insert(0, str(DOCS))
from notebooks import TUTORIALS, notebook

SCRIPTS = sorted(TUTORIALS.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_cells_of_the_notebook_run(script: Path) -> None:
    torch.manual_seed(0)
    names = {"__name__": "tutorial"}
    made = notebook(script.read_text("utf-8"))["cells"]
    for cell in made:
        if cell["cell_type"] == "code":
            exec(compile(cell["source"], str(script), "exec"), names)
    assert made[0]["cell_type"] == "markdown"
    assert made[0]["source"].startswith("# ")


def test_no_code_is_lost_on_the_way() -> None:
    for script in SCRIPTS:
        text = script.read_text("utf-8")
        code = [line for line in text.splitlines() if line and not line.startswith("#")]
        cells = notebook(text)["cells"]
        kept = [line for cell in cells if cell["cell_type"] == "code" for line in cell["source"].splitlines() if line]
        assert kept == code
