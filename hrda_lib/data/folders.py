"""Labelled images in two plain folders."""

from collections.abc import Callable, Sequence
from pathlib import Path

from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.layout import PICTURE_ENDINGS, is_clutter, pictures_in, proposal, shown, subfolders, tell_left_out
from hrda_lib.data.pictures import is_plain_tiff
from hrda_lib.data.readers import Reader, label_reader


class Folders(LabeledFiles):
    """``root/images/NAME.(png|jpg|...)`` with ``root/labels/NAME.png``, single-channel PNGs of class ids.

    Labels are opened when they are asked for, never before: ``Folders(root).unlabeled()`` is a target, whether
    ``root/labels`` exists or not.

    Args:
        root: the folder that holds ``images`` and ``labels``.
        ignore: class ids that become 255, for example a "void" id.
        read_image: gives the image of a file, (K, H, W) uint8 or float32, for other formats or more channels: every
            file of ``images`` is then an image, whatever its ending. None: as of :class:`LabeledFiles`.
        read_label: gives the label of a file, (H, W) uint8 with 255 ignored, as :class:`StoredColours` does: the label
            is then the one file of that name, whatever its ending. Cached counts tell functions apart by their name,
            not by their code. None: as of :class:`LabeledFiles`.
        max_pixels: as of :class:`LabeledFiles`.

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
        max_pixels: int | None = None,
    ) -> None:
        self.root, self.ignore = Path(root), list(ignore)
        reader, settings = label_reader(self.ignore, read_label)
        images = _image_files(self.root / "images", _meant, any_ending=read_image is not None)
        names = [file.stem for file in images]
        labels = _label_files(self.root / "labels", names, any_ending=read_label is not None)
        super().__init__(
            images,
            labels,
            names,
            read_image=read_image,
            read_label=reader,
            settings=settings,
            max_pixels=max_pixels,
        )


def image_files(folder: str | Path, *, any_ending: bool = False) -> list[Path]:
    """The image files of a folder, by name: a target's, for :class:`UnlabeledImages`.

    Hidden files and what file managers write (``._a.png``, ``Thumbs.db``) are no images. Files that look like images
    but are left out, for example ``a.gif`` or a TIFF of 16 bits, are counted and named by a warning of the log.

    Args:
        folder: where they lie.
        any_ending: True: take every file; False: only ``.png``, ``.jpg``, ``.jpeg``, ``.bmp``, ``.webp``, and ``.tif``
            and ``.tiff`` of 8 bits a channel.

    Raises:
        ValueError: the folder is missing, holds no image, or two images whose names differ in the ending only; where
            a folder beside it seems to be meant, it is named.
    """
    return _image_files(Path(folder), _near, any_ending=any_ending)


def _image_files(folder: Path, advice: Callable[[Path], str], *, any_ending: bool) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{shown(folder)}: no such folder{advice(folder)}")
    visible = _visible(folder)
    files = visible if any_ending else list(filter(_is_picture, visible))
    if not any_ending:
        tell_left_out(folder, set(visible).difference(files))
    if not files:
        wanted = "any file" if any_ending else ", ".join(PICTURE_ENDINGS)
        raise ValueError(f"{shown(folder)}: no image in this folder (looked for {wanted}){advice(folder)}")
    _check_stems(files)
    return files


def _is_picture(file: Path) -> bool:
    ending = file.suffix.lower()
    return ending in PICTURE_ENDINGS and (ending not in (".tif", ".tiff") or is_plain_tiff(file))


def _near(folder: Path) -> str:
    """The end of a message: a folder inside, or the one around it, that holds images."""
    for meant in (folder / "images", *subfolders(folder), folder.parent):
        if count := pictures_in(meant):
            return f"; {shown(meant)} holds {count} images: give {shown(meant)}"
    return ""


def _meant(images: Path) -> str:
    """The end of a message: what was meant by a root whose folder ``images`` has none."""
    if not images.is_dir() and (near := proposal(images)):
        return near
    if count := pictures_in(images.parent):
        return f"; {shown(images.parent)} holds {count} images: move them to {shown(images)}"
    deeper = next((folder for folder in subfolders(images) if pictures_in(folder)), None)
    return f"; images lie in {shown(deeper)}, but folders inside are not searched" if deeper else ""


def _label_files(folder: Path, names: Sequence[str], *, any_ending: bool) -> list[Path]:
    if not any_ending:
        return [folder / f"{name}.png" for name in names]
    wanted = set(names)
    files = [file for file in (_visible(folder) if folder.is_dir() else []) if file.stem in wanted]
    _check_stems(files)
    found = {file.stem: file for file in files}
    return [found.get(name, folder / f"{name}.*") for name in names]


def _visible(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and not is_clutter(file))


def _check_stems(files: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        if file.stem in seen:
            raise ValueError(
                f"{shown(file)}: same name as {shown(seen[file.stem].name)}; a label could not be told apart"
            )
        seen[file.stem] = file
