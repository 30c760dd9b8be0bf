"""Overlapping windows over an image of any size, averaged into one prediction."""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from hrda_lib._checks import (
    SidesRefused,
    at_least_float32,
    check_choice,
    check_scores,
    check_two_classes,
    expect,
    is_count,
    pair,
    plain,
    refuses_sides,
    tensor_in,
)
from hrda_lib.geometry import CropBox, crop, resize, window_grid

Blend = Literal["constant", "gaussian"]
Output = Literal["logits", "probs", "labels"]
BLENDS, OUTPUTS = get_args(Blend), get_args(Output)
LABEL_DTYPES = (torch.int64, torch.uint8)
Predictor = Callable[[Tensor], Tensor]
Call = list[tuple[CropBox, slice]]  # the windows of one call: where, and in which images
Progress = Callable[[list[Call]], Iterable[Call]]


class SlidingWindowInferer:
    r"""Run any predictor over overlapping windows of an image and average what it says.

    .. math::
        \hat y(p) = \frac{\sum_{w \ni p} g_w(p)\, \zeta(f(x[w]))(p)}{\sum_{w \ni p} g_w(p)}

    with :math:`g = 1` (HRDA, arXiv 2204.13132, section 3.4) or a Gaussian around the window's centre,
    :math:`\sigma` = an eighth of the window, nowhere below 0.001 (as in MONAI).

    Args:
        window: window size (h, w) in image pixels; cut to the image where it is larger.
        stride: step between windows; None: half a window, rounded up.
        batch_size: windows x images a call of the predictor; None: all at once. The result does not depend on it.
        blend: "constant" or "gaussian".
        output: "logits", "probs" (softmax of the averaged logits) or "labels" (their argmax); the latter two of two
            classes at least.
        resize: True: predictions are upsampled bilinearly and averaged at pixel resolution; False: averaged at the
            predictor's own resolution.
        pad: True: an image smaller than the window is padded with 0 at the bottom and right, and the answer is cut
            back, for networks that take only some sizes. False: the window is cut to the image.
        label_dtype: of labels: int64, which indexes and counts, or uint8 for up to 256 classes in an eighth of the
            memory.
        progress: wraps the list of calls, as ``tqdm`` does.

    The predictor maps windows (b, K, h, w) of the image's dtype to float logits (b, C, h', w'). Averages are
    kept in float32 (float64 for float64 predictions). Gradients flow through; use ``torch.no_grad()`` for inference.

    Raises:
        ValueError: a setting or the image does not fit, or the predictor's answer has the wrong type, batch size,
            channels or, with ``resize=False``, a size that does not divide the windows' positions.

    Example:
        >>> infer = SlidingWindowInferer((4, 4), stride=(2, 2), output="labels")
        >>> image = torch.zeros(1, 3, 6, 9)
        >>> labels = infer(image, lambda x: torch.cat([x[:, :1], x[:, :1] + 1], dim=1))
        >>> labels.shape, labels.dtype, labels.unique().item()
        (torch.Size([1, 6, 9]), torch.int64, 1)
    """

    def __init__(
        self,
        window: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] | None = None,
        batch_size: int | None = 4,
        blend: Blend = "constant",
        output: Output = "logits",
        resize: bool = True,
        pad: bool = False,
        label_dtype: torch.dtype = torch.int64,
        progress: Progress | None = None,
    ) -> None:
        if batch_size is not None and not is_count(batch_size):
            raise ValueError(f"batch_size must be a positive int or None (all at once), got {batch_size}")
        check_choice("blend", blend, BLENDS)
        check_choice("output", output, OUTPUTS)
        check_choice("resize", resize, (True, False))
        check_choice("pad", pad, (True, False))
        check_choice("label_dtype", label_dtype, LABEL_DTYPES)
        self.window = pair("window", window)
        half = ((self.window[0] + 1) // 2, (self.window[1] + 1) // 2)
        self.stride = half if stride is None else pair("stride", stride)
        window_grid(self.window, self.window, self.stride)  # a stride beyond the window is refused here
        self.batch_size, self.blend, self.output = batch_size, blend, output
        self.resize, self.pad, self.label_dtype, self.progress = resize, pad, label_dtype, progress

    def __call__(self, image: Tensor, predictor: Predictor) -> Tensor:
        expect("image", image, "BKHW")
        rows, columns = size = plain(image.shape[-2:])
        if self.pad:
            image = pad(image, (0, max(self.window[1] - columns, 0), 0, max(self.window[0] - rows, 0)))
        boxes = window_grid(_fixed(image), self.window, self.stride)
        try:
            average = self._average(image, boxes, predictor)
        except (RuntimeError, AssertionError) as error:
            if not refuses_sides(error) or boxes[0][2:] == self.window:
                raise
            raise SidesRefused(
                f"predictor must take windows of {boxes[0][2:]}, {self.window} cut to the image, but came to: {error}; "
                "pass pad=True, which pads the image instead"
            ) from error
        if self.pad:
            whole = CropBox(0, 0, *plain(image.shape[-2:]))
            average = crop(average, _to_cells(CropBox(0, 0, *size), whole, average))
        return _finish(average, self.output, self.label_dtype)

    def _average(self, image: Tensor, boxes: list[CropBox], predictor: Predictor) -> Tensor:
        calls = _calls(boxes, image, self.batch_size)
        total = weight = None
        for call in self.progress(calls) if self.progress else calls:
            logits = self._predict(image, call, predictor)
            if total is None or weight is None:
                cells = _to_cells(CropBox(0, 0, *plain(image.shape[-2:])), boxes[0], logits)
                total = logits.new_zeros(image.shape[0], logits.shape[1], cells.height, cells.width)
                weight = self._window_weight(logits)
            if plain(logits.shape)[1] != plain(total.shape)[1]:
                raise ValueError(
                    f"predictor returned {logits.shape[1]} channels for one window and {total.shape[1]} for another; "
                    "it must return the same classes for every window"
                )
            if plain(logits.shape[-2:]) != plain(weight.shape):
                raise ValueError(
                    f"predictor returned {tuple(logits.shape[-2:])} cells for one window and {tuple(weight.shape)} for "
                    "another; with resize=False it must return one size"
                )
            each = (logits * weight).view(len(call), -1, *logits.shape[1:])
            for (box, images), window_logits in zip(call, each.unbind(), strict=True):
                crop(total[images], _to_cells(box, box, logits)).add_(window_logits)

        assert total is not None  # there is a window, so there was a call
        assert weight is not None
        coverage = total.new_zeros(total.shape[-2:])
        for box in boxes:
            crop(coverage, _to_cells(box, box, logits)).add_(weight)
        return total / coverage

    def _predict(self, image: Tensor, call: Call, predictor: Predictor) -> Tensor:
        windows = torch.cat([crop(image[images], box) for box, images in call])
        size, logits = windows.shape[-2:], predictor(windows)
        if not isinstance(logits, Tensor) or logits.dim() != 4 or not logits.is_floating_point():
            got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"predictor must return float logits (b, C, h, w), got {got}{tensor_in(logits)}")
        if plain(logits.shape)[0] != plain(windows.shape)[0]:
            raise ValueError(f"predictor returned a batch of {logits.shape[0]} for {windows.shape[0]} windows")
        logits = at_least_float32(logits)
        return resize(logits, size) if self.resize else logits

    def _window_weight(self, logits: Tensor) -> Tensor:
        """g of the equation, (h, w) in cells of the logits."""
        height, width = logits.shape[-2:]
        if self.blend == "constant":
            return logits.new_ones(height, width)
        rows, columns = (_gaussian(length).to(logits) for length in (height, width))
        return (rows[:, None] * columns).clamp(min=1e-3)


