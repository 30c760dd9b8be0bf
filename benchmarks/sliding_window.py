"""Stitching of windows beside MONAI's and the way of mmseg, with a predictor that costs nothing.

    pip install '.[bench]'
    python benchmarks/sliding_window.py

All take turns in one process: logits, labels (MONAI's plus argmax), Gaussian blending, and mmseg's way, which pads the
logits of each window to the whole image.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.nn.functional import pad

from hrda_lib import CropBox, SlidingWindowInferer, crop, window_grid


def padded_to_the_image(image: Tensor, predictor: Callable[[Tensor], Tensor], window: int) -> Tensor:
    height, width = image.shape[-2:]
    total: Tensor | None = None
    count = torch.zeros(1, 1, height, width)
    for box in window_grid((height, width), window, window // 2):
        around = box.left, width - box.left - box.width, box.top, height - box.top - box.height
        whole = pad(predictor(crop(image, box)), around)
        total = whole if total is None else total.add_(whole)
        crop(count, CropBox(*box)).add_(1)
    assert total is not None
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048))
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    image, window = torch.randn(1, 3, *given.size), given.window
    said = torch.randn(4, given.classes, window, window)

    def free(windows: Tensor) -> Tensor:
        return said[: len(windows)]

    def monai(mode: str = "constant") -> Tensor:
        return sliding_window_inference(image, (window, window), 4, free, overlap=0.5, mode=mode)

    ways: dict[str, Callable[[], Tensor]] = {
        "MONAI": monai,
        "logits": lambda: SlidingWindowInferer(window)(image, free),
        "MONAI, argmax": lambda: monai().argmax(dim=1),
        "labels": lambda: SlidingWindowInferer(window, output="labels")(image, free),
        "MONAI, Gaussian": lambda: monai("gaussian"),
        "Gaussian": lambda: SlidingWindowInferer(window, blend="gaussian")(image, free),
        "mmseg's way": lambda: padded_to_the_image(image, free, window),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for turn in range(given.rounds + 1):
            for name, run in ways.items():
                start = time.perf_counter()
                run()
                times[name] += [time.perf_counter() - start] * (turn > 0)
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        print(f"{name:16s}{1e3 * statistics.median(values):8.0f} ms ({1e3 * low:.0f} to {1e3 * high:.0f})")
    for ours, theirs in (
        ("logits", "MONAI"),
        ("labels", "MONAI, argmax"),
        ("Gaussian", "MONAI, Gaussian"),
        ("logits", "mmseg's way"),
    ):
        ratio = statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))
        print(f"{ours} / {theirs}: {ratio:.2f}")


if __name__ == "__main__":
    main()
