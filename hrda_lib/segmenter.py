"""HRDA around any encoder, decoder and attention head."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm

from hrda_lib._checks import (
    SidesRefused,
    at_least_float32,
    check_finite,
    check_two_classes,
    expect,
    is_number,
    pair,
    plain,
    refuses_sides,
    seem_last,
    takes,
    tensor_in,
)
from hrda_lib._modules import in_eval_mode, written_out
from hrda_lib.crops import MultiResCropSampler, as_fraction, check_multiple, downscale
from hrda_lib.fusion import fuse_scales, share_of
from hrda_lib.geometry import CropBox, as_box, crop, resize, window_grid
from hrda_lib.sliding_window import Call, Output, Progress, SlidingWindowInferer

Detail = Literal["crop", "windows"]
Fusion = Callable[..., Tensor]  # as fuse_scales
Place = tuple[int, CropBox]  # of a window: which image, where

WINDOWS_AT_ONCE = 4
SURE = 0.968  # probability from which the context needs no detail


class SegmenterOutput(NamedTuple):
    """One forward pass of :class:`MultiResSegmenter`, B images of (H, W), scale s, output stride o."""

    logits: Tensor
    """Fused, (B, C, H/o, W/o); o is 1 here and in the next for ``output_stride=None``."""
    detail_logits: Tensor
    """Of the detail crop (B, C, h/o, w/o), or the average over all windows (B, C, H/o, W/o)."""
    detail_box: CropBox | None
    """Where the detail crop lies, in image pixels; None for windows."""
    context_logits: Tensor
    """Raw, (B, C, H/(s*o), W/(s*o)); for ``output_stride=None`` as large as the decoder gave them."""
    attention: Tensor | float
    """After the sigmoid, unmasked, (B, C or 1, H/(s*o), W/(s*o)), for ``output_stride=None`` as large as the head gave
    it; or the fixed number."""
    features: Any
    """What the encoder returned for the context."""
    context: Tensor
    """The downscaled images, (B, K, H/s, W/s)."""


class ScalePredictions(NamedTuple):
    """What each scale of :class:`MultiResSegmenter` says of B whole images of (H, W), at pixel resolution."""

    fused: Tensor
    """Logits of both scales, (B, C, H, W), those of ``predict``."""
    context: Tensor
    """Logits of the context alone, (B, C, H, W)."""
    detail: Tensor
    """Logits of the detail alone, (B, C, H, W)."""
    attention: Tensor
    """What the detail weighs, in [0, 1], (B, C or 1, H, W); a fixed number fills one map."""


class MultiResSegmenter(nn.Module):
    r"""One network at two scales: a downscaled context, and full-resolution detail, fused by attention.

    .. math::
        \hat y = \mathrm{fuse}(g(f(x_c)),\; g(f(x_d)),\; \sigma(f_A(f(x_c))))

    with encoder f, decoder g and attention head f_A, all shared by both scales
    (HRDA, arXiv 2204.13132, section 3.2 and 3.3; the blend itself is :func:`hrda_lib.fuse_scales`).

    Args:
        encoder: images -> features of any type.
        decoder: features -> logits at 1/``output_stride`` of the images.
        attention: features -> attention logits (C or 1 channels; after the sigmoid they are resized to the context
            logits), or a float in [0, 1] that fixes the mix: 0 context only, 1 detail only, 0.5 the average.
        detail_size: detail crop and window (h, w) in pixels.
        scale: s, how much coarser the context is.
        output_stride: o, image pixels a logit cell, at least 1; 3.5 is a patch of 14 upsampled twice. None: logits of
            any size, brought to image pixels and fused there.
        multiple_of: what the sides of the encoder's input must be divisible by (its patch, its total stride, its only
            size); one number or (rows, columns). 1: any side.
        detail_stride: step between detail windows, whole cells of the logits; None: half a window.
        fusion: what to call in place of :func:`hrda_lib.fuse_scales`, with its arguments: context logits, detail logits
            and attention, then ``box=`` and ``scale=``; it returns logits of the detail's resolution. A module may have
            weights.

    Images, context crops, have sides that are whole cells at both scales and, divided by the scale, multiples of
    ``multiple_of``: of 8 by default. A detail box has whole cells and sides that are multiples of ``multiple_of``, with
    ``output_stride=None`` any place. :meth:`predict` takes any size.

    Raises:
        ValueError: sizes do not divide, the box does not lie inside the image, or the modules' answers do not fit.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hrda_lib import CropBox, MultiResSegmenter
        >>> encoder, decoder = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 19, 1)
        >>> model = MultiResSegmenter(encoder, decoder, nn.Conv2d(8, 1, 1), detail_size=(32, 32))
        >>> out = model(torch.rand(2, 3, 64, 64), CropBox(8, 16, 32, 32))
        >>> out.logits.shape, out.detail_logits.shape, out.context_logits.shape
        (torch.Size([2, 19, 16, 16]), torch.Size([2, 19, 8, 8]), torch.Size([2, 19, 8, 8]))
        >>> model.predict(torch.rand(1, 3, 50, 70), output="labels").shape
        torch.Size([1, 50, 70])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        attention: nn.Module | float,
        *,
        detail_size: int | tuple[int, int],
        scale: float = 2,
        output_stride: float | None = 4,
        multiple_of: int | tuple[int, int] = 1,
        detail_stride: int | tuple[int, int] | None = None,
        fusion: Fusion | None = None,
    ) -> None:
        super().__init__()
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(part, nn.Module):
                raise ValueError(
                    f"{name} must be a torch.nn.Module, got {type(part).__name__}: a function's weights would neither "
                    "be trained nor copied for a teacher; put it into a module's forward"
                )
        if not isinstance(attention, nn.Module) and not (is_number(attention) and 0 <= attention <= 1):
            raise ValueError(f"attention must be a module or a number in [0, 1], got {attention}")
        if not (fusion is None or takes(fusion, None, None, None, box=None, scale=2)):
            raise ValueError(f"fusion must be a function like hrda_lib.fuse_scales, got {fusion!r}")
        stride = 1 if output_stride is None else output_stride
        self._sampler = MultiResCropSampler(detail_size, scale=scale, output_stride=stride, multiple_of=multiple_of)
        self.detail_size, self.multiple_of = self._sampler.detail_size, self._sampler.multiple_of
        self.scale, self.output_stride = scale, output_stride
        self._pixels, self._cells = as_fraction("output_stride", stride).as_integer_ratio()  # o as a fraction
        self.detail_stride = self._steps(detail_stride)
        self.fusion = fuse_scales if fusion is None else fusion
        self.encoder, self.decoder, self.attention = encoder, decoder, attention

    def forward(
        self,
        images: Tensor,
        box: CropBox | None = None,
        generator: torch.Generator | None = None,
        *,
        detail: Detail | None = None,
    ) -> SegmenterOutput:
        """One pass at both scales.

        Args:
            images: (B, K, H, W) float, of sides that fit: see above.
            box: the detail crop in image pixels; None: drawn with ``generator`` where a crop is wanted.
            generator: a CPU generator for the box; None: torch's default.
            detail: "crop" (one) or "windows" (all over the image); None: "crop" while training or with a box,
                else "windows".

        Returns:
            :class:`SegmenterOutput`.

        Raises:
            ValueError: sides or the box do not fit, or ``box`` is given with "windows".
        """
        windows: Any = detail  # within this file also what predict() shares between its windows
        unique = windows if isinstance(windows, _UniqueWindows) else None
        if unique is None and detail not in ("crop", "windows", None):
            raise ValueError(f"detail must be 'crop', 'windows' or None, got {detail!r}")
        if detail == "windows" and box is not None:
            raise ValueError("box is for detail='crop'; windows cover the whole image")
        images, size = self._checked(images)
        if detail == "crop" or (detail is None and (self.training or box is not None)):
            box = self._sampler.sample(size, generator)[1] if box is None else self._check_box(images, box)
        else:
            self._check_windows("sides of images", size)
        context = downscale(images, self.scale)
        features, context_logits = self._segment(context)
        attention = self._attend(features, context_logits)
        if unique is not None:
            detail_logits, attention = unique.detail(images, context_logits, attention)
        elif box is None:
            detail_logits = self._detail_windows(images)
        else:
            _, detail_logits = self._segment(crop(images, box))
            detail_logits = resize(detail_logits, box[2:]) if self.output_stride is None else detail_logits
        logits = self._fuse(context_logits, detail_logits, attention, box, size)
        return SegmenterOutput(logits, detail_logits, box, context_logits, attention, features, context)

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        *,
        window: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        output: Output = "logits",
        batch_size: int | None = 1,
        label_dtype: torch.dtype = torch.int64,
        progress: Progress | None = None,
        confident: float | None = None,
    ) -> Tensor:
        r"""Segment whole images of any size, in eval mode and without gradient, at pixel resolution; in any thread.

        Windows of the context's size, each fused from both scales, are averaged (HRDA, section 3.4). A detail window
        that several of them share runs once, which changes logits by rounding alone. Images are padded with 0 (the mean
        colour) at the bottom and right to sides that fit, those smaller than the window to all of it where the network
        takes no less, and the result is cut back.

        With ``confident``, :math:`\tau`, of the detail windows d of a context window those run that are in

        .. math::
            R = \Big\{ d : \frac{1}{|d|} \sum_{q \in d} \big[ \max_k p_k(q) \ge 0.968 \big] < \tau \Big\}, \qquad
            p = \mathrm{softmax}(\hat y_c)

        (gated as in DGVFM, over the cells q of the context logits that d touches). The detail logits of a cell are the
        average of those of R that hold it, and the attention is 0 in context cells that none of R holds. Each context
        window decides for itself.

        Args:
            images: (B, K, H, W) float.
            window: window size, of sides as images have them in training; None: scale * detail_size.
            stride: step between windows; None: half a window.
            output: "logits" (B, C, H, W), "probs" or "labels" (B, H, W).
            batch_size: windows x images at once: more memory, the same result; None: all.
            label_dtype: of labels: int64, or uint8 for up to 256 classes.
            progress: wraps the list of calls, as ``tqdm`` does; None: nothing.
            confident: share of sure cells, in [0, 1], from which a detail window is left out; 0: all are, 1: those
                that are sure all over. None: all run.

        Returns:
            (B, C, H, W) float, or labels (B, H, W).

        Raises:
            ValueError: an argument does not fit, or ``confident`` is given where detail windows can't be told apart: on
                batch statistics, under a compiler or tracer, with one class.
        """
        infer = SlidingWindowInferer(
            self._window(window), stride=stride, batch_size=batch_size, output=output, label_dtype=label_dtype,
            progress=progress,
        )  # fmt: skip
        if confident is not None and not (is_number(confident) and 0 <= confident <= 1):
            raise ValueError(f"confident must be a share in [0, 1] or None, got {confident}")
        return self._over_windows(images, infer, lambda x, detail: self(x, detail=detail).logits, confident)

    @torch.no_grad()
    def predict_scales(
        self,
        images: Tensor,
        *,
        window: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        batch_size: int | None = 1,
    ) -> ScalePredictions:
        r"""What each scale says of whole images, and how they are mixed, at pixel resolution.

        .. math::
            \bar y(p) = \frac{1}{|W_p|} \sum_{w \in W_p} \zeta(y_w)(p), \qquad
            y \in \{\hat y,\ \zeta(\hat y_c),\ \hat y_d,\ \zeta(a)\}

        over the windows :math:`W_p` that hold pixel p: fused, context and detail logits and the attention of each
        window, at the resolution of the fused logits, then averaged as :meth:`predict` averages
        (:math:`\zeta`: bilinear upsampling; HRDA, arXiv 2204.13132, section 3.4).

        Args:
            images, window, stride, batch_size: of :meth:`predict`. The fused logits are its logits.

        Returns:
            :class:`ScalePredictions`.

        Raises:
            ValueError: as :meth:`predict`.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from hrda_lib import MultiResSegmenter
            >>> encoder, decoder = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 19, 1)
            >>> model = MultiResSegmenter(encoder, decoder, nn.Conv2d(8, 1, 1), detail_size=(32, 32))
            >>> scales = model.predict_scales(torch.rand(1, 3, 50, 70))
            >>> scales.detail.shape, scales.attention.shape
            (torch.Size([1, 19, 50, 70]), torch.Size([1, 1, 50, 70]))
        """
        channels: list[int] = []

        def maps(x: Tensor, detail: "Detail | _UniqueWindows") -> Tensor:
            out = self(x, detail=detail)
            parts = [out.logits, out.context_logits, out.detail_logits]
            parts += [out.attention] if isinstance(out.attention, Tensor) else []
            channels[:] = [part.shape[1] for part in parts]
            return torch.cat([at_least_float32(resize(part, out.logits.shape[-2:])) for part in parts], dim=1)

        infer = SlidingWindowInferer(self._window(window), stride=stride, batch_size=batch_size)
        averages = self._over_windows(images, infer, maps)
        fused, context, detail, *learned = torch.split(averages, channels, dim=1)
        share = 0.0 if isinstance(self.attention, nn.Module) else float(self.attention)
        attention = learned[0].clamp(0, 1) if learned else fused.new_full(fused[:, :1].shape, share)
        return ScalePredictions(fused, context, detail, attention)

    def _over_windows(
        self,
        images: Tensor,
        infer: SlidingWindowInferer,
        predictor: Callable[[Tensor, "Detail | _UniqueWindows"], Tensor],
        confident: float | None = None,
    ) -> Tensor:
        """What ``infer`` makes, in eval mode, of the images padded to sides that the network takes."""
        expect("images", images, "BKHW", kind="float")
        rows, columns = images.shape[-2:]
        least = self._fitting(rows, 0), self._fitting(columns, 1)
        window = max(least[0], infer.window[0]), max(least[1], infer.window[1])

        def run(sides: tuple[int, int]) -> Tensor:
            padded = pad(images, (0, sides[1] - columns, 0, sides[0] - rows))
            if together:
                return infer(padded, lambda x: predictor(x, "windows"))
            unique = _UniqueWindows(self, padded, confident)
            told = copy.copy(infer)
            told.progress = lambda calls: unique.following(infer.progress(calls) if infer.progress else calls)
            return told(padded, lambda x: predictor(x, unique))

        with in_eval_mode(self):
            together = self._why_together()
            if together and confident is not None:
                raise ValueError(f"confident must be None where {together}: detail windows run all together there")
            try:
                padded = run(least)
            except SidesRefused:
                if least == window:
                    raise
                padded = run(window)
        return padded[..., :rows, :columns]

    def _window(self, window: int | tuple[int, int] | None) -> tuple[int, int]:
        """In pixels of the image; ``window`` None: as large as the context of a training crop, in whole cells."""
        if window is not None:
            size = check_multiple("window", pair("window", window), self._sampler.context_multiple, "or None")
            self._check_windows("window", size)
            return size
        multiple = self._sampler.context_multiple
        rows, columns = (round(d * self.scale) // m * m for d, m in zip(self.detail_size, multiple, strict=True))
        return self._fitting(rows, 0), self._fitting(columns, 1)

    def _fitting(self, side: int, axis: int) -> int:
        """The next side, from ``side`` on, that the network takes at both scales."""
        multiple, of = self._sampler.context_multiple[axis], self.multiple_of[axis]
        side = max(-(-side // multiple), 1) * multiple
        while side < self.detail_size[axis] and side % of:  # a detail window would be cut to it
            side += multiple
        return side

    def _detail_windows(self, images: Tensor) -> Tensor:
        infer = SlidingWindowInferer(
            self.detail_size,
            stride=self.detail_stride,
            batch_size=None if self._needs_all_at_once() else WINDOWS_AT_ONCE,
            resize=self.output_stride is None,
        )
        return infer(images, lambda windows: self._segment(windows)[1])

    def _why_together(self) -> str:
        """Why all detail windows of a context window must run with it in prediction; empty if they need not."""
        if self._needs_all_at_once():
            return "a batch norm is on batch statistics"
        if written_out() or self._compiled_call_impl is not None:  # what is shared differs from window to window
            return "the network is compiled, traced or exported"
        return ""

    def _needs_all_at_once(self) -> bool:
        """A batch norm that uses batch statistics must see all windows at once, as in the released code."""
        return any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in self.modules())

    def _segment(self, images: Tensor) -> tuple[Any, Tensor]:
        """Features and logits."""
        try:
            features = self.encoder(images)
            logits = self.decoder(features)
        except (RuntimeError, AssertionError, ValueError) as error:
            if not refuses_sides(error):
                raise
            raise SidesRefused(
                f"encoder and decoder must take crops of {plain(images.shape[-2:])}, but came to: {error}; pass what "
                f"their sides must be divisible by, such as multiple_of=32 (it is {self.multiple_of})"
            ) from error
        self._check_logits(logits, images)
        return features, logits

    def _check_logits(self, logits: Any, images: Tensor) -> None:
        sides = plain(images.shape[-2:])
        size = self._in_cells(sides)
        fits = isinstance(logits, Tensor) and logits.dim() == 4
        if not fits or not self._is_of(plain(logits.shape), size, sides):
            wanted = f"(B, C, {size[0]}, {size[1]}) for images of {sides} at output_stride={self.output_stride}"
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            if self.output_stride is None:
                hint = "; these are channels last: permute(0, 3, 1, 2)" if fits else tensor_in(logits)
                raise ValueError(f"decoder must return logits (B, C, h, w) for images of {sides}, got {got}{hint}")
            raise (SidesRefused if fits else ValueError)(
                f"decoder must return logits {wanted}, got {got}{_remedy(logits, images, size)}"
            )

    def _is_of(self, shape: tuple[int, ...], size: tuple[int, int], sides: tuple[int, ...]) -> bool:
        """Whether logits of that shape can be of images of those sides; of any size, if they are not channels last."""
        if self.output_stride is not None:
            return shape[2:] == size
        if torch.compiler.is_compiling():  # sides may be symbols, which must not be pinned down here
            return True
        _, first, second, third = shape  # proportions tell which two of them are rows and columns
        last = second > 1 and first * sides[1] == second * sides[0] and second * sides[1] != third * sides[0]
        return not last

    def _attend(self, features: Any, logits: Tensor) -> Tensor | float:
        """After the sigmoid, of the size of the context logits where those have one; or the fixed number."""
        if not isinstance(self.attention, nn.Module):
            return self.attention
        attention = self.attention(features)
        if not isinstance(attention, Tensor) or attention.dim() != 4:
            got = tuple(attention.shape) if isinstance(attention, Tensor) else type(attention).__name__
            raise ValueError(f"attention must return logits (B, C or 1, h, w), got {got}{tensor_in(attention)}")
        share = share_of(attention)
        return share if self.output_stride is None else resize(share, logits.shape[-2:])

    def _fuse(
        self,
        context_logits: Tensor,
        detail_logits: Tensor,
        attention: Tensor | float,
        box: CropBox | None,
        size: tuple[int, int],
    ) -> Tensor:
        scale = self.scale
        if self.output_stride is None:
            context_logits, scale = resize(context_logits, size), 1
            attention = resize(attention, size) if isinstance(attention, Tensor) else attention
        else:
            box = None if box is None else box.scaled(1 / self.output_stride)
        fused: Tensor = self.fusion(context_logits, detail_logits, attention, box=box, scale=scale)
        expect("fusion's answer", fused, (*context_logits.shape[:2], *self._in_cells(size)), kind="float")
        return fused

    def _in_cells(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Sides in pixels as cells of the logits."""
        return size[0] * self._cells // self._pixels, size[1] * self._cells // self._pixels

    def _steps(self, detail_stride: int | tuple[int, int] | None) -> tuple[int, int]:
        """Between detail windows, in pixels."""
        cell = self._pixels  # the smallest whole number of pixels that is whole cells
        rows, columns = (max(side // 2 // cell, 1) * cell for side in self.detail_size)
        steps = (rows, columns) if detail_stride is None else pair("detail_stride", detail_stride)
        if steps[0] % cell or steps[1] % cell:
            raise ValueError(f"detail_stride must be a multiple of {cell}, whole cells of the logits, got {steps}")
        return steps

    def _checked(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The images and their sides, which must fit."""
        expect("images", images, "BKHW", kind="float")
        check_finite("images", images)
        rows, columns = plain(images.shape[-2:])
        last = seem_last(images.shape)
        way_out = f"but {last}" if last else "pad to it, or use predict()"
        size = check_multiple("sides of images", (rows, columns), self._sampler.context_multiple, way_out)
        # what is traced holds for these sides alone: at others, this is what fails
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        return images.expand(-1, -1, *size) if tracing else images, size

    def _check_box(self, images: Tensor, box: CropBox) -> CropBox:
        box = as_box("box", box)
        crop(images, box)
        if self.output_stride is not None:
            box.scaled(1 / self._sampler.step)
        if box.height % self.multiple_of[0] or box.width % self.multiple_of[1]:
            raise ValueError(
                f"box must have sides that are multiples of multiple_of={self.multiple_of}, got {tuple(box)}"
            )
        return box

    def _check_windows(self, name: str, size: tuple[int, int]) -> None:
        if any(isinstance(side, torch.SymInt) for side in size):
            raise ValueError(
                f"{name} must be fixed where detail windows cover the image, got dynamic ones: export fixed sides, or "
                "a single crop (detail='crop' and a box), whose sides may change"
            )
        for side, detail, of in zip(size, self.detail_size, self.multiple_of, strict=True):
            if side < detail and side % of:
                raise ValueError(
                    f"{name} must be at least detail_size {self.detail_size} or multiples of multiple_of="
                    f"{self.multiple_of}, got {size}; pad them, or use predict()"
                )


def _remedy(logits: Any, images: Tensor, size: tuple[int, int]) -> str:
    """What to do about logits of another kind than asked for; empty where that is not known."""
    if not isinstance(logits, Tensor):
        return tensor_in(logits)
    if logits.dim() != 4:
        return ""
    if tuple(logits.shape[1:3]) == size:
        return "; these are channels last: permute(0, 3, 1, 2)"
    rows, columns = (side / max(cells, 1) for side, cells in zip(images.shape[-2:], logits.shape[-2:], strict=True))
    same = f"this is output_stride={rows:g}, and " if rows == columns else ""
    return f"; {same}output_stride=None takes logits of any size"


class _UniqueWindows:
    """The detail of context windows that overlap: what they share runs once, what the context is sure of not at all.

    ``following`` is told which windows come next. Windows that no later row of context windows can hold are forgotten.
    """

    def __init__(self, model: MultiResSegmenter, images: Tensor, confident: float | None) -> None:
        self.model, self.images, self.confident = model, images, confident
        self.known: dict[Place, Tensor] = {}
        self.call: Call = []

    def following(self, calls: Iterable[Call]) -> Iterator[Call]:
        for self.call in calls:
            top = min(box.top for box, _ in self.call)
            self.known = {place: logits for place, logits in self.known.items() if place[1].top >= top}
            yield self.call

    def detail(
        self, windows: Tensor, context_logits: Tensor, attention: Tensor | float
    ) -> tuple[Tensor, Tensor | float]:
        """Logits all over the windows of this call, and the attention, 0 where no detail window ran."""
        model, size = self.model, plain(windows.shape[-2:])
        boxes = window_grid((size[0], size[1]), model.detail_size, model.detail_stride)
        keep = self._unsure(boxes, context_logits, size)
        jobs = [  # in the order in which the inferer asks
            (images.start, CropBox(box.top + at.top, box.left + at.left, *box[2:])) if kept else None
            for box, of_box in zip(boxes, keep, strict=True)
            for (at, images), kept in zip(self.call, of_box, strict=True)
        ]
        self._run([job for job in jobs if job is not None])
        empty = context_logits.new_zeros(1, context_logits.shape[1], *self._shape_of_answers(boxes[0]))
        answers = iter(empty if job is None else self.known[job] for job in jobs)
        stitch = SlidingWindowInferer(
            model.detail_size, stride=model.detail_stride, batch_size=1, resize=model.output_stride is None
        )
        logits = stitch(windows[:, :1], lambda _: next(answers))
        if None not in jobs:
            return logits, attention
        ran = _covered(boxes, keep, size, logits)
        everything = _covered(boxes, [[True] * len(windows)] * len(boxes), size, logits)
        if not isinstance(attention, Tensor):
            attention = context_logits.new_full(context_logits[:, :1].shape, attention)
        inside = _covered(boxes, keep, size, context_logits) > 0
        return logits * torch.where(ran > 0, everything / ran, 0), attention * inside

    def _unsure(self, boxes: list[CropBox], context_logits: Tensor, size: tuple[int, ...]) -> list[list[bool]]:
        """Of each detail window, and each context window of this call, whether it runs."""
        if self.confident is None:
            return [[True] * len(context_logits)] * len(boxes)
        check_two_classes("decoder's logits", context_logits.shape[1])
        sure = (at_least_float32(context_logits).softmax(dim=1).amax(dim=1) >= SURE).float()
        shares = [crop(sure, _in_cells_of(box, size, sure, outwards=True)).mean(dim=(1, 2)) for box in boxes]
        keep: list[list[bool]] = (torch.stack(shares) < self.confident).tolist()
        return keep

    def _shape_of_answers(self, box: CropBox) -> tuple[int, int]:
        known = next(iter(self.known.values()), None)
        return self.model._in_cells(box[2:]) if known is None else (known.shape[-2], known.shape[-1])

    def _run(self, places: list[Place]) -> None:
        new = [place for place in dict.fromkeys(places) if place not in self.known]
        for start in range(0, len(new), WINDOWS_AT_ONCE):
            some = new[start : start + WINDOWS_AT_ONCE]
            _, logits = self.model._segment(torch.cat([crop(self.images[i : i + 1], box) for i, box in some]))
            self.known.update(zip(some, torch.split(logits, 1), strict=True))


def _covered(boxes: list[CropBox], keep: list[list[bool]], size: tuple[int, ...], like: Tensor) -> Tensor:
    """How many of the windows that are kept cover each cell of ``like``, (B, 1, h, w)."""
    counts = like.new_zeros(len(like), 1, *like.shape[-2:])
    for box, kept in zip(boxes, keep, strict=True):
        top, left, height, width = _in_cells_of(box, size, like, outwards=False)
        counts[..., top : top + height, left : left + width] += like.new_tensor(kept).view(-1, 1, 1, 1)
    return counts


def _in_cells_of(box: CropBox, size: tuple[int, ...], like: Tensor, *, outwards: bool) -> CropBox:
    """The cells that the box, in pixels of an image of ``size``, touches, or holds whole."""
    ends = []
    for start, length, pixels, cells in zip(box[:2], box[2:], size, like.shape[-2:], strict=True):
        low, high = start * cells, (start + length) * cells
        first, last = (low // pixels, -(-high // pixels)) if outwards else (-(-low // pixels), high // pixels)
        ends.append((first, max(last - first, 0)))
    (top, height), (left, width) = ends
    return CropBox(top, left, height, width)