def _fixed(image: Tensor) -> tuple[int, int]:
    """The sides of the image, which no dynamic ones are: the windows, and how many there are, depend on them."""
    rows, columns = plain(image.shape[-2:])
    if isinstance(rows, torch.SymInt) or isinstance(columns, torch.SymInt):
        raise ValueError("image must have fixed sides to be covered by windows, got dynamic ones; export fixed sides")
    return rows, columns


def _calls(boxes: list[CropBox], image: Tensor, batch_size: int | None) -> list[Call]:
    """All windows of all images, ``batch_size`` at once; of a batch without fixed size, that many windows."""
    fixed = isinstance(image.shape[0], int)
    images = [slice(index, index + 1) for index in range(image.shape[0])] if fixed else [slice(None)]
    jobs = list(product(boxes, images))
    step = batch_size or len(jobs)
    return [jobs[start : start + step] for start in range(0, len(jobs), step)]


def _gaussian(length: int) -> Tensor:
    distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    return torch.exp(-0.5 * (distance / (length / 8)) ** 2)


def _to_cells(box: CropBox, window: CropBox, logits: Tensor) -> CropBox:
    """``box`` in cells of what the predictor returned for ``window``."""
    height, width = plain(logits.shape[-2:])
    scaled = [value * height for value in box]
    if height * window.width != width * window.height or any(value % window.height for value in scaled):
        raise ValueError(
            f"predictor returned {(height, width)} cells for windows of {(window.height, window.width)} pixels, which "
            f"do not line up with the box {tuple(box)}; with resize=False the image, the window and the stride must be "
            "multiples of the predictor's output stride"
        )
    return CropBox(*(value // window.height for value in scaled))


def _finish(logits: Tensor, output: Output, label_dtype: torch.dtype) -> Tensor:
    if output == "logits":
        return logits
    check_two_classes("predictor", logits.shape[1])
    check_scores("predictor's logits", logits)
    if output == "probs":
        return logits.softmax(dim=1)
    if label_dtype == torch.uint8 and logits.shape[1] > 256:
        raise ValueError(f"label_dtype uint8 holds up to 256 classes, got {logits.shape[1]}; take torch.int64")
    return logits.argmax(dim=1).to(label_dtype)
