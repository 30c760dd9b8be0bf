"""Weights in the published files' names: HRDA, DAFormer and MIC checkpoints, and ImageNet weights of the encoder."""

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

from hrda_lib.fusion import ScaleAttentionHead
from hrda_lib.models.daformer_head import DAFormerHead
from hrda_lib.models.mix_transformer import MixTransformer
from hrda_lib.teacher import unwrap

# what a part of our names is called in the published files, applied from top to bottom
_ENCODER = [
    (".attention_norm.", ".norm1."),
    (".feed_forward_norm.", ".norm2."),
    (".attention.query.", ".attn.q."),
    (".attention.key_value.", ".attn.kv."),
    (".attention.out.", ".attn.proj."),
    (".attention.reduce.", ".attn.sr."),
    (".attention.reduce_norm.", ".attn.norm."),
    (".feed_forward.expand.", ".mlp.fc1."),
    (".feed_forward.depthwise.", ".mlp.dwconv.dwconv."),
    (".feed_forward.contract.", ".mlp.fc2."),
    *((f"stages.{_i}.embed.", f"patch_embed{_i + 1}.proj.") for _i in range(4)),
    *((f"stages.{_i}.embed_norm.", f"patch_embed{_i + 1}.norm.") for _i in range(4)),
    *((f"stages.{_i}.blocks.", f"block{_i + 1}.") for _i in range(4)),
    *((f"stages.{_i}.norm.", f"norm{_i + 1}.") for _i in range(4)),
]
# and in the files of the model hub, where key and value are two layers
_HUB = [
    (".attention_norm.", ".layer_norm_1."),
    (".feed_forward_norm.", ".layer_norm_2."),
    (".attention.query.", ".attention.self.query."),
    (".attention.key.", ".attention.self.key."),
    (".attention.value.", ".attention.self.value."),
    (".attention.out.", ".attention.output.dense."),
    (".attention.reduce.", ".attention.self.sr."),
    (".attention.reduce_norm.", ".attention.self.layer_norm."),
    (".feed_forward.expand.", ".mlp.dense1."),
    (".feed_forward.depthwise.", ".mlp.dwconv.dwconv."),
    (".feed_forward.contract.", ".mlp.dense2."),
    *((f"stages.{_i}.embed.", f"encoder.patch_embeddings.{_i}.proj.") for _i in range(4)),
    *((f"stages.{_i}.embed_norm.", f"encoder.patch_embeddings.{_i}.layer_norm.") for _i in range(4)),
    *((f"stages.{_i}.blocks.", f"encoder.block.{_i}.") for _i in range(4)),
    *((f"stages.{_i}.norm.", f"encoder.layer_norm.{_i}.") for _i in range(4)),
]
_HEAD = [
    ("classifier.", "conv_seg."),
    ("fuse.branches.", "fuse_layer.aspp_modules."),
    ("fuse.0.", "fuse_layer.conv."),
    ("fuse.1.", "fuse_layer.bn."),
    ("fuse.", "fuse_layer."),
    *((f"embeddings.{_i}.", f"embed_layers.{_i}.proj.") for _i in range(4)),
]


def load_reference_checkpoint(
    model: nn.Module, path_or_state_dict: str | Path | Mapping[str, Any], *, prefix: str | None = None
) -> None:
    """Load a published HRDA, DAFormer or MIC checkpoint into :func:`hrda` or :func:`daformer`.

    Files are read with ``weights_only=True``: code in them does not run.

    Args:
        model: what :func:`hrda` or :func:`daformer` built, of the file's encoder and number of classes.
        path_or_state_dict: the file, or what ``torch.load`` made of it.
        prefix: "model" for the student, "ema_model" for the teacher; None: "model" if the file has it, else
            "ema_model", else names without a prefix.

    Raises:
        ValueError: the file cannot be read safely, or its entries are not the model's: all that are missing, unexpected
            or of another shape are listed.
    """
    if prefix not in (None, "model", "ema_model"):
        raise ValueError(f"prefix must be 'model', 'ema_model' or None, got {prefix!r}")
    where, entries = _entries("path_or_state_dict", path_or_state_dict)
    found = [name for name in ("model", "ema_model") if any(key.startswith(f"{name}.") for key in entries)]
    chosen = prefix or next(iter(found), "")
    if prefix and prefix not in found:
        raise ValueError(f"{where}: no entry starts with {prefix!r}; it has {found or 'names without a prefix'}")
    start = f"{chosen}." if chosen else ""
    bare = {key.removeprefix(start): value for key, value in entries.items() if key.startswith(start)}
    _copy(where, to_reference_state_dict(model), bare)


