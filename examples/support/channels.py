"""Images of any number of channels and range of values: read by a function of the user, measured, augmented, shown."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrda_lib.augment import gaussian_blur

DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
RGB = (3, torch.uint8)  # what is normalised by ImageNet's numbers


class Reader:
    """Reads images by the function NAME of "FILE.py:NAME": Path -> (K, H, W) uint8 or float32.

    Args:
        where: the file and the name.
        kind: channels and type that every image must have; None: those of the first that is read.

    Raises:
        ValueError: there is no such function; on reading, an image is of another kind, or holds a value that is not
            finite.
    """

    def __init__(self, where: str, kind: tuple[int, torch.dtype] | None = None) -> None:
        self.where, self.function, self.kind = where, _function(where), kind

    def __call__(self, file: Path) -> Tensor:
        image = self.function(file)
        if not isinstance(image, Tensor) or image.dim() != 3 or image.dtype not in DTYPES.values():
            return image  # the data set refuses it
        kind = (len(image), image.dtype)
        if self.kind and kind != self.kind:
            wanted, got = (f"{channels} channels of {dtype}" for channels, dtype in (self.kind, kind))
            raise ValueError(f"{file}: image must have {wanted}, as the first source image has, got {got}")
        if not image.isfinite().all():
            raise ValueError(
                f"{file}: image holds values that are not finite; let {self.function.__name__} replace them"
            )
        self.kind = kind
        return image

    def __reduce__(self) -> tuple[Any, ...]:
        return Reader, (self.where, self.kind)  # the function itself cannot be sent to the workers of a loader

    def settings(self) -> dict[str, Any]:
        """What a checkpoint keeps, for :func:`reader_of`."""
        assert self.kind is not None
        file, _, name = self.where.rpartition(":")
        channels, dtype = self.kind
        return {"read": f"{Path(file).resolve()}:{name}", "channels": channels, "dtype": str(dtype).split(".")[1]}


def reader_of(network: Mapping[str, Any], where: str | None) -> Reader | None:
    """What reads images as a network was trained with: "FILE.py:NAME", which a checkpoint names but never runs.

    Raises:
        ValueError: the network needs one that is not given, or there is no such function.
    """
    if where is None and "read" in network:
        raise ValueError(f"this run's images were read by {network['read']}; give that, or its like, as --read")
    kind = (network.get("channels", 3), DTYPES.get(network.get("dtype", "uint8"), torch.uint8))
    return Reader(where, kind) if where else None


def _function(where: str) -> Callable[[Path], Tensor]:
    name = where.rpartition(":")[2]
    file = Path(where.rpartition(":")[0])
    if not file.is_file():
        raise ValueError(f"--read {where}: FILE.py:NAME is expected, and {file} is no file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"--read {where}: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file}: cannot be run ({type(error).__name__}: {' '.join(str(error).split())})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{file}: has no function {name!r}")
    found: Callable[[Path], Tensor] = function
    return found


def measure(images: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel; 1 for that of a constant channel."""
    pixels, total, squares = 0, torch.zeros(()), torch.zeros(())
    for image in images:
        values = image.flatten(1).double()
        pixels, total, squares = pixels + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    return mean.tolist(), torch.where(std > 1e-6 * mean.abs(), std, 1).tolist()


def jitter_and_blur(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Brightness, contrast and blur of normalised images (B, K, H, W), as often as StrongAugment's jitter and blur."""
    jittered, blurred = (torch.rand(2, generator=generator) < torch.tensor([0.8, 0.5])).tolist()
    if jittered:
        brightness, contrast = (2 * torch.rand(2, len(images), 1, 1, 1, generator=generator) - 1).to(images)
        images = images * (1 + 0.2 * contrast) + 0.5 * brightness
    if blurred:
        images = gaussian_blur(images, 0.15 + torch.rand(len(images), generator=generator))
    return images


def display(image: Tensor) -> Tensor:
    """(3, H, W) uint8 to look at: a picture as it is, of others the first three channels or one in grey, stretched."""
    if (len(image), image.dtype) == RGB:
        return image
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    low, high = np.percentile(shown.flatten(1).numpy(), (1, 99), axis=1, keepdims=True)
    low, high = (torch.from_numpy(value).float()[..., None] for value in (low, high))
    stretched = (shown.float() - low) / (high - low).clamp(min=1e-12)
    return (255 * stretched.clamp(0, 1)).byte()
