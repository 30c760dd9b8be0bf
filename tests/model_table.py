"""The table of the page of models: counted on networks without storage. Writes docs/tables/models.md."""

import sys
from typing import Any

import torch
from documents import DOCS
from torch import nn

sys.path.insert(0, str(DOCS.parent / "examples"))
from hrda_lib import models
from support.cost import counting

TABLE = DOCS / "tables" / "models.md"
HEAD = (
    "| network, for 19 classes | its encoder | parameters, million | of them encoder | weights, MB | kept, GB an image "
    "| stride of logits |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
)


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def kept(model: nn.Module, side: int) -> float:
    """Bytes that a training pass of one image keeps for its backward pass, in float32."""
    with counting(model.train(), set()) as found:
        model(torch.empty(1, 3, side, side, device="meta"))
    return sum(found.values())


def row(call: str, encoder: str, side: int, stride: int) -> str:
    with torch.device("meta"):
        model: Any = eval(call, vars(models))
    of_encoder = millions(model.encoder)
    size = f"{millions(model):.2f} | {of_encoder:.2f} | {4 * millions(model):.0f} | {kept(model, side) / 1e9:.1f}"
    return f"| `{call}` | {encoder} | {size} | {stride} |"


def rows() -> list[str]:
    found = []
    for name in (f"mit_b{i}" for i in range(6)):
        found.append(row(f'hrda("{name}")', name, 1024, 4))
        found.append(row(f'daformer("{name}")', name, 512, 4))
    return [*found, row("deeplab_v2()", "resnet101", 512, 8)]


def text() -> str:
    return "\n".join((*HEAD, *rows())) + "\n"


if __name__ == "__main__":
    TABLE.write_text(text(), "utf-8")
