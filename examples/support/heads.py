"""What the heads of a network say about whole images."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hrda_lib import MultiResSegmenter, SlidingWindowInferer
from hrda_lib.models import EncoderDecoder
from support.report import HEADS

CELL = 8  # sides that two scales take are multiples of it: scale 2, output stride 4


@torch.no_grad()
def head_logits(
    model: MultiResSegmenter | EncoderDecoder, x: Tensor, window: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """Logits (B, C, H, W) of every head, and "attention" (B, 1, H, W), what the predicted class pays to the detail.

    The heads are "fused", "context", "detail" and "average", the plain average of these two; one scale has "fused"
    alone, and no attention. ``window`` is (h, w), for two scales multiples of 8; None: as the model's ``predict``.
    """
    if not isinstance(model, MultiResSegmenter):
        return {"fused": model.predict(x, window=window)}

    def heads(part: Tensor) -> Tensor:
        out = model.eval()(part, detail="windows")
        context = _enlarge(out.context_logits, out.logits)
        average = (context + out.detail_logits) / 2
        attention = torch.as_tensor(out.attention, device=x.device).expand_as(out.context_logits)
        attention = _enlarge(attention, out.logits).gather(1, out.logits.argmax(1, keepdim=True))
        return torch.cat([out.logits, context, out.detail_logits, average, attention], dim=1)

    if window is None:
        window = (round(model.scale * model.detail_size[0]), round(model.scale * model.detail_size[1]))
    maps = SlidingWindowInferer(window)(whole_cells(x), heads)[..., : x.shape[-2], : x.shape[-1]]
    *logits, attention = maps.split(maps.shape[1] // len(HEADS), dim=1)
    return {**dict(zip(HEADS, logits, strict=True)), "attention": attention}


def whole_cells(x: Tensor) -> Tensor:
    """Images (B, 3, H, W), padded at the bottom and right with 0, the mean colour."""
    return pad(x, (0, -x.shape[-1] % CELL, 0, -x.shape[-2] % CELL))


def _enlarge(small: Tensor, like: Tensor) -> Tensor:
    return interpolate(small, size=like.shape[-2:], mode="bilinear", align_corners=False)
