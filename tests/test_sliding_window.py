import re
from collections.abc import Callable, Iterator
from math import ceil, exp
from typing import Any

import numpy as np
import pytest
import torch
from bilinear import resize
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from hrda_lib import CropBox, SlidingWindowInferer, crop

Predictor = Callable[[Tensor], Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def strided(stride: int, classes: int = 3) -> Predictor:
    """Logits at ``stride`` that depend on the image, the class and the place inside the window."""

    def predict(windows: Tensor) -> Tensor:
        cells = avg_pool2d(windows.double().mean(dim=1, keepdim=True), stride, ceil_mode=True)
        place = torch.arange(cells[0, 0].numel()).view(cells.shape[-2:]).double()
        return torch.cat([cells * (c + 1) + place * 0.1 * c for c in range(classes)], dim=1)

    return predict


def starts_by_hand(size: int, window: int, stride: int) -> list[int]:
    starts = [0]
    while starts[-1] + window < size:
        starts.append(min(starts[-1] + stride, size - window))
    return starts


def infer_by_hand(
    image: Tensor,
    predictor: Predictor,
    window: tuple[int, int],
    stride: tuple[int, int],
    *,
    gaussian: bool = False,
    cell: int | None = None,
) -> np.ndarray:
    """The equation, window by window and pixel by pixel; at pixels, or at the predictor's ``cell`` pixels a cell."""
    height, width = (min(w, side) for w, side in zip(window, image.shape[-2:], strict=True))
    unit = cell or 1
    rows, columns = height // unit, width // unit
    total = coverage = 0.0
    for top in starts_by_hand(image.shape[-2], height, stride[0]):
        for left in starts_by_hand(image.shape[-1], width, stride[1]):
            logits = predictor(image[:, :, top : top + height, left : left + width].clone()).double().numpy()
            logits = logits if cell else resize(logits, (height, width))
            if isinstance(total, float):
                total = np.zeros((*logits.shape[:2], image.shape[-2] // unit, image.shape[-1] // unit))
                coverage = np.zeros(total.shape[-2:])
            for i in range(rows):
                for j in range(columns):
                    y, x = (i - (rows - 1) / 2) / (rows / 8), (j - (columns - 1) / 2) / (columns / 8)
                    weight = max(exp(-(y * y + x * x) / 2), 1e-3) if gaussian else 1.0
                    total[:, :, top // unit + i, left // unit + j] += weight * logits[:, :, i, j]
                    coverage[top // unit + i, left // unit + j] += weight
    return total / coverage


GEOMETRY = {
    "several windows": ((13, 9), (6, 4), (3, 2)),
    "last ones shifted": ((11, 10), (5, 7), (4, 6)),
    "no overlap": ((8, 12), (4, 6), (4, 6)),
    "every pixel": ((5, 4), (3, 2), (1, 1)),
    "smaller than the window": ((5, 4), (9, 6), (3, 5)),
    "wide and low": ((3, 14), (6, 5), (6, 2)),
    "one window": ((6, 4), (6, 4), (3, 2)),
}


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@pytest.mark.parametrize("output_stride", [1, 2, 3])
@pytest.mark.parametrize(("size", "window", "stride"), GEOMETRY.values(), ids=GEOMETRY)
def test_average_at_pixels(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], output_stride: int, blend: Any
) -> None:
    image, predictor = random(2, 3, *size), strided(output_stride)
    result = SlidingWindowInferer(window, stride=stride, blend=blend)(image, predictor)
    expected = infer_by_hand(image, predictor, window, stride, gaussian=blend == "gaussian")
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@pytest.mark.parametrize(
    ("size", "window", "stride", "output_stride"),
    [
        ((8, 12), (4, 8), (2, 4), 2),
        ((12, 20), (8, 12), (4, 8), 4),
        ((6, 9), (12, 6), (6, 3), 3),
        ((5, 4), (3, 2), (1, 2), 1),
    ],
)
def test_average_at_the_predictors_resolution(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], output_stride: int, blend: Any
) -> None:
    image, predictor = random(2, 3, *size), strided(output_stride)
    result = SlidingWindowInferer(window, stride=stride, blend=blend, resize=False)(image, predictor)
    expected = infer_by_hand(image, predictor, window, stride, gaussian=blend == "gaussian", cell=output_stride)
    assert result.shape[-2:] == (size[0] // output_stride, size[1] // output_stride)
    np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-11)


def test_predictor_may_answer_finer_than_its_window() -> None:
    image = random(1, 2, 4, 6)

    def finer(windows: Tensor) -> Tensor:
        return windows.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)

    at_cells = SlidingWindowInferer((2, 4), resize=False)(image, finer)
    torch.testing.assert_close(at_cells, finer(image))
    at_pixels = SlidingWindowInferer((2, 4))(image, finer)
    np.testing.assert_allclose(at_pixels, infer_by_hand(image, finer, (2, 4), (1, 2)), rtol=1e-11, atol=1e-11)


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.sampled_from(["constant", "gaussian"]),
    st.data(),
)
def test_every_pixel_is_covered(
    size: tuple[int, int], window: tuple[int, int], blend: Any, data: st.DataObject
) -> None:
    stride = tuple(data.draw(st.integers(1, side)) for side in window)
    image = random(1, 2, *size)
    result = SlidingWindowInferer(window, stride=stride, blend=blend)(image, lambda x: x)
    np.testing.assert_allclose(result, image, rtol=1e-11, atol=1e-11)


def test_stride_defaults_to_half_a_window_rounded_up() -> None:
    image, windows = random(1, 1, 9, 12), []

    def predictor(x: Tensor) -> Tensor:
        windows.extend(x)
        return x

    SlidingWindowInferer((5, 4))(image, predictor)
    corners = [(top, left) for top in (0, 3, 4) for left in (0, 2, 4, 6, 8)]
    assert len(windows) == len(corners)
    for window, (top, left) in zip(windows, corners, strict=True):
        assert torch.equal(window, image[0, :, top : top + 5, left : left + 4])


def test_an_int_window_is_a_square() -> None:
    image = random(1, 1, 9, 12)
    by_int = SlidingWindowInferer(4, stride=3)(image, strided(2))
    assert torch.equal(by_int, SlidingWindowInferer((4, 4), stride=(3, 3))(image, strided(2)))


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@pytest.mark.parametrize("images", [1, 3])
def test_batch_size_does_not_change_a_bit(images: int, blend: Any) -> None:
    image = random(images, 3, 7, 9).float()
    sizes: list[int] = []

    def one_by_one(windows: Tensor) -> Tensor:
        sizes.append(len(windows))
        return torch.stack([avg_pool2d(window.sin(), 2, ceil_mode=True) for window in windows])

    results = {}
    for batch_size in (1, 2, 3, None):
        sizes.clear()
        results[batch_size] = SlidingWindowInferer((4, 5), batch_size=batch_size, blend=blend)(image, one_by_one)
        assert sum(sizes) == images * 9
        assert max(sizes) == (batch_size or images * 9)
    assert all(torch.equal(result, results[1]) for result in results.values())


def own_buffer() -> Predictor:
    """A predictor that answers in one buffer each time."""
    buffer = torch.zeros(2, 3, 4, 4, dtype=torch.float64)

    def predict(windows: Tensor) -> Tensor:
        return buffer[: len(windows)].copy_(windows * 2)

    return predict


def in_place(windows: Tensor) -> Tensor:
    return windows.mul_(2)


@pytest.mark.parametrize("resize_back", [True, False])
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@pytest.mark.parametrize(
    ("predictor", "factor"),
    [(lambda x: x, 1), (lambda x: x[:, 1:], 1), (own_buffer(), 2), (in_place, 2)],
    ids=["its input", "a view of its input", "one buffer", "in place"],
)
def test_nothing_of_the_callers_is_written(predictor: Predictor, factor: int, blend: Any, resize_back: bool) -> None:
    image = random(1, 3, 7, 9)
    before, answers = image.clone(), []

    def watched(windows: Tensor) -> Tensor:
        if answers:
            assert torch.equal(*answers[-1])
        answer = predictor(windows)
        answers.append((answer, answer.clone()))
        return answer

    inferer = SlidingWindowInferer(4, batch_size=2, blend=blend, resize=resize_back)
    result = inferer(image, watched)
    assert torch.equal(image, before)
    assert torch.equal(*answers[-1])
    np.testing.assert_allclose(result, factor * before[:, -result.shape[1] :], rtol=1e-11)


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_labels_outlive_the_predictors_buffer(blend: Any) -> None:
    image = random(1, 3, 7, 9)
    labels = SlidingWindowInferer(4, batch_size=2, blend=blend, output="labels")(image, own_buffer())
    assert torch.equal(labels, image.argmax(dim=1))


def test_one_window_is_no_alias_of_the_image() -> None:
    image = random(1, 3, 4, 4)
    before = image.clone()
    SlidingWindowInferer(4)(image, in_place).zero_()
    assert torch.equal(image, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_image_dtypes(dtype: torch.dtype) -> None:
    image = (random(2, 3, 7, 9).abs() * 50).to(dtype)

    def predictor(windows: Tensor) -> Tensor:
        assert windows.dtype == dtype
        answer = avg_pool2d(windows.float() / 255, 2, ceil_mode=True)
        return answer.to(dtype) if dtype.is_floating_point else answer

    result = SlidingWindowInferer((4, 5), stride=1)(image, predictor)
    expected = infer_by_hand(image, predictor, (4, 5), (1, 1))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert result.dtype == wide  # also for half precision, whose own rounding would show here
    np.testing.assert_allclose(result.double(), expected, rtol=0, atol=8 * torch.finfo(wide).eps)


def test_outputs() -> None:
    image, window, stride = random(2, 3, 7, 9), (4, 5), (2, 3)
    logits = infer_by_hand(image, strided(2), window, stride)
    exponentials = np.exp(logits)

    probs = SlidingWindowInferer(window, stride=stride, output="probs")(image, strided(2))
    np.testing.assert_allclose(probs, exponentials / exponentials.sum(axis=1, keepdims=True), rtol=1e-11)
    np.testing.assert_allclose(probs.sum(dim=1), 1, rtol=1e-12)

    labels = SlidingWindowInferer(window, stride=stride, output="labels")(image, strided(2))
    assert labels.shape == (2, 7, 9)
    assert labels.dtype == torch.int64
    np.testing.assert_array_equal(labels, logits.argmax(axis=1))


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(2, torch.uint8), (256, torch.uint8), (2, torch.int64), (256, torch.int64), (257, torch.int64)],
)
def test_labels_are_of_the_dtype_asked_for(classes: int, dtype: torch.dtype) -> None:
    def last_class(windows: Tensor) -> Tensor:
        return torch.arange(classes).float().view(1, -1, 1, 1).expand(len(windows), classes, 1, 1)

    labels = SlidingWindowInferer(4, output="labels", label_dtype=dtype)(torch.zeros(1, 3, 5, 6), last_class)
    assert labels.dtype == dtype
    assert labels.unique().tolist() == [classes - 1]


