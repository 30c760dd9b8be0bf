"""Stitching of windows by a predictor that costs nothing, beside MONAI and windows padded to the image."""

from collections.abc import Callable, Iterator

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.nn.functional import pad

from hrda_lib import CropBox, SlidingWindowInferer, crop, window_grid
from rounds import OURS, Row, alternate, peak_memory

MONAI, PADDED = "MONAI sliding_window_inference", "every window padded to the image"

NOTE = (
    "to fill the sums, add the windows and divide once is all that is left, at the speed of memory; MONAI, which does "
    "the same and counts by pixel, is bound by it too"
)


def padded_to_the_image(image: Tensor, predictor: Callable[[Tensor], Tensor], window: int) -> Tensor:
    """As in mmseg, and in the released code: pad the logits of each window, add, count, divide."""
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


def free(classes: int, window: int) -> Callable[[Tensor], Tensor]:
    said = torch.randn(4, classes, window, window)
    return lambda windows: said[: len(windows)]


def labels_of(rows: int, columns: int, classes: int, window: int) -> Callable[[], Tensor]:
    """Labels of a large image, of which nothing but the image is there before."""
    image, predictor = torch.zeros(1, 1, rows, columns), free(classes, window)
    infer = SlidingWindowInferer(window, output="labels", label_dtype=torch.uint8)
    infer(image[..., : 2 * window, : 2 * window], predictor)
    return lambda: infer(image, predictor)


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    size, window, classes = ((128, 256), 64, 19) if small else ((1024, 2048), 512, 19)
    image, predictor = torch.randn(1, 3, *size), free(classes, window)

    def monai(mode: str = "constant") -> Tensor:
        answer = sliding_window_inference(image, (window, window), 4, predictor, overlap=0.5, mode=mode)
        assert isinstance(answer, Tensor)
        return answer

    title = f"{size[0]} x {size[1]}, {classes} classes, windows of {window}²"
    with torch.no_grad():
        yield alternate(
            f"{title}, logits",
            {
                OURS: lambda: SlidingWindowInferer(window)(image, predictor),
                MONAI: monai,
                PADDED: lambda: padded_to_the_image(image, predictor, window),
            },
            rounds=rounds,
            targets={MONAI: 0.75, PADDED: 0.07},
            note=NOTE,
        )
        yield alternate(
            f"{title}, labels",
            {
                OURS: lambda: SlidingWindowInferer(window, output="labels")(image, predictor),
                f"{MONAI}, argmax": lambda: monai().argmax(dim=1),
            },
            rounds=rounds,
            targets={f"{MONAI}, argmax": 0.5},
        )
        yield alternate(
            f"{title}, Gaussian",
            {
                OURS: lambda: SlidingWindowInferer(window, blend="gaussian")(image, predictor),
                f"{MONAI}, Gaussian": lambda: monai("gaussian"),
            },
            rounds=rounds,
        )
    heights = (128, 256) if small else (2048, 4096, 8192)
    for height in heights:
        title = f"labels of {height} x {heights[-1]}, {classes} classes, windows of {window}², peak memory"
        yield peak_memory(title, labels_of, {OURS: (height, heights[-1], classes, window)})
