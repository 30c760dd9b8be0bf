"""What the docs build makes beside the pages: a text of all of them, and the examples as one file."""

import re
import sys
import zipfile
from pathlib import Path

import pytest
from documents import DOCS

pytest.importorskip("sphinx")
from sphinx.application import Sphinx

sys.path.insert(0, str(DOCS))
from archive import EXAMPLES, write_archive
from plain_text import write_plain_text

INDEX = """# Library

What it is. And more.

```{toctree}
:caption: First
one
```
```{toctree}
:caption: Second
two
genindex
```
"""


@pytest.mark.filterwarnings("ignore::sphinx.deprecation.RemovedInSphinx11Warning")
def test_pages_as_one_text(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / "conf.py").write_text("project = 'library'\nextensions = ['myst_parser']\n")
    (source / "index.md").write_text(INDEX)
    (source / "one.md").write_text("# One\n\n*A caption.*\n\nSee [](two.md): there.\n\n![a street](a.png)\n")
    (source / "two.md").write_text("# Two\n\n```python\nx = 1\n```\n")
    (source / "a.png").touch()
    app = Sphinx(source, source, out, tmp_path / "trees", "html", status=None)
    app.connect("build-finished", write_plain_text)
    app.build()
    listed = (out / "llms.txt").read_text()
    assert listed.startswith("# library\n\n> What it is\n\n## First\n\n- [One](one.html): See Two: there\n")
    assert listed.endswith("\n## Second\n\n- [Two](two.html)\n")
    text = (out / "llms-full.txt").read_text()
    assert re.findall(r"^# (.*)$", text, re.MULTILINE) == ["index.html", "one.html", "two.html"]
    assert "A caption." in text
    assert "x = 1" in text
    assert "street" not in text


def test_the_archive_holds_the_examples_and_is_always_the_same(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_archive(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = set(archive.namelist())
        assert {"examples/own_data.py", "examples/recipes/hrda.toml", "examples/support/camvid_classes.txt"} <= names
        assert archive.read("examples/own_data.py") == (EXAMPLES / "own_data.py").read_bytes()
    assert not [name for name in names if "pycache" in name or "/runs/" in name]