def test_refuses_classes_that_the_dtype_cannot_hold() -> None:
    infer = SlidingWindowInferer(4, output="labels", label_dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^label_dtype uint8 holds up to 256 classes, got 257; take torch\.int64$"):
        infer(torch.zeros(1, 3, 5, 6), lambda x: x[:, :1].expand(-1, 257, -1, -1))
    with pytest.raises(
        ValueError, match=r"^label_dtype must be one of \(torch\.int64, torch\.uint8\), got torch\.int32"
    ):
        SlidingWindowInferer(4, output="labels", label_dtype=torch.int32)


@pytest.mark.parametrize("output", ["probs", "labels"])
def test_one_channel_has_logits_alone(output: Any) -> None:
    image = random(1, 3, 5, 6)
    assert SlidingWindowInferer(4)(image, lambda x: x[:, :1]).shape == (1, 1, 5, 6)
    with pytest.raises(
        ValueError, match=r"^predictor must have at least two classes, got one class, .*; use two classes"
    ):
        SlidingWindowInferer(4, output=output)(image, lambda x: x[:, :1])


@pytest.mark.parametrize(("batch_size", "calls"), [(1, 18), (4, 5), (None, 1)])
def test_progress_sees_sized_calls(batch_size: int | None, calls: int) -> None:
    image, seen = random(2, 3, 7, 9), []

    def progress(items: list) -> Iterator:
        seen.append(len(items))
        for item in items:
            seen.append("call")
            yield item

    settings = {"stride": (2, 3), "batch_size": batch_size}
    result = SlidingWindowInferer((4, 5), **settings, progress=progress)(image, strided(2))
    assert calls == ceil(18 / (batch_size or 18))
    assert seen == [calls, *["call"] * calls]
    assert torch.equal(result, SlidingWindowInferer((4, 5), **settings)(image, strided(2)))


@pytest.mark.parametrize("resize_back", [True, False])
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_gradients_flow_to_image_and_predictor(blend: Any, resize_back: bool) -> None:
    image, weight = random(1, 2, 4, 6).requires_grad_(), random(2, 2, 2, 2, seed=1).requires_grad_()
    inferer = SlidingWindowInferer((2, 4), stride=2, batch_size=2, blend=blend, output="probs", resize=resize_back)

    def infer(image: Tensor, weight: Tensor) -> Tensor:
        return inferer(image, lambda windows: conv2d(windows, weight, stride=2))

    assert torch.autograd.gradcheck(infer, (image, weight))


def test_no_grad_and_inference_mode() -> None:
    image = random(1, 3, 7, 9).requires_grad_()
    expected = SlidingWindowInferer(4)(image, strided(2))
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            result = SlidingWindowInferer(4)(image, strided(2))
        assert not result.requires_grad
        assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window must be a positive int or two of them (height, width), got 0"),
        ({"window": (4, 4.0)}, "window must be a positive int or two of them (height, width), got (4, 4.0)"),
        ({"stride": (2, 0)}, "stride must be a positive int or two of them (height, width), got (2, 0)"),
        ({"stride": 5}, "stride (5, 5) must not exceed the window (4, 4): pixels between windows would be missed"),
        ({"batch_size": 0}, "batch_size must be a positive int or None (all at once), got 0"),
        ({"blend": "hann"}, "blend must be one of ('constant', 'gaussian'), got 'hann'"),
        ({"pad": "reflect"}, "pad must be one of (True, False), got 'reflect'"),
        ({"resize": None}, "resize must be one of (True, False, 'once'), got None"),
        ({"output": "label"}, "output must be one of ('logits', 'probs', 'labels'), got 'label'"),
    ],
    ids=str,
)
def test_inferer_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SlidingWindowInferer(**{"window": 4, **settings})


