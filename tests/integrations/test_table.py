"""The table of what is shown of each code base is that of the pages and the tests."""

import pytest
from documents import DOCS
from integration_pages import PAGES, glue
from integrations_table import PAGES as TITLES
from integrations_table import TABLE, table


def test_the_table_is_up_to_date() -> None:
    assert TABLE.read_text(encoding="utf-8") == table()


@pytest.mark.parametrize("page", TITLES)
def test_glue_is_five_lines_at_most(page: str) -> None:
    assert 1 <= min(glue(page).values()) <= max(glue(page).values()) <= 5


def test_every_page_is_in_the_index() -> None:
    listed = (PAGES / "index.md").read_text(encoding="utf-8").split("```")[1].split()
    assert {page.stem for page in PAGES.glob("*.md")} - {"index"} == set(listed) & {*TITLES} == {*TITLES}
    assert "integrations/index\n" in (DOCS / "index.md").read_text(encoding="utf-8")
