"""timm: a CNN, a Swin whose features are channels last, a ViT with a patch of 14."""

from typing import Any

import pytest
import torch
import written_out
from integration_pages import check_hrda, check_plain, check_predict, check_windows, glue, run_page
from torch import Tensor
from written_out import Parts, batches

pytest.importorskip("timm", reason="the extra integrations is not installed")
PAGE = "timm"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return run_page(PAGE)


def channels_first(swin: Any, images: Tensor) -> list[Tensor]:
    return [level.permute(0, 3, 1, 2) for level in swin(images)]


def of_cnn(student: Any) -> Parts:
    return Parts(student.encoder.body, student.decoder, lambda f: student.attention(f).sigmoid(), stride=2)


def of_swin(student: Any) -> Parts:
    swin = student.encoder.body
    return Parts(lambda x: channels_first(swin, x), student.decoder, lambda f: student.attention(f).sigmoid())


def of_vit(student: Any) -> Parts:
    head = student.decoder[0]

    def enlarged(x: Tensor) -> Tensor:
        return written_out.up(x, [4 * side for side in x.shape[-2:]])

    return Parts(
        student.encoder.body,
        lambda f: enlarged(head(f)),
        lambda f: enlarged(student.attention(f).sigmoid()),
        stride=3.5,
        detail=28,
        step=14,
    )


NETWORKS = {"hrda_cnn": of_cnn, "hrda_swin": of_swin, "hrda_vit": of_vit}


def test_lines_of_glue() -> None:
    assert glue(PAGE) == {"CNN": 4, "Swin": 4, "ViT": 4}


def test_self_training_is_that_written_out(page: dict[str, Any]) -> None:
    check_plain(page["plain"], lambda s: lambda x: s.decoder(channels_first(s.encoder.body, x)), batches(2, classes=5))


def test_windows_at_an_odd_size(page: dict[str, Any]) -> None:
    student = page["plain"]
    network = lambda x: student.decoder(channels_first(student.encoder.body, x))  # noqa: E731
    check_windows(student, network, torch.randn(1, 3, 50, 131), 64, (64, 131))


@pytest.mark.parametrize("name", NETWORKS)
def test_hrda_is_that_written_out(page: dict[str, Any], name: str) -> None:
    steps = batches(2, classes=5, side=56, box=28, cell=7) if name == "hrda_vit" else batches(2, classes=5)
    check_hrda(page[name], NETWORKS[name], steps)


@pytest.mark.parametrize(
    ("name", "window", "size"), [("hrda_cnn", 64, (52, 132)), ("hrda_swin", 64, (56, 136)), ("hrda_vit", 56, (56, 140))]
)
def test_hrda_predicts_at_an_odd_size(page: dict[str, Any], name: str, window: int, size: tuple[int, int]) -> None:
    check_predict(page[name], NETWORKS[name](page[name]), torch.randn(1, 3, 50, 131), window, size)
