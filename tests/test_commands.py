"""The page of commands shows the help of every script that takes options."""

import re
import sys

import pytest
from documents import DOCS

sys.path.insert(0, str(DOCS))
from command_help import COLUMNS, EXAMPLES, SCRIPTS, help_of, page


def test_every_script_with_options_is_on_the_page() -> None:
    shown = (DOCS / "commands.md").read_text("utf-8")
    takes = {file.stem for file in EXAMPLES.glob("*.py") if "argparse" in file.read_text("utf-8")}
    assert takes == set(SCRIPTS)
    assert all(shown.count(f"generated/{name}.txt") == 1 for name in SCRIPTS)


def test_every_script_is_shown_once() -> None:
    page = (DOCS / "examples.md").read_text("utf-8")
    assert all(page.count(f"{{literalinclude}} ../examples/{file.name}\n") == 1 for file in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_that_of_the_script(name: str) -> None:
    text = help_of(name)
    assert text.startswith(f"usage: {name}.py")
    assert "--help" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_has_every_option_and_every_word(name: str) -> None:
    text = help_of(name)
    shown = page(text)
    options = re.findall(r"^  (-.*?)(?:  +|$)", text, re.MULTILINE)
    assert re.findall(r"^`(-.*)`$", shown, re.MULTILINE) == options
    words = shown.replace("```text", "").replace("\\", "")
    assert sorted(re.findall(r"\w+", words)) == sorted(re.findall(r"\w+", text))


def test_what_a_wide_call_does_stands_below_it() -> None:
    text = f"usage: a\n\n    a --b{' ' * COLUMNS}does\n    a --c\n\n{'word ' * 20}\n\nout:\n  --c [X_Y]  all of *it*\n"
    printed, _, options = page(text).partition("**out**")
    assert "\n    a --b\n        does\n    a --c\n" in printed
    assert max(len(line) for line in printed.splitlines()) <= COLUMNS
    assert options == "\n\n`--c [X_Y]`\n: all of \\*it\\*\n"
