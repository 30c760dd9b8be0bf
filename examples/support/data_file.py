"""Data of one's own: plain folders, or a Python file that defines ``source``, ``target`` and ``names``."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hrda_lib.data import Concatenated, Folders, LabeledImages, UnlabeledImages
from support.command_line import add_max_pixels, options_of
from support.ending import printable
from support.networks import NetworkSpec

VOID = {"void", "ignore", "ignored", "unlabeled", "unlabelled"}


class DataFile(NamedTuple):
    """What such a file defines, made of the data sets and readers of hrda_lib.data."""

    source: LabeledImages
    target: UnlabeledImages
    names: Sequence[str]
    """Of the classes, in the order of the ids."""
    validation: LabeledImages | None
    """Images to measure on, if it defines any."""


def read_data_file(file: Path) -> DataFile:
    """Run a Python file, and take what it defines.

    Raises:
        ValueError: it is no such file, fails, or something is missing or of another kind.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    name, place = file.stem, os.path.abspath(file)
    if "." in name:
        raise ValueError(f"{file}: a module's name has no dot; rename the file")
    known = importlib.util.find_spec(name)
    # a folder of this name is no obstacle: a file wins, as long as nothing has imported the folder
    if known and (known.origin or name in sys.modules) and Path(known.origin or "").resolve() != file.resolve():
        raise ValueError(f"{file}: another module is called {name}; rename the file")
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # by this name and folder the workers of a loader find its functions
    sys.path.append(os.path.dirname(place))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{file}: cannot be run ({type(error).__name__}: {text})") from error
    if missing := [wanted for wanted in ("source", "target", "names") if not hasattr(module, wanted)]:
        raise ValueError(f"{file}: must define source, target and names, {' and '.join(missing)} missing")
    if not isinstance(module.target, UnlabeledImages):
        raise ValueError(f"{file}: target must be images without labels, such as Folders(...).unlabeled()")
    names = module.names
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file}: names must be a list of class names, got {names!r}")
    for wanted in ("source", "validation"):
        if not hasattr(getattr(module, wanted, module.source), "label_file"):
            raise ValueError(f"{file}: {wanted} must be labelled images, such as Folders(...)")
    return DataFile(module.source, module.target, tuple(map(printable, names)), getattr(module, "validation", None))


def check_readable(specs: Iterable[NetworkSpec], file: Path | None) -> None:
    """Refuse to take for pictures what the runs' images were not, before any is looked for.

    Raises:
        ValueError: the images of a run were no pictures, and there is no file of :func:`add_read_as`.
    """
    if not file and not all(spec.takes_pictures for spec in specs):
        raise ValueError("this run's images are no RGB pictures; give the FILE.py of its training by --data")


def open_as_trained(files: Sequence[Path], file: Path | None, max_pixels: int | None = None) -> UnlabeledImages:
    """Images for the network of a run: pictures, or read as the target of :func:`add_read_as`'s file."""
    return read_data_file(file).target.with_files(files) if file else UnlabeledImages(files, max_pixels=max_pixels)


def add_read_as(parser: argparse.ArgumentParser) -> None:
    """The option that says how images without labels are read."""
    text = "read images as the target of this file, as own_data.py does (default: as RGB pictures)"
    options_of(parser, "data").add_argument("--data", type=Path, metavar="FILE.py", help=text)


def add_own_data(parser: argparse.ArgumentParser) -> None:
    """The options that say which images, folders or a file."""
    add = options_of(parser, "data").add_argument
    text = "folders with labelled images in images/ and labels/ (default: --data says it)"
    add("--source", type=Path, nargs="+", metavar="DIR", help=text)
    text = "folder with images to adapt to in images/ (default: --data says it)"
    add("--target", type=Path, metavar="DIR", help=text)
    text = "class names, a line each; void marks ids to ignore (default: ids as found)"
    add("--classes", type=Path, metavar="FILE", help=text)
    text = "Python file that defines source, target and names (default: folders say it)"
    add("--data", type=Path, metavar="FILE.py", help=text)
    text = "folder with labelled target images, to look at alone, as by --val-every (default: none)"
    add("--val", type=Path, metavar="DIR", help=text)
    add_max_pixels(parser)


def unclear(options: Mapping[str, Any]) -> str:
    """What is wrong about :func:`add_own_data`'s options together; empty if nothing is."""
    folders = [options[name] for name in ("source", "target", "classes")]
    if any(folders) if options["data"] else not all(folders[:2]):
        return "either --source DIR --target DIR [--classes FILE] or --data FILE.py is needed"
    return ""


def open_own_data(options: Mapping[str, Any]) -> tuple[DataFile, tuple[int, ...]]:
    """What :func:`add_own_data` asked for, and the ids of ``--classes`` that mean no class."""
    if options["data"]:
        return read_data_file(options["data"]), ()
    names, ignore = read_class_names(options["classes"]) if options["classes"] else ((), ())
    limit = options["max_pixels"]
    parts = [Folders(source, ignore=ignore, max_pixels=limit) for source in options["source"]]
    val = Folders(options["val"], ignore=ignore, max_pixels=limit) if options["val"] else None
    target = Folders(options["target"], max_pixels=limit).unlabeled()
    return DataFile(parts[0] if len(parts) == 1 else Concatenated(parts), target, names, val), ignore


def read_class_names(file: Path) -> tuple[Sequence[str], tuple[int, ...]]:
    """Names, the first for id 0, and the ids of those that mean no class; at the end, these are no names.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as class names ({error})") from None
    names = [printable(line.strip()) for line in lines]
    ignore = tuple(i for i, name in enumerate(names) if name.lower() in VOID)
    while names and names[-1].lower() in VOID:
        names.pop()
    return names, ignore
