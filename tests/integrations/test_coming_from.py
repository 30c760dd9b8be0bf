"""The rows of docs/coming_from.md that state an equality; kornia's single steps are in tests/test_augment.py."""

import copy
import inspect
import re
from typing import Any

import pytest
import torch
from documents import DOCS, python_blocks
from torch import Tensor, nn

import hrda_lib
import hrda_lib.augment
from hrda_lib import (
    Adapted,
    ConfidenceWeightedCE,
    ConfusionMatrix,
    EMATeacher,
    FeatureDistance,
    MultiResSegmenter,
    SelfTraining,
    SlidingWindowInferer,
    StrongAugment,
    data,
    models,
    patch_mask,
)
from hrda_lib.augment import color_jitter
from hrda_lib.data import RareClasses
from hrda_lib.lora import add_lora, merge_lora
from hrda_lib.models import hrda
from hrda_lib.optim import parameter_groups, warmup_poly

PAGE = (DOCS / "coming_from.md").read_text(encoding="utf-8")


def test_cross_entropy_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 6, generator=generator)
    labels = torch.randint(3, (2, 8, 12), generator=generator)
    labels[:, :3] = -100
    weight, kappa = torch.rand(2, 8, 12, generator=generator), torch.tensor([0.5, 1.0, 2.0])
    upsampled = nn.functional.interpolate(logits, (8, 12), mode="bilinear")
    plain, classes = nn.CrossEntropyLoss()(upsampled, labels), nn.CrossEntropyLoss(kappa)(upsampled, labels)
    pixels = (nn.CrossEntropyLoss(reduction="none")(upsampled, labels) * weight).mean()
    valid = ConfidenceWeightedCE(ignore_index=-100, normalize="valid")
    torch.testing.assert_close(valid(logits, labels), plain)
    of_classes = ConfidenceWeightedCE(ignore_index=-100, class_weight=kappa, normalize="weight")
    torch.testing.assert_close(of_classes(logits, labels), classes)
    torch.testing.assert_close(ConfidenceWeightedCE(ignore_index=-100)(logits, labels, weight), pixels)
    nothing = torch.full_like(labels, -100)
    assert nn.CrossEntropyLoss()(upsampled, nothing).isnan()
    assert valid(logits, nothing) == 0


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_of_peft(rslora: bool) -> None:
    peft = pytest.importorskip("peft", reason="needs peft, of the extra integrations")
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.ModuleDict({"fc1": nn.Linear(6, 6), "head": nn.Linear(6, 6)}) for _ in range(2))
    model, x = nn.ModuleDict({"blocks": blocks}), torch.randn(4, 6)
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=["fc1"], use_rslora=rslora, init_lora_weights=False, lora_dropout=0.0
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    alpha = 16 * 8**0.5 if rslora else 16
    assert add_lora(model, rank=8, alpha=alpha, targets=["fc1"]) == ["blocks.0.fc1", "blocks.1.fc1"]
    before = model["blocks"][0]["fc1"](x)
    adapters = peft.get_peft_model_state_dict(theirs)  # what save_pretrained writes
    exec(
        compile(python_blocks(DOCS / "coming_from.md"), "coming_from.md", "exec"),
        {"adapters": adapters, "model": model},
    )
    layers = [network["blocks"][1]["fc1"] for network in (model, theirs.base_model.model)]
    torch.testing.assert_close(*(layer(x) for layer in layers))
    assert not torch.allclose(model["blocks"][0]["fc1"](x), before)
    merge_lora(model)
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(model["blocks"][1]["fc1"].weight, merged["blocks"][1]["fc1"].weight)


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


def test_arguments_of_monai() -> None:
    theirs = pytest.importorskip("monai.inferers", reason="needs the extra integrations").sliding_window_inference
    defaults = {name: parameter.default for name, parameter in inspect.signature(theirs).parameters.items()}
    expected = {"overlap": 0.25, "mode": "constant", "sigma_scale": 0.125, "progress": False}
    assert {name: str(defaults[name]) for name in expected} == {name: str(value) for name, value in expected.items()}

    def net(windows: Tensor) -> dict[str, Tensor]:
        seen.append(len(windows))
        return {"out": windows[:, :1], "aux": windows[:, 1:]}

    seen: list[int] = []
    image = torch.randn(2, 3, 96, 128)
    answer = theirs(image, (64, 64), 4, net, overlap=0.5)
    batches, seen = seen, []
    logits = SlidingWindowInferer((64, 64), batch_size=4)(image, Adapted(Named(net), output="out"))
    torch.testing.assert_close(logits, answer["out"])
    assert seen == batches == [4, 4, 4]  # windows times images


