"""Labelled images in two plain folders, and the same images without labels."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class Sample(NamedTuple):
    """A labelled image: (3, H, W) uint8, (H, W) uint8 class ids with 255 ignored, and its name."""

    image: Tensor
    label: Tensor
    name: str


class UnlabeledSample(NamedTuple):
    """An image of the target domain: (3, H, W) uint8, and its name. There is no label to read by mistake."""

    image: Tensor
    name: str


class LabeledImages(Protocol):
    """What sampling needs of a labelled data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    def label(self, index: int) -> Tensor:
        """The label alone, without reading the image."""

    def label_file(self, index: int) -> Path:
        """Where it stands, for messages."""

    def fingerprint(self) -> str:
        """Changes when any label does, for caches."""


class UnlabeledImages:
    """Images without any label path: what a target is.

    Args:
        files: image files, in the order in which they are indexed.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> UnlabeledSample:
        file = self._files[index]
        return UnlabeledSample(read_image(file), file.stem)


class Folders:
    """``root/images/NAME.(png|jpg|...)`` with ``root/labels/NAME.png``, single-channel PNGs of class ids.

    Labels are opened when they are asked for, never before: ``Folders(root).unlabeled()`` is a target, whether
    ``root/labels`` exists or not.

    Args:
        root: the folder that holds ``images`` and ``labels``.
        ignore: class ids that become 255, for example a "void" id.

    Raises:
        ValueError: there is no image; on reading, a file is missing, broken, of another kind, or of another size than
            its image. The message starts with the file.
    """

    def __init__(self, root: str | Path, *, ignore: Sequence[int] = ()) -> None:
        self.root, self.ignore = Path(root), list(ignore)
        if any(not 0 <= value <= 255 for value in self.ignore):
            raise ValueError(f"ignore must hold label ids in [0, 255], got {self.ignore}")
        self._files = image_files(self.root / "images")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        image, label = read_image(self._files[index]), self.label(index)
        if image.shape[1:] != label.shape:
            raise ValueError(
                f"{self.label_file(index)}: label must have its image's size {tuple(image.shape[1:])}, "
                f"got {tuple(label.shape)}"
            )
        return Sample(image, label, self._files[index].stem)

    def label(self, index: int) -> Tensor:
        """The label (H, W) uint8 alone, without reading the image."""
        return read_label(self.label_file(index), ignore=self.ignore)

    def label_file(self, index: int) -> Path:
        """Where the label of an image is expected."""
        return self.root / "labels" / f"{self._files[index].stem}.png"

    def fingerprint(self) -> str:
        """Changes with any label file's name, size or time and with ``ignore``, but not with where the folder lies."""
        digest = hashlib.sha256(repr(self.ignore).encode())
        for index in range(len(self)):
            file = self.label_file(index)
            if not file.is_file():
                raise ValueError(f"{file}: no such file")
            stat = file.stat()
            digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def unlabeled(self) -> UnlabeledImages:
        """The same images without any label path."""
        return UnlabeledImages(self._files)


class Concatenated:
    """Several labelled data sets, one after the other: for example a source and a few labelled target images.

    Raises:
        ValueError: there is no data set.
    """

    def __init__(self, datasets: Sequence[LabeledImages]) -> None:
        self._datasets = list(datasets)
        if not self._datasets:
            raise ValueError("datasets must hold at least one data set, got none")
        self._where = [(dataset, index) for dataset in self._datasets for index in range(len(dataset))]

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> Sample:
        dataset, inner = self._where[index]
        return dataset[inner]

    def label(self, index: int) -> Tensor:
        """The label (H, W) uint8 alone, without reading the image."""
        dataset, inner = self._where[index]
        return dataset.label(inner)

    def label_file(self, index: int) -> Path:
        """Where the label of an image is expected."""
        dataset, inner = self._where[index]
        return dataset.label_file(inner)

    def fingerprint(self) -> str:
        """Changes when any label of any part does."""
        return " ".join(dataset.fingerprint() for dataset in self._datasets)


def image_files(folder: Path) -> list[Path]:
    """Image files of a folder, by name.

    Raises:
        ValueError: the folder is missing, holds no image, or two images whose names differ in the ending only.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise ValueError(f"{folder}: no image in this folder (looked for {', '.join(IMAGE_ENDINGS)})")
    seen: dict[str, Path] = {}
    for file in files:
        if file.stem in seen:
            raise ValueError(f"{file}: same name as {seen[file.stem].name}; a label could not be told apart")
        seen[file.stem] = file
    return files


def read_image(file: Path) -> Tensor:
    """(3, H, W) uint8; grey and palette images become RGB.

    Raises:
        ValueError: the file is missing or broken, or holds more than 8 bits a channel.
    """
    with _opened(file) as image:
        if image.mode not in ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK"):
            raise ValueError(f"{file}: image must have 8 bits a channel, got mode {image.mode}; convert it")
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def read_label(file: Path, *, ignore: Sequence[int] = ()) -> Tensor:
    """(H, W) uint8 class ids of a grey or palette PNG; the ids to ``ignore`` become 255.

    Raises:
        ValueError: the file is missing or broken, or has several channels or 16 bits.
    """
    with _opened(file) as image:
        if image.mode not in ("L", "P", "1"):
            raise ValueError(
                f"{file}: label must be a single-channel 8-bit or palette PNG of ids, got mode {image.mode}"
            )
        # Pillow spreads grey levels of 2 and 4 bits over 0..255
        spread = {"L;2": 85, "L;4": 17}.get(image.info["raw mode"], 1)
        label = torch.from_numpy(np.array(image, dtype=np.uint8) // spread)
    for value in ignore:
        label[label == value] = 255
    return label


def _opened(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
        image.info["raw mode"] = image.tile[0][3] if image.tile else ""
        image.load()
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: cannot be read as an image ({error})") from None
    return image
