"""Which files a folder holds, and messages that say so."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path


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
    files = sorted(folder.glob(pattern))
    if not files:
        raise ValueError(f"{folder}: no {pattern} in this folder, which holds {contents(folder)}; expected {layout}")
    return files


def check_choice(name: str, value: str, choices: Sequence[str], folder: Path) -> None:
    """Refuse a split or condition that a data set does not have.

    Raises:
        ValueError: lists the choices, and what ``folder`` holds.
    """
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(choices)}, got {value!r}; {folder} holds {contents(folder)}"
        )


def not_found(file: Path, layout: str) -> ValueError:
    """The error that names the first missing folder on the way to ``file``, or the file, and what is there instead."""
    if file.is_symlink():
        try:
            file.stat()
        except OSError as error:
            return ValueError(f"{file}: a link to {file.readlink()}, which cannot be followed ({error.strerror})")
    missing = next((folder for folder in reversed(file.parents) if not folder.is_dir()), file)
    kind = "file" if missing == file else "folder"
    return ValueError(
        f"{missing}: no such {kind}; {missing.parent} holds {contents(missing.parent)}; expected {layout}"
    )


def contents(folder: Path) -> str:
    """The first names in a folder, for messages."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    more = [f"{len(names) - 4} more"] if len(names) > 4 else []
    return ", ".join(names[:4] + more) or "nothing"


def state_of(files: Iterable[Path], settings: str = "") -> str:
    """Changes with any file's name, size or time and with ``settings``, not with where they lie; none is opened."""
    digest = hashlib.sha256(settings.encode())
    for file in files:
        stat = file.stat() if file.is_file() else None
        state = f"{stat.st_size} {stat.st_mtime_ns}" if stat else "missing"
        digest.update(os.fsencode(f"{file.name} {state}\n"))
    return digest.hexdigest()
