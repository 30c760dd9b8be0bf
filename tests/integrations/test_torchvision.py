"""torchvision's segmentation networks: dictionaries, an auxiliary head."""

from typing import Any

import pytest
import torch
import written_out
from integration_pages import (
    THRESHOLD,
    check_compiled,
    check_hrda,
    check_plain,
    check_predict,
    check_windows,
    run_page,
)
from torch import Tensor
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


def test_self_training_is_that_written_out(page: dict[str, Any]) -> None:
    check_plain(page["plain"], lambda s: lambda x: s.module(x)["out"], batches(2, classes=5))


def test_both_heads_are_trained_as_written_out(page: dict[str, Any]) -> None:
    both, teacher, training = (page[name] for name in ("both", "teacher", "with_auxiliary"))
    model, averaged, batch = both.double().train().module, teacher.double().module.module, batches(1, classes=5)[0]
    training.threshold = THRESHOLD

    def loss(images: Tensor, *truth: Any) -> float:
        answer = model(images)
        return (written_out.ce(answer["out"], *truth) + 0.5 * written_out.ce(answer["aux"], *truth)).item()

    torch.manual_seed(0)
    terms = training.losses(batch.source, batch.labels, batch.target, mixed_classes=batch.classes)
    got = [value.item() for _, value in terms]
    torch.manual_seed(0)
    first = loss(batch.source, batch.labels, None)
    with torch.no_grad():
        said = written_out.pseudo(averaged(batch.target)["out"], (64, 64), THRESHOLD)
    torch.testing.assert_close(got, [first, loss(*written_out.mixture(batch, *said))], rtol=1e-6, atol=0)


def test_windows_at_an_odd_size(page: dict[str, Any]) -> None:
    plain = page["plain"]
    check_windows(plain, lambda x: plain.module(x)["out"], torch.randn(1, 3, 50, 131), 64, (64, 131))


def test_hrda_is_that_written_out(page: dict[str, Any]) -> None:
    check_hrda(page["hrda"], parts, batches(2, classes=5, cell=32))


def test_hrda_predicts_at_an_odd_size(page: dict[str, Any]) -> None:
    check_predict(page["hrda"], parts(page["hrda"]), torch.randn(1, 3, 50, 131), 64, (64, 160))


def test_compiled_it_trains_alike(page: dict[str, Any]) -> None:
    check_compiled(page["plain"], batches(2, classes=5))
