"""The table of the page of models: parameters, counted on networks without storage. Writes docs/tables/models.md."""

import torch
from documents import DOCS
from torch import nn

from hrda_lib.models import MixTransformer, ResNet101, daformer, deeplab_v2, hrda

TABLE = DOCS / "tables" / "models.md"
HEAD = (
    "| network | its encoder | parameters, million | of them encoder | stride of logits | 19 classes |",
    "| --- | --- | ---: | ---: | ---: | --- |",
)


def millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f}"


def rows() -> list[str]:
    found = []
    with torch.device("meta"):
        for name in (f"mit_b{i}" for i in range(6)):
            encoder = millions(MixTransformer(name))
            for title, model in (("hrda", hrda(name)), ("daformer", daformer(name))):
                call = f'`{title}("{name}")`'
                found.append(f"| {title} | {name} | {millions(model)} | {encoder} | 4 | {call} |")
        model, encoder = deeplab_v2(), millions(ResNet101())
        found.append(f"| DeepLab-v2 | resnet101 | {millions(model)} | {encoder} | 8 | `deeplab_v2()` |")
    return found


def text() -> str:
    return "\n".join((*HEAD, *rows())) + "\n"


if __name__ == "__main__":
    TABLE.write_text(text(), "utf-8")
