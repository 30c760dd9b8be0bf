"""The tutorials, scripts in cells that ``# %%`` begins, as pages and as notebooks; called by the docs build."""

import json
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parent / "tutorials"


def cells(script: str) -> list[tuple[bool, str]]:
    """(whether it is text, what is in it) of each cell."""
    found = []
    for part in ("\n" + script).split("\n# %%")[1:]:
        first, _, body = part.partition("\n")
        text = first.strip() == "[markdown]"
        lines = [
            line.removeprefix("#").removeprefix(" ") if text else line
            for line in body.strip("\n").splitlines()
        ]
        found.append((text, "\n".join(lines).strip("\n")))
    return found


def notebook(script: str) -> dict[str, object]:
    """In the format of Jupyter, version 4.5, without outputs."""
    code = {"execution_count": None, "outputs": []}
    made = [
        {
            "cell_type": "markdown" if text else "code",
            "id": f"cell{i}",
            "metadata": {},
            "source": body,
        }
        | ({} if text else code)
        for i, (text, body) in enumerate(cells(script))
    ]
    return {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def page(script: str, name: str) -> str:
    """In Markdown, with a link to the notebook."""
    body = "\n\n".join(
        body if text else f"```python\n{body}\n```" for text, body in cells(script)
    )
    return f"{body}\n\nThe same as a notebook: {{download}}`{name}.ipynb`\n"


def write(folder: Path) -> None:
    """``NAME.md`` and ``NAME.ipynb`` of each tutorial; a file is touched only where its text changes."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(TUTORIALS.glob("*.py")):
        script, name = source.read_text("utf-8"), source.stem
        for file, text in (
            (f"{name}.md", page(script, name)),
            (f"{name}.ipynb", json.dumps(notebook(script), indent=1)),
        ):
            if (
                not (folder / file).exists()
                or (folder / file).read_text("utf-8") != text
            ):
                (folder / file).write_text(text, "utf-8")
