"""The ``--help`` of each script, for the page of commands: written by the docs build, so that it cannot be stale."""

import io
import os
import re
import sys
import textwrap
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
COLUMNS = 88  # of a block on a desktop page
SCRIPTS = (
    "gta2cityscapes",
    "ablation",
    "own_data",
    "predict",
    "evaluate",
    "compare",
    "check_data",
    "vfm_uda",
)


def help_of(name: str) -> str:
    """What ``python examples/NAME.py --help`` prints, a line an option and without colours."""
    said = io.StringIO()
    wide = {"COLUMNS": "1000", "NO_COLOR": "1", "PYTHON_COLORS": "0"}
    arguments, path = [f"{name}.py", "--help"], [str(EXAMPLES), *sys.path]
    with (
        patch.dict(os.environ, wide),
        patch.object(sys, "argv", arguments),
        patch.object(sys, "path", path),
        redirect_stdout(said),
        suppress(SystemExit),
    ):
        import_module(name).main(["--help"])
    return said.getvalue()


def page(text: str) -> str:
    """Help as Markdown: the description as it is printed, in lines that fit, and the options as a list."""
    description, *groups = re.split(r"^(?=[\w -]+:\n  )", text, flags=re.MULTILINE)
    parts = [f"```text\n{narrow(description)}\n```"]
    for group in groups:
        title, _, options = group.partition(":\n")
        entries = re.findall(r"^  (\S.*?)(?: {2,}|\n {3,})(.+)$", options, re.MULTILINE)
        parts.append(f"**{title}**")
        parts += [f"`{name}`\n: {literal(said)}" for name, said in entries]
    return "\n\n".join(parts) + "\n"


def literal(said: str) -> str:
    """With signs that Markdown would take for its own, and options as code."""
    said = re.sub(r"([\\`*_<>\[\]$])", r"\\\1", said)
    return re.sub(r"(?<!\w)(--[a-z-]+)", r"`\1`", said)


def narrow(description: str) -> str:
    """Blocks with wider lines made anew: what a call does goes below it, and sentences into lines that fit."""
    blocks = description.strip().split("\n\n")
    return "\n\n".join(block if fits(block) else refit(block) for block in blocks)


def fits(block: str) -> bool:
    return max(len(line) for line in block.splitlines()) <= COLUMNS


def refit(block: str) -> str:
    if "\n    " not in f"\n{block}":
        return textwrap.fill(" ".join(block.split()), COLUMNS)
    lines, below = [], " " * 8
    for entry in re.split(r"\n(?! {8})", block):
        call, *does = re.split(r"\s{2,}", entry.strip(), maxsplit=1)
        lines.append(entry[: len(entry) - len(entry.lstrip())] + call)
        lines += textwrap.wrap(
            " ".join(" ".join(does).split()),
            COLUMNS,
            initial_indent=below,
            subsequent_indent=below,
        )
    return "\n".join(lines)


def write(folder: Path) -> None:
    """``folder/NAME.txt`` for each script; a file is touched only where its text changes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCRIPTS:
        file, text = folder / f"{name}.txt", page(help_of(name))
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")
