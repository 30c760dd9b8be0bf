import math
import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrda_lib import ConfusionMatrix

DTYPES = [
    (torch.uint8, torch.uint8),
    (torch.int64, torch.int64),
    (torch.uint8, torch.int64),
    (torch.int64, torch.uint8),
]


def draw(num_classes: int, ignore_index: int | None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Prediction and target maps; a tenth of the target is ignored, the highest class is there."""
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randint(num_classes, (2, 2, 30, 40), generator=generator)
    target.view(-1)[:50] = prediction.view(-1)[:50] = num_classes - 1
    if ignore_index is not None:
        target[torch.rand(target.shape, generator=generator) < 0.1] = ignore_index
    return prediction, target


def loop(num_classes: int, prediction: Tensor, target: Tensor, ignore_index: int) -> list[list[int]]:
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != ignore_index:
            matrix[t][p] += 1
    return matrix


@pytest.mark.parametrize("num_classes", [2, 19, 181, 182, 200])
@pytest.mark.parametrize("ignore_index", [255, 0, 1])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_equals_loop_and_torchmetrics(num_classes: int, ignore_index: int, dtypes: tuple[Any, Any]) -> None:
    classification = pytest.importorskip("torchmetrics").classification
    prediction, target = draw(num_classes, ignore_index)
    theirs = classification.MulticlassConfusionMatrix(num_classes, ignore_index=ignore_index, validate_args=False)
    theirs.update(prediction, target)
    confusion = ConfusionMatrix(num_classes, ignore_index=ignore_index)
    confusion.update(prediction.to(dtypes[0]), target.to(dtypes[1]))
    assert confusion.matrix.dtype == torch.int64
    assert torch.equal(confusion.matrix, theirs.compute())
    assert confusion.matrix.tolist() == loop(num_classes, prediction, target, ignore_index)


@pytest.mark.parametrize("ignore_index", [-1, -100, 300])
def test_ignore_index_beyond_uint8(ignore_index: int) -> None:
    prediction, target = draw(19, ignore_index)
    confusion = ConfusionMatrix(19, ignore_index=ignore_index)
    confusion.update(prediction, target)
    assert confusion.matrix.tolist() == loop(19, prediction, target, ignore_index)


@pytest.mark.parametrize("num_classes", [256, 300])
def test_uint8_labels_of_many_classes(num_classes: int) -> None:
    prediction, target = (maps.clamp(max=254) for maps in draw(num_classes, None))
    confusion = ConfusionMatrix(num_classes, ignore_index=-1)
    confusion.update(prediction.byte(), target.byte())
    assert confusion.matrix.tolist() == loop(num_classes, prediction, target, -1)


def test_an_ignored_class_is_not_measured() -> None:
    confusion = ConfusionMatrix(3, ignore_index=1)
    prediction, target = torch.tensor([0, 0, 1, 2, 1, 0]), torch.tensor([0, 0, 0, 2, 1, 1])
    confusion.update(prediction, target)
    for absent in (math.nan, 0):
        iou = confusion.iou(absent=absent)
        assert iou.isnan().tolist() == [False, True, False]
        assert iou[[0, 2]].tolist() == [pytest.approx(2 / 3), 1]  # the third pixel of class 0 is missed
        assert confusion.mean_iou(absent=absent) == pytest.approx((2 / 3 + 1) / 2)
    with pytest.raises(ValueError, match=re.escape("classes must be without the ignore_index 1, got [0, 1]; leave it")):
        confusion.mean_iou([0, 1])
    assert confusion.mean_iou([0, 2]) == pytest.approx((2 / 3 + 1) / 2)


def test_255_classes_are_the_most_with_the_usual_ignore_index() -> None:
    ConfusionMatrix(255).update(torch.tensor([254]), torch.tensor([254]))
    with pytest.raises(ValueError, match=r"^ignore_index 255 is one of the 256 classes, .*; choose another, -1"):
        ConfusionMatrix(256)
    confusion = ConfusionMatrix(300, ignore_index=-1)
    confusion.update(torch.tensor([255, 0]), torch.tensor([255, -1]))
    assert confusion.iou()[255] == 1


def test_refuses_one_class() -> None:
    with pytest.raises(ValueError, match=r"^num_classes must have at least two classes, got one class, .*; use two"):
        ConfusionMatrix(1)


def test_iou_of_absent_missed_and_wrongly_predicted_classes() -> None:
    confusion = ConfusionMatrix(6)
    assert confusion.iou().isnan().all()
    assert math.isnan(confusion.mean_iou())
    prediction = torch.tensor([0, 0, 1, 1, 2, 5, 5])
    target = torch.tensor([0, 1, 1, 1, 3, 5, 255])
    confusion.update(prediction, target)
    half, two_thirds, only_predicted, only_true, absent, right = confusion.iou().tolist()
    assert (half, two_thirds) == (0.5, pytest.approx(2 / 3))
    assert (only_predicted, only_true, right) == (0, 0, 1)
    assert math.isnan(absent)
    assert confusion.mean_iou() == pytest.approx((1 / 2 + 2 / 3 + 0 + 0 + 1) / 5)
    assert confusion.mean_iou([1, 4, 5]) == pytest.approx((2 / 3 + 1) / 2)
    assert confusion.mean_iou((0,)) == 0.5
    assert math.isnan(confusion.mean_iou([4]))
    assert confusion.iou(absent=0).tolist() == [half, two_thirds, 0, 0, 0, 1]
    assert confusion.mean_iou(absent=0) == pytest.approx((1 / 2 + 2 / 3 + 1) / 6)
    assert confusion.mean_iou([4, 5], absent=0.0) == 0.5
    assert confusion.mean_iou([4, 5], absent=math.nan) == 1


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.sampled_from([2, 5, 200]))
def test_updates_add_up(seeds: list[int], num_classes: int) -> None:
    parts, whole = ConfusionMatrix(num_classes), ConfusionMatrix(num_classes)
    maps = [draw(num_classes, 255, seed) for seed in seeds]
    for prediction, target in maps:
        parts.update(prediction, target)
    whole.update(torch.cat([prediction for prediction, _ in maps]), torch.cat([target for _, target in maps]))
    assert torch.equal(parts.matrix, whole.matrix)
    assert parts.matrix.sum() == sum((target != 255).sum() for _, target in maps)


@given(st.integers(0, 99), st.permutations(range(5)))
def test_renaming_classes_renames_rows_and_columns(seed: int, names: list[int]) -> None:
    prediction, target = draw(5, None, seed)
    plain, renamed = ConfusionMatrix(5), ConfusionMatrix(5)
    plain.update(prediction, target)
    renamed.update(torch.tensor(names)[prediction], torch.tensor(names)[target])
    assert torch.equal(renamed.matrix[names][:, names], plain.matrix)
    assert torch.equal(renamed.iou()[names], plain.iou())


@pytest.mark.parametrize("junk", [-7, 5, 255, 100_000])
def test_prediction_under_ignored_pixels_may_be_anything(junk: int) -> None:
    prediction, target = draw(5, 255)
    clean, dirty = ConfusionMatrix(5), ConfusionMatrix(5)
    clean.update(prediction, target)
    dirty.update(torch.where(target == 255, junk, prediction), target)
    assert torch.equal(clean.matrix, dirty.matrix)


def test_counts_beyond_float32() -> None:
    confusion = ConfusionMatrix(2)
    confusion.matrix = torch.tensor([[2**24 + 1, 0], [0, 2**24 + 1]])
    confusion.update(torch.tensor([0, 0]), torch.tensor([0, 0]))
    assert confusion.matrix.tolist() == [[2**24 + 3, 0], [0, 2**24 + 1]]
    assert confusion.iou().tolist() == [1, 1]


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (
            torch.zeros(1, 3, 4, 4).long(),
            torch.zeros(1, 4, 4).long(),
            "prediction must be (1, 4, 4) like target, got (1, 3, 4, 4); pass labels, not logits",
        ),
        (torch.zeros(4), torch.zeros(4).long(), "prediction must be uint8 or int64, got torch.float32; convert with"),
        (torch.zeros(4).long(), torch.zeros(4).int(), "target must be uint8 or int64, got torch.int32; convert with"),
        (torch.tensor([0]), torch.tensor([3]), "target holds the label 3, outside [0, 3) and not the ignore_index 255"),
        (torch.tensor([0]), torch.tensor([-1]), "target holds the label -1, outside [0, 3)"),
        (torch.tensor([4]), torch.tensor([0]), "prediction holds the label 4, outside [0, 3)"),
        (torch.tensor([255]), torch.tensor([0]), "prediction holds the label 255, outside [0, 3)"),
        (torch.tensor([-1]), torch.tensor([0]), "prediction holds the label -1, outside [0, 3)"),
    ],
    ids=[
        "logits",
        "float prediction",
        "int32 target",
        "target above",
        "target below",
        "prediction above",
        "prediction ignored",
        "prediction below",
    ],
)
def test_refuses(prediction: Tensor, target: Tensor, message: str) -> None:
    confusion = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        confusion.update(prediction, target)
    assert "ignore_index 0" not in str(error.value)  # the caller's is 255
    assert confusion.matrix.sum() == 0


def test_refuses_a_uint8_label_that_only_wraps_to_the_ignore_index() -> None:
    maps = torch.tensor([0, 255], dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=re.escape("target holds the label 255, outside [0, 3) and not the ignore_index -1")
    ):
        ConfusionMatrix(3, ignore_index=-1).update(torch.zeros_like(maps), maps)


@pytest.mark.parametrize("classes", [[], [3], [0, -1]], ids=str)
def test_mean_refuses_classes(classes: list[int]) -> None:
    message = f"classes must be ids in [0, 3), at least one, got {classes}"
    with pytest.raises(ValueError, match=re.escape(message)):
        ConfusionMatrix(3).mean_iou(classes)


@pytest.mark.parametrize("absent", [1, -0.5, math.inf, None, "nan"], ids=str)
def test_refuses_other_values_for_absent_classes(absent: Any) -> None:
    message = f"absent must be nan (not in the mean) or 0 (a failure), got {absent!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        ConfusionMatrix(3).mean_iou(absent=absent)


def test_refuses_no_classes() -> None:
    with pytest.raises(ValueError, match=re.escape("num_classes must be a positive int, got 0")):
        ConfusionMatrix(0)


def test_reset_forgets() -> None:
    confusion, again = ConfusionMatrix(5), ConfusionMatrix(5)
    confusion.update(*draw(5, 255))
    kept = confusion.matrix
    confusion.reset()
    assert confusion.matrix.sum() == 0 < kept.sum()
    for counted in (confusion, again):
        counted.update(*draw(5, 255, seed=1))
    assert torch.equal(confusion.matrix, again.matrix)


def test_printed_it_is_a_table() -> None:
    confusion = ConfusionMatrix(3, ignore_index=-1)
    confusion.matrix = torch.tensor([[10_000_000, 0, 0], [30_000_000, 1, 0], [0, 0, 0]])
    lines = repr(confusion).splitlines()
    assert lines == [
        "ConfusionMatrix(3, ignore_index=-1): 40000001 pixels",
        "class     IoU    pixels",
        "    0  0.2500  10000000",
        "    1  0.0000  30000001",
        "    2     nan         0",
        " mean  0.1250",
    ]
    assert "mean     nan" in repr(ConfusionMatrix(2))


class Tagged(Tensor):
    """A subclass that spreads: all that is made of it is one."""


def test_labels_of_a_subclass() -> None:
    mask = pytest.importorskip("torchvision.tv_tensors").Mask
    prediction, target = draw(5, 255)
    plain = ConfusionMatrix(5)
    plain.update(prediction, target)
    for kind in (mask, lambda x: x.as_subclass(Tagged)):
        confusion = ConfusionMatrix(5)
        confusion.update(kind(prediction), kind(target))
        assert type(confusion.matrix) is Tensor
        assert torch.equal(confusion.matrix, plain.matrix)
        assert type(confusion.iou()) is Tensor


def test_all_reduce_of_one_process() -> None:
    confusion = ConfusionMatrix(5)
    confusion.update(*draw(5, 255))
    before = confusion.matrix.clone()
    confusion.all_reduce()
    assert torch.equal(confusion.matrix, before)


def test_all_reduce_takes_nccl_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nccl is given lies on the current CUDA device, and what comes back where the counts were."""
    seen = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda group: "nccl")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch, "device", lambda kind, index: seen.append((kind, index)) or "cpu")
    monkeypatch.setattr(dist, "all_reduce", lambda x, group: x.mul_(2))
    confusion = ConfusionMatrix(2)
    confusion.matrix += 1
    confusion.all_reduce()
    assert seen == [("cuda", 0)]
    assert confusion.matrix.tolist() == [[2, 2], [2, 2]]
