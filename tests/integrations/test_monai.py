"""MONAI: 1 and 4 channels, deep supervision, tensors with metadata, windows."""

from typing import Any

import pytest
import torch
import written_out
from integration_pages import check_hrda, check_plain, check_predict, check_windows, glue, run_page, train
from torch import Tensor
from written_out import Parts, batches

from hrda_lib import Adapted, EMATeacher, SlidingWindowInferer

monai = pytest.importorskip("monai", reason="the extra integrations is not installed")
PAGE = "monai"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return run_page(PAGE)


def parts(student: Any) -> Parts:
    pool, convolution = student.attention

    def attend(x: Tensor) -> Tensor:
        return written_out.up(convolution(pool(x)).sigmoid(), x.shape[-2:])

    return Parts(lambda x: x, student.decoder, attend, stride=1)


def test_lines_of_glue() -> None:
    assert glue(PAGE) == {"one scale": 2, "two scales": 2}


def test_self_training_is_that_written_out(page: dict[str, Any]) -> None:
    check_plain(page["plain"], lambda s: lambda x: s(x), batches(2, classes=3, channels=1))


def test_deep_supervision_is_that_written_out(page: dict[str, Any]) -> None:
    def first(x: Tensor) -> Tensor:
        return x[:, 0] if x.dim() == 5 else x

    torch.manual_seed(0)
    model = page["DynUNet"](2, 4, 3, [3, 3, 3], [1, 2, 2], [2, 2], deep_supervision=True, deep_supr_num=1)
    student = Adapted(model, output=page["first_head"].output)
    check_plain(student, lambda s: lambda x: first(s.module(x)), batches(2, classes=3, channels=4))


def test_a_network_that_keeps_its_answers_is_no_student_after_a_pass(page: dict[str, Any]) -> None:
    page["first_head"](torch.randn(1, 4, 32, 32, dtype=next(page["first_head"].parameters()).dtype))
    with pytest.raises(ValueError, match="it holds a tensor with a graph, such as a kept activation"):
        EMATeacher(page["first_head"])


def test_windows_at_an_odd_size(page: dict[str, Any]) -> None:
    check_windows(page["plain"], lambda x: page["plain"](x), torch.randn(1, 1, 50, 131), 64, (64, 131))


def test_hrda_is_that_written_out(page: dict[str, Any]) -> None:
    check_hrda(page["hrda"], parts, batches(2, classes=3, channels=4))


def test_hrda_predicts_at_an_odd_size(page: dict[str, Any]) -> None:
    check_predict(page["hrda"], parts(page["hrda"]), torch.randn(1, 4, 50, 131), 64, (64, 144))


def test_tensors_with_metadata_train_alike(page: dict[str, Any]) -> None:
    plain = list(batches(1, classes=3, channels=1))
    wrapped = [
        batch._replace(**{name: monai.data.MetaTensor(getattr(batch, name)) for name in ("source", "labels", "target")})
        for batch in plain
    ]
    student = page["plain"].double().train()
    torch.testing.assert_close(train(student, wrapped, rate=0.0), train(student, plain, rate=0.0), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_windows_are_those_of_monai(page: dict[str, Any], mode: Any, overlap: float) -> None:
    image, model = torch.randn(2, 1, 80, 131, dtype=torch.float64), page["plain"].double().eval()
    with torch.no_grad():
        got = SlidingWindowInferer(64, stride=int(64 * (1 - overlap)), blend=mode)(image, model)
        expected = monai.inferers.sliding_window_inference(image, (64, 64), 4, model, overlap=overlap, mode=mode)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