@pytest.mark.parametrize("shape", [(3, 8, 8), (0, 3, 8, 8), (1, 3, 0, 8)])
def test_inferer_refuses_images(shape: tuple[int, ...]) -> None:
    empty = " and not empty" if 0 in shape else ""
    with pytest.raises(ValueError, match=re.escape(f"image must be (B, K, H, W){empty}, got {shape}")):
        SlidingWindowInferer(4)(torch.zeros(shape), lambda x: x)


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        (
            lambda x: {"out": x},
            "predictor must return float logits (b, C, h, w), got dict; put Adapted(..., output='out')",
        ),
        (lambda x: x[:, 0], "predictor must return float logits (b, C, h, w), got torch.float32 (2, 4, 4)"),
        (lambda x: x.long(), "predictor must return float logits (b, C, h, w), got torch.int64 (2, 3, 4, 4)"),
        (lambda x: x[:1], "predictor returned a batch of 1 for 2 windows"),
        (lambda x: torch.cat([x, x]), "predictor returned a batch of 4 for 2 windows"),
    ],
    ids=["dict", "no classes", "labels", "smaller batch", "larger batch"],
)
def test_inferer_refuses_answers(predictor: Predictor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SlidingWindowInferer(4, batch_size=2)(torch.zeros(1, 3, 8, 8), predictor)


def answering(*shapes: tuple[int, int, int]) -> Predictor:
    """A predictor whose k-th call answers with the k-th shape (C, h, w)."""
    queue = iter(shapes)
    return lambda windows: torch.ones(len(windows), *next(queue))


@pytest.mark.parametrize(("first", "second"), [(3, 2), (2, 3), (3, 1), (1, 3)])
def test_inferer_refuses_other_channels_for_another_window(first: int, second: int) -> None:
    message = f"predictor returned {second} channels for one window and {first} for another"
    with pytest.raises(ValueError, match=re.escape(message)):
        SlidingWindowInferer(4, batch_size=1)(torch.zeros(1, 3, 8, 8), answering((first, 4, 4), (second, 4, 4)))


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_without_resize_every_window_has_one_resolution(first: int, second: int) -> None:
    answers = [(3, first, first)] + [(3, second, second)] + [(3, first, first)] * 14
    inferer = SlidingWindowInferer(4, stride=4, batch_size=1, resize=False)
    with pytest.raises(ValueError, match="predictor returned"):
        inferer(torch.zeros(1, 3, 16, 16), answering(*answers))


def test_with_resize_windows_may_differ_in_resolution() -> None:
    inferer = SlidingWindowInferer(4, stride=4, batch_size=1)
    result = inferer(torch.zeros(1, 3, 8, 8), answering((2, 1, 1), (2, 4, 4), (2, 2, 3), (2, 8, 8)))
    assert torch.equal(result, torch.ones(1, 2, 8, 8))


@pytest.mark.parametrize(
    ("size", "window", "stride", "answer", "where"),
    [
        ((8, 8), 4, 1, (2, 2), "box (0, 1, 4, 4)"),
        ((8, 9), 4, 4, (2, 2), "box (0, 0, 8, 9)"),
        ((8, 8), 5, 3, (3, 3), "box (0, 0, 8, 8)"),
        ((8, 8), (4, 8), 4, (2, 2), "box (0, 0, 8, 8)"),
    ],
    ids=["stride", "image", "window", "other stride in width"],
)
def test_without_resize_everything_must_lie_on_cells(
    size: tuple[int, int], window: Any, stride: int, answer: tuple[int, int], where: str
) -> None:
    def predictor(windows: Tensor) -> Tensor:
        return interpolate(windows, size=answer)

    height, width = (window, window) if isinstance(window, int) else window
    message = f"predictor returned {answer} cells for windows of {(height, width)} pixels, which do not line up"
    inferer = SlidingWindowInferer(window, stride=stride, resize=False)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        inferer(torch.zeros(1, 3, *size), predictor)
    assert where in str(caught.value)


@pytest.mark.parametrize("vote", [False, True])
def test_a_predictor_may_average_probabilities_or_votes(vote: bool) -> None:
    image, logits_of = random(2, 3, 9, 12), strided(1)

    def predictor(windows: Tensor) -> Tensor:
        logits = logits_of(windows)
        return (logits == logits.amax(dim=1, keepdim=True)).double() if vote else logits.softmax(dim=1)

    expected = infer_by_hand(image, predictor, (6, 4), (3, 2))
    got = SlidingWindowInferer((6, 4), stride=(3, 2))(image, predictor)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got.sum(dim=1), np.ones((2, 9, 12)), rtol=1e-12)


