"""Which files a folder holds, and messages that say so."""

import hashlib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

log = logging.getLogger("hrda_lib.data")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# what people take for pictures, but folders are not searched for
OTHER_ENDINGS = {".gif", ".jp2", ".j2k", ".jxl", ".heic", ".heif", ".avif", ".jfif", ".ppm", ".pgm", ".pnm", ".tga"}
OTHER_ENDINGS |= {".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raw", ".psd", ".svg", ".eps"}
CLUTTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


def shown(what: object) -> str:
    """A file's name as messages show it: by ``repr`` where it could steer a terminal, or cannot be written at all."""
    text = str(what)
    harmless = all(letter.isprintable() or unicodedata.category(letter) == "Zs" for letter in text)
    return text if harmless else repr(text)


def plain(text: str) -> str:
    """Text of others without what could steer a terminal: such letters by their escapes."""
    return "".join(letter if letter == "\n" or shown(letter) == letter else repr(letter)[1:-1] for letter in text)


def is_clutter(file: Path) -> bool:
    """Hidden files, resource forks (``._x``) and what file managers leave in a folder of pictures."""
    return file.name.startswith(".") or file.name.lower() in CLUTTER


def tell_left_out(folder: Path, files: Iterable[Path]) -> None:
    """Log, in one line, the files that look like pictures and that a folder's search left out."""
    endings = (*PICTURE_ENDINGS, *OTHER_ENDINGS)
    others = sorted(file for file in files if file.suffix.lower() in endings and not is_clutter(file))
    if others:
        kinds = ", ".join(f"{count} {ending}" for ending, count in Counter(f.suffix.lower() for f in others).items())
        log.warning("%s: left out: %s; the first is %s", shown(folder), kinds, shown(others[0].name))


def find(folder: Path, pattern: str, layout: str) -> list[Path]:
    """Files below ``folder`` that match ``pattern``, in order.

    Raises:
        ValueError: there is no such folder or file; says what was found and the ``layout`` that is expected.
    """
    if not folder.is_dir():
        raise not_found(folder / pattern, layout)
    if "/" in pattern:
        for inner in folder.iterdir():
            if inner.is_dir():
                next(inner.iterdir(), None)  # raises for a folder that may not be read; glob leaves it out in silence
    files = sorted(file for file in folder.glob(pattern) if not _is_hidden(file, folder))
    if not files:
        raise ValueError(
            f"{shown(folder)}: no {pattern} in this folder, which holds {contents(folder)}; expected {shown(layout)}"
        )
    for inner in {file.parent: None for file in files}:
        tell_left_out(inner, set(inner.iterdir()).difference(files))
    return files


def _is_hidden(file: Path, folder: Path) -> bool:
    return is_clutter(file) or any(part.startswith(".") for part in file.relative_to(folder).parts)


def check_choice(name: str, value: str, choices: Sequence[str], folder: Path) -> None:
    """Refuse a split or condition that a data set does not have.

    Raises:
        ValueError: lists the choices, and what ``folder`` holds.
    """
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(choices)}, got {value!r}; {shown(folder)} holds {contents(folder)}"
        )


def not_found(file: Path, layout: str) -> ValueError:
    """The error that names the first missing folder on the way to ``file``, or the file, and what is there instead."""
    if file.is_symlink():
        try:
            file.stat()
        except OSError as error:
            return ValueError(
                f"{shown(file)}: a link to {shown(file.readlink())}, which cannot be followed ({error.strerror})"
            )
    missing = next((folder for folder in reversed(file.parents) if not folder.is_dir()), file)
    kind = "file" if missing == file else "folder"
    return ValueError(
        f"{shown(missing)}: no such {kind}; {shown(missing.parent)} holds {contents(missing.parent)}; "
        f"expected {shown(layout)}{proposal(missing) if kind == 'folder' else ''}"
    )


def proposal(missing: Path) -> str:
    """The end of a message: the folder that was meant, where it is the parent or a child of the one that was given.

    Args:
        missing: what was looked for in that folder.
    """
    given = missing.parent
    near = (given.parent, *subfolders(given))
    meant = next((folder for folder in near if (folder / missing.name).is_dir()), None)
    if meant is None:
        return ""
    found = meant / missing.name
    count = pictures_in(found)
    return f"; {shown(found)} holds {f'{count} images' if count else contents(found)}: give {shown(meant)}"


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, in order; none of one that cannot be read."""
    return sorted(file for file in _listed(folder) if file.is_dir() and not is_clutter(file))


def pictures_in(folder: Path) -> int:
    """How many pictures lie in a folder, by their endings."""
    return sum(file.suffix.lower() in PICTURE_ENDINGS and not is_clutter(file) for file in _listed(folder))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def contents(folder: Path) -> str:
    """The first names in a folder, for messages."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    more = [f"{len(names) - 4} more"] if len(names) > 4 else []
    return ", ".join([*map(shown, names[:4]), *more]) or "nothing"


def state_of(files: Iterable[Path], settings: str = "") -> str:
    """Changes with any file's name, size or time and with ``settings``, not with where they lie; none is opened."""
    digest = hashlib.sha256(settings.encode())
    for file in files:
        stat = file.stat() if file.is_file() else None
        state = f"{stat.st_size} {stat.st_mtime_ns}" if stat else "missing"
        digest.update(os.fsencode(f"{file.name} {state}\n"))
    return digest.hexdigest()
