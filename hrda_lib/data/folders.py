"""Labelled images in two plain folders."""

from collections.abc import Sequence
from pathlib import Path

from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.readers import Reader, label_reader

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class Folders(LabeledFiles):
    """``root/images/NAME.(png|jpg|...)`` with ``root/labels/NAME.png``, single-channel PNGs of class ids.

    Labels are opened when they are asked for, never before: ``Folders(root).unlabeled()`` is a target, whether
    ``root/labels`` exists or not.

    Args:
        root: the folder that holds ``images`` and ``labels``.
        ignore: class ids that become 255, for example a "void" id.
        read_image: gives the image of a file, (K, H, W) uint8 or float32, for other formats or more channels: every
            file of ``images`` is then an image, whatever its ending.
        read_label: gives the label of a file, (H, W) uint8 with 255 ignored, as :class:`StoredColours` does: the label
            is then the one file of that name, whatever its ending. Cached counts tell functions apart by their name,
            not by their code.

    Raises:
        ValueError: there is no image, or ids to ignore and ``read_label`` are given; on reading, a file is missing,
            broken, of another kind, or of another size than its image, or a reader fails. The message starts with the
            file.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        ignore: Sequence[int] = (),
        read_image: Reader | None = None,
        read_label: Reader | None = None,
    ) -> None:
        self.root, self.ignore = Path(root), list(ignore)
        reader, settings = label_reader(self.ignore, read_label)
        images = image_files(self.root / "images", any_ending=read_image is not None)
        names = [file.stem for file in images]
        labels = _label_files(self.root / "labels", names, any_ending=read_label is not None)
        super().__init__(images, labels, names, read_image=read_image, read_label=reader, settings=settings)


def image_files(folder: str | Path, *, any_ending: bool = False) -> list[Path]:
    """The image files of a folder, by name: a target's, for :class:`UnlabeledImages`.

    Args:
        folder: where they lie.
        any_ending: take every file that is not hidden, not only ``.png``, ``.jpg``, ``.jpeg``, ``.bmp`` and ``.webp``.

    Raises:
        ValueError: the folder is missing, holds no image, or two images whose names differ in the ending only.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if any_ending:
        files = _visible(folder)
    else:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_ENDINGS)
        files = [file for file in files if not file.name.startswith(".")]
    if not files:
        wanted = "any file" if any_ending else ", ".join(IMAGE_ENDINGS)
        raise ValueError(f"{folder}: no image in this folder (looked for {wanted})")
    _check_stems(files)
    return files


def _label_files(folder: Path, names: Sequence[str], *, any_ending: bool) -> list[Path]:
    if not any_ending:
        return [folder / f"{name}.png" for name in names]
    wanted = set(names)
    files = [file for file in (_visible(folder) if folder.is_dir() else []) if file.stem in wanted]
    _check_stems(files)
    found = {file.stem: file for file in files}
    return [found.get(name, folder / f"{name}.*") for name in names]


def _visible(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def _check_stems(files: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        if file.stem in seen:
            raise ValueError(f"{file}: same name as {seen[file.stem].name}; a label could not be told apart")
        seen[file.stem] = file
