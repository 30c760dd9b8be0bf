import colorsys
import math
import re
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hrda_lib.augment
from hrda_lib import StrongAugment, gaussian_blur
from hrda_lib.augment import color_jitter, fourier_style

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


def style_by_loops(source: Tensor, target: Tensor, beta: float) -> np.ndarray:
    """FDA, a frequency at a time: the spectra's middle is frequency 0."""
    batch, channels, height, width = source.shape
    b = math.floor(beta * min(height, width))
    spectra = [np.fft.fftshift(np.fft.fft2(x.numpy()), axes=(2, 3)) for x in (source, target)]
    for i, k, row, column in np.ndindex(batch, channels, height, width):
        if abs(row - height // 2) <= b and abs(column - width // 2) <= b and beta > 0:
            content, style = (spectrum[i, k, row, column] for spectrum in spectra)
            spectra[0][i, k, row, column] = abs(style) * np.exp(1j * np.angle(content))
    out = np.fft.ifft2(np.fft.ifftshift(spectra[0], axes=(2, 3)))
    assert np.abs(out.imag).max() < 1e-9
    return out.real


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (6, 11), (12, 5), (1, 6), (5, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("beta", [0, 0.01, 0.2, 0.34, 0.49, 0.5, 1])
def test_fourier_style_equals_loops(size: tuple[int, int], beta: float) -> None:
    source, target = draw(2, 4, *size, dtype=torch.float64), draw(2, 4, *size, seed=1, dtype=torch.float64) / 3
    styled = fourier_style(source, target, beta=beta)
    assert styled.dtype == torch.float64
    assert np.abs(styled.numpy() - style_by_loops(source, target, beta)).max() < 1e-12


@pytest.mark.parametrize(("beta", "b"), [(0.01, 0), (0.06, 0), (0.0625, 1), (0.12, 1), (0.13, 2)])
def test_a_wave_takes_the_other_waves_height_up_to_b_periods(beta: float, b: int) -> None:
    place = torch.arange(16, dtype=torch.float64) / 16
    for periods in (1, 2, 3):
        wave = 2 * math.pi * periods * place
        for turn in (lambda x: x, lambda x: x.mT):
            source, target = (turn(x.expand(1, 1, 16, 16)) for x in (wave.cos(), 5 * (wave + 1).cos() + 0.3))
            styled = fourier_style(source, target, beta=beta)
            torch.testing.assert_close(styled, (5 if periods <= b else 1) * source + 0.3)


def test_nothing_changes_at_beta_0_and_between_an_image_and_itself() -> None:
    source, target = draw(2, 3, 9, 8), draw(2, 3, 9, 8, seed=1)
    same = fourier_style(source, target, beta=0)
    assert torch.equal(same, source)
    assert same.data_ptr() != source.data_ptr()
    torch.testing.assert_close(fourier_style(source, source, beta=0.3), source)
    assert torch.equal(source, draw(2, 3, 9, 8))


def test_each_image_and_channel_has_its_own_target() -> None:
    source, target = draw(2, 3, 12, 10), draw(2, 3, 12, 10, seed=1)
    whole = fourier_style(source, target, beta=0.2)
    for i in range(2):
        for k in range(3):
            alone = slice(i, i + 1), slice(k, k + 1)
            torch.testing.assert_close(fourier_style(source[alone], target[alone], beta=0.2), whole[alone])


@given(st.integers(0, 99), st.floats(0, 1))
def test_the_picture_is_the_same_in_any_normalisation(seed: int, beta: float) -> None:
    mean, std = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))
    source, target = (draw(2, 3, 8, 10, seed=s, dtype=torch.float64) for s in (seed, seed + 100))
    styled = fourier_style((source - mean) / std, (target / 5 - mean) / std, beta=beta)
    assert (styled * std + mean - fourier_style(source, target / 5, beta=beta)).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_style_is_taken_in_float32_at_least(dtype: torch.dtype, autocast: bool) -> None:
    source, target = draw(1, 3, 40, 30).to(dtype), draw(1, 3, 40, 30, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        styled = fourier_style(source, target, beta=0.1)
    exact = fourier_style(source.double(), target.double(), beta=0.1)
    assert styled.dtype == dtype
    torch.testing.assert_close(styled.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": torch.zeros(3, 8, 8)}, "source must be float (B, K, H, W), got torch.float32 (3, 8, 8)"),
        ({"source": torch.zeros(2, 3, 8, 8).byte()}, "source must be float (B, K, H, W), got torch.uint8 (2, 3, 8, 8)"),
        (
            {"target": torch.zeros(2, 3, 8, 16)},
            "target must be float32 (2, 3, 8, 8) like source, got torch.float32 (2, 3, 8, 16); crop, resize or convert",
        ),
        ({"target": torch.zeros(1, 3, 8, 8)}, "target must be float32 (2, 3, 8, 8) like source, got torch.float32 (1,"),
        (
            {"target": torch.zeros(2, 3, 8, 8).half()},
            "target must be float32 (2, 3, 8, 8) like source, got torch.float",
        ),
        ({"beta": -0.1}, "beta must be in [0, 1], got -0.1"),
        ({"beta": 1.5}, "beta must be in [0, 1], got 1.5"),
        ({"source": torch.full((2, 3, 8, 8), math.nan)}, "source must be finite, got nan to nan"),
        ({"target": torch.full((2, 3, 8, 8), math.inf)}, "target must be finite, got inf to inf"),
    ],
    ids=["dimensions", "dtype", "size", "batch", "half", "negative", "above 1", "nan", "inf"],
)
def test_fourier_style_refuses(change: dict[str, Any], message: str) -> None:
    good = {"source": torch.zeros(2, 3, 8, 8), "target": torch.zeros(2, 3, 8, 8)}
    with pytest.raises(ValueError, match=re.escape(message)):
        fourier_style(**(good | change))
