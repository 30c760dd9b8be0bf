"""Weights in the published files' names: HRDA, DAFormer and MIC checkpoints, and ImageNet weights of the encoder."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrda_lib.models.mix_transformer import MixTransformer

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
]
for _i in range(4):
    _ENCODER += [
        (f"stages.{_i}.embed.", f"patch_embed{_i + 1}.proj."),
        (f"stages.{_i}.embed_norm.", f"patch_embed{_i + 1}.norm."),
        (f"stages.{_i}.blocks.", f"block{_i + 1}."),
        (f"stages.{_i}.norm.", f"norm{_i + 1}."),
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
    if isinstance(path_or_state_dict, Mapping):
        where, entries = "state dict", path_or_state_dict
    else:
        where, entries = str(path_or_state_dict), _read(Path(path_or_state_dict))
    entries = entries.get("state_dict", entries)
    if not isinstance(entries, Mapping):
        raise ValueError(f"{where}: state_dict must be a dictionary of tensors, got {type(entries).__name__}")
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
    if not isinstance(getattr(model, "encoder", None), MixTransformer):
        raise ValueError(f"model must be built by hrda() or daformer(), got {type(model).__name__}")
    two_scales = hasattr(model, "attention")
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


def _rename(name: str, pairs: list[tuple[str, str]]) -> str:
    for ours, published in pairs:
        if name.startswith(ours) or ours.startswith("."):
            name = name.replace(ours, published, 1)
    return name


def _copy(where: str, own: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
    problems = [f"missing {key}" for key in own if key not in given]
    problems += [f"unexpected {key}" for key in given if key not in own]
    for key in own.keys() & given.keys():
        if not isinstance(given[key], Tensor):
            problems.append(f"{key} must be a tensor, got {type(given[key]).__name__}")
        elif given[key].shape != own[key].shape:
            problems.append(f"{key} must be {tuple(own[key].shape)}, got {tuple(given[key].shape)}")
    if problems:
        raise ValueError(f"{where}: not the weights of this model: " + "; ".join(problems))
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(given[key])


def _read(path: Path) -> Mapping[str, Any]:
    try:
        entries = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused, for it is no file of tensors alone ({_first_line(error)})") from None
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a checkpoint ({_first_line(error)})") from None
    if not isinstance(entries, Mapping):
        raise ValueError(f"{path}: a checkpoint must hold a dictionary, got {type(entries).__name__}")
    return entries


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
