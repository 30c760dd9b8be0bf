"""Pages that fold on a narrow screen, made of the finished HTML: what is searched and copied stays as it is.

Names in tables may break after a punctuation mark; tables of sentences have the heading of its column in each cell,
shown where ``pages.css`` puts cells one below the other; the parts of an equation stand side by side where they fit.
"""

import html
import re
from statistics import mean
from typing import Any

SENTENCES = 90  # letters a row, from which a table of three columns or more folds
LONG = 21  # letters of a name, from which it may break
Found = re.Match[str]


def foldable(body: str) -> str:
    """A page's HTML."""
    body = re.sub(r"<table.*?</table>", table, body, flags=re.DOTALL)
    shown = r'(<div class="math notranslate nohighlight">\n)\\\[((?:(?!\\begin).)*?)\\\](</div>)'
    return re.sub(shown, equation, body, flags=re.DOTALL)


def words(part: str) -> str:
    """Without tags."""
    return html.unescape(re.sub(r"<[^>]*>", "", part)).strip()


def table(found: Found) -> str:
    text = re.sub(
        rf'(<span class="pre">)([^<]{{{LONG},}})(?=</span>)', breakable, found[0]
    )
    heads = [words(head) for head in re.findall(r"<th\b.*?</th>", text, re.DOTALL)]
    rows = re.findall(r"<tr\b.*?</tr>", text.partition("<tbody>")[2], re.DOTALL)
    if len(heads) < 3 or mean(len(words(row)) for row in rows) < SENTENCES:
        return text
    if text.count('class="text-right"') >= len(rows) * len(heads) / 2:  # numbers
        return text
    for row in rows:
        text = text.replace(row, labelled(row, heads))
    return text.replace('class="', 'class="folds ', 1)


def labelled(row: str, heads: list[str]) -> str:
    """The heading of its column in each cell that is not empty."""
    cells = re.split(r"(<td\b[^>]*>)", row)
    for i, head in enumerate(heads):
        if head and words(cells[2 * i + 2]):
            cells[2 * i + 1] += f'<span class="heading">{html.escape(head)}</span>'
    return "".join(cells)


def breakable(found: Found) -> str:
    """A long name may break between spans, inside of which nothing breaks."""
    between = r'\1</span><wbr><span class="pre">'
    mark = r"(?<=[\w\"')])([/_.=(]+|,)(?=[\w\"'*(\[])"
    return found[1] + re.sub(mark, between, found[2])


def equation(found: Found) -> str:
    parts = re.split(r"\s*\\q?quad\s*", found[2])
    if len(parts) == 1:
        return found[0]
    shown = "".join(f"{found[1]}\\[{part}\\]{found[3]}" for part in parts)
    return f'<div class="parts">{shown}</div>'


def fold(app: Any, page: str, template: str, context: dict[str, Any], doc: Any) -> None:
    if "body" in context:
        context["body"] = foldable(context["body"])
