import colorsys
import math
import re
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hrda_lib.augment
from hrda_lib import StrongAugment, gaussian_blur
from hrda_lib.augment import color_jitter

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # images that are [0, 1] already


def draw(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images in [0, 1] with some grey, black, white and saturated pixels."""
    images = torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    images[:, :, 0] = images[:, :1, 0]
    images[:, :, -1] = images[:, :, -1].round()
    return images


def draw_shifts(batch: int, seed: int = 19) -> Tensor:
    return 0.4 * torch.rand(batch, 4, generator=torch.Generator().manual_seed(seed)) - 0.2


def jitter_pixel(pixel: list[float], shifts: list[float], order: tuple[int, ...]) -> list[float]:
    """DESIGN's words with the standard library's HSV."""
    brightness, contrast, saturation, hue = shifts
    for step in order:
        if step == 0:
            pixel = [channel + brightness for channel in pixel]
        elif step == 1:
            pixel = [channel * (1 + contrast) for channel in pixel]
        else:
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            pixel = list(
                colorsys.hsv_to_rgb(h, min(s * (1 + saturation), 1), v)
                if step == 2
                else colorsys.hsv_to_rgb((h + hue) % 1, s, v)
            )
        pixel = [min(max(channel, 0), 1) for channel in pixel]
    return pixel


def kornia_jitter(images: Tensor, shifts: Tensor, order: tuple[int, ...]) -> Tensor:
    enhance = pytest.importorskip("kornia").enhance
    brightness, contrast, saturation, hue = shifts.T
    for step in order:
        images = [
            lambda x: enhance.adjust_brightness(x, brightness),  # additive
            lambda x: enhance.adjust_contrast(x, 1 + contrast),
            lambda x: enhance.adjust_saturation(x, 1 + saturation),
            lambda x: enhance.adjust_hue(x, 2 * math.pi * hue),
        ][step](images)
    return images


def released_kernel(side: int) -> int:
    return math.floor(math.ceil(0.1 * side) - 0.5 + math.ceil(0.1 * side) % 2)


def kornia_blur(images: Tensor, sigma: Tensor) -> Tensor:
    blur = pytest.importorskip("kornia").filters.gaussian_blur2d
    kernel = (released_kernel(images.shape[2]), released_kernel(images.shape[3]))
    return blur(images, kernel, sigma.view(-1, 1).repeat(1, 2), border_type="reflect")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What StrongAugment draws, call by call: ("jitter", (shifts, order)) and ("blur", sigma)."""
    calls: list[tuple[str, Any]] = []

    def jitter(images: Tensor, shifts: Tensor, order: list[int]) -> Tensor:
        calls.append(("jitter", (shifts, tuple(order))))
        return color_jitter(images, shifts, order)

    def blur(images: Tensor, sigma: Tensor) -> Tensor:
        calls.append(("blur", sigma))
        return gaussian_blur(images, sigma)

    monkeypatch.setattr(hrda_lib.augment, "color_jitter", jitter)
    monkeypatch.setattr(hrda_lib.augment, "gaussian_blur", blur)
    return calls


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
def test_jitter_equals_kornia_and_colorsys(order: tuple[int, ...]) -> None:
    images, shifts = draw(3, 3, 8, 9), draw_shifts(3)
    assert ((shifts.amax(0) > 0.05) & (shifts.amin(0) < -0.05)).all()  # both signs of each
    result = color_jitter(images, shifts, order)
    assert (result - kornia_jitter(images, shifts, order)).abs().max() <= 2e-6
    exact = color_jitter(images.double(), shifts.double(), order)
    for b, i, j in [(0, 0, 0), (0, 7, 5), (1, 3, 4), (1, 7, 8), (2, 5, 0), (2, 6, 6)]:
        expected = jitter_pixel(images[b, :, i, j].tolist(), shifts[b].tolist(), order)
        assert exact[b, :, i, j].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("side", "kernel"), [(512, 51), (768, 77), (1024, 103), (5, 1), (20, 1), (30, 3)])
@pytest.mark.parametrize("sigma", [0.15, 1.15, 30.0])
def test_blur_equals_kornia(side: int, kernel: int, sigma: float) -> None:
    assert released_kernel(side) == kernel
    wide, high = draw(2, 3, 32, side), draw(2, 3, side, 32)
    sigmas = torch.tensor([sigma, sigma / 2])
    for images in (wide, high):
        assert (gaussian_blur(images, sigmas) - kornia_blur(images, sigmas)).abs().max() <= 2e-6


def test_blur_of_a_point_is_the_kernel() -> None:
    point = torch.zeros(1, 1, 61, 91, dtype=torch.float64)
    point[0, 0, 30, 45] = 1
    blurred = gaussian_blur(point, torch.tensor([1.5]))[0, 0]
    assert (released_kernel(61), released_kernel(91)) == (7, 9)
    weights = {d: math.exp(-0.5 * (d / 1.5) ** 2) for d in range(-4, 5)}
    down, across = sum(weights[d] for d in range(-3, 4)), sum(weights.values())
    assert blurred.count_nonzero() == 7 * 9
    for y in range(-3, 4):
        for x in range(-4, 5):
            assert blurred[30 + y, 45 + x].item() == pytest.approx(weights[y] * weights[x] / down / across, rel=1e-12)


