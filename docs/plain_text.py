"""The pages for programs, written by the docs build: ``llms.txt``, a list, and ``llms-full.txt``, all as one text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.builders.text import TextBuilder


def write_plain_text(app: Any, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    builder = TextBuilder(app, app.env)
    builder.init()
    folder, root = Path(app.outdir), app.config.root_doc
    pages = [root, *(page for _, page in listed(app.env))]
    trees = {page: app.env.get_and_resolve_doctree(page, builder) for page in pages}
    (folder / "llms.txt").write_text(contents(app.env, trees), encoding="utf-8")
    texts = [f"# {page}.html\n\n{plain(builder, tree)}" for page, tree in trees.items()]
    (folder / "llms-full.txt").write_text("\n\n".join(texts), encoding="utf-8")


def listed(env: Any) -> Iterator[tuple[str, str]]:
    """Caption of the menu and page, in its order; the index that Sphinx makes is no page."""
    for tree in env.get_doctree(env.config.root_doc).findall(addnodes.toctree):
        pages = [page for _, page in tree["entries"] if page in env.found_docs]
        for page in pages:
            yield from ((tree["caption"], found) for found in below(env, page))


def below(env: Any, page: str) -> Iterator[str]:
    yield page
    for other in env.toctree_includes.get(page, ()):
        yield from below(env, other)


def contents(env: Any, trees: dict[str, Any]) -> str:
    """In the form of llmstxt.org: title, summary, and the pages with their first sentences."""
    summary = begins(trees[env.config.root_doc])
    lines, last = [f"# {env.config.project}", "", f"> {summary}"], None
    for caption, page in listed(env):
        if caption != last:
            lines += ["", f"## {caption}", ""]
        last, title, said = caption, env.titles[page].astext(), begins(trees[page])
        lines.append(f"- [{title}]({page}.html)" + (f": {said}" if said else ""))
    return "\n".join(lines) + "\n"


def begins(tree: Any) -> str:
    """The first sentence right below a title; captions of pictures are set in italics."""
    for paragraph in tree.findall(nodes.paragraph):
        caption = isinstance(paragraph[0], nodes.emphasis)
        if isinstance(paragraph.parent, nodes.section) and not caption:
            return " ".join(paragraph.astext().split()).partition(". ")[0].rstrip(".:")
    return ""


def plain(builder: Any, tree: Any) -> str:
    for picture in list(tree.findall(nodes.image)):
        picture.parent.remove(picture)
    writer = builder.create_translator(tree, builder)
    tree.walkabout(writer)
    return str(writer.body)
