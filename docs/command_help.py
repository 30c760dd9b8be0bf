"""The ``--help`` of each script, for the page of commands: written by the docs build, so that it cannot be stale."""

import io
import os
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = ("gta2cityscapes", "ablation", "own_data", "vfm_uda", "predict", "evaluate", "check_data")


def help_of(name: str) -> str:
    """What ``python examples/NAME.py --help`` prints, 88 columns wide and without colours."""
    said = io.StringIO()
    wide = {"COLUMNS": "88", "NO_COLOR": "1", "PYTHON_COLORS": "0"}
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


def write(folder: Path) -> None:
    """``folder/NAME.txt`` for each script; a file is touched only where its text changes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCRIPTS:
        file, text = folder / f"{name}.txt", help_of(name)
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")
