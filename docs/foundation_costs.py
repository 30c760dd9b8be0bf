"""Write the table of costs of the page on foundation models: ``python docs/foundation_costs.py``, a minute."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "examples"))

from support.command_line import read_settings  # noqa: E402
from support.cost import GIB, TERA, cost  # noqa: E402
from support.foundation import vit_spec  # noqa: E402
from vfm_uda import Settings  # noqa: E402

ONE, TWO_14, TWO_16 = "one pass at 1120", "518 + 518", "512 + 512"
PASSES: dict[str, dict[str, Any]] = {
    ONE: {"scales": 1, "inside": 1.1, "crop": (1024, 1024), "mirror": 1},
    TWO_14: {"scales": 2, "crop": (1036, 1036)},
    TWO_16: {"scales": 2, "crop": (1024, 1024)},
}
PATCHES = {ONE: "patch14_dinov2", TWO_14: "patch14_dinov2", TWO_16: "patch16_dinov3"}
ROWS = [
    (size, passes, rank)
    for size in ("base", "large")
    for passes in PASSES
    for rank in (0, 32)
]
NAMES = (
    "ViT",
    "passes",
    "trained",
    "TFLOP a step and image",
    "weights and AdamW, GiB",
    "activations, GiB an image",
)
HEAD = f"| {' | '.join(NAMES)} | batch 2, GiB |\n| --- | --- | --- | ---: | ---: | ---: | ---: |\n"


def row(size: str, passes: str, rank: int) -> str:
    """One line of the table, by the recipe ``hrda_vfm_lora`` but for what the line says."""
    settings: Any = read_settings(Settings, "hrda_vfm_lora", {})
    settings = replace(
        settings, encoder=f"vit_{size}_{PATCHES[passes]}", rank=rank, **PASSES[passes]
    )
    found = cost(vit_spec(settings), settings)
    fixed = found.total(0)
    figures = (found.step / TERA, fixed / GIB, found.kept / GIB, found.total(2) / GIB)
    kind = f"ViT-{size[0].upper()}/{PATCHES[passes][5:7]}"
    words = [kind, passes, "LoRA" if rank else "all", *(f"{x:.1f}" for x in figures)]
    return "| " + " | ".join(words) + " |"


def main() -> None:
    lines = [row(*line) for line in ROWS]
    (DOCS / "tables" / "foundation_costs.md").write_text(
        HEAD + "\n".join(lines) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
