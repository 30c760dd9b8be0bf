"""Prediction of whole images with HRDA, beside the nested loop that runs every detail window of every window."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hrda_lib import MultiResSegmenter, SlidingWindowInferer
from hrda_lib.models import hrda
from rounds import OURS, Row, alternate

NESTED = "nested loop"


def nested(model: MultiResSegmenter, image: Tensor, window: int) -> Tensor:
    with torch.no_grad():
        return SlidingWindowInferer(window, batch_size=1)(image, lambda x: model(x, detail="windows").logits)


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    encoder, detail = ("mit_b0", 32) if small else ("mit_b2", 128)
    width = 16 if small else 256
    torch.manual_seed(0)
    model = hrda(encoder, 19, embed_dims=width, attention_embed_dims=width, detail_size=detail).eval()
    for size, passes, most in [((2, 4), "24 passes in place of 30", 1 / 1.2), ((4, 8), "126 in place of 210", 1 / 1.6)]:
        image = torch.randn(1, 3, size[0] * detail, size[1] * detail)
        ways = {OURS: lambda: model.predict(image), NESTED: lambda: nested(model, image, 2 * detail)}  # noqa: B023
        title = f"{encoder}, windows of {2 * detail}² and {detail}² on {image.shape[-2]} x {image.shape[-1]}: {passes}"
        yield alternate(title, ways, rounds=max(rounds // 2, 1), targets={NESTED: most})
