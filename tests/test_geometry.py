import re

import bilinear
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrda_lib import CropBox, crop, resize, window_grid

sides = st.integers(1, 20)


def starts_by_hand(size: int, window: int, stride: int) -> list[int]:
    starts = []
    start = 0
    while start + window < size:
        starts.append(start)
        start += stride
    return [*starts, size - window]


@pytest.mark.parametrize(
    ("box", "factor", "expected"),
    [
        (CropBox(8, 16, 32, 64), 1 / 8, CropBox(1, 2, 4, 8)),
        (CropBox(3, 0, 9, 6), 1 / 1.5, CropBox(2, 0, 6, 4)),
        (CropBox(2, 4, 6, 8), 0.5, CropBox(1, 2, 3, 4)),
        (CropBox(2, 0, 4, 6), 1.5, CropBox(3, 0, 6, 9)),
        (CropBox(7, 14, 21, 700_000_007), 1 / 7, CropBox(1, 2, 3, 100_000_001)),
        (CropBox(1, 2, 3, 4), 4, CropBox(4, 8, 12, 16)),
        (CropBox(1, 2, 3, 4), 1, CropBox(1, 2, 3, 4)),
    ],
)
def test_scaled_is_exact(box: CropBox, factor: float, expected: CropBox) -> None:
    scaled = box.scaled(factor)
    assert scaled == expected
    assert isinstance(scaled, CropBox)
    assert all(type(value) is int for value in scaled)


@pytest.mark.parametrize(
    ("box", "factor", "message"),
    [
        (CropBox(4, 8, 8, 8), 1 / 8, "box (4, 8, 8, 8) times 1/8 does not lie on whole cells"),
        (CropBox(0, 0, 8, 9), 0.5, "box (0, 0, 8, 9) times 1/2 does not lie on whole cells"),
        (CropBox(0, 1, 2, 2), 1.5, "use a box whose coordinates are multiples of 2"),
        (CropBox(0, 0, 4, 3), 1 / 1.5, "box (0, 0, 4, 3) times 2/3 does not lie on whole cells"),
    ],
)
def test_scaled_refuses_parts_of_cells(box: CropBox, factor: float, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        box.scaled(factor)


@given(st.tuples(*[st.integers(0, 5000)] * 4), st.sampled_from([1, 1.5, 2, 3, 4, 7, 8, 14, 32]))
def test_scaled_up_and_down_is_the_same_box(values: tuple[int, int, int, int], factor: float) -> None:
    box = CropBox(*(2 * value for value in values))
    assert box.scaled(factor).scaled(1 / factor) == box


def test_crop_takes_every_pixel_of_the_box_as_a_view() -> None:
    codes = torch.arange(2 * 3 * 5 * 7).view(2, 3, 5, 7)
    part = crop(codes, CropBox(1, 2, 3, 4))
    expected = [
        [[[codes[b, k, i, j].item() for j in range(2, 6)] for i in range(1, 4)] for k in range(3)] for b in (0, 1)
    ]
    assert part.tolist() == expected
    assert part.data_ptr() == codes[0, 0, 1, 2:].data_ptr()


def test_crop_of_everything() -> None:
    codes = torch.arange(12).view(3, 4)
    assert torch.equal(crop(codes, CropBox(0, 0, 3, 4)), codes)


@pytest.mark.parametrize(
    "box",
    [(-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 0, 2), (0, 0, 2, 0), (2, 0, 2, 2), (0, 3, 2, 2), (0, 0, 4, 1), (0, 0, 1, 5)],
    ids=str,
)
def test_crop_refuses_boxes_beyond_the_tensor(box: tuple[int, int, int, int]) -> None:
    message = f"box {box} must be non-empty and lie inside the tensor of 3x4 pixels"
    with pytest.raises(ValueError, match=re.escape(message)):
        crop(torch.zeros(2, 3, 4), CropBox(*box))


def test_crop_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match=re.escape("at least two dimensions (..., H, W), got shape (5,)")):
        crop(torch.zeros(5), CropBox(0, 0, 1, 1))


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.data())
def test_window_grid(size: tuple[int, int], window: tuple[int, int], data: st.DataObject) -> None:
    stride = tuple(data.draw(st.integers(1, side)) for side in window)
    height, width = min(window[0], size[0]), min(window[1], size[1])
    rows = starts_by_hand(size[0], height, stride[0])
    columns = starts_by_hand(size[1], width, stride[1])

    grid = window_grid(size, window, stride)
    assert grid == [(row, column, height, width) for row in rows for column in columns]
    assert all(isinstance(box, CropBox) for box in grid)

    coverage = torch.zeros(size)
    for box in grid:
        crop(coverage, box).add_(1)
    assert coverage.min() >= 1
    assert len(set(grid)) == len(grid)