class Named(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


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
    macro = jaccard(task="multiclass", num_classes=5, ignore_index=255, average="macro")(prediction, target)
    assert confusion.mean_iou() == pytest.approx(macro.item())


def test_logits_for_torchmetrics_are_labels_here() -> None:
    jaccard = pytest.importorskip("torchmetrics", reason="needs torchmetrics").JaccardIndex
    logits, target = torch.randn(2, 4, 8, 9), torch.randint(4, (2, 8, 9))
    theirs = jaccard(task="multiclass", num_classes=4, average="none")
    theirs.update(logits, target)
    ours = ConfusionMatrix(4)
    ours.update(logits.argmax(1), target)
    torch.testing.assert_close(ours.iou(), theirs.compute())
    theirs.reset()
    ours.reset()
    assert int(theirs.confmat.sum()) == int(ours.matrix.sum()) == 0


def test_matrix_of_torchmetrics() -> None:
    theirs = pytest.importorskip("torchmetrics", reason="needs torchmetrics").ConfusionMatrix
    prediction, target = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 0, 1, 255]])
    confusion = ConfusionMatrix(3)
    confusion.update(prediction, target)
    expected = theirs(task="multiclass", num_classes=3, ignore_index=255)(prediction, target)
    assert torch.equal(confusion.matrix, expected)


def test_the_names_on_the_page_exist() -> None:
    arguments: set[str] = set()
    values = [getattr(module, name) for module in (hrda_lib, models, data) for name in module.__all__]
    for value in (*values, add_lora):
        methods = [part for part in vars(value).values() if inspect.isfunction(part)] if inspect.isclass(value) else []
        parts = [value, *methods]
        for part in parts:
            arguments |= inspect.signature(part).parameters.keys() if callable(part) else set()
    here = [row.split("|")[2] for row in PAGE.splitlines() if row.startswith("| ") and row.count("|") == 3]
    named = {word for cell in here for word in re.findall(r"(\w+)=", cell)}
    assert named - arguments == set()


def test_colours_of_kornia(monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = pytest.importorskip("kornia.augmentation", reason="needs kornia")
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


def test_who_decides_and_draws_in_kornia() -> None:
    augmentation = pytest.importorskip("kornia.augmentation", reason="needs kornia")
    images = torch.rand(16, 3, 8, 8)

    def changed(answer: Tensor) -> int:
        return int(((answer - images).abs().amax(dim=(1, 2, 3)) > 1e-3).sum())

    theirs = augmentation.ColorJiggle(0.2, 0.2, 0.2, 0.2, p=0.5)
    torch.manual_seed(0)
    first = theirs(images)
    torch.manual_seed(0)
    assert torch.equal(theirs(images), first)  # torch's own generator
    assert 0 < changed(first) < 16  # each image decides

    ours = StrongAugment(mean=(0, 0, 0), std=(1, 1, 1), jitter=0.5, blur=0)
    assert {changed(ours(images, torch.Generator().manual_seed(seed))) for seed in range(8)} == {0, 16}
    kernel = inspect.signature(augmentation.RandomGaussianBlur).parameters["kernel_size"]
    assert kernel.default is inspect.Parameter.empty


@pytest.mark.parametrize("name", ["ModelEma", "ModelEmaV2", "ModelEmaV3"])
def test_timm_has_the_names(name: str) -> None:
    assert hasattr(pytest.importorskip("timm.utils", reason="needs timm"), name)
    assert f"`{name}`" in PAGE


def test_keys_of_the_configuration_are_those_of_the_released_files() -> None:
    """The page of the released code has them all, each with what it means here."""
    there = [row.split("|")[1] for row in PAGE.partition("## mmseg")[2].splitlines() if row.startswith("| `")]
    keys = {key for cell in there for key in re.findall(r"[`(, ](\w+)(?==|`)", cell)}
    released = (DOCS / "reproducing.md").read_text(encoding="utf-8")
    assert len(keys) > 30
    assert sorted(key for key in keys if not re.search(rf"\b{key}\b", released)) == []


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
def test_released_values_are_the_defaults(function: Any, settings: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in settings} == settings
