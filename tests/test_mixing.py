import re
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrda_lib import class_mix, sample_box_mask, sample_class_mask


def chosen(labels: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    """The classes under the mask, an image, after checking that each is there as a whole or not at all."""
    sets = []
    for image, kept in zip(labels.tolist(), mask.tolist(), strict=True):
        pairs = {pair for row, flags in zip(image, kept, strict=True) for pair in zip(row, flags, strict=True)}
        assert len(pairs) == len({label for label, _ in pairs})
        sets.append(tuple(sorted(label for label, flag in pairs if flag)))
    return sets


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float64], ids=str)
def test_mix_equals_loop(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> None:
    source, target = (torch.randint(200, shape, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand(2, 4, 5, generator=generator) < 0.5
    mixed = class_mix(source, target, mask)
    assert (mixed.dtype, mixed.shape) == (dtype, shape)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                taken = source if mask[b, i, j] else target
                assert torch.equal(mixed[b, ..., i, j], taken[b, ..., i, j])


def test_mix_gradient(generator: torch.Generator) -> None:
    source, target = (torch.rand(1, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(1, 3, 3, generator=generator) < 0.5
    inputs = (source.requires_grad_(), target.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: class_mix(a, b, mask), inputs)


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_mix_with_the_opposite_mask_swaps_the_sides(flags: list[bool]) -> None:
    source, target = torch.arange(6).view(1, 2, 3), torch.arange(6, 12).view(1, 2, 3)
    mask = torch.tensor(flags).view(1, 2, 3)
    assert torch.equal(class_mix(source, target, mask), class_mix(target, source, ~mask))


@given(
    st.lists(st.lists(st.sampled_from([0, 1, 2, 5, 18, 255]), min_size=8, max_size=8), min_size=1, max_size=3),
    st.integers(0, 999),
    st.sampled_from([torch.uint8, torch.int64]),
)
def test_half_of_each_images_own_classes(images: list[list[int]], seed: int, dtype: torch.dtype) -> None:
    labels = torch.tensor(images, dtype=dtype).view(-1, 2, 4)
    mask = sample_class_mask(labels, torch.Generator().manual_seed(seed))
    assert (mask.dtype, mask.shape) == (torch.bool, labels.shape)
    for image, classes in zip(images, chosen(labels, mask), strict=True):
        assert len(classes) == -(-len(set(image)) // 2)


def test_every_set_of_classes_is_equally_likely(generator: torch.Generator) -> None:
    labels = torch.tensor([[[0, 3, 7, 11, 255, 255, 255, 3]]])
    counts = Counter(chosen(labels, sample_class_mask(labels, generator))[0] for _ in range(2000))
    assert len(counts) == 10  # 3 of 5, the ignore label like any other
    assert min(counts.values()) > 130  # 200 expected, standard deviation 13.4
    assert max(counts.values()) < 270


def test_images_are_drawn_apart(generator: torch.Generator) -> None:
    labels = torch.tensor([0, 1, 2, 255]).expand(2, 1, 4)
    equal = 0
    for _ in range(600):
        first, second = chosen(labels, sample_class_mask(labels, generator))
        equal += first == second
    assert 50 < equal < 150  # one in six expected


@pytest.mark.parametrize(("factor", "offset"), [(1, 250), (1, -3), (10**15, -(10**16))])
def test_any_number_may_be_a_class(factor: int, offset: int) -> None:
    labels = torch.randint(7, (3, 8, 9), generator=torch.Generator().manual_seed(0))
    mask, other = (
        sample_class_mask(ids, torch.Generator().manual_seed(1)) for ids in (labels, labels * factor + offset)
    )
    assert torch.equal(mask, other)


def test_same_generator_same_mask() -> None:
    labels = torch.arange(64).view(1, 8, 8)
    first, second, other = (sample_class_mask(labels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    first = sample_class_mask(labels)
    torch.manual_seed(3)
    assert torch.equal(first, sample_class_mask(labels))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_given_classes(dtype: torch.dtype) -> None:
    labels = torch.tensor([[[0, 1, 255]], [[2, 1, 1]], [[0, 1, 2]]], dtype=dtype)
    mask = sample_class_mask(labels, classes=[[255, 0], (1, 18, 300), []])
    assert mask.tolist() == [[[True, False, True]], [[False, True, True]], [[False, False, False]]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5), torch.ones(2, 4, 4).bool()),
            "target must be float32 (2, 3, 4, 4) like source, got torch.float32 (2, 3, 4, 5)",
        ),
        (
            (torch.zeros(4, 4), torch.zeros(4, 4), torch.ones(4, 4).bool()),
            "source must be (B, K, H, W) or (B, H, W), got (4, 4)",
        ),
        (
            (torch.zeros(2, 4, 4).byte(), torch.zeros(2, 4, 4).long(), torch.ones(2, 4, 4).bool()),
            "target must be uint8 (2, 4, 4) like source, got torch.int64 (2, 4, 4)",
        ),
        (
            (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4).bool()),
            "mask must be bool (2, 4, 4), got torch.bool (2, 1, 4, 4)",
        ),
        (
            (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.ones(1, 4, 4).bool()),
            "mask must be bool (2, 4, 4), got torch.bool (1, 4, 4)",
        ),
        (
            (torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), torch.ones(2, 4, 4)),
            "mask must be bool (2, 4, 4), got torch.float32 (2, 4, 4)",
        ),
    ],
    ids=["shape", "dimensions", "dtype", "mask dimensions", "mask batch", "mask dtype"],
)
def test_mix_refuses(arguments: tuple[Tensor, Tensor, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        class_mix(*arguments)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (torch.zeros(2, 4, 4), None, "labels must be uint8 or int64 (B, H, W), got torch.float32 (2, 4, 4)"),
        (torch.zeros(4, 4).long(), None, "labels must be uint8 or int64 (B, H, W), got torch.int64 (4, 4)"),
        (torch.zeros(2, 4, 4).long(), [[1]], "classes must hold one list an image (2), got [[1]]"),
        (torch.zeros(2, 4, 4).long(), [1, 2], "classes must hold one list an image (2)"),
    ],
    ids=["dtype", "dimensions", "one list for two images", "a list of ids"],
)
def test_sampling_refuses(labels: Tensor, classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_class_mask(labels, classes=classes)


def corners(mask: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of the one filled box in (H, W), found pixel by pixel."""
    inside = [(i, j) for i, row in enumerate(mask.tolist()) for j, flag in enumerate(row) if flag]
    rows, columns = {i for i, _ in inside}, {j for _, j in inside}
    top, left, height, width = min(rows), min(columns), len(rows), len(columns)
    assert rows == set(range(top, top + height))
    assert columns == set(range(left, left + width))
    assert len(inside) == height * width
    return top, left, height, width


@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([0.25, 0.5, 0.9]), st.integers(0, 999))
def test_a_box_has_the_sides_of_the_equation(height: int, width: int, ratio: float, seed: int) -> None:
    masks = sample_box_mask((height, width), torch.Generator().manual_seed(seed), batch=3, ratio=ratio)
    assert (masks.dtype, masks.shape) == (torch.bool, (3, height, width))
    for mask, (u, _, _) in zip(masks, torch.rand(3, 3, generator=torch.Generator().manual_seed(seed)), strict=True):
        _, _, rows, columns = corners(mask)
        assert abs(rows - height * ratio ** u.item()) <= 0.5 + 1e-4
        assert abs(columns - width * ratio ** (1 - u.item())) <= 0.5 + 1e-4


def test_boxes_reach_every_border_and_any_aspect() -> None:
    found = [corners(mask) for mask in sample_box_mask((9, 12), torch.Generator().manual_seed(0), batch=300)]
    assert {top for top, *_ in found} >= {0, 1, 2} <= {left for _, left, *_ in found}
    assert any(top + height == 9 and height < 9 for top, _, height, _ in found)
    assert any(left + width == 12 and width < 12 for _, left, _, width in found)
    assert {height > width for *_, height, width in found} == {True, False}


@pytest.mark.parametrize(("ratio", "share"), [(0, 0), (1, 1)])
def test_no_box_and_the_whole_image(ratio: float, share: float) -> None:
    assert sample_box_mask(5, torch.Generator().manual_seed(0), ratio=ratio).float().mean() == share


def test_a_box_is_refused_with_the_argument_s_name() -> None:
    with pytest.raises(ValueError, match=r"ratio must be .*\[0, 1\], got 1.5"):
        sample_box_mask(8, ratio=1.5)
    with pytest.raises(ValueError, match=r"batch must be .*got 0"):
        sample_box_mask(8, batch=0)
    with pytest.raises(ValueError, match=r"generator must be"):
        sample_box_mask(8, 0)  # type: ignore[arg-type]
