"""docs/coming_from.md: each row that says "equal", and the settings of the released configuration."""

import inspect
import re
from functools import partial
from typing import Any

import pytest
import torch
import written_out
from documents import DOCS
from torch import Tensor, nn
from torch.nn.functional import pad

import hrda_lib
import hrda_lib.augment
from hrda_lib import (
    ConfusionMatrix,
    EMATeacher,
    FeatureDistance,
    MultiResSegmenter,
    SelfTraining,
    SlidingWindowInferer,
    StrongAugment,
    patch_mask,
)
from hrda_lib.augment import color_jitter
from hrda_lib.data import RareClasses
from hrda_lib.models import hrda
from hrda_lib.optim import parameter_groups, warmup_poly

PAGE = (DOCS / "coming_from.md").read_text(encoding="utf-8")
KEYS = PAGE.split("## mmseg")[1]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).double()


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_windows_of_monai(mode: Any) -> None:
    inferers = pytest.importorskip("monai.inferers", reason="the extra integrations is not installed")
    model, image = network(), torch.randn(2, 3, 100, 131, dtype=torch.float64)
    slide = partial(inferers.sliding_window_inference, roi_size=(64, 64), sw_batch_size=4, predictor=model, mode=mode)
    infer = SlidingWindowInferer((64, 64), stride=int(64 * (1 - 0.25)), batch_size=4, blend=mode)
    labels = SlidingWindowInferer((64, 64), stride=48, batch_size=4, blend=mode, output="labels")
    with torch.no_grad():
        expected = slide(image)
        torch.testing.assert_close(infer(image, model), expected, rtol=0, atol=1e-6)
        assert torch.equal(labels(image, model), expected.argmax(1))


def test_monai_pads_a_small_image_on_both_sides() -> None:
    inferers = pytest.importorskip("monai.inferers", reason="the extra integrations is not installed")
    model, image = network(), torch.randn(1, 3, 50, 64, dtype=torch.float64)
    with torch.no_grad():
        theirs = inferers.sliding_window_inference(image, (64, 64), 4, model)
        torch.testing.assert_close(theirs, model(pad(image, (0, 0, 7, 7)))[..., 7:-7, :], rtol=0, atol=1e-6)
        ours = SlidingWindowInferer(64, pad=True)(image, model)
        torch.testing.assert_close(ours, model(pad(image, (0, 0, 0, 14)))[..., :50, :])
        cut = SlidingWindowInferer(64)(image, model)
        torch.testing.assert_close(cut, model(image))


def labels() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    prediction, target = torch.randint(4, (2, 2, 30, 40), generator=g)  # class 4 of 5 does not occur
    target[:, :3] = 255
    return prediction, target


def test_means_of_torchmetrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics", reason="the extra test is not installed")
    settings = {"task": "multiclass", "num_classes": 5, "ignore_index": 255}
    confusion = ConfusionMatrix(5)
    confusion.update(*labels())
    theirs = {name: torchmetrics.JaccardIndex(**settings, average=name) for name in ("macro", "none")}
    for metric in theirs.values():
        metric.update(*labels())
    assert confusion.mean_iou() == pytest.approx(theirs["macro"].compute().item())
    torch.testing.assert_close(confusion.iou(absent=0), theirs["none"].compute())
    assert confusion.iou()[4].isnan()
    matrix = torchmetrics.ConfusionMatrix(**settings)
    matrix.update(*labels())
    assert torch.equal(confusion.matrix, matrix.compute())


def test_colours_of_kornia(monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = pytest.importorskip("kornia.augmentation", reason="the extra test is not installed")
    drawn: list[Any] = []

    def jitter(images: Tensor, shifts: Tensor, order: list[int]) -> Tensor:
        drawn.append((shifts, order))
        return color_jitter(images, shifts, order)

    monkeypatch.setattr(hrda_lib.augment, "color_jitter", jitter)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = torch.rand(3, 3, 16, 20)
    ours = StrongAugment(mean=mean.flatten().tolist(), std=std.flatten().tolist(), jitter=1, blur=0)
    result = ours((images - mean) / std, torch.Generator().manual_seed(0)) * std + mean

    shifts, order = drawn[0]
    factors = dict(zip(("brightness", "contrast", "saturation", "hue"), shifts.T, strict=True))
    params = {f"{name}_factor": shift + (name != "hue") for name, shift in factors.items()}
    theirs = augmentation.ColorJiggle(0.2, 0.2, 0.2, 0.2, p=1.0)
    expected = theirs(images, params={**params, "order": torch.tensor(order), "batch_prob": torch.ones(3)})
    assert (result - expected).abs().max() < 2e-6
    assert (result - images).abs().max() > 0.05


def test_the_ema_of_timm_is_on_its_own_page() -> None:
    assert '`EMATeacher(model, decay=0.9999, warmup=False,\nbuffers="average").eval()` is equal' in PAGE


RELEASED: list[tuple[Any, dict[str, Any]]] = [
    (MultiResSegmenter, {"scale": 2, "detail_stride": None}),
    (
        hrda,
        {"detail_size": (512, 512), "attention_embed_dims": 256, "attention_classwise": True, "fixed_attention": None},
    ),
    (SelfTraining, {"detail_weight": 0.1, "threshold": 0.968}),
    (MultiResSegmenter.predict, {"window": None, "stride": None}),
    (EMATeacher, {"decay": 0.999}),
    (StrongAugment, {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.2, "jitter": 0.8, "blur": 0.5}),
    (FeatureDistance, {"weight": 0.005, "min_ratio": 0.75}),
    (RareClasses, {"min_pixels": 3000, "temperature": 0.01}),
    (patch_mask, {"ratio": 0.7, "block": 64}),
    (parameter_groups, {"lr": 6e-5, "weight_decay": 0.01, "head_factor": 10.0}),
    (warmup_poly, {"warmup": 1500, "warmup_ratio": 1e-6, "total": 40_000}),
]


@pytest.mark.parametrize(("function", "settings"), RELEASED, ids=[each.__qualname__ for each, _ in RELEASED])
def test_released_values_are_the_defaults_and_stand_on_the_page(function: Any, settings: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    calls = [eval(f"dict{call}") for call in re.findall(rf"\b{function.__name__}(\([^`|]*=[^`|]*\))", KEYS)]
    written = {name: value for call in calls for name, value in call.items()}
    for name, value in settings.items():
        assert parameters[name].default == value
        assert written[name] == value


def test_keys_of_the_page_name_what_exists() -> None:
    for name in re.findall(r"`([A-Za-z_]+)\(", KEYS):
        owners = (hrda_lib, hrda_lib.data, hrda_lib.models, hrda_lib.optim, SelfTraining, MultiResSegmenter)
        assert name == "dict" or any(hasattr(owner, name) for owner in owners), name


def test_windows_written_out_are_the_default_stride() -> None:
    model, image = network(), torch.randn(1, 3, 100, 131, dtype=torch.float64)
    with torch.no_grad():
        got = SlidingWindowInferer(64)(image, model)
        torch.testing.assert_close(got, written_out.slide(model, image, (64, 64), (32, 32)))
