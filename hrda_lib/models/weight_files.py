"""Files of weights: read safely, and copied into a model as a whole or not at all."""

import contextlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion


def renamed(name: str, pairs: list[tuple[str, str]]) -> str:
    """``name`` with each of our parts in turn replaced by what it is called in a file."""
    for ours, published in pairs:
        if name.startswith(ours) or ours.startswith("."):
            name = name.replace(ours, published, 1)
    return name


def copy_entries(where: str, own: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
    """Write ``given`` into ``own``, all entries or none."""
    missing = [f"missing {key}" for key in own if key not in given]
    unexpected = [f"unexpected {key}" for key in given if key not in own]
    found = [key for key in own if key in given]
    wrong = [f"{key} {problem}" for key in found if (problem := _problem(own[key], given[key]))]
    if missing or unexpected or wrong:
        counts = f"{len(missing)} entries missing, {len(unexpected)} unexpected, {len(wrong)} wrong"
        if not found and given:
            counts += f"; no name is one of the model's, the first is {next(iter(given))}"
        raise ValueError(
            f"{where}: not the weights of this model ({counts}): " + "; ".join(missing + unexpected + wrong)
        )
    with torch.no_grad():
        # copies first: entries may share memory with the model's own
        converted = {key: given[key].to(own[key], copy=True) for key in found}
        for key, tensor in converted.items():
            own[key].copy_(tensor)


def _problem(own: Tensor, entry: Any) -> str:
    """What is wrong with an entry of the file; empty if nothing is."""
    if own.is_meta:
        return "of the model is on the meta device; give it memory first: model.to_empty(device='cpu')"
    if not isinstance(entry, Tensor) or nn.parameter.is_lazy(entry):
        return f"must be a tensor, got {type(entry).__name__}"
    if entry.shape != own.shape:
        return f"must be {tuple(own.shape)}, got {tuple(entry.shape)}"
    if entry.layout != torch.strided or entry.is_meta or entry.is_quantized:
        return f"must be a dense tensor with values, got {entry.layout} of {entry.dtype} on {entry.device}"
    if entry.is_floating_point() != own.is_floating_point() or entry.is_complex() or entry.dtype == torch.bool:
        return f"must be a {'floating-point' if own.is_floating_point() else 'integer'} tensor, got {entry.dtype}"
    if own.is_floating_point() and not entry.to(own.dtype).isfinite().all():
        return f"must be finite in {own.dtype}"
    return ""


def read_entries(name: str, source: str | Path | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """What to call the source in an error, and its entries by name."""
    if not isinstance(source, str | Path | Mapping):
        raise ValueError(f"{name} must be a path or a dictionary of tensors, got {type(source).__name__}")
    where, content = ("state dict", source) if isinstance(source, Mapping) else (str(source), _read(Path(source)))
    entries = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(entries, Mapping):
        raise ValueError(f"{where}: a checkpoint must hold a dictionary of tensors, got {type(entries).__name__}")
    return where, {str(key): entry for key, entry in entries.items()}


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        with _numbers_allowed():
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {_beside(path)}") from None
    except pickle.UnpicklingError as error:  # torch's own text advises to run the code in the file
        name = re.search(r"GLOBAL (\S+)", str(error))
        cause = re.search(r"WeightsUnpickler error: +(\S.*)", str(error))
        reason = f"it asks for {name[1]}" if name else cause[1] if cause else "it is not of torch.save"
        raise ValueError(
            f"{path}: refused, for it holds more than tensors ({reason}); pass a file of torch.save or .safetensors"
        ) from None
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a checkpoint ({first_line(error)})") from None


def _beside(path: Path) -> str:
    """What a missing file may have been."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    endings = (".pth", ".pt", ".bin", ".safetensors", ".ckpt")
    found: list[str] = []
    with contextlib.suppress(OSError):  # of a folder that cannot be listed
        found = sorted(file.name for file in path.parent.iterdir() if file.suffix in endings)
    if not found:
        return f"no file of weights lies in {path.parent.resolve()}; give its path, or download it first"
    return f"in {path.parent.resolve()} lie {', '.join(map(repr, found[:5]))}{' and others' if found[5:] else ''}"


def _numbers_allowed() -> contextlib.AbstractContextManager[Any]:
    """A training run's notes beside the weights may hold numpy's numbers, which are safe, but refused by torch."""
    # before torch 2.7 it cannot be told what numpy 1 called them: such a file is refused
    if TorchVersion(torch.__version__) < TorchVersion("2.7"):
        return contextlib.nullcontext()
    scalar: Any = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [np.dtype, *(type(np.dtype(name)) for name in ("?", "u1", "f2", "f4", "f8", "i4", "i8"))]
    allowed += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # numpy 1 and numpy 2
    return torch.serialization.safe_globals(allowed)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError("it needs safetensors: pip install safetensors") from None
    return load_file(path)


def first_line(error: Exception) -> str:
    """What an error says first, or its type where it says nothing, or advises to run the code in a file."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return type(error).__name__ if "weights_only" in line else line
