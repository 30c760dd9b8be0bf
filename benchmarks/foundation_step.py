"""A self-training step around plain ViTs of timm, random weights, on a GPU with 24 GiB to use: milliseconds and memory.

    python benchmarks/foundation_step.py [--limit 24]
    python benchmarks/foundation_step.py --tiny             tiny networks on the CPU: that it runs

Batch 2, three losses in bf16, the teacher's labels and average, AdamW's step; one JSON line a configuration. Configured
as examples/vfm_uda.py is: context and detail with a learned attention, or one pass over the crop resized to 1120.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import time
from functools import partial

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hrda_lib import EMATeacher, MultiResSegmenter, ScaleAttentionHead, SelfTraining, StrongAugment, patch_mask
from hrda_lib.lora import add_lora, merge_lora
from hrda_lib.models import DeconvHead, EncoderDecoder, ViTFeatures
from hrda_lib.optim import parameter_groups

CLASSES, GIB = 19, 2**30
SIZES = {"base": "vit_base_patch14_dinov2", "large": "vit_large_patch14_dinov2"}
DINOV3 = {"base": "vit_base_patch16_dinov3", "large": "vit_large_patch16_dinov3"}
RUNS = (
    [(name, "hrda", arm) for arm in ("lora", "full") for name in SIZES.values()]
    + [(name, "one", arm) for arm in ("full", "lora") for name in SIZES.values()]
    + [(name, "hrda", "lora") for name in DINOV3.values()]
    + [(SIZES["large"], "hrda", "lora, frozen in float32")]
)


class Upsampled(nn.Module):
    """Four times as many cells, as the decoder gives them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: list[Tensor]) -> Tensor:
        return interpolate(self.inner(features), scale_factor=4, mode="bilinear")


class Resizing(nn.Module):
    """Images resized to ``inside`` pixels before the encoder."""

    def __init__(self, inner: ViTFeatures, inside: int) -> None:
        super().__init__()
        self.inner, self.inside, self.channels = inner, inside, inner.channels

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.inner(interpolate(images, size=(self.inside, self.inside), mode="bilinear"))


def build(name: str, recipe: str, arm: str, device: torch.device, *, tiny: bool) -> tuple[nn.Module, int]:
    """The student, and the side of the crop."""
    patch = 16 if "patch16" in name else 14
    small = {"embed_dim": 48, "depth": 4, "num_heads": 3} if tiny else {}
    own = {} if "dinov3" in name else {"dynamic_img_size": True}
    encoder = ViTFeatures(timm.create_model(name, num_classes=0, **small, **own))
    if arm.startswith("lora"):
        add_lora(encoder, rank=4 if tiny else 32)
        for label, parameter in encoder.named_parameters():
            if "lora_" not in label:
                parameter.requires_grad_(False)
                parameter.data = parameter.data if "float32" in arm else parameter.data.bfloat16()
    head = DeconvHead(encoder.channels, CLASSES)
    if recipe == "one":
        side, inside = (56, 70) if tiny else (1024, 1120)
        return EncoderDecoder(Resizing(encoder, inside), head).to(device), side
    detail = 2 * patch if tiny else 518 // patch * patch
    attention = Upsampled(ScaleAttentionHead(encoder.channels, CLASSES, embed_dims=256))
    size = {"detail_size": detail, "output_stride": patch / 4, "multiple_of": patch}
    return MultiResSegmenter(encoder, head, attention, **size).to(device), 2 * detail


def labels_of(teacher: EMATeacher, recipe: str, images: Tensor) -> object:
    """Overlapping windows of two scales, or the mean of an image's and its mirror image's softmax."""
    if recipe == "hrda":
        return teacher(images, detail="windows")
    return ((teacher(images).softmax(1) + teacher(images.flip(-1)).flip(-1).softmax(1)) / 2).log()


def measure(name: str, recipe: str, arm: str, device: torch.device, *, tiny: bool) -> dict[str, object]:
    torch.manual_seed(0)
    student, side = build(name, recipe, arm, device, tiny=tiny)
    teacher = EMATeacher(student, share_frozen=True)
    training = SelfTraining(
        student,
        partial(labels_of, teacher, recipe),
        threshold=0.06,  # random weights are never sure; so every term has gradients
        generator=torch.Generator().manual_seed(0),
        masking=partial(patch_mask, block=14 if tiny else 64),
        augment=StrongAugment(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    )
    optimizer = torch.optim.AdamW(parameter_groups(student, lr=1e-5, head_factor=1.0))
    source, target = torch.randn(2, 2, 3, side, side).to(device)
    cells = torch.randint(CLASSES, (2, 1, 8, 8)).float()
    labels = interpolate(cells, size=(side, side)).long()[:, 0].to(device)
    times, finite = list[float](), True
    for _ in range(3 if tiny else 11):
        start = time.perf_counter()
        teacher.update(student)
        terms = training.losses(source, labels, target)
        for _ in range(3):
            with torch.autocast(device.type, torch.bfloat16):
                _, loss = next(terms)
            loss.backward()
            finite &= math.isfinite(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    found: dict[str, object] = {"ms": statistics.median(times[3:] or times), "finite": finite}
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    if recipe == "hrda":
        found["predict_ms"] = predicted(student, device, tiny=tiny)
    return found


def predicted(student: nn.Module, device: torch.device, *, tiny: bool) -> float:
    """Milliseconds for a whole image of Cityscapes' size, adapters merged."""
    assert isinstance(student, MultiResSegmenter)
    if any("lora_" in name for name, _ in student.named_parameters()):
        merge_lora(student)
    image, times = torch.randn(1, 3, *((64, 96) if tiny else (1024, 2048))).to(device), list[float]()
    for _ in range(3):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            student.predict(image, batch_size=4)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


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
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            found = measure(name, recipe, arm, device, tiny=options.tiny)
        except torch.OutOfMemoryError:
            found = {"why": "out of memory"}
        print(json.dumps({"encoder": name, "recipe": recipe, "arm": arm, **found}), flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
