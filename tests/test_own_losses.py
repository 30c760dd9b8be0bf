"""The losses of the page on self-training, against loops; and a whole step with them, against the step written out."""

from typing import Any

import pytest
import torch
from documents import DOCS, python_blocks
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hrda_lib import Adapted, ConfidenceWeightedCE, EMATeacher, MultiResSegmenter, SelfTraining, class_mix

C = 4


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile(python_blocks(DOCS / "api" / "self_training.md"), "self_training.md", "exec"), names)
    return names


def case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (2, 8, 8), generator=generator)
    labels[:, :2] = 255
    weight = torch.rand(2, 8, 8, generator=generator, dtype=torch.float64)
    return torch.randn(2, C, 4, 4, generator=generator, dtype=torch.float64), labels, weight


def one_by_one(kind: str, logits: Tensor, labels: Tensor, weight: Tensor | None) -> float:
    """A pixel at a time, in plain numbers."""
    logits = interpolate(logits, size=labels.shape[-2:], mode="bilinear")
    losses, overlap, sizes = [], [0.0] * C, [0.0] * C
    for b, y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        scores, label = logits[b, :, y, x].exp().tolist(), int(labels[b, y, x])
        p = [score / sum(scores) for score in scores]
        q = 1.0 if weight is None else float(weight[b, y, x])
        losses.append(0.0)
        if label == 255:
            continue
        truth = [float(c == label) for c in range(C)]
        soft = [0.9 * t + 0.1 / C for t in truth] if kind == "smoothed" else truth
        losses[-1] = -q * sum(t * torch.tensor(value).log().item() for t, value in zip(soft, p, strict=True))
        for c in range(C):
            overlap[c] += q * p[c] * truth[c]
            sizes[c] += q * (p[c] + truth[c])
    if kind == "dice":
        return 1 - sum((2 * a + 1) / (n + 1) for a, n in zip(overlap, sizes, strict=True)) / C
    kept = sorted(losses)[-len(losses) // 4 :] if kind == "hardest" else losses
    return sum(kept) / len(kept)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["smoothed", "hardest", "dice"])
def test_a_loss_pixel_by_pixel(kind: str, weighted: bool, page: dict[str, Any]) -> None:
    logits, labels, weight = case(3)
    given = weight if weighted else None
    assert page[kind](logits, labels, given).item() == pytest.approx(one_by_one(kind, logits, labels, given), rel=1e-5)


IMAGES = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(C, (2, 32, 32), generator=torch.Generator().manual_seed(1))
CLASSES = [[0, 1], [2]]


@pytest.mark.parametrize("kind", ["smoothed", "hardest", "dice"])
def test_every_term_of_two_scales_is_that_loss(kind: str, page: dict[str, Any]) -> None:
    criterion = page[kind]
    torch.manual_seed(0)
    net = MultiResSegmenter(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, C, 1), 0.5, detail_size=16)
    training = SelfTraining(net, EMATeacher(net), criterion=criterion, detail_weight=0.25, threshold=0.3)
    boxes: dict[str, Any] = {"source_box": (0, 8, 16, 16), "mixed_box": (16, 8, 16, 16)}
    got = [loss for _, loss in training.losses(IMAGES[0], LABELS, IMAGES[1], mixed_classes=CLASSES, **boxes)]

    pseudo, q = training.pseudo_label(IMAGES[1])
    mask = torch.stack([(LABELS[0] == 0) | (LABELS[0] == 1), LABELS[1] == 2])
    mixed, y, w = class_mix(IMAGES[0], IMAGES[1], mask), torch.where(mask, LABELS, pseudo), torch.where(mask, 1.0, q)
    out, mix = net(IMAGES[0], boxes["source_box"]), net(mixed, boxes["mixed_box"])
    here, there = (..., slice(0, 16), slice(8, 24)), (..., slice(16, 32), slice(8, 24))
    expected = [
        0.75 * criterion(out.logits, LABELS, None) + 0.25 * criterion(out.detail_logits, LABELS[here], None),
        0.75 * criterion(mix.logits, y, w) + 0.25 * criterion(mix.detail_logits, y[there], w[there]),
    ]
    torch.testing.assert_close(got, expected)


def test_the_auxiliary_head_learns_as_if_written_by_hand(page: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net, ce = page["Network"](), ConfidenceWeightedCE()
    student = Adapted(net, output=page["both"])
    teacher = EMATeacher(student)
    training = SelfTraining(
        student, lambda x: teacher(x).chunk(2, dim=1)[0], criterion=page["main_and_auxiliary"], threshold=0.3
    )
    got = [loss for _, loss in training.losses(IMAGES[0], LABELS, IMAGES[1], mixed_classes=CLASSES)]

    own = SelfTraining(Adapted(net, output="out"), EMATeacher(Adapted(net, output="out")), threshold=0.3)
    labels, weight = own.pseudo_label(IMAGES[1])
    assert labels.max() < C
    batch = own.mix(IMAGES[0], LABELS, IMAGES[1], labels, weight, classes=CLASSES)
    expected = []
    for images, y, w in ((IMAGES[0], LABELS, None), batch):
        answer = net(images)
        expected.append(ce(answer["out"], y, w) + 0.5 * ce(answer["aux"], y, w))
    torch.testing.assert_close(got, expected)
    sum(got).backward()
    assert net.auxiliary.weight.grad.abs().min() > 0
