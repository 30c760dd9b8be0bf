"""What a run leaves behind: ``config.json``, a line of ``metrics.jsonl`` a step, and the weights in ``last.pt``."""

import importlib.metadata
import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from support.ending import Stopped, held, reason
from support.networks import Network, NetworkSpec

Weights = Literal["student", "teacher"]
WEIGHTS = get_args(Weights)
FILES = ("result.json", "last.pt", "metrics.jsonl", "panel.png", "curves.png", "config.json")  # of one run
PACKAGES = ("hrda_lib", "torchvision", "timm", "numpy", "pillow")


class RunFolder:
    """A folder for one run of a network."""

    def __init__(self, path: Path, spec: NetworkSpec) -> None:
        self.path, self.spec, self.steps = path, spec, 0
        home = Path(os.path.abspath(path))  # "." has a name and a parent too
        name = f"{home.name}.{os.getpid()}.last.pt"
        self.refuges = home.with_name(name), Path(tempfile.gettempdir(), name)

    def start(self, settings: Mapping[str, Any]) -> None:
        """A new ``config.json`` (settings, network and versions) and an empty ``metrics.jsonl``; an older run goes."""
        self.path.mkdir(parents=True, exist_ok=True)
        versions = {"python": platform.python_version(), "torch": torch.__version__}  # with torch's build
        for package in PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        config = {**settings, "network": asdict(self.spec), "versions": versions}
        with written(self.path / "config.json") as part:
            part.write_text(json.dumps(config, indent=2, default=str) + "\n")
            for name in FILES:  # at every moment, what lies here is of one run
                (self.path / name).unlink(missing_ok=True)
        (self.path / "metrics.jsonl").write_text("")

    def log(self, **values: Tensor | float) -> dict[str, float]:
        """A line of ``metrics.jsonl``, with the number of steps before it; returns the numbers."""
        numbers = {name: float(value) for name, value in values.items()}
        with held():
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.steps, **numbers}) + "\n")
            self.steps += 1
        return numbers

    def save(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """``last.pt``: weights, and what :func:`load` needs to build their network. Never half-written, never lost.

        Raises:
            Stopped: it cannot be written there; says where the weights are.
        """
        with held():
            kept = {"model": student.state_dict(), "network": asdict(self.spec), "step": self.steps}
            if teacher is not None:
                kept["teacher"] = teacher.state_dict()
            problem = _saved(kept, self.path / "last.pt")
            if problem is None:
                return
            text = f"stopped at step {self.steps}: {self.path}/last.pt cannot be written ({reason(problem)})"
            for file in self.refuges:
                if not _saved(kept, file):
                    raise Stopped(f"{text}; the weights are in {file}, which predict.py takes as RUN") from problem
            raise Stopped(f"{text}, nor can {' or '.join(map(str, self.refuges))}: the weights are lost") from problem

    def kept_result(self, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
        """What an earlier call with the same settings measured; None where there is none, or a part is damaged.

        Raises:
            ValueError: the folder holds a run of other settings.
        """
        try:
            kept: dict[str, Any] = json.loads((self.path / "result.json").read_text())
            read_metrics(self.path)
            load(self.path)
        except (OSError, ValueError, RecursionError):
            return None
        if not _is_result(kept):
            return None
        if kept["settings"] == json.loads(json.dumps(settings)):
            return kept
        if not overwrite:
            raise ValueError(
                f"{self.path}: holds a run of other settings or data; choose another --out, or --overwrite"
            )
        return None

    def keep_result(self, result: Mapping[str, Any]) -> None:
        """``result.json``; with it the run is complete."""
        with written(self.path / "result.json") as part:
            part.write_text(json.dumps(result, allow_nan=False) + "\n")


def _saved(kept: Mapping[str, Any], file: Path) -> Exception | None:
    """Write a checkpoint; what was wrong if it cannot be."""
    try:
        with written(file) as part, part.open("wb") as opened:
            torch.save(kept, opened)
    except (OSError, RuntimeError, MemoryError) as error:  # torch has names of its own for a full disk
        return error
    return None


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """A file to write, which gets its name when it is complete; no signal comes in between."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with held():
        try:
            yield part
            part.replace(file)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder, made if need be, into which no other run writes meanwhile.

    Raises:
        ValueError: one does. A lock whose process is dead is taken over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, mine = folder / "run.lock", f"{os.getpid()} {platform.node()}\n"
    try:
        if not _created(lock, mine):
            _take_over(lock, mine)
        yield
    finally:
        with suppress(OSError):
            if lock.read_text() == mine:
                lock.unlink()
            folder.rmdir()  # what was refused leaves nothing, not even an empty folder


def _created(file: Path, text: str) -> bool:
    """Make a file; False if it is there already."""
    try:
        opened = file.open("x")
    except FileExistsError:
        return False
    try:
        with opened:
            opened.write(text)
    except OSError:
        file.unlink()
        raise
    return True


def _take_over(lock: Path, mine: str) -> None:
    """Replace the lock of a dead process; of several that try, one succeeds."""
    new = lock.with_name("run.lock.new")
    if not _created(new, mine):
        raise ValueError(f"{lock.parent}: another run begins in it; choose another --out, or remove {new}")
    try:
        pid, _, host = lock.read_text(errors="replace").strip().partition(" ")
        if not pid.isdecimal() or host != platform.node() or _alive(int(pid)):
            raise ValueError(
                f"{lock.parent}: another run writes into it (process {pid} on {host}); choose another --out, "
                f"or, if there is no such process, remove {lock}"
            )
        new.replace(lock)
    except FileNotFoundError:
        raise ValueError(f"{lock.parent}: another run has just ended in it; start again") from None
    finally:
        new.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()  # an earlier process had this number


def _is_result(kept: Any) -> bool:
    """Whether tables can be made of it."""
    try:
        heads = list(kept["classes"].values())
        numbers = [x for values in heads for x in values.values() if x is not None]
        numbers += [kept["steps"] or None, kept["seconds"] or None]
        shown = any(x is not None for x in kept["classes"]["fused"].values())
        alike = all(values.keys() == kept["classes"]["fused"].keys() for values in heads)
        return bool(kept["settings"]) and shown and alike and all(type(x) in (int, float) for x in numbers)
    except (KeyError, TypeError, AttributeError):
        return False


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``.

    Raises:
        ValueError: one holds something else than numbers.
    """
    file, rows = run / "metrics.jsonl", []
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or "step" not in row or any(type(x) not in (int, float) for x in row.values()):
            raise ValueError(f"{file}: line {number} is none of a step and numbers")
        rows.append(row)
    return rows


def load_weights(model: nn.Module, file: Path) -> None:
    """Start from the weights of another run's ``last.pt``.

    Raises:
        ValueError: the file is not one of ours, or of another network.
    """
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["model"])
    except Exception as error:
        raise _unreadable(file, error) from None


def load(run: Path, weights: Weights = "student") -> tuple[Network, NetworkSpec]:
    """The network of a run in eval mode, and what it takes.

    Raises:
        ValueError: there is no checkpoint, it is not one of ours, or holds no teacher where its weights are asked for.
    """
    file = run if run.is_file() else run / "last.pt"
    if not file.is_file():
        raise ValueError(
            f"{file}: no such file; a run folder of own_data.py, or an arm of gta2cityscapes.py, is expected"
        )
    try:
        # mapped: of student and teacher, only the one that is asked for is read
        kept = torch.load(str(file), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        spec = NetworkSpec(**kept["network"])
        if ":" in spec.encoder:
            raise ValueError(f"encoder {spec.encoder!r} is no name of timm's own; a file must not ask a hub")
        if not all(isinstance(name, str) and name.isprintable() for name in spec.classes):
            raise ValueError(f"class names must be text, got {spec.classes!r}")
        if not len(spec.mean) == len(spec.std) == spec.channels:
            raise ValueError(f"mean and std must be {spec.channels} numbers, got {spec.mean!r} and {spec.std!r}")
        state = kept["model"] if weights == "student" else kept.get("teacher")
        model = spec.build()
        if state is not None:
            model.load_state_dict(state)
    except Exception as error:
        raise _unreadable(file, error) from None
    if state is None:
        raise ValueError(f"{file}: holds no teacher, which a run keeps only if it adapts to a target; take the student")
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise ValueError(f"{file}: holds weights that are not finite")
    return model.eval(), spec


def _unreadable(file: Path, error: Exception) -> ValueError:
    if "weights_only" in str(error):  # torch's text advises to run the code in the file
        return ValueError(f"{file}: cannot be loaded, for it holds more than weights, or is none of torch.save")
    text = " ".join(str(error).split()) or "it ends too early"
    return ValueError(f"{file}: cannot be loaded ({type(error).__name__}: {text})")
