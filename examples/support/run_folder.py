"""What a run leaves behind: ``config.json``, a line of ``metrics.jsonl`` a step, and the weights in ``last.pt``."""

import importlib.metadata
import json
import os
import pickle
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from support.networks import Network, NetworkSpec

Weights = Literal["student", "teacher"]
WEIGHTS = get_args(Weights)
PACKAGES = ("hrda_lib", "torchvision", "timm", "numpy", "pillow")


class RunFolder:
    """A folder for one run of a network."""

    def __init__(self, path: Path, spec: NetworkSpec) -> None:
        self.path, self.spec, self.steps = path, spec, 0

    def start(self, settings: Mapping[str, Any]) -> None:
        """A new ``config.json`` (settings, network and versions) and an empty ``metrics.jsonl``."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "result.json").unlink(missing_ok=True)  # until it is there again, the run is not complete
        versions = {"python": platform.python_version(), "torch": torch.__version__}  # with torch's build
        for package in PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        config = {**settings, "network": asdict(self.spec), "versions": versions}
        (self.path / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
        (self.path / "metrics.jsonl").write_text("")

    def log(self, **values: Tensor | float) -> dict[str, float]:
        """A line of ``metrics.jsonl``, with the number of steps before it; returns the numbers."""
        numbers = {name: float(value) for name, value in values.items()}
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.steps, **numbers}) + "\n")
        self.steps += 1
        return numbers

    def save(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """``last.pt``: weights, and what :func:`load` needs to build their network. Never half-written."""
        kept = {"model": student.state_dict(), "network": asdict(self.spec), "step": self.steps}
        if teacher is not None:
            kept["teacher"] = teacher.state_dict()
        part = self.path / f"last.pt.{os.getpid()}.part"
        try:
            torch.save(kept, part)
            part.replace(self.path / "last.pt")
        except RuntimeError as error:  # torch's name for a full disk
            text = str(error).splitlines()[0]
            raise OSError(f"{self.path}/last.pt: cannot be written, is the disk full? ({text})") from None
        finally:
            part.unlink(missing_ok=True)

    def kept_result(self, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
        """What an earlier call with the same settings measured; None where there is none, or a part is damaged.

        Raises:
            ValueError: the folder holds a run of other settings.
        """
        try:
            kept: dict[str, Any] = json.loads((self.path / "result.json").read_text())
            whole = kept["settings"] and kept["steps"] and kept["seconds"] and kept["classes"]["fused"]
            read_metrics(self.path)
            load(self.path)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not whole or kept["settings"] == json.loads(json.dumps(settings)):
            return kept if whole else None
        if not overwrite:
            raise ValueError(
                f"{self.path}: holds a run of other settings or data; choose another --out, or --overwrite"
            )
        return None

    def keep_result(self, result: Mapping[str, Any]) -> None:
        """``result.json``; with it the run is complete."""
        part = self.path / f"result.json.{os.getpid()}.part"
        part.write_text(json.dumps(result, allow_nan=False) + "\n")
        part.replace(self.path / "result.json")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


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
    file = run / "last.pt"
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
    if isinstance(error, pickle.UnpicklingError):  # its own text advises to run the code in the file
        return ValueError(f"{file}: cannot be loaded, for it holds more than weights, or is none of torch.save")
    text = " ".join(str(error).split()) or "it ends too early"
    return ValueError(f"{file}: cannot be loaded ({type(error).__name__}: {text})")
