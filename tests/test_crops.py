import re
from collections import Counter
from fractions import Fraction
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bilinear import resize
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrda_lib import CropBox, MultiResCropSampler, crop

SCALES_AND_STRIDES = [(s, o) for s in (1, 1.5, 2, 4) for o in (1, 1.5, 3.5, 4, 8)]


def coordinates(height: int, width: int, batch: int = 1) -> Tensor:
    """(batch, 2, height, width) float64: every pixel holds its own row and column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns]).double().expand(batch, 2, height, width)


def multiples(outer: int, inner: int, cell: int) -> set[int]:
    return {offset for offset in range(outer) if offset % cell == 0 and offset + inner <= outer}


def test_every_pair_of_boxes_is_equally_likely(generator: torch.Generator) -> None:
    sampler = MultiResCropSampler((8, 8), context_size=(16, 24), scale=2, output_stride=4)
    draws = 4800
    counts = Counter(sampler.sample((24, 32), generator) for _ in range(draws))

    possible = [
        (CropBox(top, left, 16, 24), CropBox(y, x, 8, 8))
        for top in multiples(24, 16, 8)
        for left in multiples(32, 24, 8)
        for y in multiples(16, 8, 8)
        for x in multiples(24, 8, 8)
    ]
    assert set(counts) <= set(possible)
    assert len(possible) == 24
    expected = draws / len(possible)
    chi_square = sum((counts[pair] - expected) ** 2 / expected for pair in possible)
    assert chi_square < 49.73  # 23 degrees of freedom, p = 0.001


def by_trying(scale: float, stride: float, multiple_of: int = 1) -> tuple[int, int, int]:
    """k, and the smallest sides of a detail and a context crop, found by counting up."""
    s, o = Fraction(scale), Fraction(stride)
    k = next(n for n in count(1) if (n / o).denominator == 1 and (n / (s * o)).denominator == 1)
    detail = next(n for n in count(k, k) if n % multiple_of == 0)
    context = next(n for n in count(k, k) if (n / (s * multiple_of)).denominator == 1)
    return k, detail, context


def test_k_of_the_known_cases() -> None:
    assert [by_trying(s, o)[0] for s, o in ((2, 4), (2, 3.5), (1.5, 4), (1, 1), (2, 7))] == [8, 7, 12, 1, 14]


@pytest.mark.parametrize("multiple_of", [1, 14, 32])
@pytest.mark.parametrize(("scale", "stride"), SCALES_AND_STRIDES)
def test_offsets_reach_every_multiple_of_k_and_the_last(
    scale: float, stride: float, multiple_of: int, generator: torch.Generator
) -> None:
    k, fine, coarse = by_trying(scale, stride, multiple_of)
    context = (coarse * -(-2 * fine // coarse), coarse * -(-3 * fine // coarse))
    sampler = MultiResCropSampler(
        (fine, fine), context_size=context, scale=scale, output_stride=stride, multiple_of=multiple_of
    )
    image = (context[0] + 2 * k + k // 2, context[1] + k)  # rows: the last k/2 pixels are no whole cell
    boxes = [sampler.sample(image, generator) for _ in range(100)]

    assert {outer[2:] for outer, _ in boxes} == {context}
    assert {inner[2:] for _, inner in boxes} == {(fine, fine)}
    assert {outer.top for outer, _ in boxes} == {0, k, 2 * k}
    assert {outer.left for outer, _ in boxes} == {0, k}
    rows, columns = (set(range(0, side - fine + 1, k)) for side in context)
    for found, possible in (({b.top for _, b in boxes}, rows), ({b.left for _, b in boxes}, columns)):
        assert found <= possible
        assert len(possible) > 12 or found == possible
    assert sampler.sample(context, generator)[0] == (0, 0, *context)


@pytest.mark.parametrize("multiple_of", [1, 14])
@pytest.mark.parametrize(("scale", "stride"), SCALES_AND_STRIDES)
def test_no_smaller_size_fits(scale: float, stride: float, multiple_of: int) -> None:
    _, fine, coarse = by_trying(scale, stride, multiple_of)
    for size in range(1, fine):
        with pytest.raises(ValueError, match=f"detail_size must be a multiple of {fine} "):
            MultiResCropSampler(size, scale=scale, output_stride=stride, multiple_of=multiple_of)
    most = 40 * coarse // fine * fine + 1
    sampler = MultiResCropSampler(fine, scale=scale, output_stride=stride, multiple_of=multiple_of)
    for size in range(1, min(most, 3 * coarse)):
        if size % coarse:
            with pytest.raises(ValueError, match=f"image size must be a multiple of {coarse} "):
                sampler.sample(size)


@pytest.mark.parametrize(("scale", "stride"), SCALES_AND_STRIDES)
def test_crops_match_the_image_and_its_labels(scale: float, stride: float, generator: torch.Generator) -> None:
    k, _, c = by_trying(scale, stride)
    image = coordinates(6 * c, 7 * c, batch=2)
    labels = (image[:, 0] * 7 * c + image[:, 1]).long()
    sampler = MultiResCropSampler((k, 2 * k), context_size=(4 * c, 5 * c), scale=scale, output_stride=stride)
    crops = sampler(image, generator)

    top, left = crops.context_box[:2]
    y, x = top + crops.detail_box.top, left + crops.detail_box.left
    context = image[:, :, top : top + 4 * c, left : left + 5 * c].numpy()
    assert torch.equal(crops.detail, image[:, :, y : y + k, x : x + 2 * k])
    expected = resize(context, (round(4 * c / scale), round(5 * c / scale)))
    np.testing.assert_allclose(crops.context, expected, rtol=1e-12, atol=1e-12)

    detail_labels = crop(crop(labels, crops.context_box), crops.detail_box)
    assert torch.equal(detail_labels, (crops.detail[:, 0] * 7 * c + crops.detail[:, 1]).long())


@given(st.sampled_from(SCALES_AND_STRIDES), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_context_is_the_bilinear_downscale_of_the_whole_image(
    setting: tuple[float, float], rows: int, columns: int, seed: int
) -> None:
    scale, stride = setting
    k, _, c = by_trying(scale, stride)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, rows * c, columns * c, generator=generator, dtype=torch.float64)
    crops = MultiResCropSampler(k, scale=scale, output_stride=stride)(image, generator)

    assert crops.context_box == (0, 0, rows * c, columns * c)
    expected = resize(image.numpy(), (round(rows * c / scale), round(columns * c / scale)))
    np.testing.assert_allclose(crops.context, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(crops.detail, crop(image, crops.detail_box))


@pytest.mark.parametrize("context_size", [None, (8, 16)])
def test_an_image_exactly_as_large_as_the_crops(context_size: tuple[int, int] | None) -> None:
    image = coordinates(8, 16).float()
    crops = MultiResCropSampler((8, 16), context_size=context_size, scale=2, output_stride=4)(image)
    assert crops.context_box == crops.detail_box == (0, 0, 8, 16)
    assert torch.equal(crops.detail, image)
    assert crops.context.shape == (1, 2, 4, 8)
    assert crops.context.dtype == torch.float32


def test_image_is_left_alone(generator: torch.Generator) -> None:
    image = torch.rand(1, 3, 16, 16, generator=generator)
    before = image.clone()
    MultiResCropSampler(8)(image, generator)
    assert torch.equal(image, before)


def test_one_generator_state_gives_one_draw() -> None:
    sampler = MultiResCropSampler(8, context_size=32, scale=1, output_stride=1)
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    default = torch.get_rng_state()
    first, again, other = (sampler(image, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))

    assert torch.equal(torch.get_rng_state(), default)
    assert first[2:] == again[2:] != other[2:]
    assert torch.equal(first.context, again.context)
    assert torch.equal(first.detail, again.detail)
    assert sampler.sample((64, 64), torch.Generator().manual_seed(5)) == first[2:]


def test_without_a_generator_torch_decides() -> None:
    sampler = MultiResCropSampler(8, context_size=32, scale=1, output_stride=1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        boxes = [sampler.sample(64) for _ in range(3)]
        torch.manual_seed(3)
        assert [sampler.sample(64) for _ in range(3)] == boxes
    assert len(set(boxes)) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.5}, "scale must be at least 1 and finite, got 0.5"),
        ({"scale": float("nan")}, "scale must be at least 1 and finite, got nan"),
        ({"output_stride": 0}, "output_stride must be a number in [1, 4096], got 0"),
        ({"output_stride": float("inf")}, "output_stride must be a number in [1, 4096], got inf"),
        ({"multiple_of": 0}, "multiple_of must be a positive int or two of them (height, width), got 0"),
        (
            {"detail_size": 12},
            "detail_size must be a multiple of 8 (by scale, output_stride and multiple_of), got (12, 12); take (16, "
            "16), or pad to it",
        ),
        (
            {"detail_size": (16, 20)},
            "detail_size must be a multiple of 8 (by scale, output_stride and multiple_of), got",
        ),
        ({"multiple_of": 14}, "detail_size must be a multiple of 56 (by scale, output_stride and multiple_of), got"),
        ({"multiple_of": (16, 6)}, "detail_size must be a multiple of (16, 24) (by scale, output_stride and multiple"),
        (
            {"multiple_of": 16, "context_size": 40},
            "context_size must be a multiple of 32 (by scale, output_stride and multiple_of), got (40, 40); take "
            "(64, 64), or pad to it",
        ),
        ({"detail_size": (16, 0)}, "detail_size must be a positive int or two of them (height, width), got (16, 0)"),
        ({"detail_size": 16.0}, "detail_size must be a positive int or two of them (height, width), got 16.0"),
        ({"context_size": (36, 32)}, "context_size must be a multiple of 8 (by scale, output_stride and multiple_of)"),
        ({"context_size": (8, 32)}, "detail_size (16, 16) must fit into the context crop of (8, 32)"),
        ({"context_size": (32, 8)}, "detail_size (16, 16) must fit into the context crop of (32, 8)"),
    ],
    ids=str,
)
def test_sampler_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiResCropSampler(**{"detail_size": 16, **settings})


@pytest.mark.parametrize(
    ("context_size", "size", "message"),
    [
        (32, (24, 40), "image of (24, 40) is smaller than context_size (32, 32); pad it or take a smaller crop"),
        (32, (40, 31), "image of (40, 31) is smaller than context_size (32, 32); pad it or take a smaller crop"),
        (None, (32, 36), "image size must be a multiple of 8 (by scale, output_stride and multiple_of), got (32, 36)"),
        (None, (32, 8), "detail_size (16, 16) must fit into the context crop of (32, 8)"),
        (None, (32, 0), "size must be a positive int or two of them (height, width), got (32, 0)"),
    ],
)
def test_sample_refuses_images_that_do_not_fit(context_size: int | None, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiResCropSampler(16, context_size=context_size).sample(size)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 16, 16), "image must be float (B, K, H, W), got torch.float32 (3, 16, 16)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "(B, K, H, W), got torch.uint8 (1, 3, 16, 16)"),
    ],
    ids=["three dimensions", "uint8"],
)
def test_call_refuses_images(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiResCropSampler(16)(image)


def test_a_cuda_generator_is_refused() -> None:
    on_cuda = SimpleNamespace(device=torch.device("cuda", 0))
    message = "generator must be a CPU generator, got one on cuda:0; use torch.Generator()"
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiResCropSampler(16).sample((32, 32), on_cuda)
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiResCropSampler(16)(torch.zeros(1, 3, 32, 32), on_cuda)
