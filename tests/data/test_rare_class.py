"""Rare-class sampling."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from chi_square import surprise

from hrda_lib.data import RareClasses


def test_class_probabilities_follow_the_equation() -> None:
    counts = torch.tensor([[9000, 0, 10], [4000, 5000, 10], [0, 4000, 0]])
    shares = counts.sum(0).double() / counts.sum()
    weights = np.exp((1 - shares.numpy()) / 0.1)
    weights[2] = 0  # no image has more than 3000 pixels of class 2
    got = RareClasses(counts, temperature=0.1).probabilities
    np.testing.assert_allclose(got.numpy(), weights / weights.sum(), rtol=1e-12)
    assert got.dtype == torch.float64


def test_a_cold_temperature_does_not_underflow() -> None:
    got = RareClasses(torch.tensor([[99_000, 5000]]), temperature=1e-4).probabilities
    assert got.tolist() == [0.0, 1.0]


def test_drawn_images_show_the_drawn_class(generator: torch.Generator) -> None:
    counts = torch.tensor([[9000, 0], [4000, 5000], [3000, 4000]])
    rare = RareClasses(counts, temperature=1.0)
    drawn = [rare.draw(generator) for _ in range(300)]
    assert {index for index, label in drawn if label == 0} == {0, 1}  # strictly more than 3000
    assert {index for index, label in drawn if label == 1} == {1, 2}


def test_classes_and_images_are_drawn_with_their_probabilities() -> None:
    counts = torch.randint(0, 2000, (40, 6), generator=torch.Generator().manual_seed(0))
    counts[:, 4] //= 20
    counts[5:, 5] = 0
    rare = RareClasses(counts, temperature=0.1, min_pixels=60)
    generator = torch.Generator().manual_seed(1)
    drawn = [rare.draw(generator) for _ in range(3000)]
    assert surprise([label for _, label in drawn], rare.probabilities.tolist()) < 3.5
    assert surprise([label for _, label in drawn], rare.probabilities.roll(1).tolist()) > 10
    for wanted in range(6):
        shows = (counts[:, wanted] > 60).double()
        of_class = [index for index, label in drawn if label == wanted]
        assert surprise(of_class, (shows / shows.sum()).tolist()) < 3.5


COUNTS = torch.tensor([[10, 0]])


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "counts": (lambda: RareClasses(COUNTS[0]), "counts must be (images, classes) and not empty, got (2,)"),
    "counts of ids": (
        lambda: RareClasses(torch.ones(4, 256)),
        "counts must be cut to the classes, counts[:, :num_classes], got (4, 256)",
    ),
    "temperature": (
        lambda: RareClasses(COUNTS, temperature=0),
        "temperature must be positive and min_pixels not negative, got 0, 3000",
    ),
    "no image shows enough": (
        lambda: RareClasses(COUNTS),
        "no image has more than min_pixels=3000 pixels of any class; choose a smaller number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, text = BAD[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
