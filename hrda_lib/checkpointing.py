"""A run's state in one file: written atomically, read safely, and randomness that needs no state."""

import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hrda_lib._checks import check_counts, check_generator, is_id, short

State = Mapping[str, Any]


def save_checkpoint(path: str | os.PathLike[str], state: State, *, keep: int = 1) -> None:
    """Write a run's state; at every moment ``path`` is a whole checkpoint, the former or the new one.

    It is written to a temporary file beside, brought to the disk, and renamed. Whatever goes wrong before, a full disk
    or a kill, leaves the former file as it was.

    Args:
        path: the file, which ``torch.load`` reads as a dictionary with the names of ``state``.
        state: by name, objects with ``state_dict()`` (network, :class:`hrda_lib.EMATeacher`, optimiser, schedule,
            scaler), and plain values: numbers, texts, None, tensors, lists, tuples and dictionaries of them.
        keep: how many checkpoints stay: of ``last.pt`` the former ones become ``last.1.pt``, the newest of them,
            ``last.2.pt`` and so on, up to ``keep - 1``.

    Raises:
        ValueError: ``state`` holds something else, which could not be read safely.
        OSError: it cannot be written.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from hrda_lib.checkpointing import load_checkpoint, save_checkpoint
        >>> path, student = tempfile.mkdtemp() + "/last.pt", nn.Linear(2, 1)
        >>> save_checkpoint(path, {"student": student, "step": 100})
        >>> again = nn.Linear(2, 1)
        >>> load_checkpoint(path, {"student": again})
        {'step': 100}
        >>> bool((again.weight == student.weight).all())
        True
    """
    check_counts(keep=keep)
    kept = {_name(name): _content(name, value) for name, value in state.items()}
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            _write(kept, file, path)
            file.flush()
            os.fsync(file.fileno())
        _make_room(path, keep)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _bring_to_disk(path.parent)


