"""torchvision's segmentation networks: dictionaries, an auxiliary head."""

from typing import Any

import pytest
import torch
from integration_pages import check_hrda, check_plain, check_predict, check_windows, glue, run_page
from written_out import Parts, batches

PAGE = "torchvision"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return run_page(PAGE)


def parts(student: Any) -> Parts:
    head = student.attention.module
    return Parts(
        student.encoder,
        lambda f: student.decoder.module(f["out"]),
        lambda f: head([f["out"]]).sigmoid(),
        stride=16,
    )


def test_lines_of_glue() -> None:
    assert glue(PAGE) == {"one scale": 1, "auxiliary head": 5, "two scales": 3}


def test_self_training_is_that_written_out(page: dict[str, Any]) -> None:
    check_plain(page["plain"], lambda s: lambda x: s.module(x)["out"], batches(2, classes=5))


def test_windows_at_an_odd_size(page: dict[str, Any]) -> None:
    plain = page["plain"]
    check_windows(plain, lambda x: plain.module(x)["out"], torch.randn(1, 3, 50, 131), 64, (64, 131))


def test_hrda_is_that_written_out(page: dict[str, Any]) -> None:
    check_hrda(page["hrda"], parts, batches(2, classes=5, cell=32))


def test_hrda_predicts_at_an_odd_size(page: dict[str, Any]) -> None:
    check_predict(page["hrda"], parts(page["hrda"]), torch.randn(1, 3, 50, 131), 64, (64, 160))
