"""Each message that the page of troubleshooting quotes is still one of the code."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from documents import DOCS

ROOT = DOCS.parent
MESSAGES = re.findall(r"^\| `(.+?)` \| \S", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


def in_words(node: ast.AST) -> str:
    """The text of a string, with an ellipsis for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(in_words(value) for value in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "…"


@cache
def texts(file: Path) -> str:
    strings = (ast.JoinedStr, ast.Constant)
    nodes = ast.walk(ast.parse(file.read_text("utf-8")))
    return "\n".join(in_words(node) for node in nodes if isinstance(node, strings))


@cache
def all_texts() -> str:
    return "\n".join(texts(file) for folder in ("hrda_lib", "examples") for file in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_in_the_code(message: str) -> None:
    assert message in all_texts()


def test_messages_are_in_the_order_of_the_alphabet() -> None:
    assert len(MESSAGES) > 25
    assert sorted(MESSAGES, key=str.lower) == MESSAGES
