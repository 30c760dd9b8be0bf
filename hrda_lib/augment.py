"""Colour jitter and blur of mixed images; the target's style in source images."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from hrda_lib._checks import at_least_float32, check_finite, check_generator, check_up_to, expect, is_number, readable
from hrda_lib._processes import own_part

if TYPE_CHECKING:
    from hrda_lib._processes import Group


class StrongAugment:
    r"""DACS's augmentation of mixed images: colour jitter, then Gaussian blur.

    On images in [0, 1], in a random order, each followed by a clamp to [0, 1]:

    .. math::
        x + b, \qquad c\,x, \qquad S \cdot s \text{ (HSV)}, \qquad H + h \text{ (HSV, turns)}

    with :math:`b \sim U(\pm 0.2)`, :math:`c, s \sim U(1 \pm 0.2)`, :math:`h \sim U(\pm 0.2)` an image; then a blur
    with :math:`\sigma \sim U(0.15, 1.15)` an image, a kernel of about a tenth of the side and reflected borders
    (DACS, arXiv 2007.08702; DAFormer, arXiv 2111.14887, section 4). Whether to jitter and whether to blur, and the
    order, are drawn once a batch.

    Args:
        mean: three numbers in [0, 1], which the caller subtracted from images in [0, 1].
        std: three numbers in (0, 1], which the caller divided by.
        jitter: probability of the colour jitter, in [0, 1].
        brightness: half-width of the range of b, in [0, 1]; 0: no change.
        contrast: half-width of the range of c around 1, in [0, 1]; 0: no change.
        saturation: half-width of the range of s around 1, in [0, 1]; 0: no change.
        hue: half-width of the range of h in turns, in [0, 0.5]; 0: no change.
        blur: probability of the blur, in [0, 1].
        sigma: range (low, high) of the blur's standard deviation in pixels, 0 < low <= high.

    All defaults are the papers'.

    Raises:
        ValueError: a setting is out of its range, or the images are not float (B, 3, H, W), or (on the CPU) their
            values lie outside [-1, 2] once mean and std are undone.

    Example:
        >>> import torch
        >>> from hrda_lib import StrongAugment
        >>> augment = StrongAugment(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), jitter=1.0)
        >>> images = torch.zeros(2, 3, 8, 8)
        >>> out = augment(images, torch.Generator().manual_seed(0))
        >>> out.shape, bool(out.abs().max() <= 2)
        (torch.Size([2, 3, 8, 8]), True)
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        jitter: float = 0.8,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.2,
        blur: float = 0.5,
        sigma: tuple[float, float] = (0.15, 1.15),
    ) -> None:
        if (
            len(mean) != 3
            or len(std) != 3
            or not all(map(is_number, (*mean, *std)))
            or not all(0 <= m <= 1 and 0 < s <= 1 for m, s in zip(mean, std, strict=True))
        ):
            raise ValueError(
                f"mean and std must be three numbers each, of images in [0, 1], got {mean} and {std}; "
                "divide those of images in [0, 255] by 255"
            )
        check_up_to(1, jitter=jitter, brightness=brightness, contrast=contrast, saturation=saturation, blur=blur)
        check_up_to(0.5, hue=hue)
        if len(sigma) != 2 or not all(map(is_number, sigma)) or not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"sigma must be a range 0 < low <= high, got {sigma}")
        self.mean, self.std = tuple(mean), tuple(std)
        self.jitter, self.blur, self.sigma = jitter, blur, sigma
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def __call__(self, images: Tensor, generator: torch.Generator | None = None, *, group: "Group" = None) -> Tensor:
        """Augment a batch.

        Args:
            images: (B, 3, H, W) float, normalised with ``mean`` and ``std``.
            generator: a CPU generator; None: torch's default.
            group: processes that share a batch and have generators of one state: decisions are one for all of them, and
                each image has its own draws, as if one process had all; None: this process alone.

        Returns:
            (B, 3, H, W), normalised, in the dtype of ``images``, never the same tensor.

        Raises:
            ValueError: as above.
        """
        check_generator(generator)
        other = "for other channels write an augmentation of your own"
        expect("images", images, ("B", 3, "H", "W"), kind="float", hint=other)
        self._check_range(images)
        jittered, blurred = (torch.rand(2, generator=generator) < torch.tensor([self.jitter, self.blur])).tolist()
        if not jittered and not blurred:
            return images.clone()
        with torch.autocast(images.device.type, enabled=False):  # colours and blur need float32
            changed = self._augmented(at_least_float32(images), jittered, blurred, generator, group)
        return changed.to(images.dtype)

    def _check_range(self, images: Tensor) -> None:
        """Refuse what the clamp to [0, 1] would turn into white or black; overshoot of resizing passes."""
        if not readable(images):
            return
        channels = at_least_float32(images.detach()).transpose(0, 1).flatten(1)
        mean, std = (channels.new_tensor(value) for value in (self.mean, self.std))
        low = (channels.amin(1) * std + mean).min()
        high = (channels.amax(1) * std + mean).max()
        if not (low >= -1 and high <= 2):  # so that nan is refused too
            raise ValueError(
                f"images must be pictures in [0, 1] that mean and std normalised, got values from {low:.4g} to "
                f"{high:.4g} once these are undone; divide pictures by 255, then normalise them with this mean and std"
            )

    def _augmented(
        self, images: Tensor, jittered: bool, blurred: bool, generator: torch.Generator | None, group: "Group"
    ) -> Tensor:
        count, mine = own_part(len(images), group)
        mean, std = (images.new_tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        images = images * std + mean
        if jittered:
            widths = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue])
            factors = (2 * torch.rand(count, 4, generator=generator)[mine] - 1) * widths
            images = color_jitter(images, factors.to(images), torch.randperm(4, generator=generator).tolist())
        if blurred:
            low, high = self.sigma
            sigma = low + (high - low) * torch.rand(count, generator=generator)[mine]
            images = gaussian_blur(images, sigma)
        return (images - mean) / std


