"""Labelled images in two plain folders, and several data sets as one."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from hrda_lib.data.labeled_files import (
    LabeledFiles,
    LabeledImages,
    Sample,
    StoredIds,
    ignoring,
    read_image,
    read_label,
)

__all__ = ["Concatenated", "Folders", "image_files", "read_image", "read_label"]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class Folders(LabeledFiles):
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
        read = StoredIds(ignoring(self.ignore))
        images = image_files(self.root / "images")
        names = [file.stem for file in images]
        labels = [self.root / "labels" / f"{name}.png" for name in names]
        super().__init__(images, labels, names, read=read, settings=repr(self.ignore))


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
