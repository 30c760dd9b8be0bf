"""The page of commands shows the help of every script that takes options."""

import sys

import pytest
from documents import DOCS

sys.path.insert(0, str(DOCS))
from command_help import EXAMPLES, SCRIPTS, help_of


def test_every_script_with_options_is_on_the_page() -> None:
    page = (DOCS / "commands.md").read_text("utf-8")
    takes = {file.stem for file in EXAMPLES.glob("*.py") if "argparse" in file.read_text("utf-8")}
    assert takes == set(SCRIPTS)
    assert all(page.count(f"generated/{name}.txt") == 1 for name in SCRIPTS)


def test_every_script_is_shown_once() -> None:
    page = (DOCS / "examples.md").read_text("utf-8")
    assert all(page.count(f"{{literalinclude}} ../examples/{file.name}\n") == 1 for file in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_that_of_the_script(name: str) -> None:
    text = help_of(name)
    assert text.startswith(f"usage: {name}.py")
    assert "--help" in text
    assert "\x1b" not in text