def test_jitter_then_blur_between_the_two_normalisations(drawn: list[tuple[str, Any]]) -> None:
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    images = draw(4, 3, 40, 60)
    augment = StrongAugment(mean=MEAN, std=STD, jitter=1, blur=1)
    result = augment((images - mean) / std, torch.Generator().manual_seed(4))
    assert [name for name, _ in drawn] == ["jitter", "blur"]
    (_, (shifts, order)), (_, sigma) = drawn
    expected = kornia_blur(kornia_jitter(images, shifts, order), sigma)
    assert (result * std + mean - expected).abs().max() <= 2e-6


def test_factors_a_sample_and_decisions_and_order_a_batch(drawn: list[tuple[str, Any]]) -> None:
    augment, generator = StrongAugment(**PLAIN), torch.Generator().manual_seed(0)
    calls = 1000
    for _ in range(calls):
        augment(torch.full((3, 3, 1, 1), 0.5), generator)
    jitters, sigmas = ([value for name, value in drawn if name == kind] for kind in ("jitter", "blur"))
    assert abs(len(jitters) / calls - 0.8) < 0.07
    assert abs(len(sigmas) / calls - 0.5) < 0.08

    orders = [order for _, order in jitters]
    assert set(orders) == set(permutations(range(4)))
    assert max(orders.count(order) for order in set(orders)) < 70  # 33 expected

    shifts = torch.cat([shifts for shifts, _ in jitters])
    assert shifts.shape == (3 * len(jitters), 4)
    for values, low, high in (
        *((column, -0.2, 0.2) for column in shifts.T),
        (torch.cat(sigmas), 0.15, 1.15),
    ):
        place = (values - low) / (high - low)
        assert -1e-6 <= place.min() < 0.01
        assert 0.99 < place.max() <= 1 + 1e-6
        assert place.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx([0.25, 0.5, 0.75], abs=0.05)
        assert len(values.unique()) > 0.99 * len(values)  # every sample its own
    assert torch.corrcoef(shifts.T).fill_diagonal_(0).abs().max() < 0.1


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_width_is_its_own(name: str, drawn: list[tuple[str, Any]]) -> None:
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    StrongAugment(**PLAIN, jitter=1, **(none | {name: 0.5}))(draw(200, 3, 2, 2), torch.Generator().manual_seed(0))
    (shifts, _) = drawn[0][1]
    column = list(none).index(name)
    assert shifts.abs().amax(0).gt(0).tolist() == [i == column for i in range(4)]
    assert 0.48 < shifts[:, column].abs().max() <= 0.5


@pytest.mark.parametrize(("jitter", "blur"), [(0.5, 0.0), (0.0, 0.5)], ids=["jitter", "blur"])
def test_all_images_of_a_batch_or_none(jitter: float, blur: float) -> None:
    augment, generator = (
        StrongAugment(**PLAIN, jitter=jitter, blur=blur, sigma=(1, 2)),
        torch.Generator().manual_seed(0),
    )
    images = draw(4, 3, 30, 30)
    changed = [(augment(images, generator) != images).flatten(1).any(1).sum().item() for _ in range(100)]
    assert set(changed) == {0, 4}
    assert 25 < changed.count(4) < 75


def test_probability_0_changes_nothing() -> None:
    images = draw(2, 3, 8, 8)
    augment, generator = StrongAugment(mean=MEAN, std=STD, jitter=0, blur=0), torch.Generator().manual_seed(0)
    assert all(torch.equal(augment(images, generator), draw(2, 3, 8, 8)) for _ in range(50))


def test_images_of_the_caller_stay_as_they_are() -> None:
    images = draw(2, 3, 8, 8)
    StrongAugment(mean=MEAN, std=STD, jitter=1, blur=1)(images, torch.Generator().manual_seed(0))
    assert torch.equal(images, draw(2, 3, 8, 8))


