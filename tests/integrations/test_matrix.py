"""The table of all code bases, made from the pages: ``python tests/integrations/test_matrix.py`` writes it."""

from documents import DOCS
from integration_pages import MATRIX, PAGES, glue, matrix

TABLE = DOCS / "tables" / "integrations.md"


def test_the_table_is_what_the_pages_say() -> None:
    assert TABLE.read_text(encoding="utf-8").splitlines() == matrix()


def test_every_page_is_in_it_and_short() -> None:
    pages = {page.stem: page for page in PAGES.glob("*.md") if page.stem != "index"}
    assert pages.keys() == MATRIX.keys()
    for name, page in pages.items():
        assert max(glue(name).values()) <= 5
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 100  # of 88 columns


if __name__ == "__main__":
    TABLE.write_text("\n".join(matrix()) + "\n", encoding="utf-8")
