"""Answers on another device are those on the CPU: on a GPU where there is one, and on a device that pretends.

That device has to be there before a process's first backward pass: its tests run in a process of their own.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from far_device import Far, FarMode, register
from step_tensors import IMAGES, LABELS, LOGITS, TARGET, WEIGHT
from torch import Tensor, nn
from torch.utils import backend_registration

from hrda_lib import (
    ConfidenceWeightedCE,
    ConfusionMatrix,
    EMATeacher,
    FeatureDistance,
    MultiResCropSampler,
    MultiResSegmenter,
    SelfTraining,
    SlidingWindowInferer,
    StrongAugment,
    TokenDistillation,
    class_mix,
    confidence_weighted_ce,
    crop,
    fuse_scales,
    gaussian_blur,
    patch_mask,
    pseudo_labels,
    resize,
    sample_box_mask,
    sample_class_mask,
)
from hrda_lib.augment import fourier_style
from hrda_lib.lora import add_lora, merge_lora
from hrda_lib.losses import entropy
from hrda_lib.optim import parameter_groups

SIGMA = torch.tensor([0.5, 1.1])
CPU = torch.device("cpu")


PRETENDED = "HRDA_TESTS_ON_A_PRETENDED_DEVICE" in os.environ


@pytest.fixture(scope="module")
def chosen() -> torch.device:
    if PRETENDED:
        return register()
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return torch.device("cuda:0")


@pytest.fixture
def device(chosen: torch.device) -> Iterator[torch.device]:
    with FarMode() if PRETENDED else nullcontext():
        yield chosen


@pytest.mark.skipif(PRETENDED, reason="this is that process")
def test_all_of_these_on_a_device_that_pretends() -> None:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot pretend a device")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"HRDA_TESTS_ON_A_PRETENDED_DEVICE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{len(CALLS) + 5} passed" in done.stdout


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def segmenter(device: torch.device) -> MultiResSegmenter:
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 4, stride=4), nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(8, 1, 1)
    return MultiResSegmenter(*parts, detail_size=16).to(device)


def step(device: torch.device, *, per: Any = "batch", masked: bool = False) -> list[Tensor]:
    student = segmenter(device)
    torch.manual_seed(1)
    training = SelfTraining(
        student,
        teacher := EMATeacher(student),
        criterion=ConfidenceWeightedCE(class_weight=[1, 2, 1, 0.5]),
        feature_distance=FeatureDistance(nn.Conv2d(3, 8, 4, stride=4).to(device), classes=None, num_classes=4),
        augment=StrongAugment(mean=(0, 0, 0), std=(1, 1, 1)),
        masking=partial(patch_mask, block=8) if masked else None,
        generator=seeded(),
        threshold=0.3,
        per=per,
    )
    optimizer = torch.optim.SGD(parameter_groups(student, lr=0.1))
    answers = []
    for _ in range(2):
        given = IMAGES.to(device), LABELS.to(device), TARGET.to(device)
        for _, loss in training.losses(*given, target_valid=(WEIGHT > 0.1).to(device)):
            loss.backward()
            answers.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(student)
    return [*answers, *(p.detach() for network in (student, teacher) for p in network.parameters())]


def loss_and_gradient(device: torch.device, **settings: Any) -> list[Tensor]:
    logits = LOGITS.clone().to(device).requires_grad_()
    labels = torch.where(LABELS == 3, 255, LABELS).to(device)
    loss = confidence_weighted_ce(logits, labels, WEIGHT.to(device), **settings)
    loss.backward()
    assert logits.grad is not None
    return [loss.detach(), logits.grad]


def counted(device: torch.device) -> list[Tensor]:
    confusion = ConfusionMatrix(4)
    confusion.update(LABELS.to(device), LABELS.flip(0).to(device))
    return [confusion.matrix, confusion.iou()]


def adapters(device: torch.device) -> list[Tensor]:
    torch.manual_seed(0)
    network = nn.ModuleDict({"fc1": nn.Linear(32, 5), "fc2": nn.Linear(5, 3)}).to(device)
    add_lora(network, rank=2, targets=("fc1", "fc2"))
    x = IMAGES.to(device)
    before = network["fc2"](network["fc1"](x))
    merge_lora(network)
    return [before.detach(), network["fc2"](network["fc1"](x)).detach()]


def tokens(device: torch.device) -> Tensor:
    torch.manual_seed(0)
    reference = nn.Conv2d(3, 6, 4, stride=4)
    reference.channels = (6,)  # type: ignore[assignment]
    distillation = TokenDistillation(reference, 8, size=16).to(device)
    answer: Tensor = distillation(nn.Conv2d(3, 8, 4, stride=4).to(device)(IMAGES.to(device)), IMAGES.to(device))
    return answer.detach()


CALLS: dict[str, Callable[[torch.device], Any]] = {
    "a step": step,
    "a step, pixels": partial(step, per="pixel"),
    "a step, images, masked": partial(step, per="image", masked=True),
    "loss": loss_and_gradient,
    "loss, class weights": partial(loss_and_gradient, class_weight=torch.tensor([1.0, 2, 1, 0.5])),
    "loss, by weight": partial(loss_and_gradient, normalize="weight"),
    "entropy": lambda d: entropy(LOGITS.to(d)),
    "pseudo_labels": lambda d: pseudo_labels(LOGITS.to(d), size=32, valid=(WEIGHT > 0.5).to(d), threshold=0.3),
    "windows": lambda d: SlidingWindowInferer(16)(IMAGES.to(d), nn.Identity()),
    "windows, Gaussian": lambda d: SlidingWindowInferer(16, blend="gaussian")(IMAGES.to(d), nn.Identity()),
    "windows, labels": lambda d: SlidingWindowInferer(16, output="labels")(IMAGES.to(d), nn.Identity()),
    "predict": lambda d: segmenter(d).eval().predict(IMAGES.to(d)[..., :30, :31]),
    "predict, sure": lambda d: segmenter(d).eval().predict(IMAGES.to(d), confident=0.5),
    "predict labels": lambda d: segmenter(d).eval().predict(IMAGES.to(d), output="labels"),
    "predict_scales": lambda d: segmenter(d).eval().predict_scales(IMAGES.to(d)),
    "ConfusionMatrix": counted,
    "class_mix": lambda d: class_mix(IMAGES.to(d), TARGET.to(d), (WEIGHT > 0.5).to(d)),
    "sample_class_mask": lambda d: sample_class_mask(LABELS.to(d), seeded()),
    "sample_class_mask, chosen": lambda d: sample_class_mask(LABELS.to(d), classes=[[0], [1, 2]]),
    "sample_box_mask": lambda d: sample_box_mask(8, seeded(), batch=2).to(d),
    "crops": lambda d: MultiResCropSampler(16)(IMAGES.to(d), seeded())[:2],
    "fuse_scales": lambda d: fuse_scales(LOGITS.to(d), LOGITS.flip(0).to(d), LOGITS[:, :1].sigmoid().to(d), scale=1),
    "resize": lambda d: resize(LOGITS.to(d), 9),
    "crop": lambda d: crop(LABELS.to(d), (1, 2, 3, 4)),
    "gaussian_blur": lambda d: gaussian_blur(IMAGES.to(d), SIGMA),
    "gaussian_blur, its widths there": lambda d: gaussian_blur(IMAGES.to(d), SIGMA.to(d)),
    "StrongAugment": lambda d: StrongAugment(mean=(0, 0, 0), std=(1, 1, 1))(IMAGES.to(d), seeded()),
    "fourier_style": lambda d: fourier_style(IMAGES.to(d), TARGET.to(d), beta=0.1),
    "LoRA": adapters,
    "TokenDistillation": tokens,
}


@pytest.mark.parametrize("name", CALLS)
def test_as_on_the_cpu(name: str, device: torch.device) -> None:
    expected, answer = CALLS[name](CPU), CALLS[name](device)
    for mine, theirs in zip(as_list(answer), as_list(expected), strict=True):
        torch.testing.assert_close(here(mine), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["loss", "loss, class weights", "a step"])
def test_deterministic_algorithms_are_not_refused(name: str, device: torch.device) -> None:
    expected = CALLS[name](CPU)
    torch.use_deterministic_algorithms(True)
    try:
        answers = [CALLS[name](device) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for once, again, theirs in zip(*map(as_list, answers), as_list(expected), strict=True):
        assert torch.equal(here(once), here(again))
        torch.testing.assert_close(here(once), theirs, rtol=1e-4, atol=1e-5)


def test_a_feature_distance_left_behind_says_so(device: torch.device) -> None:
    distance = FeatureDistance(nn.Conv2d(3, 8, 4, stride=4), classes=None, num_classes=4)
    with pytest.raises(ValueError, match=r"reference encoder's device cpu, got .*to\(device\)"):
        distance(torch.rand(2, 8, 8, 8).to(device), IMAGES.to(device), LABELS.to(device))


def test_devices_are_not_mixed(device: torch.device) -> None:
    """As a GPU refuses, the pretended device does."""
    there = torch.ones(3).to(device)
    with pytest.raises(RuntimeError, match="device"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="ind"):
        torch.ones(3)[torch.ones(3, dtype=torch.long).to(device)]
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=device, generator=seeded())


def as_list(answer: Any) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else [x for x in answer if isinstance(x, Tensor)]


def here(x: Tensor) -> Tensor:
    return x.inner if isinstance(x, Far) else x.cpu()