def to_reference_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's entries under the published names; the tensors share storage with the model's.

    Raises:
        ValueError: the model is not one of :func:`hrda` or :func:`daformer`.
    """
    model = unwrap(model) if isinstance(model, nn.Module) else model
    encoder, decoder, attention = (getattr(model, name, None) for name in ("encoder", "decoder", "attention"))
    parts = isinstance(encoder, MixTransformer) and isinstance(decoder, DAFormerHead)
    if not parts or not isinstance(attention, ScaleAttentionHead | float | int | None):
        raise ValueError(
            f"model must be built by hrda() or daformer(), got {type(model).__name__}; of an EMATeacher pass .module"
        )
    two_scales = attention is not None
    renamed = {}
    for name, tensor in model.state_dict().items():
        part, rest = name.split(".", 1)
        if part == "encoder":
            published = f"backbone.{_rename(rest, _ENCODER)}"
        elif part == "attention":
            published = f"decode_head.scale_attention.{_rename(rest, _HEAD)}"
        else:
            published = f"decode_head.{'head.' if two_scales else ''}{_rename(rest, _HEAD)}"
        # the published embeddings are linear layers, ours 1 x 1 convolutions
        renamed[published] = tensor.flatten(1) if ".embed_layers." in published and tensor.dim() == 4 else tensor
    return renamed


def load_encoder_weights(encoder: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Load ImageNet weights into a :class:`MixTransformer`.

    The code of this library is Apache-2.0; the published *weights* are not: they carry their publisher's licence,
    which is for non-commercial use.

    Args:
        encoder: a Mix Transformer of the file's size, such as ``hrda("mit_b5").encoder``.
        source: a file as the SegFormer authors publish it (``mit_b5.pth``), or in the model hub's naming
            (``model.safetensors`` or ``pytorch_model.bin``); or a name on the hub such as "nvidia/mit-b5", which is
            downloaded once (``pip install huggingface_hub safetensors``); or the entries themselves. Those of a
            classifier or decoder are left out.

    Raises:
        ValueError: the source cannot be found or read safely, or its entries are not the encoder's: all that are
            missing, unexpected or of another shape are listed.
    """
    encoder = unwrap(encoder) if isinstance(encoder, nn.Module) else encoder
    if not isinstance(encoder, MixTransformer):
        raise ValueError(f"encoder must be a MixTransformer, got {type(encoder).__name__}; pass model.encoder")
    # a dot after the slash: a file
    if isinstance(source, str) and re.fullmatch(r"\w[\w.-]{0,95}/\w[\w-]{0,95}", source) and not Path(source).exists():
        source = _download(source)
    where, entries = _entries("source", source)
    given = {
        key.removeprefix("segformer."): entry
        for key, entry in entries.items()
        if not key.startswith(("head.", "classifier.", "decode_head."))
    }
    own: dict[str, Tensor] = {}
    if any(key.startswith("encoder.") for key in given):
        for name, tensor in encoder.state_dict().items():
            parts = (
                dict(zip((".key.", ".value."), tensor.chunk(2), strict=True)) if ".key_value." in name else {"": tensor}
            )
            own |= {_rename(name.replace(".key_value.", part), _HUB): x for part, x in parts.items()}
    else:
        own = {_rename(name, _ENCODER): tensor for name, tensor in encoder.state_dict().items()}
    _copy(where, own, given)


def _rename(name: str, pairs: list[tuple[str, str]]) -> str:
    for ours, published in pairs:
        if name.startswith(ours) or ours.startswith("."):
            name = name.replace(ours, published, 1)
    return name


def _copy(where: str, own: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
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


def _entries(name: str, source: str | Path | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
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
        raise ValueError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:  # torch's own text advises to run the code in the file
        name = re.search(r"GLOBAL (\S+)", str(error))
        cause = re.search(r"WeightsUnpickler error: +(\S.*)", str(error))
        reason = f"it asks for {name[1]}" if name else cause[1] if cause else "it is not of torch.save"
        raise ValueError(
            f"{path}: refused, for it holds more than tensors ({reason}); pass a file of torch.save or .safetensors"
        ) from None
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a checkpoint ({_first_line(error)})") from None


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


def _download(name: str) -> Path:
    """The weights of a hub repository, from the local cache if they are there."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError(
            f"{name}: no such file; to fetch it from the hub: pip install huggingface_hub safetensors"
        ) from None
    reason = ""
    for cached in (True, False):
        for file in ("model.safetensors", "pytorch_model.bin"):
            try:
                return Path(hf_hub_download(name, file, local_files_only=cached))
            except EntryNotFoundError as error:
                reason = _first_line(error)
                if isinstance(error, LocalEntryNotFoundError) and not cached:
                    break  # the hub cannot be reached: nor can it for the other file
            except Exception as error:
                reason = _first_line(error)
                break
    raise ValueError(
        f"{name}: no such file, and not to be had from the hub ({reason}); where there is no network, download "
        f"model.safetensors or pytorch_model.bin from https://huggingface.co/{name} elsewhere, and pass its path"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
