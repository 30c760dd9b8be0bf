"""What a step of self-training costs, counted on tensors without memory: in seconds, before anything is downloaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from support.foundation import VitSpec, adapt_by_lora
from support.networks import PRECISIONS, Network

GIB, TERA = 2**30, 10**12
FRAME = (1024, 2048)  # a prediction is one of Cityscapes' images
MASTER = 4  # bytes of a number that is trained


@dataclass(frozen=True)
class Cost:
    """Of one image a domain, but for what does not depend on their number."""

    term: float
    """FLOPs of a loss, forward and backward."""
    label: float
    """FLOPs of the teacher's labels."""
    terms: int
    """Losses a step."""
    frozen: int
    """Weights that are not trained, in bfloat16 half of what they take in float32, which is counted."""
    trained: int
    """Weights that are."""
    adapters: int
    """Of these, those of LoRA."""
    kept: float
    """Bytes of activations that a term keeps for backward, in the precision of the settings, with fused attention."""
    plain: float
    """Bytes that plain attention keeps beside them: its matrices of tokens by tokens."""

    @property
    def step(self) -> float:
        """FLOPs of a step."""
        return self.terms * self.term + self.label

    def bytes(self, batch: int) -> dict[str, float]:
        """By what they are for; frozen weights are shared with the teacher."""
        trained = MASTER * self.trained
        weights = {"weights": MASTER * self.frozen + trained, "of these adapters": MASTER * self.adapters}
        return {
            **weights,
            "teacher": trained,
            "gradients": trained,
            "AdamW": 2 * trained,
            "activations": batch * self.kept,
        }

    def total(self, batch: int) -> float:
        """Bytes of all these."""
        return sum(x for name, x in self.bytes(batch).items() if not name.startswith("of"))


def cost(spec: VitSpec, settings: Any) -> Cost:
    """Of a network and what a recipe does with it.

    Raises:
        ValueError: there is no such network, or its sizes do not fit.
    """
    dtype = PRECISIONS[settings.precision]
    student = on_meta(spec, settings.rank, dtype)
    images = torch.empty(1, spec.channels, *settings.crop, device="meta", dtype=dtype)
    tokens = tokens_of(student, images)
    with FlopCounterMode(display=False) as counter:
        with counting(student, tokens) as kept:
            output = student(images)
            logits = [output] if isinstance(output, Tensor) else [output.logits, output.detail_logits]
        torch.stack([x.sum() for x in logits]).sum().backward()  # type: ignore[no-untyped-call]
    term = counter.get_total_flops()
    student.eval()
    label = flops(lambda: student(images)) * (2 if settings.mirror else 1)
    parameters = dict(student.named_parameters())
    count = {name: x.numel() for name, x in parameters.items()}
    return Cost(
        term=term,
        label=label,
        terms=3 if settings.mask_ratio else 2,
        frozen=sum(n for name, n in count.items() if not parameters[name].requires_grad),
        trained=sum(n for name, n in count.items() if parameters[name].requires_grad),
        adapters=sum(n for name, n in count.items() if ".lora_" in name),
        kept=kept["others"],
        plain=kept["attention"],
    )


def on_meta(spec: VitSpec, rank: int, dtype: torch.dtype = torch.bfloat16) -> Network:
    """The network without memory, in the numbers that it computes with."""
    with torch.device("meta"):
        student = spec.build()
        adapt_by_lora(student, rank)
    return student.to(dtype).train()


def tokens_of(student: Network, images: Tensor) -> set[int]:
    """How many tokens the attention of a pass has: what its matrices are known by."""
    found = set[int]()
    block: Any = student.encoder.body.blocks[0]  # type: ignore[union-attr,index]
    handle = block.register_forward_pre_hook(lambda _, inputs: found.add(inputs[0].shape[1]))
    with torch.no_grad():
        student(images)
    handle.remove()
    return found


@contextmanager
def counting(student: nn.Module, tokens: set[int]) -> Iterator[dict[str, float]]:
    """Bytes that are kept for a backward pass meanwhile: each storage once, weights left out."""
    seen = {x.untyped_storage()._cdata for x in (*student.parameters(), *student.buffers())}
    alive, kept = list[Any](), {"attention": 0.0, "others": 0.0}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            alive.append(storage)  # or another one could get its place
            square = x.dim() > 2 and x.shape[-1] == x.shape[-2] and x.shape[-1] in tokens
            kept["attention" if square else "others"] += storage.nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        yield kept


def prediction(spec: VitSpec) -> float:
    """FLOPs of an image of 1024 x 2048, adapters merged."""
    frame, merged = torch.empty(1, spec.channels, *FRAME, device="meta", dtype=torch.bfloat16), on_meta(spec, 0)
    return flops(lambda: merged.predict(frame, batch_size=None))


@torch.no_grad()
def flops(run: Callable[[], Any]) -> float:
    """Of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def same_flops(spec: VitSpec, settings: Any) -> tuple[dict[str, Any], float]:
    """The other number of scales, and how many times as many steps take as many FLOPs with it."""
    other = replace(settings, scales=3 - settings.scales)
    return {"scales": other.scales}, cost(spec, settings).step / cost(replace(spec, scales=other.scales), other).step


def report(spec: VitSpec, settings: Any) -> str:
    """A table of it."""
    found, batch = cost(spec, settings), settings.batch_size
    where = f"context and detail of {spec.detail_size}" if spec.scales == 2 else f"one pass, {spec.inside} x"
    how = f"LoRA of rank {settings.rank}" if settings.rank else "all weights are trained"
    rows = [f"{spec.encoder}, crop {settings.crop}: {where}; {how}; batch {batch}", ""]
    rows += [f"| {'TFLOP':<38} | {'':>8} |", f"| {'-' * 38} | {'-' * 7}: |"]
    rows.append(f"| {'a step':<38} | {batch * found.step / TERA:>8.2f} |")
    rows.append(f"| {'a step and image of each domain':<38} | {found.step / TERA:>8.2f} |")
    rows.append(f"| {'a prediction of 1024 x 2048':<38} | {prediction(spec) / TERA:>8.2f} |")
    rows += ["", f"| {'GiB':<38} | {'':>8} |", f"| {'-' * 38} | {'-' * 7}: |"]
    rows += [f"| {name:<38} | {x / GIB:>8.2f} |" for name, x in found.bytes(batch).items()]
    rows.append(f"| {'all':<38} | {found.total(batch) / GIB:>8.2f} |")
    kind = str(PRECISIONS[settings.precision]).removeprefix("torch.")
    rows += ["", f"Activations: in {kind}, of the largest term, with fused attention (scaled_dot_product_attention);"]
    rows.append(
        f"plain attention keeps {batch * found.plain / GIB:.2f} GiB more. Weights, gradients and AdamW: float32."
    )
    return "\n".join(rows) + "\n"
