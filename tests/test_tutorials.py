"""The tutorials run as scripts, cell by cell, and the notebooks hold the same code."""

import sys
from pathlib import Path

import pytest
import torch
from documents import DOCS

sys.path.insert(0, str(DOCS))
from notebooks import TUTORIALS, drawn, notebook, page, run

SCRIPTS = sorted(TUTORIALS.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_cells_of_the_notebook_run(script: Path) -> None:
    torch.manual_seed(0)
    names = {"__name__": "tutorial"}
    made = notebook(script.read_text("utf-8"))["cells"]
    for cell in made:
        if cell["cell_type"] == "code":
            exec(compile(cell["source"], str(script), "exec"), names)
    drawn()  # closes what is open
    assert made[0]["cell_type"] == "markdown"
    assert made[0]["source"].startswith("# ")


def test_pages_and_notebooks_show_what_cells_print_and_draw() -> None:
    script = (
        "# %% [markdown]\n# # Title\n# %%\nx = 1\n# %%\nfrom matplotlib import pyplot as plt\n"
        "figure = plt.figure(figsize=(1, 1))\nprint('x is', x)\n"
    )
    outputs = run(script)
    assert [(output.text, len(output.pictures)) for output in outputs] == [("", 0), ("", 0), ("x is 1\n", 1)]
    assert outputs[2].pictures[0].startswith(b"\x89PNG")
    text = page(script, "name", outputs)
    assert text.index("print('x is', x)") < text.index("x is 1\n") < text.index("name-2-0.png")
    assert [len(cell.get("outputs", ())) for cell in notebook(script, outputs)["cells"]] == [0, 0, 2]


def test_no_code_is_lost_on_the_way() -> None:
    for script in SCRIPTS:
        text = script.read_text("utf-8")
        code = [line for line in text.splitlines() if line and not line.startswith("#")]
        cells = notebook(text)["cells"]
        kept = [line for cell in cells if cell["cell_type"] == "code" for line in cell["source"].splitlines() if line]
        assert kept == code
