import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from bilinear import resize
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrda_lib import pseudo_labels

PER = ("batch", "image", "pixel")


def draw(seed: int = 0) -> Tensor:
    return 3 * torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oracle(logits: Tensor, size: tuple[int, int], threshold: float, per: str) -> tuple[np.ndarray, np.ndarray]:
    scores = resize(logits.double().numpy(), size)
    labels = np.zeros((len(logits), *size), dtype=np.int64)
    confident = np.zeros(labels.shape)
    for b, i, j in np.ndindex(*labels.shape):
        powers = [math.exp(score) for score in scores[b, :, i, j]]
        labels[b, i, j] = powers.index(max(powers))
        confident[b, i, j] = max(powers) / sum(powers) >= threshold
    weight = confident.copy()
    for b in range(len(weight)):
        weight[b] = {"batch": confident.mean(), "image": confident[b].mean(), "pixel": confident[b]}[per]
    return labels, weight


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("threshold", [0.0, 0.7, 0.968, 1.0])
@pytest.mark.parametrize("size", [(3, 4), (6, 8), (7, 5), (12, 16)], ids=str)
def test_equals_loop(per: Any, threshold: float, size: tuple[int, int]) -> None:
    labels, weight = pseudo_labels(draw(), size=size, threshold=threshold, per=per)
    expected_labels, expected_weight = oracle(draw(), size, threshold, per)
    assert np.array_equal(labels.numpy(), expected_labels)
    assert np.allclose(weight.numpy(), expected_weight, rtol=0, atol=1e-12)


def test_size_none_and_int() -> None:
    logits = draw()
    assert torch.equal(pseudo_labels(logits)[0], pseudo_labels(logits, size=(3, 4))[0])
    assert pseudo_labels(logits, size=5)[0].shape == (2, 5, 5)


def test_upsamples_before_the_softmax() -> None:
    # between the cells the mean of the logits is sure (15 to 0.5); the mean of the probabilities is not (0.78)
    logits = torch.tensor([[20.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
    labels, weight = pseudo_labels(logits, size=(1, 4), per="pixel")
    assert labels.tolist() == [[[0, 0, 0, 1]]]
    assert weight.tolist() == [[[1, 1, 1, 0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_threshold_is_reached_at_equality(num_classes: int, dtype: torch.dtype) -> None:
    logits = torch.zeros(1, num_classes, 1, 1, dtype=dtype)
    assert pseudo_labels(logits, threshold=1 / num_classes)[1].item() == 1
    assert pseudo_labels(logits, threshold=1 / num_classes + 1e-6)[1].item() == 0


def test_default_threshold_is_0968() -> None:
    logits = torch.tensor([[0.969, 0.967], [0.031, 0.033]], dtype=torch.float64).log().view(1, 2, 1, 2)
    assert pseudo_labels(logits, per="pixel")[1].tolist() == [[[1, 0]]]
    assert pseudo_labels(logits)[1].tolist() == [[[0.5, 0.5]]]


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        ("batch", [[0.5, 0.0], [0.5, 0.5]]),
        ("image", [[1.0, 0.0], [0.0, 0.0]]),
        ("pixel", [[1.0, 0.0], [0.0, 0.0]]),
    ],
)
def test_valid_is_applied_after_the_share(per: Any, expected: list[list[float]]) -> None:
    logits = torch.zeros(2, 2, 1, 2)
    logits[0, 1] = 9  # both pixels of the first image are sure, none of the second
    valid = torch.tensor([[[True, False]], [[True, True]]])
    assert pseudo_labels(logits, valid=valid, per=per)[1].squeeze(1).tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("per", PER)
def test_types_and_no_gradient(dtype: torch.dtype, expected: torch.dtype, per: Any) -> None:
    logits = draw().to(dtype).requires_grad_()
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    labels, weight = pseudo_labels(logits, per=per, valid=valid)
    assert (labels.dtype, weight.dtype, weight.requires_grad) == (torch.int64, expected, False)
    assert np.array_equal(labels.numpy(), oracle(logits.detach(), (3, 4), 0.968, per)[0])


@pytest.mark.parametrize("per", PER)
def test_weight_has_its_own_memory(per: Any) -> None:
    _, weight = pseudo_labels(draw(), threshold=0, per=per)
    weight[:, :1] = 0  # a margin, as a user would set it
    assert weight.sum().item() == 2 * 2 * 4


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([60000.0, -60000.0], dtype=torch.float16).view(1, 2, 1, 1)
    labels, weight = pseudo_labels(logits, threshold=1)
    assert (labels.item(), weight.item()) == (0, 1)


@given(st.integers(0, 99), st.floats(0.4, 1))
def test_shares_are_means_of_decisions(seed: int, threshold: float) -> None:
    pixel, image, batch = (
        pseudo_labels(draw(seed), threshold=threshold, per=per)[1] for per in ("pixel", "image", "batch")
    )
    assert set(pixel.unique().tolist()) <= {0.0, 1.0}
    assert image[:, 0, 0].tolist() == pytest.approx(pixel.mean((1, 2)).tolist(), abs=1e-12)
    assert batch[0, 0, 0].item() == pytest.approx(pixel.mean().item(), abs=1e-12)


@given(st.integers(0, 99), st.floats(-50, 50))
def test_blind_to_logit_offset(seed: int, offset: float) -> None:
    labels, weight = pseudo_labels(draw(seed), size=(5, 7), threshold=0.8, per="pixel")
    shifted_labels, shifted_weight = pseudo_labels(draw(seed) + offset, size=(5, 7), threshold=0.8, per="pixel")
    assert torch.equal(labels, shifted_labels)
    assert torch.equal(weight, shifted_weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 4, 5)}, "logits must be float (B, C, h, w), got torch.float32 (3, 4, 5)"),
        ({"logits": torch.zeros(2, 3, 4, 5).long()}, "logits must be float (B, C, h, w), got torch.int64 (2, 3, 4, 5)"),
        ({"logits": torch.zeros(2, 1, 4, 5)}, "logits must have at least two classes, got one class, whose softmax"),
        ({"threshold": 1.5}, "threshold must be in [0, 1], got 1.5"),
        ({"threshold": -0.1}, "threshold must be in [0, 1], got -0.1"),
        ({"threshold": math.nan}, "threshold must be in [0, 1], got nan"),
        ({"per": "class"}, "per must be one of ('batch', 'image', 'pixel'), got 'class'"),
        ({"size": (4, 0)}, "size must be a positive int or two of them (height, width), got (4, 0)"),
        ({"valid": torch.ones(2, 4, 6).bool()}, "valid must be bool (2, 4, 5), got torch.bool (2, 4, 6)"),
        ({"valid": torch.ones(4, 5).bool()}, "valid must be bool (2, 4, 5), got torch.bool (4, 5)"),
        ({"valid": torch.ones(2, 4, 5)}, "valid must be bool (2, 4, 5), got torch.float32 (2, 4, 5)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        pseudo_labels(**({"logits": torch.zeros(2, 3, 4, 5)} | change))