def color_jitter(images: Tensor, shifts: Tensor, order: Sequence[int]) -> Tensor:
    """Brightness, contrast, saturation and hue of (B, 3, H, W) images in [0, 1], changed in the given ``order``.

    ``shifts`` (B, 4): added brightness, contrast - 1, saturation - 1, added hue in turns.
    """
    steps = (_brighten, _stretch, _saturate, _turn_hue)
    amounts = shifts.T[:, :, None, None]
    for step in order:
        images = steps[step](images, amounts[step])
    return images


def _brighten(images: Tensor, added: Tensor) -> Tensor:
    return (images + added[:, None]).clamp(0, 1)


def _stretch(images: Tensor, contrast: Tensor) -> Tensor:
    return (images * (1 + contrast[:, None])).clamp(0, 1)


def _saturate(images: Tensor, saturation: Tensor) -> Tensor:
    h, s, v = _rgb_to_hsv(images)
    return _hsv_to_rgb(h, (s * (1 + saturation)).clamp(0, 1), v)


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    h, s, v = _rgb_to_hsv(images)
    return _hsv_to_rgb(h + turns, s, v)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    r"""Blur each image by a Gaussian of its own, with reflected borders.

    .. math::
        x'(p) = \sum_d g(d)\, x(p + d), \qquad g(d) \propto e^{-\lVert d \rVert^2 / 2 \sigma^2}

    The kernel is the largest odd one within about a tenth of the side, as in the released code of DACS
    (arXiv 2007.08702), cut off where its weights vanish in float32 (beyond six standard deviations).

    Args:
        images: (B, K, H, W) float, any K.
        sigma: (B,) float, standard deviations in pixels, positive.

    Returns:
        (B, K, H, W), of the dtype of ``images``.

    Raises:
        ValueError: shapes or types differ, or (on the CPU) a sigma is not positive.

    Example:
        >>> import torch
        >>> from hrda_lib import gaussian_blur
        >>> point = torch.zeros(1, 1, 30, 30)
        >>> point[..., 15, 15] = 1
        >>> blurred = gaussian_blur(point, torch.tensor([1.0]))
        >>> round(blurred.sum().item(), 3), round(blurred.max().item(), 3)
        (1.0, 0.204)
    """
    expect("images", images, "BKHW", kind="float")
    expect("sigma", sigma, (len(images),), kind="float", hint="one an image")
    if readable(sigma) and not ((sigma > 0) & (sigma < math.inf)).all():
        raise ValueError(f"sigma must be positive and finite, got {sigma.tolist()}")
    batch, channels, height, width = images.shape
    reach = math.ceil(6 * sigma.max().item())
    vertical, horizontal = (_kernel(min(_tenth(side) // 2, reach), sigma.double()) for side in (height, width))
    flat = images.reshape(1, batch * channels, height, width)
    for kernel, shape in ((vertical, (-1, 1)), (horizontal, (1, -1))):
        weight = kernel.to(images).repeat_interleave(channels, 0).view(batch * channels, 1, *shape)
        margin = kernel.shape[1] // 2
        edges = (0, 0, margin, margin) if shape == (-1, 1) else (margin, margin, 0, 0)
        flat = conv2d(pad(flat, edges, mode="reflect"), weight, groups=batch * channels)
    return flat.view_as(images)


def fourier_style(source: Tensor, target: Tensor, *, beta: float = 0.01) -> Tensor:
    r"""Source images with the low frequencies' amplitudes of target images: their colours and light, not their shapes.

    .. math::
        x' = \mathcal F^{-1}\left(\left|M \mathcal F(x_T) + (1 - M) \mathcal F(x_S)\right|
            e^{i \arg \mathcal F(x_S)}\right), \qquad
        M_{uv} = [\,|u| \le b \wedge |v| \le b\,], \quad b = \lfloor \beta \min(H, W) \rfloor

    (FDA, arXiv 2004.05498, equation 3), a channel of an image at a time; u and v count periods a side. The mean,
    u = v = 0, is the target's together with its sign: then the answer is the same picture in any normalisation.
    Nothing is clamped: values may lie a little outside the range of the images.

    Args:
        source, target: (B, K, H, W) float, of one size, type and normalisation; image i gets the style of target i.
        beta: :math:`\beta` in [0, 1], the paper's are 0.01, 0.05 and 0.09. 0 changes nothing; where b is 0, only means
            change; from 0.5 on all amplitudes of a square image.

    Returns:
        (B, K, H, W), the source images in the targets' style.

    Raises:
        ValueError: shapes or types differ, beta is out of its range, or (on the CPU) a pixel is nan or infinite.

    Example:
        >>> import torch
        >>> from hrda_lib.augment import fourier_style
        >>> day, night = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8) / 4
        >>> styled = fourier_style(day, night, beta=0.1)  # b = 0: means alone
        >>> torch.allclose(styled, day - day.mean((2, 3), keepdim=True) + night.mean((2, 3), keepdim=True), atol=1e-6)
        True
    """
    expect("source", source, "BKHW", kind="float")
    hint = "crop, resize or convert one of them"
    expect("target", target, source.shape, kind=source.dtype, like="source", hint=hint)
    check_up_to(1, beta=beta)
    check_finite("source", source)
    check_finite("target", target)
    if beta == 0:
        return source.clone()
    height, width = source.shape[-2:]
    b = int(beta * min(height, width))
    reach = min(b, height // 2)
    low = torch.arange(-reach, reach + 1, device=source.device), slice(b + 1)  # columns below 0 mirror those above
    with torch.autocast(source.device.type, enabled=False):
        content, style = (torch.fft.rfft2(at_least_float32(x)) for x in (source, target))
        content[..., *low] = torch.polar(style[..., *low].abs(), content[..., *low].angle())
        content[..., 0, 0] = style[..., 0, 0]
        styled: Tensor = torch.fft.irfft2(content, s=(height, width))
        return styled.to(source.dtype)


def _tenth(side: int) -> int:
    tenth = math.ceil(0.1 * side)
    return math.floor(tenth - 0.5 + tenth % 2)


def _kernel(margin: int, sigma: Tensor) -> Tensor:
    distance = torch.arange(-margin, margin + 1, dtype=sigma.dtype, device=sigma.device)
    kernel = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    return kernel / kernel.sum(dim=1, keepdim=True)


def _rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in turns, saturation and value, each (B, H, W)."""
    red, green, blue = images.unbind(1)
    value, spread = images.amax(1), images.amax(1) - images.amin(1)
    safe = torch.where(spread == 0, 1, spread)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return sector / 6 % 1, spread / torch.where(value == 0, 1, value), value


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    chroma = value * saturation
    channels = []
    for offset in (5, 3, 1):
        k = (offset + 6 * hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)
