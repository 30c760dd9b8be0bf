"""Overlapping windows over an image of any size, averaged into one prediction."""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, product
from typing import Literal, NamedTuple, get_args

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
    readable,
    refuses_sides,
    tensor_in,
)
from hrda_lib.geometry import CropBox, crop, resize, window_grid

Blend = Literal["constant", "gaussian"]
Output = Literal["logits", "probs", "labels"]
BLENDS, OUTPUTS = get_args(Blend), get_args(Output)
LABEL_DTYPES = (torch.int64, torch.uint8)
CHUNK = 1 << 22  # logits that are upsampled at once, 16 MB
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
        batch_size: windows x images a call of the predictor; None: all at once. The result does not depend on it if the
            predictor answers of each window alone: call ``.eval()``, for batch norm in training mode looks at the whole
            call, and dropout draws for it.
        blend: "constant" (g = 1) or "gaussian".
        output: "logits", "probs" (softmax of the averaged logits) or "labels" (their argmax); the latter two of two
            classes at least.
        resize: True: predictions are upsampled bilinearly and averaged at pixel resolution; "once": averaged at the
            predictor's own resolution, and the average upsampled; False: averaged there, and left so.
        pad: True: an image smaller than the window is padded with 0 at the bottom and right, and the answer is cut
            back, for networks that take only some sizes. False: the window is cut to the image.
        label_dtype: of labels: int64, which indexes and counts, or uint8 for up to 256 classes in an eighth of the
            memory.
        progress: wraps the list of calls, as ``tqdm`` does; None: nothing.

    The predictor maps windows (b, K, h, w) of the image's dtype to float logits (b, C, h', w'). Averages are
    kept in float32 (float64 for float64 predictions). Gradients flow through; use ``torch.no_grad()`` for inference.

    Raises:
        ValueError: a setting or the image does not fit, or the predictor's answer has the wrong type, batch size,
            channels or, unless ``resize=True``, a size that does not divide the windows' positions.

    Example:
        >>> import torch
        >>> from hrda_lib import SlidingWindowInferer
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
        resize: bool | Literal["once"] = True,
        pad: bool = False,
        label_dtype: torch.dtype = torch.int64,
        progress: Progress | None = None,
    ) -> None:
        if batch_size is not None and not is_count(batch_size):
            raise ValueError(f"batch_size must be a positive int or None (all at once), got {batch_size}")
        check_choice("blend", blend, BLENDS)
        check_choice("output", output, OUTPUTS)
        check_choice("resize", resize, (True, False, "once"))
        check_choice("pad", pad, (True, False))
        check_choice("label_dtype", label_dtype, LABEL_DTYPES)
        self.window = pair("window", window)
        half = ((self.window[0] + 1) // 2, (self.window[1] + 1) // 2)
        self.stride = half if stride is None else pair("stride", stride)
        window_grid(self.window, self.window, self.stride)  # a stride beyond the window is refused here
        self.batch_size, self.blend, self.output = batch_size, blend, output
        self.resize, self.pad, self.label_dtype, self.progress = resize, pad, label_dtype, progress

    def __call__(self, image: Tensor, predictor: Predictor) -> Tensor:
        """Segment images that are whole in memory.

        Args:
            image: (B, K, H, W), of any size.
            predictor: windows (b, K, h, w) -> float logits (b, C, h', w').

        Returns:
            (B, C, H, W) for "logits" and "probs", (B, H, W) of ``label_dtype`` for "labels"; with ``resize=False`` H
            and W are those of the predictor's cells.

        Raises:
            ValueError: the image or the predictor's answer does not fit.
        """
        expect("image", image, "BKHW")
        size, images, out = _fixed(image), image.shape[0], None

        def read(box: CropBox, images: slice) -> Tensor:
            return crop(image[images], box)

        parts = self._parts(size, images, read, predictor)
        if self.output != "labels":
            return self._logits(parts, size, images)
        for top, height, band in self._labels(parts, size, images):
            out = band.new_empty(images, height, band.shape[-1]) if out is None else out
            out[:, top : top + band.shape[1]] = band
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
            >>> import torch
            >>> from hrda_lib import SlidingWindowInferer, crop
            >>> rows = torch.arange(10.0).view(1, 1, 10, 1).expand(1, 1, 10, 6)
            >>> infer = SlidingWindowInferer(4)
            >>> def above_four(x):
            ...     return torch.cat([4 - x, x - 4], dim=1)
            >>> for top, labels in infer.stream((10, 6), lambda box: crop(rows, box), above_four):
            ...     print(top, labels[0, :, 0].tolist())
            0 [0, 0]
            2 [0, 0]
            4 [0, 1]
            6 [1, 1]
            8 [1, 1]
        """

        def checked(box: CropBox, _: slice) -> Tensor:
            image = read(box)
            expect("read's answer", image, (1, "K", box.height, box.width))
            return image

        size = pair("size", size)
        for top, _, labels in self._labels(self._parts(size, 1, checked, predictor), size, 1):
            yield top, labels

    def _logits(self, parts: Iterator["_Part"], size: tuple[int, int], images: int) -> Tensor:
        """Averaged over all windows, or their softmax."""
        total = None
        for layout, index, (top, left), logits in parts:
            total = logits.new_zeros(images, logits.shape[1], *layout.whole) if total is None else total
            height, width = min(layout.window[0], layout.whole[0] - top), min(layout.window[1], layout.whole[1] - left)
            sums, part = total[index, :, top : top + height, left : left + width], logits[..., :height, :width]
            weight = layout.weight
            sums.add_(part) if weight is None else sums.addcmul_(part, weight[:height, :width])
        assert total is not None  # there is a window
        average = total.div_(layout.coverage(total))
        return _finish(resize(average, size) if self.resize == "once" else average, self.output, self.label_dtype)

    def _labels(
        self, parts: Iterator["_Part"], size: tuple[int, int], images: int
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Labels of rows that no later window reaches: (first row, rows of all, (B, rows, columns))."""
        if self.resize == "once":
            logits = _bands(((piece, piece.average()) for piece in _pieces(parts)), images)
            for top, band in _upsampled(logits, size):
                yield top, size[0], _finish(band, "labels", self.label_dtype)
        else:  # the largest of the sums is that of the average
            labels = ((piece, _finish(piece.sums, "labels", self.label_dtype)) for piece in _pieces(parts))
            yield from _bands(labels, images)

    def _parts(self, size: tuple[int, int], images: int, read: Read, predictor: Predictor) -> Iterator["_Part"]:
        """What the predictor says of each window, row by row."""
        covered = (max(size[0], self.window[0]), max(size[1], self.window[1])) if self.pad else size
        boxes = window_grid(covered, self.window, self.stride)
        calls, layout = _calls(boxes, images, self.batch_size), None
        for call in self.progress(calls) if self.progress else calls:
            logits = self._predict(size, call, read, predictor)
            if layout is None:
                layout = _Layout.of(size, boxes, logits, self._window_weight(logits))
            layout.check(logits)
            windows = logits.view(len(call), -1, *logits.shape[1:]).unbind()
            for (box, index), window in zip(call, windows, strict=True):
                yield _Part(layout, index, layout.places[box], window)

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
        return resize(logits, sides) if self.resize not in (False, "once") else logits

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


class _Span(NamedTuple):
    """Rows, or columns, that the same windows cover."""

    start: int
    stop: int
    windows: tuple[int, ...]  # where these begin

    def inside(self, window: int) -> slice:
        return slice(self.start - window, self.stop - window)


class _Layout(NamedTuple):
    """Where windows lie in the answer, in its cells."""

    whole: tuple[int, int]
    window: tuple[int, int]
    channels: int
    weight: Tensor | None
    places: dict[CropBox, tuple[int, int]]

    @classmethod
    def of(cls, size: tuple[int, int], boxes: list[CropBox], logits: Tensor, weight: Tensor | None) -> "_Layout":
        """The layout of windows in an image of ``size``, of which the predictor returned ``logits`` for some."""
        rows, columns = _to_cells(CropBox(0, 0, *size), boxes[0], logits)[2:]
        places = {box: _to_cells(box, boxes[0], logits)[:2] for box in boxes}
        _, channels, height, width = plain(logits.shape)
        return cls((rows, columns), (height, width), channels, weight, places)

    def check(self, logits: Tensor) -> None:
        _, channels, *cells = plain(logits.shape)
        if channels != self.channels:
            raise ValueError(
                f"predictor returned {channels} channels for one window and {self.channels} for another; "
                "it must return the same classes for every window"
            )
        if tuple(cells) != self.window:
            raise ValueError(
                f"predictor returned {tuple(cells)} cells for one window and {self.window} for another; with "
                "resize=False or 'once' it must return one size"
            )

    def coverage(self, like: Tensor) -> Tensor:
        """How many windows cover each cell, or what they weigh there, (rows, columns)."""
        rows, columns, (height, width) = *self.whole, self.window
        if self.weight is None:
            down, across = like.new_zeros(rows), like.new_zeros(columns)
            for top in {top for top, _ in self.places.values()}:
                down[top : top + height] += 1
            for left in {left for _, left in self.places.values()}:
                across[left : left + width] += 1
            return down[:, None] * across
        total = like.new_zeros(rows, columns)
        for top, left in self.places.values():
            total[top : top + height, left : left + width] += self.weight[: rows - top, : columns - left]
        return total


class _Part(NamedTuple):
    """What the predictor says of one window of some images."""

    layout: _Layout
    images: slice
    place: tuple[int, int]
    logits: Tensor


class _Piece(NamedTuple):
    """A rectangle of the answer that the same windows cover, in some images: their sum."""

    layout: _Layout
    images: slice
    rows: _Span
    columns: _Span
    sums: Tensor

    def average(self) -> Tensor:
        weight, places = self.layout.weight, list(product(self.rows.windows, self.columns.windows))
        if weight is None:
            return self.sums if len(places) == 1 else self.sums.div_(len(places))
        first, *others = (weight[self.rows.inside(top), self.columns.inside(left)] for top, left in places)
        return self.sums.div_(sum(others, start=first))


def _spans(starts: set[int], length: int, end: int) -> dict[int, list[_Span]]:
    """What each window, by where it begins, consists of."""
    edges = sorted({min(edge, end) for start in starts for edge in (start, start + length)})
    spans = [
        _Span(first, last, tuple(sorted(start for start in starts if start <= first < start + length)))
        for first, last in pairwise(edges)
    ]
    return {start: [span for span in spans if start in span.windows] for start in starts}


def _pieces(parts: Iterable[_Part]) -> Iterator[_Piece]:
    """The answer, cut where windows begin and end; each piece as soon as its last window is there."""
    down, sums = dict[int, list[_Span]](), dict[tuple[int, int, int], Tensor]()
    for layout, index, (top, left), logits in parts:
        if not down:
            tops, lefts = ({place[axis] for place in layout.places.values()} for axis in (0, 1))
            (height, width), (last_row, last_column) = layout.window, layout.whole
            down, across = _spans(tops, height, last_row), _spans(lefts, width, last_column)
        for rows, columns in product(down[top], across[left]):
            key, inside = (index.start or 0, rows.start, columns.start), (..., rows.inside(top), columns.inside(left))
            last = (top, left) == (rows.windows[-1], columns.windows[-1])
            weight = None if layout.weight is None else layout.weight[inside]
            total = _added(sums.pop(key, None), logits[inside], weight, kept=not last)
            if last:
                yield _Piece(layout, index, rows, columns, total)
            else:
                sums[key] = total


def _added(total: Tensor | None, part: Tensor, weight: Tensor | None, *, kept: bool) -> Tensor:
    """The sum; ``kept``: it must outlive the predictor's answer, which is the caller's."""
    if total is not None:
        return total.add_(part) if weight is None else total.addcmul_(part, weight)
    if weight is not None:
        return part * weight
    return part.clone() if kept else part


def _bands(contents: Iterable[tuple[_Piece, Tensor]], images: int) -> Iterator[tuple[int, int, Tensor]]:
    """Whole rows of what the pieces hold, from the top: (first row, rows of all, (B, ..., rows, columns))."""
    bands = dict[int, Tensor]()
    for (layout, index, rows, columns, _), content in contents:
        height, width = layout.whole
        if rows.start not in bands:
            bands[rows.start] = content.new_empty(images, *content.shape[1:-1], width)
        bands[rows.start][index, ..., columns.start : columns.stop] = content
        if columns.stop == width and index.stop in (None, images):
            yield rows.start, height, bands.pop(rows.start)


def _upsampled(bands: Iterable[tuple[int, int, Tensor]], size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """What :func:`resize` makes of the whole map, a few rows at once: (first row, (B, C, rows, columns))."""
    held, first, done = None, 0, 0  # cells still needed, their first row; rows of pixels that are done
    for top, height, band in bands:
        held = band if held is None else torch.cat([held, band], dim=-2)
        place = (torch.arange(size[0], dtype=torch.float64) + 0.5).mul_(height / size[0]).sub_(0.5).clamp_(min=0)
        reach = top + band.shape[-2]
        ready = size[0] if reach == height else int((place < reach - 1).sum())
        step = max(CHUNK // (len(band) * band.shape[1] * size[1]), 1)
        for start in range(done, ready, step):
            rows = place[start : min(start + step, ready)] - first
            above = rows.long()
            below = (above + 1).clamp(max=held.shape[-2] - 1)
            share = (rows - above)[:, None].to(held)
            mixed = torch.lerp(held[..., above, :], held[..., below, :], share)
            yield start, resize(mixed, (len(rows), size[1]))
        done = ready
        if done < size[0]:
            needed = int(place[done])
            held, first = held[..., needed - first :, :], needed


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
            f"do not line up with the box {tuple(box)}; with resize=False or 'once' the image, the window and the "
            "stride must be multiples of the predictor's output stride"
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
    return _best(logits.detach()).to(label_dtype)


def _best(logits: Tensor) -> Tensor:
    """The best class of each pixel, the first of equal ones, as ``argmax`` gives it."""
    if not readable(logits):
        return logits.max(dim=1).indices
    best = logits.amax(dim=1, keepdim=True)
    check_best("predictor's logits", best)
    # on the CPU, max and argmax take a class after the other; a comparison into floats is a third of their time
    is_best = torch.eq(logits, best, out=torch.empty_like(logits))
    first = is_best.mul_(torch.arange(logits.shape[1], 0, -1).to(logits)[:, None, None]).amax(dim=1)
    return logits.shape[1] - first