@pytest.mark.parametrize(
    ("size", "window", "stride", "corners"),
    [
        ((5, 7), (3, 4), (2, 3), [(0, 0), (0, 3), (2, 0), (2, 3)]),
        ((5, 8), (3, 4), (2, 3), [(0, 0), (0, 3), (0, 4), (2, 0), (2, 3), (2, 4)]),
        ((1024, 2048), 1024, 512, [(0, 0), (0, 512), (0, 1024)]),
        (4, 4, 4, [(0, 0)]),
        (2, 9, 9, [(0, 0)]),
    ],
)
def test_window_grid_examples(size: object, window: object, stride: object, corners: list[tuple[int, int]]) -> None:
    assert [(box.top, box.left) for box in window_grid(size, window, stride)] == corners


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2, 1), "size must be a positive int or two of them (height, width), got 0"),
        (((4, 4, 4), 2, 1), "size must be a positive int or two of them (height, width), got (4, 4, 4)"),
        ((4, (2, -2), 1), "window must be a positive int or two of them (height, width), got (2, -2)"),
        ((4, (2, 2.0), 1), "window must be a positive int or two of them (height, width), got (2, 2.0)"),
        ((4, 2.0, 1), "window must be a positive int or two of them (height, width), got 2.0"),
        ((4, None, 1), "window must be a positive int or two of them (height, width), got None"),
        ((4, 2, (1, 0)), "stride must be a positive int or two of them (height, width), got (1, 0)"),
        ((4, 2, True), "stride must be a positive int or two of them (height, width), got True"),
        ((4, 2, 3), "stride (3, 3) must not exceed the window (2, 2)"),
        ((4, (2, 4), (2, 5)), "stride (2, 5) must not exceed the window (2, 4)"),
    ],
    ids=str,
)
def test_window_grid_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        window_grid(*arguments)


@given(st.tuples(sides, sides), st.tuples(sides, sides))
def test_resize_is_bilinear_and_leaves_alone_what_fits(size: tuple[int, int], new_size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize(x, new_size), torch.from_numpy(bilinear.resize(x.numpy(), new_size)))
    assert (resize(x, new_size) is x) == (size == new_size)


def test_resize_to_a_square_in_half_precision() -> None:
    x = torch.rand(1, 2, 3, 4).bfloat16()
    assert resize(x, 5).shape == (1, 2, 5, 5)
    assert resize(x, torch.Size([6, 8])).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("x", "size", "message"),
    [
        (torch.zeros(3, 4, 4), 4, "x must be float (B, C, h, w), got torch.float32 (3, 4, 4)"),
        (torch.zeros(1, 3, 4, 4).byte(), 4, "x must be float (B, C, h, w), got torch.uint8 (1, 3, 4, 4)"),
        ([[1.0]], 4, "x must be a tensor, got list; see torch.from_numpy"),
        (torch.zeros(1, 3, 4, 4), (4, 0), "size must be a positive int or two of them (height, width), got (4, 0)"),
    ],
    ids=str,
)
def test_resize_refuses(x: object, size: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resize(x, size)