def test_the_gaussian_ends_at_a_thousandth() -> None:
    """As MONAI's: a corner of the window alone would weigh exp(-16)."""
    image = torch.zeros(1, 1, 64, 96)
    places = iter([1.0, 3.0])
    got = SlidingWindowInferer(64, stride=(64, 32), blend="gaussian", batch_size=1)(
        image, lambda x: torch.full_like(x, next(places))
    )
    assert got[0, 0, 0, 0] == 1  # of the first window alone
    # the middle of the first window's edge, exp(-7.8), and a corner of the second, exp(-15.5): both weigh a thousandth
    assert got[0, 0, 0, 32] == 2


# Bands of rows


@pytest.mark.parametrize("size", [(13, 9), (40, 7), (6, 4), (5, 3), (17, 20)])
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@pytest.mark.parametrize("batch_size", [1, 3, None])
@pytest.mark.parametrize("padded", [False, True])
def test_labels_and_probabilities_by_bands_are_those_of_all_logits(
    size: tuple[int, int], blend: Any, batch_size: int | None, padded: bool
) -> None:
    image, predictor = random(2, 3, *size), strided(1)
    settings: dict[str, Any] = {"stride": (3, 2), "blend": blend, "batch_size": batch_size, "pad": padded}
    logits = SlidingWindowInferer((6, 4), **settings)(image, predictor)
    assert torch.equal(SlidingWindowInferer((6, 4), output="labels", **settings)(image, predictor), logits.argmax(1))
    probabilities = SlidingWindowInferer((6, 4), output="probs", **settings)(image, predictor)
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-12, atol=1e-12)

    infer = SlidingWindowInferer((6, 4), label_dtype=torch.uint8, **settings)
    read: list[CropBox] = []

    def part(box: CropBox) -> Tensor:
        read.append(box)
        return crop(image[1:], box)

    bands = list(infer.stream(size, part, predictor))
    assert [top for top, _ in bands] == [0, *np.cumsum([band.shape[1] for _, band in bands])[:-1]]
    streamed = torch.cat([band for _, band in bands], dim=1)
    assert streamed.dtype == torch.uint8
    assert torch.equal(streamed, logits[1:].argmax(1).byte())
    assert len(read) == len(set(read))  # each window once
    assert all(box.top + box.height <= size[0] and box.left + box.width <= size[1] for box in read)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_classes_the_first_is_the_label(dtype: torch.dtype) -> None:
    image = torch.randint(3, (2, 5, 9, 7), generator=torch.Generator().manual_seed(0)).to(dtype)
    image[0, 1, 2, 3] = -torch.inf  # rules a class out
    labels = SlidingWindowInferer(4, output="labels")(image, lambda x: x)
    np.testing.assert_array_equal(labels, image.numpy().argmax(axis=1))


