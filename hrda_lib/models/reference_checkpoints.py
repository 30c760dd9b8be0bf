"""Published HRDA, DAFormer and MIC checkpoints, in and out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hrda_lib._modules import unwrap
from hrda_lib.attention_head import ScaleAttentionHead
from hrda_lib.models.daformer_head import DAFormerHead
from hrda_lib.models.encoder_weights import ENCODER_NAMES
from hrda_lib.models.mix_transformer import MixTransformer
from hrda_lib.models.weight_files import copy_entries, read_entries, renamed

# what a part of a head's names is called in the published files, applied from top to bottom
_HEAD_NAMES = [
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
    where, entries = read_entries("path_or_state_dict", path_or_state_dict)
    found = [name for name in ("model", "ema_model") if any(key.startswith(f"{name}.") for key in entries)]
    chosen = prefix or next(iter(found), "")
    if prefix and prefix not in found:
        raise ValueError(f"{where}: no entry starts with {prefix!r}; it has {found or 'names without a prefix'}")
    start = f"{chosen}." if chosen else ""
    bare = {key.removeprefix(start): value for key, value in entries.items() if key.startswith(start)}
    copy_entries(where, to_reference_state_dict(model), bare)


def to_reference_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's entries under the published names; the tensors share storage with the model's.

    Args:
        model: of :func:`hrda` or :func:`daformer`, or one of theirs inside a wrapper.

    Returns:
        Tensors by name, as the released code saves them.

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
    entries = {}
    for name, tensor in model.state_dict().items():
        part, rest = name.split(".", 1)
        if part == "encoder":
            published = f"backbone.{renamed(rest, ENCODER_NAMES)}"
        elif part == "attention":
            published = f"decode_head.scale_attention.{renamed(rest, _HEAD_NAMES)}"
        else:
            published = f"decode_head.{'head.' if two_scales else ''}{renamed(rest, _HEAD_NAMES)}"
        # the published embeddings are linear layers, ours 1 x 1 convolutions
        entries[published] = tensor.flatten(1) if ".embed_layers." in published and tensor.dim() == 4 else tensor
    return entries
