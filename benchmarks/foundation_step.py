"""A self-training step around plain ViTs of timm, random weights, on a GPU with 24 GiB to use: milliseconds and memory.

    python benchmarks/foundation_step.py [--limit 24]
    python benchmarks/foundation_step.py --tiny             tiny networks on the CPU: that it runs

Batch 2, three losses in bf16, the teacher's labels and average, AdamW's step; one JSON line a configuration. Networks
are those of examples/vfm_uda.py: context and detail with a learned attention, or one pass over the crop at 1120 pixels.
"""

import argparse
import gc
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

sys.path.append(str(Path(__file__).parent.parent / "examples"))

from hrda_lib import EMATeacher, MultiResSegmenter, SelfTraining, StrongAugment, patch_mask
from hrda_lib.lora import merge_lora
from hrda_lib.optim import parameter_groups
from recipe_step import measure
from support.foundation import VitSpec, adapt_by_lora, mirrored

CLASSES, GIB = tuple(str(i) for i in range(19)), 2**30
SIZES = {"base": "vit_base_patch14_dinov2", "large": "vit_large_patch14_dinov2"}
DINOV3 = {"base": "vit_base_patch16_dinov3", "large": "vit_large_patch16_dinov3"}
RUNS = (
    [(name, "hrda", arm) for arm in ("lora", "full") for name in SIZES.values()]
    + [(name, "one", arm) for arm in ("full", "lora") for name in SIZES.values()]
    + [(name, "hrda", "lora") for name in DINOV3.values()]
    + [(SIZES["large"], "hrda", "lora, frozen in float32")]
)


def build(name: str, recipe: str, arm: str, device: torch.device, *, tiny: bool) -> tuple[nn.Module, int]:
    """The student, and the side of the crop."""
    patch = 16 if "patch16" in name else 14
    side = 2 * (2 * patch if tiny else 518 // patch * patch) if recipe == "hrda" else 56 if tiny else 1024
    spec = VitSpec(CLASSES, (side // 2, side // 2), encoder=name, scales=2 if recipe == "hrda" else 1, inside=1.1)
    if tiny:
        spec = replace(spec, encoder="vit_tiny_patch16_224", patch=patch, depth=4, head=16)
    student = spec.build()
    if arm.startswith("lora"):
        adapt_by_lora(student, 4 if tiny else 32)
        for parameter in student.parameters():
            if not parameter.requires_grad and "float32" not in arm:
                parameter.data = parameter.data.bfloat16()
    return student.to(device), side


class Step:
    """The losses of a step, and what follows."""

    def __init__(self, student: nn.Module, recipe: str, side: int, device: torch.device) -> None:
        self.student, self.device, self.finite = student, device, True
        self.teacher = EMATeacher(student, share_frozen=True)
        self.training = SelfTraining(
            student,
            self.teacher if recipe == "hrda" else partial(mirrored, self.teacher),
            threshold=0.06,  # random weights are never sure; so every term has gradients
            generator=torch.Generator().manual_seed(0),
            masking=partial(patch_mask, block=min(64, side // 4)),
            augment=StrongAugment(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        )
        self.optimizer = torch.optim.AdamW(parameter_groups(student, lr=1e-5, head_factor=1.0))
        source, target = torch.randn(2, 2, 3, side, side).to(device)
        cells = torch.randint(len(CLASSES), (2, 1, 8, 8)).float()
        self.batch = source, interpolate(cells, size=(side, side)).long()[:, 0].to(device), target

    def __call__(self) -> None:
        self.teacher.update(self.student)
        terms = self.training.losses(*self.batch)
        for _ in range(3):
            with torch.autocast(self.device.type, torch.bfloat16):
                _, loss = next(terms)
            loss.backward()
            self.finite &= math.isfinite(loss.item())
        self.optimizer.step()
        self.optimizer.zero_grad()


def prediction(student: MultiResSegmenter, device: torch.device, *, tiny: bool) -> Callable[[], Tensor]:
    """Of a whole image of Cityscapes' size, adapters merged."""
    if any("lora_" in name for name, _ in student.named_parameters()):
        merge_lora(student)
    image = torch.randn(1, 3, *((64, 96) if tiny else (1024, 2048))).to(device)

    def predict() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return student.predict(image, batch_size=4)

    return predict


def figures(name: str, recipe: str, arm: str, device: torch.device, *, tiny: bool) -> dict[str, object]:
    torch.manual_seed(0)
    student, side = build(name, recipe, arm, device, tiny=tiny)
    step = Step(student, recipe, side, device)
    found = measure(step, device, 1 if tiny else 8) | {"finite": step.finite}
    if isinstance(student, MultiResSegmenter):
        found["predict_ms"] = measure(prediction(student, device, tiny=tiny), device, 2)["ms"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--limit", type=float, default=24.0, help="GiB")
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    torch.backends.cuda.matmul.allow_tf32 = True
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(options.limit * GIB / total)
    for name, recipe, arm in RUNS:
        try:
            found = figures(name, recipe, arm, device, tiny=options.tiny)
        except torch.OutOfMemoryError:
            found = {"why": "out of memory"}
        print(json.dumps({"encoder": name, "recipe": recipe, "arm": arm, **found}), flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