# Averaged at the predictor's resolution, then one upsampling


def half_as_fine_again(windows: Tensor) -> Tensor:
    """Logits at stride 1.5."""
    return strided(1)(windows)[..., : windows.shape[-2] * 2 // 3, : windows.shape[-1] * 2 // 3]


CELLS = {
    "stride 2": (strided(2), (18, 22), (8, 6), (4, 2)),
    "stride 4, last ones shifted": (strided(4), (28, 20), (16, 12), (12, 8)),
    "stride 1.5": (half_as_fine_again, (15, 21), (9, 6), (3, 6)),
    "finer than the windows": (lambda x: torch.repeat_interleave(strided(1)(x), 2, dim=-1).repeat_interleave(2, dim=-2),
                               (9, 7), (4, 5), (2, 3)),
    "at pixels": (strided(1), (9, 7), (4, 5), (2, 3)),
    "one window": (strided(4), (8, 12), (8, 12), (4, 4)),
    "a single row of cells": (strided(4), (4, 24), (4, 8), (4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 400, None], ids=["by rows", "a few rows", "whole"])
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@pytest.mark.parametrize(("predictor", "size", "window", "stride"), CELLS.values(), ids=CELLS)
def test_once_is_the_average_at_cells_upsampled(
    predictor: Predictor, size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], blend: Any,
    chunk: int | None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if chunk:
        monkeypatch.setattr("hrda_lib.sliding_window.CHUNK", chunk)
    image, settings = random(2, 3, *size), {"stride": stride, "blend": blend}
    cells = SlidingWindowInferer(window, resize=False, **settings)(image, predictor)
    logits = resize(cells.numpy(), size)

    def once(output: Any) -> SlidingWindowInferer:
        return SlidingWindowInferer(window, resize="once", output=output, **settings)

    np.testing.assert_allclose(once("logits")(image, predictor), logits, rtol=1e-6, atol=1e-6)
    probabilities = torch.from_numpy(logits).softmax(dim=1)
    np.testing.assert_allclose(once("probs")(image, predictor), probabilities, rtol=1e-6, atol=1e-6)
    labels = once("labels")(image, predictor)
    best = np.take_along_axis(logits, labels[:, None].numpy(), axis=1)[:, 0]
    assert labels.shape == (2, *size)
    np.testing.assert_allclose(best, logits.max(axis=1), rtol=1e-6, atol=1e-6)  # where two are equal, either will do

    bands = list(once("logits").stream(size, lambda box: crop(image[1:], box), predictor))
    assert [top for top, _ in bands] == [0, *np.cumsum([band.shape[1] for _, band in bands])[:-1]]
    assert torch.equal(torch.cat([band for _, band in bands], dim=1), labels[1:])


def test_once_pads_as_the_others_do() -> None:
    image = random(1, 3, 12, 8)
    settings: dict[str, Any] = {"pad": True, "resize": "once"}
    logits = SlidingWindowInferer((16, 8), **settings)(image, strided(4))
    cells = SlidingWindowInferer((16, 8), pad=True, resize=False)(image, strided(4))
    np.testing.assert_allclose(logits, resize(cells.numpy(), (12, 8)), rtol=1e-6)
    labels = SlidingWindowInferer((16, 8), output="labels", **settings)(image, strided(4))
    assert torch.equal(labels, logits.argmax(dim=1))


def test_once_needs_whole_cells() -> None:
    with pytest.raises(
        ValueError, match=r"do not line up with the box \(0, 0, 10, 8\); with resize=False or 'once' the "
    ):
        SlidingWindowInferer(8, resize="once")(random(1, 3, 10, 8), strided(4))


def test_streamed_bands_come_as_soon_as_no_window_reaches_them() -> None:
    image, read = random(1, 3, 40, 8), []

    def part(box: CropBox) -> Tensor:
        read.append(box.top)
        return crop(image, box)

    rows_read = [(top, max(read)) for top, _ in SlidingWindowInferer(8, batch_size=1).stream((40, 8), part, strided(1))]
    assert rows_read[:3] == [(0, 0), (4, 4), (8, 8)]


class Largest(TorchDispatchMode):
    """The most bytes that a floating-point result held."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point() and result._base is None:
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("rows", [64, 128])
def test_once_upsamples_a_few_rows_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hrda_lib.sliding_window.CHUNK", 19 * 8 * 48)
    image = torch.zeros(1, 1, rows, 48)
    with Largest() as largest:
        SlidingWindowInferer(16, output="labels", resize="once")(
            image, lambda x: x[..., ::4, ::4].expand(-1, 19, -1, -1).clone()
        )
    assert largest.bytes == 4 * 19 * 8 * 48  # eight rows of pixels; the cells of a row of windows are less


@pytest.mark.parametrize("output", ["labels", "probs", "logits"])
def test_logits_of_labels_take_the_memory_of_a_row_of_windows(output: Any) -> None:
    sums = []
    for rows in (64, 256):
        image = torch.zeros(1, 1, rows, 48)
        with Largest() as largest:
            SlidingWindowInferer(16, output=output)(image, lambda x: x.expand(-1, 19, -1, -1).clone())
        sums.append(largest.bytes)
    if output == "labels":
        assert sums == [4 * 19 * 16 * 16 * 4] * 2  # four windows; their sums are a row of windows, less than that
    else:
        assert sums == [4 * 19 * rows * 48 for rows in (64, 256)]


@pytest.mark.parametrize(
    "answer", [lambda box: torch.zeros(2, 3, *box[2:]), lambda box: torch.zeros(1, 3, 4, 5), lambda box: None]
)
def test_stream_refuses_what_read_returns(answer: Any) -> None:
    with pytest.raises(ValueError, match="read's answer must be "):
        list(SlidingWindowInferer(4).stream((8, 8), answer, strided(1)))
