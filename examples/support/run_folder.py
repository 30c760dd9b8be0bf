"""What a run leaves behind: ``config.json``, a line of ``metrics.jsonl`` a step, and the weights in ``last.pt``."""

import importlib.metadata
import json
import math
import os
import platform
import sys
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hrda_lib.checkpointing import load_checkpoint, save_checkpoint
from hrda_lib.distributed import mean
from support.batches import Batch, Batches
from support.command_line import ALONE, Running
from support.ending import Stopped, asked, held, reason
from support.foundation import VitSpec
from support.networks import Network, NetworkSpec
from support.progress import Progress

Weights = Literal["student", "teacher"]
WEIGHTS = get_args(Weights)
# of one run
DRAWN = ("panel.png", "curves.png", "curves.pdf")
FILES = ("result.json", "last.pt", "metrics.jsonl", *DRAWN, "config.json", "bad_batch.pt")
PACKAGES = ("hrda_lib", "torchvision", "timm", "numpy", "pillow")


class RunFolder:
    """A folder for one run of a network; of several processes, the first alone writes."""

    def __init__(self, path: Path, spec: NetworkSpec, running: Running = ALONE, title: str = "") -> None:
        self.path, self.spec, self.running, self.title = path, spec, running, title or path.name
        self.rank, self.group, self.device = running.rank, running.group, torch.device(running.device)
        self.steps, self.next, self.phase, self.later = 0, 0, 0, 0  # made, the next of the phase, to come after it
        self.skips, self.key, self.since = running.skip, "", time.monotonic()
        self.shown, self.recent = dict[str, str](), deque[Mapping[str, float]](maxlen=100)
        self.loggers: list[Callable[[int, Mapping[str, float]], None]] = []
        self.pictures: list[Callable[[int, Path], None]] = []
        home = Path(os.path.abspath(path))  # "." has a name and a parent too
        name = f"{home.name}.{os.getpid()}.last.pt"
        self.refuges = home.with_name(name), Path(tempfile.gettempdir(), name)

    def start(self, settings: Mapping[str, Any], key: Mapping[str, Any] | None = None) -> None:
        """A new ``config.json`` (settings, network, versions) and an empty ``metrics.jsonl``, or a run to go on with.

        Args:
            settings: everything that is worth to be known.
            key: those among them that results depend on, with which alone a run goes on; None: all.

        Raises:
            ValueError: the folder holds a run that is neither to go on nor to be replaced, or one of other settings.
        """
        self.key = self._key(settings if key is None else key)
        if self._goes_on() or self.rank:
            return
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

    def _goes_on(self) -> bool:
        """Whether there is an unfinished run, which is then this one."""
        if self.running.overwrite:
            return False
        try:
            kept = training_state(self.path / "last.pt")
        except ValueError:
            if self.running.resume:
                raise
            return False
        if kept is None:
            return False
        if not self.running.resume:
            raise ValueError(
                f"{self.path}: holds a run that stopped at step {kept['step']}; --resume goes on with it, --overwrite "
                "replaces it"
            )
        self._compare(kept["key"], self.key)
        self.phase, self.steps = kept["phase"], kept["step"]
        return True

    def check_complete(self, key: Mapping[str, Any]) -> None:
        """Refuse to take a complete run for one of these settings if it is of others; ``key`` as in :meth:`start`.

        Raises:
            ValueError: it is, or its ``config.json`` cannot be read.
        """
        file, now = self.path / "config.json", self._key(key)
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            before = {name: config[name] for name in json.loads(now)}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{file}: does not say the run's settings; choose another --out, or --overwrite") from None
        self._compare(json.dumps(before, sort_keys=True), now)

    def _key(self, settings: Mapping[str, Any]) -> str:
        return json.dumps({**settings, "network": asdict(self.spec)}, sort_keys=True, default=str)

    def _compare(self, before: str, now: str) -> None:
        if before != now:
            raise ValueError(f"{self.path}: --resume needs the settings that it began with, {differences(before, now)}")

    @contextmanager
    def kept(self, state: Mapping[str, Any], phase: int = 0) -> Iterator[Callable[[Batches], Iterator[Batch]]]:
        """A phase of training that can be stopped, and goes on: yields what gives the batches that are left.

        ``state`` is read from ``last.pt`` if the phase was begun before, and written there every ``--save-every``
        steps, at the end, at a signal and at an error.

        Raises:
            Stopped: an error or a signal ended it.
        """
        self.next = self._restore(state, phase)
        try:
            with asked() as stop:
                try:
                    yield lambda batches: self._batches(batches, state, stop)
                except RuntimeError as error:
                    if stop():  # a signal for all processes ends a loader's workers
                        raise KeyboardInterrupt from error
                    raise
            self.save(state)
        except Stopped:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if self.steps:  # or a start that failed would be a run to go on with
                self.save(state)
            text = f"stopped at step {self.steps}: {reason(error)}"
            raise Stopped(f"{text}; --resume goes on" if self.steps else text) from error

    def _restore(self, state: Mapping[str, Any], phase: int) -> int:
        """The step that a phase begins with; ``state`` becomes what it was then."""
        if self.steps == 0 or phase > self.phase:
            self.phase = phase
            return 0
        kept = load_checkpoint(self.path / "last.pt", state)
        if not self.rank:
            cut(self.path / "metrics.jsonl", self.steps)
        self.say(f"goes on at step {self.steps}")
        return int(kept["next"])

    def _batches(self, batches: Batches, state: Mapping[str, Any], stop: Callable[[], bool]) -> Iterator[Batch]:
        parameters = list(state["model"].parameters())
        progress = Progress(batches.since(self.next), self.title, total=batches.steps, done=self.next, later=self.later)
        for batch in progress:
            yield batch
            progress.values = self.shown
            if mean(float(stop()), self.group) > 0:
                raise KeyboardInterrupt
            if self.next == 3:
                self.say(f"peak memory of the first steps: {peak_memory(self.device):.0f} MB")
            if self.next == batches.steps and not all(parameter.isfinite().all() for parameter in parameters):
                raise ValueError("weights are not finite; choose a smaller --lr")
            if self.running.save_every and self.next % self.running.save_every == 0 and self.next < batches.steps:
                self.save(state)

    def made(self, step: int) -> None:
        """A step is over."""
        self.next, self.steps = step + 1, self.steps + 1

    def log(self, **values: Tensor | float) -> None:
        """A line of ``metrics.jsonl``, with the number of the step that was made last; other loggers get it too."""
        now = time.monotonic()
        numbers = {name: float(value) for name, value in values.items() if math.isfinite(value)}  # JSON has no nan
        numbers |= {"seconds": now - self.since, "memory": peak_memory(self.device)}
        self.since = now
        self.recent.append(numbers)
        self.shown = {name: f"{numbers[name]:.2f}" for name in ("loss_source", "confidence") if name in numbers}
        if self.rank:
            return
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.steps - 1, **numbers}) + "\n")
        for logger in self.loggers:
            logger(self.steps - 1, numbers)

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        if not self.rank:
            tqdm.write(f"{self.title}: {text}", file=sys.stderr)

    def save(self, state: Mapping[str, Any]) -> None:
        """``last.pt``, from which training goes on. Never half-written, never lost.

        Raises:
            Stopped: it cannot be written there; says where it is.
        """
        self._save({**state, "next": self.next, "phase": self.phase, "key": self.key})

    def finish(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """``last.pt`` with the weights alone: the run is over."""
        self._save({"model": student, "teacher": teacher} if teacher else {"model": student})

    def _save(self, state: Mapping[str, Any]) -> None:
        if self.rank:
            return
        kept = {**state, "network": asdict(self.spec), "step": self.steps}
        with held():
            problem = _saved(kept, self.path / "last.pt", self.running.keep)
            if problem is None:
                return
            text = f"stopped at step {self.steps}: {self.path}/last.pt cannot be written ({reason(problem)})"
            for file in self.refuges:
                if not _saved(kept, file, 1):
                    way_on = f"; as {self.path}/last.pt, --resume goes on with it" if "optimizer" in state else ""
                    text = f"{text}; the weights are in {file}, which predict.py takes as RUN{way_on}"
                    raise Stopped(text) from problem
            raise Stopped(f"{text}, nor can {' or '.join(map(str, self.refuges))}: the weights are lost") from problem

    def keep_batch(self, batch: Any) -> str:
        """``bad_batch.pt``, to be looked at; how a message says so."""
        try:
            torch.save(tuple(batch), self.path / "bad_batch.pt")
        except (OSError, RuntimeError):
            return ""
        return f"; the batch is in {self.path / 'bad_batch.pt'}"

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
        if self.rank:
            return
        with written(self.path / "result.json") as part:
            part.write_text(json.dumps(result, allow_nan=False) + "\n")


def _saved(kept: Mapping[str, Any], file: Path, keep: int) -> Exception | None:
    """Write a checkpoint; what was wrong if it cannot be."""
    try:
        save_checkpoint(file, kept, keep=keep)
    except (OSError, MemoryError) as error:
        return error.__cause__ if isinstance(error.__cause__, Exception) else error
    return None


def training_state(file: Path) -> dict[str, Any] | None:
    """What an unfinished run kept; None if it is finished or there is none.

    Raises:
        ValueError: the file is none of ours.
    """
    if not file.is_file():
        return None
    try:
        kept = load_checkpoint(file, {})
    except ValueError as error:
        way_out = "a former checkpoint, last.1.pt of --keep, can take its place, or --overwrite begins anew"
        raise ValueError(f"{error}; {way_out}") from None
    return kept if {"optimizer", "key", "phase"} <= kept.keys() else None


def complete(running: Running) -> bool:
    """Whether ``--resume`` meets a run that is over.

    Raises:
        ValueError: there is one, and neither ``--resume`` nor ``--overwrite`` says what to do about it.
    """
    file = running.out / "last.pt"
    if running.overwrite or not file.exists() or training_state(file):
        return False
    if not running.resume:
        raise ValueError(
            f"{running.out}: already holds a run; choose another --out (--init starts from it), or --overwrite"
        )
    return True


def differences(before: str, now: str) -> str:
    """What differs between two keys."""
    old, new = (json.loads(key) for key in (before, now))
    found = [
        f"{name} {old.get(name)!r}, not {new.get(name)!r}" for name in {**old, **new} if old.get(name) != new.get(name)
    ]
    return ", ".join(found)


def cut(file: Path, steps: int) -> None:
    """Leave the metrics of so many steps: those after them are made again, and the last line may be half a one."""
    lines = file.read_text(errors="replace").splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] < steps]
    with written(file) as part:
        part.write_text("".join(whole))


def peak_memory(device: torch.device) -> float:
    """MB so far: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # on Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


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
def locked(folder: Path, rank: int = 0) -> Iterator[None]:
    """A folder, made if need be, into which no other run writes meanwhile; of several processes, the first sees to it.

    Raises:
        ValueError: one does. A lock whose process is dead is taken over.
    """
    if rank:
        yield
        return
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
        spec = (VitSpec if "scales" in kept["network"] else NetworkSpec)(**kept["network"])
        if ":" in spec.encoder:
            raise ValueError(f"encoder {spec.encoder!r} is no name of timm's own; a file must not ask a hub")
        if not all(isinstance(name, str) and name.isprintable() for name in spec.classes):
            raise ValueError(f"class names must be text, got {spec.classes!r}")
        if not len(spec.mean) == len(spec.std) == spec.channels:
            raise ValueError(f"mean and std must be {spec.channels} numbers, got {spec.mean!r} and {spec.std!r}")
        state = kept["model"] if weights == "student" else kept.get("teacher")
        if weights == "teacher" and state is not None:
            state = {name.removeprefix("module."): x for name, x in state.items() if name != "_extra_state"}
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
