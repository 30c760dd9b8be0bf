"""A run's state in one file: written atomically, read safely, and randomness that needs no state."""

import inspect
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
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from hrda_lib._checks import check_counts, check_generator, check_lora_scale, is_id, short

State = Mapping[str, Any]
# settings that tell no class: how it is computed, or not in files of each torch; of a schedule, too
OF_ANY_CLASS = {
    "lr",
    "params",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "maximize",
    "decoupled_weight_decay",
}
OF_SOME_TORCH = {"verbose", "default_min_lr"}


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
        ValueError: ``state`` is no dictionary, or holds something else, which could not be read safely.
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
    _check_state(state, path)
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

    Nothing in the file is run (``weights_only``). The networks in ``state``, torch's optimisers and schedules are
    compared with it before any object changes; optimisers, schedules and the like take it after the networks.

    Args:
        path: the file.
        state: objects with ``load_state_dict()`` by name, such as those that were saved; plain values in it are
            left alone.

    Returns:
        Plain values, and the states of objects that ``state`` does not name: all else that the file holds.

    Raises:
        ValueError: the file is missing, damaged or holds more than data, lacks an object of ``state``, or is of
            another network, or of another class of optimiser or schedule, as far as the names of its settings tell.
    """
    _check_state(state, path)
    objects = {name: value for name, value in state.items() if hasattr(value, "load_state_dict")}
    kept = _read(Path(path))
    if missing := [name for name in objects if name not in kept]:
        raise ValueError(f"{path}: has no {missing[0]!r} for state; {_held(kept, missing[0])}")
    for name, value in objects.items():
        where = f"{path}: {name!r}"
        if isinstance(value, nn.Module):
            _compare(where, value.state_dict(), kept[name])
        elif isinstance(value, Optimizer):
            _compare_optimizer(where, value, kept[name])
        elif isinstance(value, LRScheduler):
            _compare_schedule(where, value, kept[name])
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

    torch's own generators, of the CPU and of every GPU, are seeded by (seed, step, rank); numpy's and Python's are left
    alone. Samples of :mod:`hrda_lib.data` depend on (seed, their number) alone; those of a loader with ``shuffle=True``
    do not, and need a wrapper, which the how-to of resuming shows.

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


def _check_state(state: object, path: object) -> None:
    if isinstance(path, Mapping):
        raise ValueError(f"path must be a file, got a dictionary; path comes first, and then state, got {short(state)}")
    if not isinstance(state, Mapping):
        way_out = '; give it a name, {"student": module}' if isinstance(state, nn.Module) else ""
        raise ValueError(f"state must be a dictionary of objects by name, got {type(state).__name__}{way_out}")


def _held(kept: Mapping[str, Any], missing: str) -> str:
    holds = f"it holds {', '.join(map(repr, list(kept)[:5])) or 'nothing'}"
    if not kept or not all(isinstance(value, Tensor) for value in kept.values()):
        return holds
    loading = f"{missing}.load_state_dict(torch.load(path, weights_only=True))"
    return f"{holds}, tensors, as the state dict of one network: {loading}"


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
        if name.rpartition(".")[2] == "lora_scale":
            check_lora_scale(f"{where}: {name}", other, float(value))


def _compare_optimizer(where: str, mine: Optimizer, theirs: object) -> None:
    """Refuse the state of another class, which torch would take with its settings."""
    groups = theirs.get("param_groups") if isinstance(theirs, Mapping) else None
    if not groups or not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise ValueError(f"{where} must be the state of an optimiser, got {_shown(theirs)}")
    own, saved = set(mine.param_groups[0]), set(groups[0])
    others = ((set(mine.defaults) - saved) | (saved - own) & _settings(torch.optim, Optimizer)) - OF_ANY_CLASS
    decoupled = [x.get("decoupled_weight_decay") for x in (mine.defaults, groups[0])]  # what tells AdamW from Adam
    if None not in decoupled and decoupled[0] != decoupled[1]:
        others.add("decoupled_weight_decay")
    _refuse_class(where, "optimiser", mine, others)


def _compare_schedule(where: str, mine: LRScheduler, theirs: object) -> None:
    if not isinstance(theirs, Mapping):
        raise ValueError(f"{where} must be the state of a schedule, got {_shown(theirs)}")
    own, saved = set(mine.state_dict()), set(theirs)
    others = ((own - saved) | (saved - own) & _settings(lr_scheduler, LRScheduler)) - OF_SOME_TORCH
    _refuse_class(where, "schedule", mine, {name for name in others if not name.startswith("_")})


def _settings(module: object, base: type) -> set[str]:
    """Of all classes that torch has of a kind: what else a group or a state holds says nothing of its class."""
    classes = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, base)]
    return {name for x in classes for name in inspect.signature(x).parameters}


def _refuse_class(where: str, kind: str, mine: object, others: set[str]) -> None:
    if others:
        raise ValueError(
            f"{where} is of another {kind} than {type(mine).__name__}: they differ in "
            f"{', '.join(sorted(others)[:5])}; build the {kind} that was saved, or leave it out of state to begin with "
            "a new one"
        )


def _shown(value: object) -> str:
    if not isinstance(value, Mapping):
        return short(value)
    return f"a dictionary with {', '.join(map(repr, list(value)[:5])) or 'nothing'}"
