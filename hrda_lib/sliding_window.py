"""Overlapping windows over an image of any size, averaged into one prediction."""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from hrda_lib._checks import (
    SidesRefused,
    at_least_float32,
    check_best,
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
Read = Callable[[CropBox, slice], Tensor]
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
        size, out = _fixed(image), None
        bands = self._bands(size, image.shape[0], lambda box, images: crop(image[images], box), predictor, self.output)
        for top, height, logits in bands:
            band = _finish(logits, self.output, self.label_dtype)
            rows = plain(band.shape)[-2]
            if rows == height:
                return band
            if out is None:
                out = band.new_empty(*band.shape[:-2], height, band.shape[-1])
            out[..., top : top + rows, :] = band
        assert out is not None  # there is a window
        return out

    def stream(
        self, size: int | tuple[int, int], read: Callable[[CropBox], Tensor], predictor: Predictor
    ) -> Iterator[tuple[int, Tensor]]:
        """The labels of an image that is never whole in memory, by bands of rows from the top.

        Args:
            size: (H, W) of the image.
            read: a box -> that part of the image, (1, K, h, w), such as of a memory-mapped file; called once a window.
            predictor: as in a call.

        Yields:
            (top, labels (1, rows, W) of ``label_dtype``), as a call with ``output="labels"`` gives; with
            ``resize=False`` both are in cells of the predictor's answer.

        Raises:
            ValueError: as a call; ``read`` returns something else.

        Example:
            >>> rows = torch.arange(10.0).view(1, 1, 10, 1).expand(1, 1, 10, 6)
            >>> infer = SlidingWindowInferer(4)
            >>> def above_four(x):
            ...     return torch.cat([4 - x, x - 4], dim=1)
            >>> for top, labels in infer.stream((10, 6), lambda box: crop(rows, box), above_four):
            ...     print(top, labels[0, :, 0].tolist())
            0 [0, 0]
            2 [0, 0]
            4 [0, 1]
            6 [1, 1, 1, 1]
        """

        def part(box: CropBox, _: slice) -> Tensor:
            image = read(box)
            expect("read's answer", image, (1, "K", box.height, box.width))
            return image

        for top, _, logits in self._bands(pair("size", size), 1, part, predictor, "labels"):
            yield top, _finish(logits, "labels", self.label_dtype)

    def _bands(
        self, size: tuple[int, int], images: int, read: Read, predictor: Predictor, output: Output
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Logits of rows that no later window reaches: (first row, rows of all, (B, C, rows, columns)).

        For logits they are all rows at once; for labels sums, whose largest class is that of the average.
        """
        least = self.window if self.pad else (1, 1)
        covered = max(size[0], least[0]), max(size[1], least[1])
        boxes = window_grid(covered, self.window, self.stride)
        calls = _calls(boxes, images, self.batch_size)
        total, top = None, 0
        for call in self.progress(calls) if self.progress else calls:
            logits = self._predict(size, call, read, predictor)
            if total is None:
                whole, kept = (_to_cells(CropBox(0, 0, *sides), boxes[0], logits) for sides in (covered, size))
                rows = whole.height if output == "logits" else plain(logits.shape)[-2]
                total = logits.new_zeros(images, logits.shape[1], rows, whole.width)
                cells, weight = [_to_cells(box, boxes[0], logits) for box in boxes], self._window_weight(logits)
            _check_alike(logits, total, cells[0])
            parts = logits.view(len(call), -1, *logits.shape[1:])
            for (box, index), part in zip(call, parts.unbind(), strict=True):
                place = _to_cells(box, box, logits)
                done = place.top - top
                if done and output != "logits":  # a new row of windows
                    if top < kept.height:
                        yield top, kept.height, _averaged(total, top, done, kept, cells, weight, output)
                    _move_up(total, done)
                    top = place.top
                sums = crop(total[index], place._replace(top=place.top - top))
                sums.add_(part) if weight is None else sums.addcmul_(part, weight)
        assert total is not None  # there is a window, so there was a call
        if top < kept.height:
            yield top, kept.height, _averaged(total, top, rows, kept, cells, weight, output)

    def _predict(self, size: tuple[int, int], call: Call, read: Read, predictor: Predictor) -> Tensor:
        windows = torch.cat([_padded(read, box, images, size) for box, images in call])
        sides = windows.shape[-2:]
        try:
            logits = predictor(windows)
        except (RuntimeError, AssertionError, ValueError) as error:
            if not refuses_sides(error) or plain(sides) == self.window:
                raise
            raise SidesRefused(
                f"predictor must take windows of {plain(sides)}, {self.window} cut to the image, but came to: {error}; "
                "pass pad=True, which pads the image instead"
            ) from error
        if not isinstance(logits, Tensor) or logits.dim() != 4 or not logits.is_floating_point():
            got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"predictor must return float logits (b, C, h, w), got {got}{tensor_in(logits)}")
        if plain(logits.shape)[0] != plain(windows.shape)[0]:
            raise ValueError(f"predictor returned a batch of {logits.shape[0]} for {windows.shape[0]} windows")
        logits = at_least_float32(logits)
        return resize(logits, sides) if self.resize else logits

    def _window_weight(self, logits: Tensor) -> Tensor | None:
        """g of the equation, (h, w) in cells of the logits; None: 1."""
        height, width = logits.shape[-2:]
        if self.blend == "constant":
            return None
        rows, columns = (_gaussian(length).to(logits) for length in (height, width))
        return (rows[:, None] * columns).clamp(min=1e-3)


def _fixed(image: Tensor) -> tuple[int, int]:
    """The sides of the image, which no dynamic ones are: the windows, and how many there are, depend on them."""
    rows, columns = plain(image.shape[-2:])
    if isinstance(rows, torch.SymInt) or isinstance(columns, torch.SymInt):
        raise ValueError("image must have fixed sides to be covered by windows, got dynamic ones; export fixed sides")
    return rows, columns


def _calls(boxes: list[CropBox], images: int, batch_size: int | None) -> list[Call]:
    """All windows of all images, ``batch_size`` at once; of a batch without fixed size, that many windows."""
    every = [slice(index, index + 1) for index in range(images)] if isinstance(images, int) else [slice(None)]
    jobs = list(product(boxes, every))
    step = batch_size or len(jobs)
    return [jobs[start : start + step] for start in range(0, len(jobs), step)]


def _padded(read: Read, box: CropBox, images: slice, size: tuple[int, int]) -> Tensor:
    """The window, with 0 where it lies outside the image."""
    rows, columns = min(box.height, size[0] - box.top), min(box.width, size[1] - box.left)
    window = read(CropBox(box.top, box.left, rows, columns), images)
    if (rows, columns) == box[2:]:
        return window
    return pad(window, (0, box.width - columns, 0, box.height - rows))


def _check_alike(logits: Tensor, total: Tensor, window: CropBox) -> None:
    if plain(logits.shape)[1] != plain(total.shape)[1]:
        raise ValueError(
            f"predictor returned {logits.shape[1]} channels for one window and {total.shape[1]} for another; "
            "it must return the same classes for every window"
        )
    if plain(logits.shape[-2:]) != window[2:]:
        raise ValueError(
            f"predictor returned {tuple(logits.shape[-2:])} cells for one window and {tuple(window[2:])} for "
            "another; with resize=False it must return one size"
        )


def _averaged(
    total: Tensor,
    top: int,
    rows: int,
    kept: CropBox,
    cells: list[CropBox],
    weight: Tensor | None,
    output: Output,
) -> Tensor:
    """The first ``rows`` of the sums, which begin at row ``top``, divided by their coverage; for labels as they are."""
    rows, columns = min(rows, kept.height - top), kept.width
    band = total[..., :rows, :columns]
    if output == "labels":
        return band
    if weight is None:
        down, across = total.new_zeros(rows), total.new_zeros(columns)
        for start, height in {(box.top - top, box.height) for box in cells}:
            down[max(start, 0) : max(start + height, 0)] += 1
        for start, width in {(box.left, box.width) for box in cells}:
            across[start : start + width] += 1
        return band.div_(down[:, None] * across)
    coverage = total.new_zeros(rows, total.shape[-1])
    for box in cells:
        first, last = max(box.top, top), min(box.top + box.height, top + rows)
        if first < last:
            inside = weight[first - box.top : last - box.top]
            coverage[first - top : last - top, box.left : box.left + box.width] += inside
    return band.div_(coverage[:, :columns])


def _move_up(total: Tensor, done: int) -> None:
    """Drop the first ``done`` rows; zeros come in at the end. In place: all rows of windows share this memory."""
    rows = total.shape[-2]
    for top in range(0, rows - done, done):  # in steps that do not overlap
        end = min(top + done, rows - done)
        total[..., top:end, :] = total[..., top + done : end + done, :]
    total[..., rows - done :, :] = 0


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
    if output == "probs":
        check_scores("predictor's logits", logits)
        return logits.softmax(dim=1)
    if label_dtype == torch.uint8 and logits.shape[1] > 256:
        raise ValueError(f"label_dtype uint8 holds up to 256 classes, got {logits.shape[1]}; take torch.int64")
    best, labels = logits.max(dim=1)  # several times as fast as argmax, which strides over the classes
    check_best("predictor's logits", best)
    return labels.to(label_dtype)
