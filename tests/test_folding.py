"""Pages on a phone: tables of sentences fold, names in tables may break, equations part."""

import sys

import pytest
from documents import DOCS

sys.path.insert(0, str(DOCS))
from folding import foldable

ROW = "<tr><td><p>{}</p></td><td></td><td><p>{}</p></td></tr>"


def table(*cells: str, kind: str = "") -> str:
    heads = "".join(f"<th{kind}><p>{head}</p></th>" for head in ("Name", "Empty", "A &amp; B"))
    body = ROW.format(*cells).replace("<td>", f"<td{kind}>")
    return f'<table class="docutils"><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table>'


def test_a_table_of_sentences_has_headings_in_its_cells() -> None:
    folded = foldable("<p>before</p>" + table("short", "word " * 30))
    assert '<table class="folds docutils">' in folded
    assert '<td><span class="heading">Name</span><p>short</p></td><td></td>' in folded
    assert '<span class="heading">A &amp; B</span>' in folded


@pytest.mark.parametrize("whole", [table("short", "words"), table("1", "2 " * 60, kind=' class="text-right"')])
def test_short_tables_and_those_of_numbers_stay_as_they_are(whole: str) -> None:
    assert foldable(whole) == whole


def test_long_names_in_tables_may_break_and_others_do_not() -> None:
    code = '<code class="literal"><span class="pre">tests/models/test_model_a.py</span></code>'
    short = code.replace("tests/models/", "")
    assert foldable(code) == code
    assert foldable(table(short, "b")) == table(short, "b")
    broken = foldable(table(code, "b"))
    assert broken.count("<wbr>") == 5
    assert "".join(broken.split('</span><wbr><span class="pre">')) == table(code, "b")


def test_parts_of_an_equation_stand_side_by_side() -> None:
    def shown(*equations: str) -> str:
        return "".join(f'<div class="math notranslate nohighlight">\n\\[{e}\\]</div>' for e in equations)

    assert foldable(shown(r"a = b, \qquad" + "\n" + "c = d")) == f'<div class="parts">{shown("a = b,", "c = d")}</div>'
    for whole in (r"a = b", r"\begin{split}a \qquad b\end{split}"):
        assert foldable(shown(whole)) == shown(whole)
