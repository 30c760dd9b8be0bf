"""ImageNet weights of the Mix Transformer, in the published files' names and in the model hub's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hrda_lib._modules import unwrap
from hrda_lib.models.mix_transformer import MixTransformer
from hrda_lib.models.weight_files import copy_entries, first_line, read_entries, renamed

# what a part of our names is called in the published files, applied from top to bottom
ENCODER_NAMES = [
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
_HUB_NAMES = [
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
# and in the state_dict() of a model of transformers 5 in memory, which is not what it writes to files
_LIVE_NAMES = [
    (".attention_norm.", ".layernorm_before."),
    (".feed_forward_norm.", ".layernorm_after."),
    (".attention.query.", ".attention.q_proj."),
    (".attention.key.", ".attention.k_proj."),
    (".attention.value.", ".attention.v_proj."),
    (".attention.out.", ".attention.o_proj."),
    (".attention.reduce.", ".attention.sequence_reduction.sequence_reduction."),
    (".attention.reduce_norm.", ".attention.sequence_reduction.layer_norm."),
    (".feed_forward.expand.", ".mlp.fc1."),
    (".feed_forward.depthwise.", ".mlp.dwconv.dwconv."),
    (".feed_forward.contract.", ".mlp.fc2."),
    *((f"stages.{_i}.embed.", f"stages.{_i}.patch_embeddings.proj.") for _i in range(4)),
    *((f"stages.{_i}.embed_norm.", f"stages.{_i}.patch_embeddings.layer_norm.") for _i in range(4)),
    *((f"stages.{_i}.norm.", f"stages.{_i}.layer_norm.") for _i in range(4)),
]


def load_encoder_weights(encoder: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Load ImageNet weights into a :class:`MixTransformer`.

    The code of this library is Apache-2.0; the published *weights* are not: they carry their publisher's licence,
    which is for non-commercial use.

    Args:
        encoder: a Mix Transformer of the file's size, such as ``hrda("mit_b5").encoder``.
        source: a file as the SegFormer authors publish it (``mit_b5.pth``), or in the model hub's naming
            (``model.safetensors`` or ``pytorch_model.bin``); or a name on the hub such as "nvidia/mit-b5", which is
            downloaded once (``pip install huggingface_hub safetensors``); or the entries themselves, also the
            ``state_dict()`` of a Segformer of transformers. Those of a classifier or decoder are left out.

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
    where, entries = read_entries("source", source)
    given = {
        key.removeprefix("segformer."): entry
        for key, entry in entries.items()
        if not key.startswith(("head.", "classifier.", "decode_head."))
    }
    copy_entries(where, _own(encoder, given), given)


def _own(encoder: MixTransformer, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """The encoder's entries under the names that the given ones have."""
    if any(key.startswith("encoder.") for key in given):
        names = _HUB_NAMES
    elif any(".attention.q_proj." in key for key in given):
        names = _LIVE_NAMES
    else:
        return {renamed(name, ENCODER_NAMES): tensor for name, tensor in encoder.state_dict().items()}
    own: dict[str, Tensor] = {}
    for name, tensor in encoder.state_dict().items():
        parts = dict(zip((".key.", ".value."), tensor.chunk(2), strict=True)) if ".key_value." in name else {"": tensor}
        own |= {renamed(name.replace(".key_value.", part), names): x for part, x in parts.items()}
    return own


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
                reason = first_line(error)
                if isinstance(error, LocalEntryNotFoundError) and not cached:
                    break  # the hub cannot be reached: nor can it for the other file
            except Exception as error:
                reason = first_line(error)
                break
    raise ValueError(
        f"{name}: no such file, and not to be had from the hub ({reason}); where there is no network, download "
        f"model.safetensors or pytorch_model.bin from https://huggingface.co/{name} elsewhere, and pass its path"
    )