def test_same_generator_same_result() -> None:
    augment = StrongAugment(mean=MEAN, std=STD, jitter=1, blur=1)
    images = draw(2, 3, 30, 30)
    first, second, other = (augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    first = augment(images)
    torch.manual_seed(3)
    assert torch.equal(first, augment(images))


@given(st.integers(0, 99))
def test_result_stays_in_0_1_and_agrees_with_float64(seed: int) -> None:
    mean, std = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))
    images = (draw(2, 3, 30, 20, seed=seed, dtype=torch.float64) - mean) / std
    widths = {"brightness": 0.9, "contrast": 0.9, "saturation": 0.9, "hue": 0.5}
    augment = StrongAugment(mean=MEAN, std=STD, jitter=1, blur=1, **widths)
    exact = augment(images, torch.Generator().manual_seed(seed))
    result = augment(images.float(), torch.Generator().manual_seed(seed))
    assert (exact.dtype, result.dtype) == (torch.float64, torch.float32)
    assert (result - exact).abs().max() < 1e-5
    plain = exact * std + mean
    assert plain.min() > -1e-9
    assert plain.max() < 1 + 1e-9


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.sampled_from([2, 3]))
def test_hsv_round_trip_is_the_identity(pixel: list[float], step: int) -> None:
    images = torch.tensor(pixel, dtype=torch.float64).view(1, 3, 1, 1)
    unchanged = color_jitter(images, torch.zeros(1, 4, dtype=torch.float64), [step])
    assert (unchanged - images).abs().max() < 1e-14


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_hue_by_a_third_of_a_turn_rotates_the_channels(pixel: list[float]) -> None:
    images = torch.tensor(pixel, dtype=torch.float64).view(1, 3, 1, 1)
    shifts = torch.tensor([[0, 0, 0, 1 / 3]], dtype=torch.float64)
    assert color_jitter(images, shifts, [3]).flatten().tolist() == pytest.approx(
        [pixel[2], pixel[0], pixel[1]], abs=1e-14
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mean": (0.5, 0.5)},
            "mean and std must be three numbers each, of images in [0, 1], got (0.5, 0.5) and (1.0,",
        ),
        (
            {"std": (1.0,)},
            "mean and std must be three numbers each, of images in [0, 1], got (0.0, 0.0, 0.0) and (1.0,)",
        ),
        (
            {"std": (1.0, 0.0, 1.0)},
            "mean and std must be three numbers each, of images in [0, 1], got (0.0, 0.0, 0.0) and (1.0, 0",
        ),
        ({"jitter": 1.2}, "jitter must be in [0, 1], got 1.2"),
        ({"blur": -0.1}, "blur must be in [0, 1], got -0.1"),
        ({"brightness": 1.1}, "brightness must be in [0, 1], got 1.1"),
        ({"contrast": -0.2}, "contrast must be in [0, 1], got -0.2"),
        ({"saturation": 2}, "saturation must be in [0, 1], got 2"),
        ({"hue": 0.6}, "hue must be in [0, 0.5], got 0.6"),
        ({"sigma": (0.0, 1.0)}, "sigma must be a range 0 < low <= high, got (0.0, 1.0)"),
        ({"sigma": (2.0, 1.0)}, "sigma must be a range 0 < low <= high, got (2.0, 1.0)"),
    ],
    ids=[
        "mean",
        "std",
        "std 0",
        "jitter",
        "blur",
        "brightness",
        "contrast",
        "saturation",
        "hue",
        "sigma 0",
        "sigma order",
    ],
)
def test_refuses_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        StrongAugment(**(PLAIN | settings))


@pytest.mark.parametrize("jitter", [0.0, 1.0])
@pytest.mark.parametrize(
    ("value", "came"),
    [
        (255.0, "255"),
        (2.01, "2.01"),
        (-1.01, "-1.01"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (1e37, "1e+37"),
    ],
)
def test_refuses_what_is_no_normalised_picture(value: float, came: str, jitter: float) -> None:
    """Also on the steps on which nothing would be changed."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    images = draw(2, 3, 8, 8)
    images[1, 2, 3, 4] = value
    with pytest.raises(
        ValueError, match=r"^images must be pictures in \[0, 1\] that .*; divide pictures by 255, "
    ) as error:
        StrongAugment(mean=MEAN, std=STD, jitter=jitter, blur=0)((images - mean) / std)
    assert came in str(error.value)
    StrongAugment(mean=MEAN, std=STD, jitter=jitter, blur=0)((draw(2, 3, 8, 8) * 2.8 - 0.9 - mean) / std)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(3, 8, 8), "torch.float32 (3, 8, 8)"),
        (torch.zeros(2, 4, 8, 8), "torch.float32 (2, 4, 8, 8)"),
        (torch.zeros(2, 3, 8, 8).byte(), "torch.uint8 (2, 3, 8, 8)"),
    ],
    ids=["dimensions", "channels", "dtype"],
)
def test_refuses_images(images: Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"images must be float (B, 3, H, W), got {got}")):
        StrongAugment(**PLAIN)(images)


@pytest.mark.parametrize(
    ("images", "sigma", "message"),
    [
        (torch.zeros(3, 8, 8), torch.ones(3), "images must be float (B, K, H, W), got torch.float32 (3, 8, 8)"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.ones(2), "images must be float (B, K, H, W), got torch.uint8"),
        (torch.zeros(2, 3, 8, 8), 1.0, "sigma must be a tensor, got float"),
        (torch.zeros(2, 3, 8, 8), torch.ones(1), "sigma must be float (2,), got torch.float32 (1,); one an image"),
        (torch.zeros(2, 3, 8, 8), torch.ones(2).int(), "sigma must be float (2,), got torch.int32 (2,); one an image"),
        (torch.zeros(2, 3, 8, 8), torch.tensor([1.0, 0.0]), "sigma must be positive and finite, got [1.0, 0.0]"),
        (torch.zeros(1, 3, 8, 8), torch.tensor([math.inf]), "sigma must be positive and finite, got [inf]"),
    ],
)
def test_blur_refuses(images: Tensor, sigma: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        gaussian_blur(images, sigma)
