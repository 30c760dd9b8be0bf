"""Dilated depthwise convolutions that are fast on CPUs too."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from hrda_lib._modules import written_out

FAR = 12  # from this dilation on torch's own forward is the slower one too


class DepthwiseConv2d(nn.Conv2d):
    r"""A 3x3 depthwise convolution; dilated, and on a CPU, it is computed by phases.

    Cells whose rows and columns leave the same rest when divided by the dilation never meet others. Each such phase is
    taken as an image of its own, on which the kernel is dense: what torch's kernels are made for.

    Args:
        channels: of the input and the output.
        dilation: cells between the taps of the kernel.

    Example:
        >>> import torch
        >>> from hrda_lib.models.depthwise import DepthwiseConv2d
        >>> DepthwiseConv2d(4, dilation=6)(torch.rand(1, 4, 16, 16)).shape
        torch.Size([1, 4, 16, 16])
    """

    def __init__(self, channels: int, *, dilation: int = 1) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        dilation = self.dilation[0]
        plain = x.device.type != "cpu" or torch.is_autocast_enabled("cpu")
        if dilation == 1 or plain or written_out():
            return super().forward(x)
        y: Tensor = _ByPhases.apply(x, self.weight, dilation)
        return y


class _ByPhases(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        if dilation < FAR:
            return conv2d(x, weight, padding=dilation, dilation=dilation, groups=len(weight))
        parts = conv2d(_phases(x, dilation), weight, padding=1, groups=len(weight))
        return _together(parts, dilation, x.shape)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        mask = [*ctx.needs_input_grad[:2], False]
        parts = _phases(slope, ctx.dilation), _phases(x, ctx.dilation)
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            *parts, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], len(weight), mask
        )
        return None if of_x is None else _together(of_x, ctx.dilation, x.shape), of_weight, None


def _phases(x: Tensor, dilation: int) -> Tensor:
    """(B, C, H, W) -> (B * dilation * dilation, C, h, w), channels last; zeros fill up the last rows and columns."""
    batch, channels, height, width = x.shape
    h, w = -(-height // dilation), -(-width // dilation)
    parts = x.new_empty(batch, dilation, dilation, h, w, channels)
    parts[:, height - (h - 1) * dilation :, :, h - 1] = 0
    parts[:, :, width - (w - 1) * dilation :, :, w - 1] = 0
    for image, part in _blocks(x.permute(0, 2, 3, 1), parts):
        part.copy_(image)
    return parts.view(-1, h, w, channels).permute(0, 3, 1, 2)


def _together(parts: Tensor, dilation: int, shape: torch.Size) -> Tensor:
    """The adjoint, and inverse, of :func:`_phases`."""
    batch, channels, height, width = shape
    x = parts.new_empty(batch, height, width, channels)
    parts = parts.permute(0, 2, 3, 1)
    for image, part in _blocks(x, parts.reshape(batch, dilation, dilation, *parts.shape[1:])):
        image.copy_(part)
    return x.permute(0, 3, 1, 2)


def _blocks(x: Tensor, parts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same cells of (B, H, W, C) and of their phases: whole rounds of all phases, and the last, shorter one."""
    rows, columns = (_rounds(length, parts.shape[1]) for length in x.shape[1:3])
    for (top, n, a, i), (left, m, b, j) in product(rows, columns):
        image = x[:, top : top + n * a, left : left + m * b]
        image = torch.unflatten(torch.unflatten(image, 2, (m, b)), 1, (n, a))
        yield image.permute(0, 2, 4, 1, 3, 5), parts[:, :a, :b, i : i + n, j : j + m]


def _rounds(length: int, dilation: int) -> list[tuple[int, int, int, int]]:
    """Where they start, how many, of how many phases, and the first of them."""
    whole = (length - 1) // dilation
    rest = (whole * dilation, 1, length - whole * dilation, whole)
    return [(0, whole, dilation, 0), rest] if whole else [rest]
