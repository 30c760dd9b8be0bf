"""What a run leaves behind: settings, metrics and a checkpoint."""

import importlib.metadata
import json
import os
import pickle
import platform
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

import hrda_lib
from hrda_lib import MultiResSegmenter
from hrda_lib.models import EncoderDecoder
from support.networks import build

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for images in [0, 1]
Weights = Literal["student", "teacher"]
WEIGHTS = get_args(Weights)


def normalize(
    images: torch.Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> torch.Tensor:
    """uint8 (B, 3, H, W), or with ``mean`` and ``std`` of their channels images of any kind, to what networks take."""
    measured = mean is not None and std is not None
    pair = (mean, std) if measured else (MEAN, STD)
    shift, scale = (torch.tensor(value, device=images.device).view(-1, 1, 1) for value in pair)
    return ((images.float() if measured else images.float() / 255) - shift) / scale


def reason(error: BaseException) -> str:
    """The line of an error that says what is wrong; one from a loader's worker ends with it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if not lines[0].startswith("Caught "):
        return lines[0]
    return lines[-1].removeprefix(f"{type(error).__name__}: ")


def start_run(run: Path, settings: dict[str, Any]) -> None:
    """A new ``config.json`` (settings, seed and versions) and an empty ``metrics.jsonl``."""
    run.mkdir(parents=True, exist_ok=True)
    versions = {"hrda_lib": hrda_lib.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("torchvision", "timm", "numpy", "pillow"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    text = json.dumps({**settings, "versions": versions}, indent=2, default=str)
    (run / "config.json").write_text(text + "\n")
    (run / "metrics.jsonl").write_text("")


def write_metrics(run: Path, values: dict[str, Any]) -> None:
    """One more line of ``metrics.jsonl``."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def save(run: Path, model: nn.Module, network: dict[str, Any], step: int, teacher: nn.Module | None = None) -> None:
    """``last.pt``: weights, and what :func:`load` needs to build their network. Never half-written."""
    part = run / f"last.pt.{os.getpid()}.part"
    kept = {"model": model.state_dict(), "network": network, "step": step}
    if teacher is not None:
        kept["teacher"] = teacher.state_dict()
    try:
        torch.save(kept, part)
        os.replace(part, run / "last.pt")
    except RuntimeError as error:  # torch's name for a full disk
        raise OSError(
            f"{run / 'last.pt'}: cannot be written, is the disk full? ({str(error).splitlines()[0]})"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def load_weights(model: nn.Module, file: Path) -> None:
    """Start from the weights of another run's ``last.pt``.

    Raises:
        ValueError: the file is not one of ours, or of another network.
    """
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["model"])
    except Exception as error:
        raise _unreadable(file, error) from None


def load(
    run: Path, weights: Weights = "student", *, pictures: bool = True
) -> tuple[MultiResSegmenter | EncoderDecoder, dict[str, Any]]:
    """The network of a run in eval mode, and its settings: encoder, class_names, detail_size, ignore.

    Raises:
        ValueError: there is no checkpoint, it is not one of ours, holds no teacher where its weights are asked for, or
            ``pictures`` of 8 bits are not what it takes.
    """
    file = run / "last.pt"
    if not file.is_file():
        raise ValueError(
            f"{file}: no such file; a run folder of own_data.py, or an arm of gta2cityscapes.py, is expected"
        )
    try:
        # mapped: of student and teacher, only the one that is asked for is read
        kept = torch.load(str(file), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        network = kept["network"]
        if ":" in network["encoder"]:
            raise ValueError(f"encoder {network['encoder']!r} is no name of timm's own; a file must not ask a hub")
        state = kept["model"] if weights == "student" else kept.get("teacher")
        model = build(
            network["encoder"],
            len(network["class_names"]),
            detail_size=tuple(network["detail_size"]),
            model=network.get("model", "small"),
            attention=network.get("attention"),
            channels=network.get("channels", 3),
        )
        if state is not None:
            model.load_state_dict(state)
    except Exception as error:
        raise _unreadable(file, error) from None
    if state is None:
        raise ValueError(f"{file}: holds no teacher, which a run keeps only if it adapts to a target; take the student")
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise ValueError(f"{file}: holds weights that are not finite")
    if pictures and "read" in network:
        raise ValueError(f"{file}: takes no pictures, but what {network['read']} reads; predict.py does that")
    return model.eval(), network


def _unreadable(file: Path, error: Exception) -> ValueError:
    if isinstance(error, pickle.UnpicklingError):  # its own text advises to run the code in the file
        return ValueError(f"{file}: cannot be loaded, for it holds more than weights, or is none of torch.save")
    text = " ".join(str(error).split()) or "it ends too early"
    return ValueError(f"{file}: cannot be loaded ({type(error).__name__}: {text})")
