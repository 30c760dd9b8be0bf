"""The tutorials, scripts in cells that ``# %%`` begins, as pages and as notebooks; called by the docs build."""

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import NamedTuple

TUTORIALS = Path(__file__).resolve().parent / "tutorials"


class Output(NamedTuple):
    text: str  # what a cell prints
    pictures: list[bytes]  # what it draws, as PNG


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


def run(script: str) -> list[Output]:
    """The output of each cell, from top to bottom."""
    names, outputs = {"__name__": "tutorial"}, []
    for text, body in cells(script):
        said = io.StringIO()
        if not text:
            with contextlib.redirect_stdout(said):
                exec(compile(body, "tutorial", "exec"), names)
        outputs.append(Output(said.getvalue(), drawn()))
    return outputs


def drawn() -> list[bytes]:
    """The open figures, which are closed."""
    plt = sys.modules.get("matplotlib.pyplot")
    pictures = []
    for number in plt.get_fignums() if plt else ():
        file = io.BytesIO()
        plt.figure(number).savefig(file, format="png", dpi=150)
        plt.close(number)
        pictures.append(file.getvalue())
    return pictures


def notebook(script: str, outputs: list[Output] | None = None) -> dict[str, object]:
    """In the format of Jupyter, version 4.5; outputs None: without any."""
    made = []
    parts = cells(script)
    outputs = outputs or [Output("", [])] * len(parts)
    for i, ((text, body), output) in enumerate(zip(parts, outputs, strict=True)):
        cell = {"id": f"cell{i}", "metadata": {}, "source": body}
        if text:
            made.append({"cell_type": "markdown"} | cell)
        else:
            shown = {"execution_count": None, "outputs": as_jupyter(output)}
            made.append({"cell_type": "code"} | cell | shown)
    return {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def as_jupyter(output: Output) -> list[dict[str, object]]:
    text = {"output_type": "stream", "name": "stdout", "text": output.text}
    pictures = [
        {
            "output_type": "display_data",
            "data": {"image/png": base64.b64encode(picture).decode()},
            "metadata": {},
        }
        for picture in output.pictures
    ]
    return [text, *pictures] if output.text else pictures


def page(script: str, name: str, outputs: list[Output]) -> str:
    """In Markdown, with a link to the notebook; pictures are named ``NAME-CELL-PICTURE.png``."""
    parts = []
    for i, ((text, body), output) in enumerate(
        zip(cells(script), outputs, strict=True)
    ):
        parts.append(body if text else f"```python\n{body}\n```")
        if output.text:
            parts.append(f"```{{code-block}} none\n:class: printed\n\n{output.text}```")
        for j in range(len(output.pictures)):
            alt = "What the lines above draw; the text says what to look at."
            image = f"```{{image}} {name}-{i}-{j}.png"
            parts.append(f"{image}\n:class: figure\n:alt: {alt}\n```")
    parts.append(f"The same as a notebook: {{download}}`{name}.ipynb`\n")
    return "\n\n".join(parts)


def write(folder: Path) -> None:
    """``NAME.md`` and ``NAME.ipynb`` of each tutorial that is newer than they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(TUTORIALS.glob("*.py")):
        script, name = source.read_text("utf-8"), source.stem
        made = folder / f"{name}.md"
        newest = max(file.stat().st_mtime for file in (source, Path(__file__)))
        if made.exists() and made.stat().st_mtime > newest:
            continue
        outputs = run(script)
        for i, output in enumerate(outputs):
            for j, picture in enumerate(output.pictures):
                (folder / f"{name}-{i}-{j}.png").write_bytes(picture)
        book = json.dumps(notebook(script, outputs), indent=1)
        (folder / f"{name}.ipynb").write_text(book, "utf-8")
        made.write_text(page(script, name, outputs), "utf-8")
