"""Files of own_data.py: folders and lists, and class names, palettes and id maps."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hrda_lib.data import Concatenated, Folders, LabeledFiles, ListFile, Relabeled, StoredColours, UnlabeledImages
from hrda_lib.data.skipping import OnError

VOID = {"void", "ignore", "ignored", "unlabeled", "unlabelled"}
Read = Callable[[Path], Tensor]


def open_source(
    path: Path, *, ignore: Sequence[int] = (), read_image: Read | None = None, read_label: Read | None = None
) -> LabeledFiles:
    """A folder, or a list of lines image<TAB>label."""
    kind = ListFile if path.is_file() else Folders
    return kind(path, ignore=ignore, read_image=read_image, read_label=read_label)


def open_target(path: Path, *, read_image: Read | None = None) -> UnlabeledImages:
    """A folder, or a list of images; labels beside them are never opened."""
    return open_source(path, read_image=read_image).unlabeled()


def some(images: Concatenated | Relabeled | UnlabeledImages, count: int, on_error: OnError) -> Iterator[Tensor]:
    """At most ``count`` evenly spaced images; those that cannot be read are left out where that is asked for.

    Raises:
        ValueError: one cannot be read, or none can.
    """
    count, found, problem = min(len(images), count), 0, ""
    for i in range(count):
        try:
            image = images[i * len(images) // count].image
        except ValueError as error:
            if on_error == "raise":
                raise
            print(f"left out: {error}", file=sys.stderr)
            problem = str(error)
        else:
            found += 1
            yield image
    if not found:
        raise ValueError(f"none of {count} images can be read; the last: {problem}")


def read_names(file: Path) -> tuple[list[str], list[int]]:
    """Class names, a line each, without a void at the end; and the ids of void names."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as class names ({error})") from None
    names = [name.strip() for name in text.strip().splitlines()]
    ignore = [i for i, name in enumerate(names) if name.lower() in VOID]
    while names and names[-1].lower() in VOID:
        names.pop()
    return names, ignore


def read_palette(file: Path) -> tuple[list[str], StoredColours]:
    """{"name": [red, green, blue], ...}: names in the order of their ids, and what reads labels of these colours.

    Void names get no id: their colours are ignored.

    Raises:
        ValueError: the file is no such palette, or two names have one colour.
    """
    names, colours, seen = list[str](), dict[tuple[int, int, int], int](), dict[tuple[int, int, int], str]()
    for name, colour in _entries(file):
        if not (isinstance(colour, list) and len(colour) == 3 and all(_is_byte(value) for value in colour)):
            raise ValueError(f"{file}: {name!r} must have [red, green, blue] of 0 to 255, got {colour}")
        red, green, blue = colour
        if (red, green, blue) in seen:
            raise ValueError(f"{file}: {seen[red, green, blue]!r} and {name!r} have the same colour {colour}")
        seen[red, green, blue] = name
        void = name.lower() in VOID
        colours[red, green, blue] = 255 if void else len(names)
        names += [] if void else [name]
    if not names or len(names) > 255:
        raise ValueError(f"{file}: must name 1 to 255 classes, got {len(names)}")
    return names, StoredColours(colours)


def read_ids(file: Path) -> dict[int, int]:
    """{"old id": new id, ...}; a new id of 255 is ignored, as are old ids that are not named.

    Raises:
        ValueError: the file is no such map.
    """
    ids = {}
    for old, new in _entries(file):
        if not (old.isdecimal() and _is_byte(int(old)) and _is_byte(new)):
            raise ValueError(f'{file}: {{"old id": new id}} of 0 to 255 is expected, got {old!r}: {new!r}')
        ids[int(old)] = new
    if set(ids.values()) <= {255}:
        raise ValueError(f"{file}: maps no id to a class")
    return ids


def common_names(file: Path, ids: Mapping[int, int], *, old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Names of the classes that an id map gives: ``new`` if there are any, or those of the ``old`` ids, or numbers.

    Raises:
        ValueError: classes are left out, or the map names an old or a new id that does not exist.
    """
    void = [name for name in new if name.lower() in VOID]
    if void:
        raise ValueError(f"{file}: ignores what it does not name; leave {void[0]!r} out of the class names")
    found = sorted(set(ids.values()) - {255})
    count = len(new) or len(found)
    if found != list(range(count)):
        wanted = f"one for each of the {count} class names" if new else "without gaps"
        raise ValueError(f"{file}: new ids must be 0 to {count - 1}, {wanted}, got {', '.join(map(str, found))}")
    if old and max(ids) >= len(old):
        raise ValueError(f"{file}: old id {max(ids)} is none of the palette's {len(old)} classes 0..{len(old) - 1}")
    if new or not old:
        return list(new) or [str(i) for i in found]
    return ["/".join(old[i] for i in sorted(ids) if ids[i] == label) for label in found]


def _entries(file: Path) -> list[tuple[str, Any]]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as JSON ({error})") from None
    if not (isinstance(entries, list) and entries and all(isinstance(entry, tuple) for entry in entries)):
        raise ValueError(f"{file}: a JSON object {{...}} with at least one entry is expected")
    keys = [key for key, _ in entries]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"{file}: {twice!r} is there twice")
    return entries


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255
