"""The rows of docs/coming_from.md that state an equality; kornia's are in tests/test_augment.py."""

import inspect
import re
from typing import Any

import pytest
import torch
from documents import DOCS
from torch import nn

import hrda_lib
from hrda_lib import ConfusionMatrix, SlidingWindowInferer, models

PAGE = (DOCS / "coming_from.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("overlap", "stride"), [(0.5, 48), (0.25, 72)])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_windows_of_monai(overlap: float, stride: int, mode: Any) -> None:
    theirs = pytest.importorskip("monai.inferers", reason="needs the extra integrations").sliding_window_inference
    torch.manual_seed(0)
    net, image = nn.Conv2d(3, 5, 5, padding=2).eval(), torch.randn(2, 3, 100, 231)
    with torch.no_grad():
        expected = theirs(image, (96, 96), 4, net, overlap=overlap, mode=mode)
        logits = SlidingWindowInferer((96, 96), stride=stride, blend=mode)(image, net)
        labels = SlidingWindowInferer((96, 96), stride=stride, blend=mode, output="labels")(image, net)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    assert (labels != expected.argmax(1)).sum() <= 1  # a tie within rounding


def test_a_small_image_in_monai_is_padded_on_all_sides() -> None:
    theirs = pytest.importorskip("monai.inferers", reason="needs the extra integrations").sliding_window_inference
    image = torch.ones(1, 1, 4, 8)
    places = lambda x: torch.arange(x.shape[-2] * 1.0).view(1, 1, -1, 1) + 0 * x  # noqa: E731
    assert theirs(image, (8, 8), 1, places)[0, 0, :, 0].tolist() == [2, 3, 4, 5]
    assert SlidingWindowInferer(8, pad=True)(image, places)[0, 0, :, 0].tolist() == [0, 1, 2, 3]


def test_jaccard_of_torchmetrics() -> None:
    jaccard = pytest.importorskip("torchmetrics", reason="needs torchmetrics").JaccardIndex
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randint(4, (2, 3, 20, 30), generator=generator)  # the fifth class is absent
    target[:, :3] = 255
    confusion = ConfusionMatrix(5)
    confusion.update(prediction, target)
    each = jaccard(task="multiclass", num_classes=5, ignore_index=255, average="none")(prediction, target)
    torch.testing.assert_close(confusion.iou(absent=0), each)
    torch.testing.assert_close(confusion.iou()[:4], each[:4])


def test_the_names_on_the_page_exist() -> None:
    arguments: set[str] = set()
    for name in (*hrda_lib.__all__, *models.__all__):
        value = getattr(hrda_lib, name, None) or getattr(models, name)
        methods = [part for part in vars(value).values() if inspect.isfunction(part)] if inspect.isclass(value) else []
        parts = [value, *methods]
        for part in parts:
            arguments |= inspect.signature(part).parameters.keys() if callable(part) else set()
    here = [row.split("|")[2] for row in PAGE.splitlines() if row.startswith("| ") and row.count("|") == 3]
    named = {word for cell in here for word in re.findall(r"(\w+)=", cell)}
    assert named - arguments == set()
