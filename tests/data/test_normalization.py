"""Images as networks take them."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from hrda_lib.data import IMAGENET_MEAN, IMAGENET_STD, channel_statistics, normalize


def drawn(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    values = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
    return values.to(dtype) if dtype == torch.uint8 else (values / 16 - 5).to(dtype)


# The equation, number by number in float64


def slow(images: Tensor, mean: list[float], std: list[float]) -> np.ndarray:
    out = images.numpy().astype(np.float64)
    out = out / 255 if images.dtype == torch.uint8 else out
    for channel in range(len(mean)):
        out[..., channel, :, :] = (out[..., channel, :, :] - mean[channel]) / std[channel]
    return out


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 5, 6), (2, 4, 5, 6), (1, 1, 1), (2, 1, 1, 3)])
def test_equation(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = drawn(*shape, dtype=dtype)
    mean, std = ([0.1, -2.0, 0.7, 30.0], [0.5, 3.0, 1e-3, 7.0])
    mean, std = mean[: shape[-3]], std[: shape[-3]]
    before = images.clone()
    got = normalize(images, mean, std)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(images, before)
    exact = 1e-14 if dtype == torch.float64 else 1e-6
    oracle = slow(images if dtype != torch.bfloat16 else images.float(), mean, std)
    np.testing.assert_allclose(got.numpy(), oracle, rtol=exact, atol=exact * 1e3)


def test_pictures_are_bit_for_bit_what_training_has_always_seen() -> None:
    images = drawn(2, 3, 9, 7)
    shift, scale = (torch.tensor(value).view(-1, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.equal(normalize(images), (images.float() / 255 - shift) / scale)


def test_torchvision_gives_the_same() -> None:
    images = drawn(2, 3, 9, 7)
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    torch.testing.assert_close(normalize(images), theirs(images), rtol=1e-6, atol=1e-6)


def test_gradients_pass() -> None:
    images = drawn(1, 2, 3, 3, dtype=torch.float32).requires_grad_()
    normalize(images, [0, 0], [0.5, 4]).sum().backward()
    assert images.grad is not None
    assert images.grad[0, :, 0, 0].tolist() == [2, 0.25]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_statistics_of_all_pixels(dtype: torch.dtype) -> None:
    images = [drawn(3, 8, 9, dtype=dtype), drawn(3, 2, 5, dtype=dtype).flip(0), drawn(3, 1, 1, dtype=dtype)]
    scale = 255 if dtype == torch.uint8 else 1
    pixels = np.concatenate([image.flatten(1).numpy().astype(np.float64) / scale for image in images], axis=1)
    mean, std = channel_statistics(iter(images))
    np.testing.assert_allclose(mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=1), rtol=1e-12)


def test_normalised_by_its_own_statistics() -> None:
    images = torch.stack([drawn(2, 8, 9), drawn(2, 8, 9).flip(-1)])
    images[:, 1] = 77
    got = normalize(images, *channel_statistics(images))
    assert got[:, 0].mean().abs() < 1e-6
    assert got[:, 0].std(correction=0) == pytest.approx(1, abs=1e-6)
    assert got[:, 1].abs().max() < 1e-6  # a constant channel is 0, not NaN


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "an array": (
        lambda: normalize(np.zeros((3, 2, 2))),  # type: ignore[arg-type]
        "images must be a tensor, got ndarray; see torch.from_numpy",
    ),
    "whole numbers": (
        lambda: normalize(torch.zeros(3, 2, 2, dtype=torch.int64)),
        "images must be uint8 or float, (B, K, H, W) or (K, H, W), got torch.int64 (3, 2, 2)",
    ),
    "two dimensions": (lambda: normalize(torch.zeros(3, 2)), "got torch.float32 (3, 2)"),
    "four bands": (
        lambda: normalize(torch.zeros(1, 4, 2, 2)),
        "mean and std must have a number for each of the 4 channels, got 3 and 3",
    ),
    "one number for all": (
        lambda: normalize(torch.zeros(3, 2, 2), [0.5], [0.5]),
        "mean and std must have a number for each of the 3 channels, got 1 and 1",
    ),
    "as many means as deviations": (
        lambda: normalize(torch.zeros(2, 2, 2), [0, 0], [1]),
        "for each of the 2 channels, got 2 and 1",
    ),
    "a deviation of 0": (
        lambda: normalize(torch.zeros(2, 2, 2), [0, 0], [1, 0]),
        "std must be positive, got (1, 0); give a constant channel 1",
    ),
    "no deviation": (lambda: normalize(torch.zeros(1, 2, 2), [0], [float("nan")]), "std must be positive, got (nan,)"),
    "no image": (lambda: channel_statistics([]), "images must hold at least one image with pixels, got none"),
    "a batch": (lambda: channel_statistics([drawn(1, 3, 2, 2)]), "images must be (K, H, W) each, got (1, 3, 2, 2)"),
    "other channels": (
        lambda: channel_statistics([drawn(3, 2, 2), drawn(1, 2, 2)]),
        "images must be (3, H, W) each, got (1, 2, 2)",
    ),
    "labels": (lambda: channel_statistics([torch.zeros(1, 2, 2).long()]), "images must be uint8 or float"),
    "not finite": (
        lambda: channel_statistics([torch.tensor([[[0.0, float("inf")]]])]),
        "images must hold finite values; let what reads them replace others",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, text = BAD[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
