"""HRDA around any encoder, decoder and attention head."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm

from hrda_lib._checks import at_least_float32, check_finite, check_scale_and_stride, expect, is_number, pair, tensor_in
from hrda_lib._modules import in_eval_mode
from hrda_lib.crops import MultiResCropSampler, downscale
from hrda_lib.fusion import fuse_scales
from hrda_lib.geometry import CropBox, as_box, crop, resize
from hrda_lib.sliding_window import Output, SlidingWindowInferer

Detail = Literal["crop", "windows"]


class SegmenterOutput(NamedTuple):
    """One forward pass of :class:`MultiResSegmenter`, B images of (H, W), scale s, output stride o."""

    logits: Tensor
    """Fused, (B, C, H/o, W/o)."""
    detail_logits: Tensor
    """Of the detail crop (B, C, h/o, w/o), or the average over all windows (B, C, H/o, W/o)."""
    detail_box: CropBox | None
    """Where the detail crop lies, in image pixels; None for windows."""
    context_logits: Tensor
    """Raw, (B, C, H/(s*o), W/(s*o))."""
    attention: Tensor | float
    """After the sigmoid, unmasked, (B, C or 1, H/(s*o), W/(s*o)); or the fixed number."""
    features: Any
    """What the encoder returned for the context."""
    context: Tensor
    """The downscaled images, (B, K, H/s, W/s)."""


class ScalePredictions(NamedTuple):
    """What each scale of :class:`MultiResSegmenter` says of B whole images of (H, W), at pixel resolution."""

    fused: Tensor
    """Logits of both scales, (B, C, H, W): those of ``predict``."""
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
        attention: features -> attention logits (C or 1 channels, the size of the context logits), or a float in [0, 1]
            that fixes the mix: 0 context only, 1 detail only, 0.5 the average.
        detail_size: detail crop and window (h, w) in pixels.
        scale: s, how much coarser the context is.
        output_stride: o, image pixels a logit cell.
        detail_stride: step between detail windows, a multiple of o; None: half a window.

    Image sides must be multiples of scale * output_stride (times the denominator of a fractional scale);
    :meth:`predict` takes any size.

    Raises:
        ValueError: sizes do not divide, the box does not lie inside the image, or the modules' answers do not fit.

    Example:
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
        output_stride: int = 4,
        detail_stride: int | tuple[int, int] | None = None,
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
        check_scale_and_stride(scale, output_stride)
        # a box needs whole cells in the detail logits too, which only a fractional scale makes a further demand
        denominator = Fraction(scale).limit_denominator(1 << 16).denominator
        self._sampler = MultiResCropSampler(detail_size, scale=scale, output_stride=output_stride * denominator)
        self.detail_size, self.scale, self.output_stride = self._sampler.detail_size, scale, output_stride
        rows, columns = (max(side // 2 // output_stride, 1) * output_stride for side in self.detail_size)
        self.detail_stride = (rows, columns) if detail_stride is None else pair("detail_stride", detail_stride)
        if self.detail_stride[0] % output_stride or self.detail_stride[1] % output_stride:
            raise ValueError(
                f"detail_stride must be a multiple of output_stride {output_stride}, got {self.detail_stride}"
            )
        self.encoder, self.decoder, self.attention = encoder, decoder, attention

    def forward(
        self,
        images: Tensor,
        box: CropBox | None = None,
        generator: torch.Generator | None = None,
        *,
        detail: Detail | None = None,
    ) -> SegmenterOutput:
        """Segment ``images`` (B, K, H, W).

        Args:
            box: the detail crop in image pixels; None: drawn with ``generator`` where a crop is wanted.
            detail: "crop" (one) or "windows" (all over the image); None: "crop" while training or with a box,
                else "windows".
        """
        if detail not in ("crop", "windows", None):
            raise ValueError(f"detail must be 'crop', 'windows' or None, got {detail!r}")
        if detail == "windows" and box is not None:
            raise ValueError("box is for detail='crop'; windows cover the whole image")
        size = self._check_size(images)
        if detail == "crop" or (detail is None and (self.training or box is not None)):
            box = (
                self._sampler.sample(size, generator)[1] if box is None else self._check_box(images, as_box("box", box))
            )
        context = downscale(images, self.scale)
        features = self.encoder(context)
        context_logits = self._decode(features, context)
        attention = self._attend(features, context_logits)
        if box is None:
            cells, detail_logits = None, self._detail_windows(images)
        else:
            patch, cells = crop(images, box), box.scaled(1 / self.output_stride)
            detail_logits = self._decode(self.encoder(patch), patch)
        logits = fuse_scales(context_logits, detail_logits, attention, box=cells, scale=self.scale)
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
    ) -> Tensor:
        """Segment whole images of any size, in eval mode and without gradient, at pixel resolution; in any thread.

        Windows of the context's size, each fused from both scales, are averaged (HRDA, section 3.4). Images are padded
        with 0 (the mean colour) at the bottom and right to whole cells, and the result is cut back.

        Args:
            images: (B, K, H, W).
            window: window size, a multiple of scale * output_stride; None: scale * detail_size.
            stride: step between windows; None: half a window.
            output: "logits" (B, C, H, W), "probs" or "labels" (B, H, W).
            batch_size: windows x images at once: more memory, the same result.
            label_dtype: of labels: int64, or uint8 for up to 256 classes.
        """
        return self._over_windows(
            images, lambda x: self(x, detail="windows").logits, window, stride, output, batch_size, label_dtype
        )

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

        Raises:
            ValueError: as :meth:`predict`.

        Example:
            >>> encoder, decoder = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 19, 1)
            >>> model = MultiResSegmenter(encoder, decoder, nn.Conv2d(8, 1, 1), detail_size=(32, 32))
            >>> scales = model.predict_scales(torch.rand(1, 3, 50, 70))
            >>> scales.detail.shape, scales.attention.shape
            (torch.Size([1, 19, 50, 70]), torch.Size([1, 1, 50, 70]))
        """
        channels: list[int] = []

        def maps(x: Tensor) -> Tensor:
            out = self(x, detail="windows")
            parts = [out.logits, out.context_logits, out.detail_logits]
            parts += [out.attention] if isinstance(out.attention, Tensor) else []
            channels[:] = [part.shape[1] for part in parts]
            return torch.cat([at_least_float32(resize(part, out.logits.shape[-2:])) for part in parts], dim=1)

        averages = self._over_windows(images, maps, window, stride, "logits", batch_size)
        fused, context, detail, *learned = torch.split(averages, channels, dim=1)
        share = 0.0 if isinstance(self.attention, nn.Module) else float(self.attention)
        attention = learned[0].clamp(0, 1) if learned else fused.new_full(fused[:, :1].shape, share)
        return ScalePredictions(fused, context, detail, attention)

    def _over_windows(
        self,
        images: Tensor,
        predictor: Callable[[Tensor], Tensor],
        window: int | tuple[int, int] | None,
        stride: int | tuple[int, int] | None,
        output: Output,
        batch_size: int | None,
        label_dtype: torch.dtype = torch.int64,
    ) -> Tensor:
        """The average, in eval mode, of what ``predictor`` says of windows of the images, padded to whole cells."""
        expect("images", images, "BKHW", kind="float")
        cell = self._sampler.cell
        height, width = (max(round(side * self.scale) // cell, 1) * cell for side in self.detail_size)
        window = pair("window", (height, width) if window is None else window)
        if window[0] % cell or window[1] % cell:
            raise ValueError(f"window must be a multiple of {cell} pixels, got {window}")
        rows, columns = images.shape[-2:]
        padded = pad(images, (0, -columns % cell, 0, -rows % cell))
        infer = SlidingWindowInferer(
            window, stride=stride, batch_size=batch_size, output=output, label_dtype=label_dtype
        )
        with in_eval_mode(self):
            return infer(padded, predictor)[..., :rows, :columns]

    def _detail_windows(self, images: Tensor) -> Tensor:
        # a batch norm that uses batch statistics must see all windows at once, as in the released code
        at_once = any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in self.modules())
        infer = SlidingWindowInferer(
            self.detail_size, stride=self.detail_stride, batch_size=None if at_once else 4, resize=False
        )
        return infer(images, lambda windows: self._decode(self.encoder(windows), windows))

    def _decode(self, features: Any, images: Tensor) -> Tensor:
        logits = self.decoder(features)
        size = (images.shape[-2] // self.output_stride, images.shape[-1] // self.output_stride)
        if not isinstance(logits, Tensor) or logits.dim() != 4 or tuple(logits.shape[-2:]) != size:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"decoder must return logits (B, C, {size[0]}, {size[1]}) for images of {tuple(images.shape[-2:])} at "
                f"output_stride={self.output_stride}, got {got}{_remedy(logits, images, size)}"
            )
        return logits

    def _attend(self, features: Any, logits: Tensor) -> Tensor | float:
        """After the sigmoid, of the size of the context logits; or the fixed number."""
        if not isinstance(self.attention, nn.Module):
            return self.attention
        attention = self.attention(features)
        size = tuple(logits.shape[-2:])
        if not isinstance(attention, Tensor) or attention.dim() != 4 or tuple(attention.shape[-2:]) != size:
            got = tuple(attention.shape) if isinstance(attention, Tensor) else type(attention).__name__
            got = f"{got}{tensor_in(attention)}"
            raise ValueError(
                f"attention must return logits (B, C or 1, {size[0]}, {size[1]}), the size of the context logits, got "
                f"{got}; where the encoder's features are finer than the logits, leave the finest out, or resize the "
                "attention in its module"
            )
        return attention.sigmoid()

    def _check_box(self, images: Tensor, box: CropBox) -> CropBox:
        crop(images, box)
        box.scaled(1 / self._sampler.cell)
        return box

    def _check_size(self, images: Tensor) -> tuple[int, int]:
        expect("images", images, "BKHW", kind="float")
        check_finite("images", images)
        height, width = images.shape[-2:]
        if height % self._sampler.cell or width % self._sampler.cell:
            raise ValueError(
                f"images must have sides that are multiples of {self._sampler.cell}, got {(height, width)}; "
                "pad them, or use predict()"
            )
        return height, width


def _remedy(logits: Any, images: Tensor, size: tuple[int, int]) -> str:
    """What to do about logits of another kind than asked for; empty where that is not known."""
    if not isinstance(logits, Tensor):
        return tensor_in(logits)
    if logits.dim() == 4 and tuple(logits.shape[1:3]) == size:
        return "; these are channels last: permute(0, 3, 1, 2)"
    rows, columns = images.shape[-2:]
    stride = rows // max(logits.shape[-2], 1) if logits.dim() == 4 else 0
    if stride and tuple(logits.shape[-2:]) == (rows // stride, columns // stride):
        return f"; this is output_stride={stride}"
    return ""