def load_checkpoint(path: str | os.PathLike[str], state: State) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote into the same objects.

    Nothing in the file is run (``weights_only``). The networks in ``state`` are compared with it before any object
    changes, and optimisers, schedules and the like take it after them.

    Args:
        path: the file.
        state: objects with ``load_state_dict()`` by name, such as those that were saved; plain values in it are
            left alone.

    Returns:
        Plain values, and the states of objects that ``state`` does not name: all else that the file holds.

    Raises:
        ValueError: the file is missing, damaged or holds more than data, lacks an object of ``state``, or is of
            another network.
    """
    objects = {name: value for name, value in state.items() if hasattr(value, "load_state_dict")}
    kept = _read(Path(path))
    if missing := [name for name in objects if name not in kept]:
        raise ValueError(f"{path}: has no {missing[0]!r} for state; it holds {', '.join(map(repr, kept)) or 'nothing'}")
    for name, value in objects.items():
        if isinstance(value, nn.Module):
            _compare(f"{path}: {name!r}", value.state_dict(), kept[name])
    for name in sorted(objects, key=lambda name: not isinstance(objects[name], nn.Module)):
        try:
            objects[name].load_state_dict(kept[name])
        except Exception as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{path}: {name!r} does not fit that of state ({type(error).__name__}: {text})") from None
    return {name: value for name, value in kept.items() if name not in objects}


def seed_step(seed: int, step: int, rank: int = 0, *, generator: torch.Generator | None = None) -> None:
    """Make the randomness of a training step a function of its place, so that a run goes on without generator states.

    Args:
        seed: of the run, not negative.
        step: that begins now, not negative.
        rank: of this process; each draws its own Dropout and DropPath.
        generator: seeded by (seed, step) alone, alike in all processes: that of :class:`hrda_lib.SelfTraining`,
            which draws boxes, mixed classes, masks and augmentation.

    torch's own generators, of the CPU and of every GPU, are seeded by (seed, step, rank). Samples of
    :mod:`hrda_lib.data` depend on (seed, their number) alone.

    Raises:
        ValueError: a number is negative.

    Example:
        >>> import torch
        >>> from hrda_lib.checkpointing import seed_step
        >>> seed_step(0, step=7)
        >>> first = torch.rand(1)
        >>> seed_step(0, step=7)
        >>> bool(torch.rand(1) == first)
        True
    """
    for name, value in (("seed", seed), ("step", step), ("rank", rank)):
        if not is_id(value):
            raise ValueError(f"{name} must be a whole number from 0 on, got {short(value)}")
    check_generator(generator)
    torch.manual_seed(_mixed(seed, 2, step, rank))  # streams of data have 0 and 1
    if generator is not None:
        generator.manual_seed(_mixed(seed, 3, step))


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"state must have texts as names, got {short(name)}")
    return name


def _content(name: str, value: Any) -> Any:
    value = value.state_dict() if hasattr(value, "state_dict") and not isinstance(value, type) else value
    if place := _unsafe(value, name):
        raise ValueError(
            f"state must hold objects with state_dict() and numbers, texts, None, tensors, and lists, tuples and "
            f"dictionaries of them, got {place}: it could not be read back safely"
        )
    return value


def _unsafe(value: Any, place: str) -> str:
    """Where a value holds something that ``weights_only`` refuses, and of what type; empty if nowhere."""
    if value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, complex, str, bytes):
        return ""
    if isinstance(value, torch.device | torch.dtype | torch.Size):
        return ""
    if type(value) in (dict, OrderedDict):
        inside = [*((key, place) for key in value), *((x, f"{place}[{key!r}]") for key, x in value.items())]
    elif type(value) in (list, tuple, set):
        inside = [(x, f"{place}[{i}]") for i, x in enumerate(value)]
    else:
        return f"{place} of type {type(value).__name__}"
    return next((found for x, where in inside if (found := _unsafe(x, where))), "")


def _write(kept: Mapping[str, Any], file: Any, path: Path) -> None:
    try:
        torch.save(kept, file)
    except RuntimeError as error:  # torch has errors of its own for a disk that is full
        raise OSError(f"{path}: cannot be written ({error})") from error


def _make_room(path: Path, keep: int) -> None:
    """Give the former checkpoints their next names; ``path`` stays where it is until it is replaced."""
    names = [path, *(path.with_name(f"{path.stem}.{i}{path.suffix}") for i in range(1, keep))]
    for newer, older in reversed(list(pairwise(names))):
        if newer != path:
            with suppress(FileNotFoundError):
                newer.replace(older)
        elif path.exists():
            older.unlink(missing_ok=True)
            try:
                os.link(path, older)
            except OSError:  # not every file system has links
                shutil.copyfile(path, older)


def _bring_to_disk(folder: Path) -> None:
    """So that the new name outlives a power cut; not every system has folders that can be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a checkpoint of save_checkpoint is expected")
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's text advises to run the code in the file
        raise ValueError(f"{path}: cannot be loaded, for it holds more than data, or is none of torch.save") from None
    except Exception as error:
        text = " ".join(str(error).split()) or "it ends too early"
        raise ValueError(f"{path}: cannot be loaded ({type(error).__name__}: {text})") from None
    if not isinstance(kept, dict):
        raise ValueError(f"{path}: must hold a dictionary, as save_checkpoint writes it, got {type(kept).__name__}")
    return kept


def _compare(where: str, mine: Mapping[str, Any], theirs: object) -> None:
    """Refuse the state of another network, before anything is loaded."""
    if not isinstance(theirs, Mapping):
        raise ValueError(f"{where} must be a state dict, got {short(theirs)}")
    if missing := [name for name in mine if name not in theirs]:
        raise ValueError(f"{where} is of another network: it has no {missing[0]} ({len(missing)} missing)")
    if unexpected := [name for name in theirs if name not in mine]:
        raise ValueError(f"{where} is of another network: it has {unexpected[0]} ({len(unexpected)} unexpected)")
    for name, value in mine.items():
        other = theirs[name]
        if isinstance(value, Tensor) and (not isinstance(other, Tensor) or value.shape != other.shape):
            got = tuple(other.shape) if isinstance(other, Tensor) else short(other)
            raise ValueError(f"{where} is of another network: {name} is {got}, not {tuple(value.shape)}")
