"""Networks of the papers, small enough for tests."""

from typing import Any

from torch import Tensor, nn

from hrda_lib.models import MixTransformerSize, hrda

TINY = MixTransformerSize((8, 16, 20, 32), (1, 1, 2, 1))


def tiny(**settings: Any) -> nn.Module:
    return hrda(TINY, 5, embed_dims=8, attention_embed_dims=8, detail_size=(32, 32), **settings)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def prefixed(prefix: str, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": entry for name, entry in entries.items()}
