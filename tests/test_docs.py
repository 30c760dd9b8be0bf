"""The Python blocks of the documentation run, page by page, from top to bottom."""

from collections.abc import Iterator

import pytest
import torch
import verify
from documents import DOCS, python_blocks

PAGES = [
    "quickstart.md",
    "assemble.md",
    "differences.md",
    "reproducing.md",
    "export.md",
    "sides.md",
    "long_runs.md",
    "api/models.md",
    "api/teacher.md",
    "api/losses.md",
    "api/masking.md",
    "api/augment.md",
    "api/self_training.md",
    "api/token_distillation.md",
    *sorted(f"howto/{page.name}" for page in (DOCS / "howto").glob("*.md") if page.name != "index.md"),
]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads cost tiny tensors more than they gain, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", PAGES)
def test_python_blocks_of_a_page_run_from_top_to_bottom(name: str) -> None:
    page = DOCS / name
    source = python_blocks(page)
    assert source.strip(), f"{name} has no ```python block"

    torch.manual_seed(0)
    exec(compile(source, str(page), "exec"), {"__name__": "docs"})


@pytest.mark.usefixtures("one_thread")
def test_what_the_page_of_adapters_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = DOCS / "api" / "lora.md"
    exec(compile(python_blocks(page), str(page), "exec"), {"__name__": "docs"})
    assert f"```text\n{capsys.readouterr().out}```" in page.read_text()


def test_the_table_of_proofs_has_a_row_for_each() -> None:
    _, _, *rows = (DOCS / "tables" / "verified.md").read_text().splitlines()
    assert len(rows) == len(verify.PROOFS)
