"""A Python file that says what the data are: it defines ``source``, ``target`` and ``names``."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hrda_lib.data import LabeledImages, UnlabeledImages
from support.ending import printable


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
