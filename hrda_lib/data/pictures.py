"""How picture files are opened: by a list of formats, upright, and not before their size is known."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hrda_lib.data.layout import shown

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageFile  # at run time where a file is opened

# plain pictures only: others make Pillow start programs (PostScript) or hold more than pixels
PLUGINS = {"PNG": "Png", "JPEG": "Jpeg", "BMP": "Bmp", "WEBP": "WebP", "TIFF": "Tiff", "PPM": "Ppm"}
PLUGINS |= {"GIF": "Gif", "JPEG2000": "Jpeg2K"}
WIDTH, HEIGHT, ORIENTATION = 256, 257, 274  # tags of TIFF and EXIF
# what turns a stored picture upright, by its EXIF orientation
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def fitted(have: Sequence[int], within: tuple[int, int]) -> tuple[int, int]:
    """The size to give to an image of size ``have``.

    >>> from hrda_lib.data.pictures import fitted
    >>> fitted((1052, 1914), (1440, 2560))
    (1407, 2560)
    """
    factor = min(within[0] / have[0], within[1] / have[1])
    return max(int(have[0] * factor + 0.5), 1), max(int(have[1] * factor + 0.5), 1)


def read_image(file: Path, max_pixels: int | None = None) -> Tensor:
    """(3, H, W) uint8, in memory pixel by pixel (channels last); grey and palette images become RGB.

    The picture stands upright, as its EXIF orientation says.

    Raises:
        ValueError: the file is missing or broken, too large, or holds more than 8 bits a channel.
    """
    return read_draft(file, None, max_pixels)[0]


def read_draft(
    file: Path, within: tuple[int, int] | None, max_pixels: int | None = None
) -> tuple[Tensor, tuple[int, ...]]:
    """What :func:`read_image` gives, and its size; a JPEG may be decoded at a half, a quarter or an eighth of it.

    It is then still no smaller than what fits ``within`` (h, w); None: no draft.

    Raises:
        ValueError: as :func:`read_image`.
    """
    import PIL.Image

    with open_image(file, max_pixels, within) as image:
        if not has_eight_bits(image):
            deep = ";16" in image.info["raw mode"]  # which Pillow cuts to 8 bits
            kind = image.info["raw mode"] if deep else image.mode
            raise ValueError(f"{shown(file)}: image must have 8 bits a channel, got mode {kind}; convert it")
        turn = TURNS.get(_orientation(image))
        picture = image.convert("RGB")
        if turn:
            picture = picture.transpose(PIL.Image.Transpose[turn])
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return pixels, image.info.get("reduced from", tuple(pixels.shape[1:]))


def opened(file: Path, max_pixels: int | None = None) -> "PIL.ImageFile.ImageFile":
    """The picture, of which only the header is read.

    Raises:
        ValueError: the file is missing or no picture, or has more than ``max_pixels`` (None: Pillow's own limit).
    """
    return _within(_header(file), file, max_pixels)


def open_image(
    file: Path, max_pixels: int | None = None, within: tuple[int, int] | None = None
) -> "PIL.ImageFile.ImageFile":
    """The decoded picture, as it is stored; ``within``: a draft, as :func:`read_draft` says.

    Raises:
        ValueError: the file is missing or broken, or has more than ``max_pixels`` (None: Pillow's own limit).
    """
    image = opened(file, max_pixels)
    with _named(file, image):
        image.info["turned"] = _orientation(image)  # Pillow turns a TIFF itself, and forgets that it did
        if within is not None and image.format == "JPEG":
            _draft(image, within)
        image.load()
        if image.mode == "P" and not image.getpalette():
            raise ValueError(
                f"{shown(file)}: a palette PNG without its palette; write it again, with one or as grey levels"
            )
    return image


def open_label(file: Path, max_pixels: int | None = None) -> "PIL.Image.Image":
    """The decoded picture of a label, whose pixels lie as they are stored.

    Raises:
        ValueError: as :func:`open_image`, or the file has an EXIF orientation.
    """
    image = open_image(file, max_pixels)
    with _named(file, image):
        _check_upright(file, max(image.info["turned"], _orientation(image)))
    return image


def picture_size(file: Path, max_pixels: int | None = None, *, label: bool = False) -> tuple[int, int] | None:
    """(h, w) of the upright picture, of which only the header is read; None of a file that is missing or broken.

    Raises:
        ValueError: the picture is too large, or a ``label`` with an EXIF orientation.
    """
    try:
        image = _header(file)
    except ValueError:  # is named when it is read
        return None
    with _within(image, file, max_pixels):
        turned = _orientation(image)
        if label:
            _check_upright(file, turned)
        width, height = image.size
        if image.format == "TIFF":  # whose size some versions of Pillow give as stored, others upright
            width, height = (image.tag_v2[tag] for tag in (WIDTH, HEIGHT))  # type: ignore[attr-defined]
        return (width, height) if turned > 4 else (height, width)


def has_eight_bits(image: "PIL.Image.Image") -> bool:
    """Whether an opened picture is RGB or grey, of 8 bits a channel."""
    return ";16" not in image.info["raw mode"] and image.mode in ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK")


def is_plain_tiff(file: Path) -> bool:
    """Whether Pillow can read a TIFF as RGB or grey of 8 bits, by its header."""
    try:
        with _header(file) as image:
            return has_eight_bits(image)
    except ValueError:
        return False


def check_max_pixels(max_pixels: int | None) -> None:
    """Refuse a limit that lets nothing in.

    Raises:
        ValueError: it is neither None nor a positive whole number.
    """
    if max_pixels is not None and (not isinstance(max_pixels, int) or max_pixels < 1):
        raise ValueError(f"max_pixels must be a positive number of pixels, or None for Pillow's, got {max_pixels!r}")


@cache
def _formats() -> list[tuple[Callable[[Path], "PIL.ImageFile.ImageFile"], Callable[[bytes], bool | str]]]:
    """(what opens it, what knows its first bytes) of each format."""
    import PIL.Image

    for name in PLUGINS.values():
        importlib.import_module(f"PIL.{name}ImagePlugin")
    return [PIL.Image.OPEN[name] for name in PLUGINS]  # type: ignore[misc]  # of paths as well as of streams


def _header(file: Path) -> "PIL.ImageFile.ImageFile":
    """The picture, whatever its size, of which only the header is read.

    PIL.Image.open refuses by a limit that is a global of the process, and warns below it: formats are called directly.
    """
    try:
        with open(file, "rb") as stream:
            start = stream.read(16).ljust(16, b"\0")
    except FileNotFoundError:
        raise ValueError(f"{shown(file)}: no such file") from None
    except OSError as error:
        raise _unreadable(file, error) from None
    build = next((build for build, knows in _formats() if knows(start) is True), None)
    if build is None:
        raise ValueError(f"{shown(file)}: cannot be read as an image")
    with _named(file):
        image = build(file)
        layout = image.tile[0][3] if image.tile else ""
        image.info["raw mode"] = str(layout[0] if isinstance(layout, tuple) else layout or "")
    return image


def _within(image: "PIL.ImageFile.ImageFile", file: Path, max_pixels: int | None) -> "PIL.ImageFile.ImageFile":
    """The picture, which is closed and refused where it is too large."""
    import PIL.Image

    limit = PIL.Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    width, height = image.size
    if limit is not None and width * height > limit:
        image.close()
        raise ValueError(
            f"{shown(file)}: {height} x {width} pixels are more than max_pixels={limit}; a larger "
            "one lets it in (scripts: --max-pixels N; default: PIL.Image.MAX_IMAGE_PIXELS), or cut it into tiles"
        )
    return image


@contextmanager
def _named(file: Path, image: "PIL.Image.Image | None" = None) -> Iterator[None]:
    """Whatever goes wrong closes the picture and names the file."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes Pillow raise about anything
        if image is not None:
            image.close()
        ours = isinstance(error, ValueError) and str(error).startswith(f"{shown(file)}: ")
        raise (error if ours else _unreadable(file, error)) from None


def _orientation(image: "PIL.Image.Image") -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where there is none. XMP is not asked: OpenCV does not either."""
    import PIL.Image

    try:
        if image.format == "TIFF":
            value = image.tag_v2.get(ORIENTATION)  # type: ignore[attr-defined]
        elif not image.info.get("exif"):
            return 1
        else:
            exif = PIL.Image.Exif()
            exif.load(image.info["exif"])
            value = exif.get(ORIENTATION)
    except Exception:  # broken EXIF says nothing
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def _draft(image: "PIL.ImageFile.ImageFile", within: tuple[int, int]) -> None:
    """Let the decoder leave out what there is no room for."""
    turned = image.info["turned"] > 4
    have = image.size if turned else image.size[::-1]
    rows, columns = fitted(have, within)
    image.draft(image.mode, (rows, columns) if turned else (columns, rows))
    image.info["reduced from"] = have


def _check_upright(file: Path, orientation: int) -> None:
    if orientation != 1:
        raise ValueError(
            f"{shown(file)}: a label must have no EXIF orientation, got {orientation}: its pixels would lie elsewhere "
            "than its image's; write it upright and without EXIF, as PIL.ImageOps.exif_transpose does"
        )


def _unreadable(file: Path, error: Exception) -> ValueError:
    text = shown(" ".join(str(error).split()))
    if type(error).__name__ == "DecompressionBombError":  # of a WebP, whatever max_pixels says
        text += " Larger ones: PIL.Image.MAX_IMAGE_PIXELS, another format, or tiles"
    return ValueError(f"{shown(file)}: cannot be read as an image ({text or type(error).__name__})")
