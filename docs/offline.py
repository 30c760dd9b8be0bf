"""Pages that need no network: MathJax from an installed package, and a check that nothing is fetched from outside."""

import re
import shutil
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError

MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2")  # 1.6 MB of the package's 24
OUTSIDE = re.compile(r"(https?:)?//")


class Fetched(HTMLParser):
    """What a browser loads by itself for a page: scripts, styles, icons, pictures, frames; not what a reader clicks."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.feed(html)

    def handle_starttag(
        self, tag: str, attributes: list[tuple[str, str | None]]
    ) -> None:
        names = (
            {"href"}
            if tag == "link"
            else set()
            if tag == "a"
            else {"src", "srcset", "data", "poster"}
        )
        values = [value for name, value in attributes if name in names and value]
        self.outside += [value for value in values if OUTSIDE.match(value)]


def styles_from_outside(css: str) -> list[str]:
    """The addresses that a style sheet loads from elsewhere."""
    return [
        address
        for address in re.findall(
            r"""(?:@import\s+(?:url\()?|url\()["']?([^"')\s]+)""", css
        )
        if OUTSIDE.match(address)
    ]


def outside(folder: Path) -> dict[str, list[str]]:
    """Page or style sheet -> what it fetches from outside; empty where all is well."""
    pages = {
        page: Fetched(page.read_text(encoding="utf-8")).outside
        for page in folder.rglob("*.html")
    }
    styles = {
        sheet: styles_from_outside(sheet.read_text(encoding="utf-8"))
        for sheet in folder.rglob("*.css")
    }
    return {
        str(file.relative_to(folder)): found
        for file, found in (pages | styles).items()
        if found
    }


def copy_mathjax(app: Any, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    spec = find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ExtensionError(
            "sphinx-mathjax-offline is missing: python -m pip install -e '.[docs]'"
        )
    package = Path(spec.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for name in MATHJAX:
        files = (
            sorted((package / name).iterdir())
            if (package / name).is_dir()
            else [package / name]
        )
        for file in files:
            place = target / file.relative_to(package)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def check_offline(app: Any, exception: Exception | None) -> None:
    """Fail the build where a page would fetch something from outside."""
    if (
        exception is None
        and app.builder.format == "html"
        and (found := outside(Path(app.outdir)))
    ):
        raise ExtensionError(f"pages fetch from outside: {found}")
