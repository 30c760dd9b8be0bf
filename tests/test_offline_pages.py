"""What a page of the docs may fetch by itself, and what citing says."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from documents import DOCS

pytest.importorskip("sphinx")
from offline import copy_mathjax, outside

COLUMNS = 88  # what the text column of a desktop page shows without scrolling


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/a.css">',
        '<img alt="" src="http://badge.example/b.svg"/>',
        '<iframe src="https://video.example"></iframe>',
    ],
)
def test_what_a_browser_loads_from_outside_is_found(tag: str, tmp_path: Path) -> None:
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "page.html").write_text(f"<html><head></head><body>{tag}</body></html>")
    assert list(outside(tmp_path)) == [str(Path("api", "page.html"))]


def test_a_link_to_click_and_files_beside_the_page_are_no_fetch(tmp_path: Path) -> None:
    ours = '<img src="_images/a.png"><link href="_static/a.css"><script src="a.js"></script>'
    (tmp_path / "page.html").write_text(f'<a href="https://arxiv.org">x</a>{ours}')
    assert outside(tmp_path) == {}


@pytest.mark.parametrize("css", ["@import url(https://a.example/b.css);", "p { background: url('//a.example/b.png') }"])
def test_a_style_sheet_that_loads_from_outside_is_found(css: str, tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text(css + " q { background: url(data:image/png;base64,//a) }")
    assert {name: len(found) for name, found in outside(tmp_path).items()} == {"a.css": 1}


PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if "generated" not in page.parts)
SHOWN = sorted((*DOCS.glob("tutorials/*.py"), *DOCS.glob("data_files/*.py")))


def wide_lines(text: str) -> list[str]:
    """The lines of fenced code that a desktop page would wrap; ``{directives}`` are no code."""
    blocks = re.findall(r"^ *```(.*)\n((?:.*\n)*?) *```$", text, flags=re.MULTILINE)
    code = [line for language, block in blocks if "{" not in language for line in block.splitlines()]
    return [line for line in code if len(line) > COLUMNS]


@pytest.mark.parametrize("name", PAGES)
def test_code_fits_the_column(name: str) -> None:
    assert wide_lines((DOCS / name).read_text(encoding="utf-8")) == []


def test_a_wide_line_is_found_in_any_language() -> None:
    wide = "x" * (COLUMNS + 1)
    for fence in ("```python", "```console", "```", "  ```text"):
        end = fence[: fence.index("`") + 3]
        assert wide_lines(f"words\n{fence}\n{wide}\nshort\n{end}\n") == [wide]
    assert wide_lines(f"```{{image}} a.png\n:alt: {wide}\n```\n") == []


@pytest.mark.parametrize("script", SHOWN, ids=[script.name for script in SHOWN])
def test_scripts_that_pages_show_fit_the_column(script: Path) -> None:
    assert [line for line in script.read_text(encoding="utf-8").splitlines() if len(line) > COLUMNS] == []


def test_citing_gives_the_entries_of_the_references() -> None:
    """One text: what is copied is what the references page prints."""
    entries = (DOCS / "references.bib").read_text(encoding="utf-8").split("\n\n")
    page = (DOCS / "citing.md").read_text(encoding="utf-8")
    for key in ("hrda", "daformer"):
        entry = next(entry for entry in entries if entry.startswith(f"@inproceedings{{{key},"))
        fields = [line.strip() for line in entry.splitlines() if line.startswith("  ")]
        shown = " ".join(page.split())
        assert all(
            " ".join(field.split("=", 1)[1].split()) in shown
            for field in fields
            if "title" in field or "author" in field
        )


def test_equations_are_drawn_by_files_beside_the_page(tmp_path: Path) -> None:
    page = SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path)
    copy_mathjax(page, None)
    copied = [file for file in (tmp_path / "_static" / "mathjax").rglob("*") if file.is_file()]
    assert {file.suffix for file in copied} == {".js", ".woff"}
    assert 1e6 < sum(file.stat().st_size for file in copied) < 2e6


def test_a_failed_build_copies_nothing(tmp_path: Path) -> None:
    copy_mathjax(SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path), RuntimeError())
    assert list(tmp_path.iterdir()) == []
