"""Images as networks take them: normalised channel by channel, and the numbers to do it with."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hrda_lib._checks import check_finite

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Means of red, green and blue over ImageNet, in [0, 1]."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviations that go with :data:`IMAGENET_MEAN`."""


def normalize(images: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    r"""Images as a network takes them, :math:`(x - \mathrm{mean}) / \mathrm{std}` in each channel.

    Args:
        images: (B, K, H, W) or (K, H, W) on any device; uint8 is brought to [0, 1] first, floats are taken as they are.
        mean: K numbers; by default ImageNet's, for RGB in [0, 1].
        std: K positive numbers.

    Returns:
        The same shape in float32, or in float64 where images are.

    Raises:
        ValueError: images are of another type or shape, the numbers are not one a channel, ``std`` is not
            positive, or a number or (on the CPU) a value is not finite.

    Example:
        >>> import torch
        >>> from hrda_lib.data import normalize
        >>> normalize(torch.full((3, 1, 1), 255, dtype=torch.uint8), mean=[0.5, 0.5, 1], std=[0.5, 1, 1]).flatten()
        tensor([1.0000, 0.5000, 0.0000])
    """
    _check_images(images)
    channels = images.shape[-3]
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"mean and std must have a number for each of the {channels} channels, got {len(mean)} and {len(std)}"
        )
    if any(isinstance(value, str) or not value > 0 for value in std):
        raise ValueError(f"std must be positive, got {tuple(std)}; give a constant channel 1")
    if any(isinstance(value, (bool, str)) or not math.isfinite(value) for value in (*mean, *std)):
        raise ValueError(f"mean and std must be finite numbers, got {tuple(mean)} and {tuple(std)}")
    values = _in_range(images, torch.float32)
    shift, scale = (torch.tensor(x, dtype=values.dtype, device=values.device).view(-1, 1, 1) for x in (mean, std))
    normal = (values - shift) / scale
    if images.is_floating_point():
        check_finite("images", normal)
    return normal


def channel_statistics(images: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels of images, for :func:`normalize`.

    Args:
        images: (K, H, W) each, of any size, with the same K; uint8 is brought to [0, 1], floats are taken as they are.

    Returns:
        K means, and K standard deviations; 1 for that of a constant channel.

    Raises:
        ValueError: there is no image, one is of another type, shape or number of channels, or values are not finite.

    Example:
        >>> import torch
        >>> from hrda_lib.data import channel_statistics
        >>> channel_statistics([torch.tensor([[[0.0, 4.0]], [[7.0, 7.0]]])])
        ([2.0, 7.0], [2.0, 1.0])
    """
    pixels, total, squares = 0, torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    for image in images:
        _check_images(image)
        if image.dim() != 3 or (pixels and len(image) != len(total)):
            wanted = len(total) if pixels else "K"
            raise ValueError(f"images must be ({wanted}, H, W) each, got {tuple(image.shape)}")
        values = _in_range(image, torch.float64).flatten(1)
        if not pixels:
            total, squares = (torch.zeros(len(image), dtype=torch.float64, device=image.device) for _ in range(2))
        pixels, total, squares = pixels + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    if not pixels:
        raise ValueError("images must hold at least one image with pixels, got none")
    if not squares.isfinite().all():
        raise ValueError("images must hold finite values; let what reads them replace others")
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    return mean.tolist(), torch.where(std > 1e-6 * mean.abs(), std, 1).tolist()


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a tensor, got {type(images).__name__}; see torch.from_numpy")
    if images.dim() not in (3, 4) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            f"images must be uint8 or float, (B, K, H, W) or (K, H, W), got {images.dtype} {tuple(images.shape)}"
        )


def _in_range(images: Tensor, least: torch.dtype) -> Tensor:
    """In ``least`` or a more precise type; bytes in [0, 1]."""
    if images.dtype == torch.uint8:
        return images.to(least) / 255
    return images.to(torch.promote_types(images.dtype, least))
