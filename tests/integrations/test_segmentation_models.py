"""segmentation-models-pytorch: feature lists that begin with the image, sides of the encoder's stride."""

from typing import Any

import pytest
import torch
import written_out
from integration_pages import check_hrda, check_plain, check_predict, check_windows, glue, run_page
from written_out import Parts, batches

pytest.importorskip("segmentation_models_pytorch", reason="the extra integrations is not installed")
PAGE = "segmentation_models"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return run_page(PAGE)


def of_fpn(student: Any) -> Parts:
    decoder, head = student.decoder
    attention = student.attention.module
    return Parts(student.encoder, lambda f: head(decoder(f)), lambda f: attention(f[2:]).sigmoid(), stride=4)


def of_unet(student: Any) -> Parts:
    decoder, head = student.decoder
    attention = student.attention.module
    at_pixels = lambda f: written_out.up(attention(f[1:]).sigmoid(), f[0].shape[-2:])  # noqa: E731
    return Parts(student.encoder, lambda f: head(decoder(f)), at_pixels, stride=1)


NETWORKS = {"hrda": of_fpn, "hrda_unet": of_unet}


def test_lines_of_glue() -> None:
    assert glue(PAGE) == {"one scale": 1, "two scales": 3, "two scales of a U-Net": 3}


def test_self_training_is_that_written_out(page: dict[str, Any]) -> None:
    check_plain(page["plain"], lambda s: lambda x: s(x), batches(2, classes=5))


def test_windows_at_an_odd_size(page: dict[str, Any]) -> None:
    check_windows(page["plain"], lambda x: page["plain"](x), torch.randn(1, 3, 50, 131), 64, (64, 131))


@pytest.mark.parametrize("name", NETWORKS)
def test_hrda_is_that_written_out(page: dict[str, Any], name: str) -> None:
    check_hrda(page[name], NETWORKS[name], batches(2, classes=5))


@pytest.mark.parametrize("name", NETWORKS)
def test_hrda_predicts_at_an_odd_size(page: dict[str, Any], name: str) -> None:
    check_predict(page[name], NETWORKS[name](page[name]), torch.randn(1, 3, 50, 131), 64, (64, 192))
