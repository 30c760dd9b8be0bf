"""Stitching of windows by a predictor that costs nothing, beside MONAI and windows padded to the image."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.nn.functional import pad

from hrda_lib import CropBox, SlidingWindowInferer, crop, window_grid
from rounds import OURS, Row, alternate, peak_memory

MONAI, PADDED, PIXELS = "MONAI sliding_window_inference", "every window padded to the image", "resize=True"
LIMIT = "500 MB and the label map"
Resize = bool | Literal["once"]
Output = Literal["logits", "labels"]

NOTE = (
    "to fill the sums, add the windows and divide once is all that is left, at the speed of memory: the first touch of "
    "fresh memory takes 45 % of the time, adding 43 %, the division 12 %; MONAI, which does the same and counts by "
    "pixel, is bound by it too"
)


def padded_to_the_image(image: Tensor, predictor: Callable[[Tensor], Tensor], window: int, classes: int) -> Tensor:
    """As in mmseg, and in the released code: pad the logits of each window, add, count, divide."""
    height, width = image.shape[-2:]
    total = torch.zeros(1, classes, height, width)
    count = torch.zeros(1, 1, height, width)
    for box in window_grid((height, width), window, window // 2):
        around = box.left, width - box.left - box.width, box.top, height - box.top - box.height
        total += pad(predictor(crop(image, box)), around)
        crop(count, CropBox(*box)).add_(1)
    return total / count


def free(classes: int, side: int) -> Callable[[Tensor], Tensor]:
    said = torch.randn(4, classes, side, side)
    return lambda windows: said[: len(windows)]


def labels_of(size: tuple[int, int], classes: int, window: int, resize: Resize, streamed: bool) -> Callable[[], object]:
    """Labels of a large image, of which nothing but the image is there before; streamed, not even that."""
    predictor = free(classes, window // 4 if resize == "once" else window)
    infer = SlidingWindowInferer(window, output="labels", label_dtype=torch.uint8, resize=resize)
    image = torch.zeros(1, 1, 1, 1).expand(-1, -1, *size) if streamed else torch.zeros(1, 1, *size)
    infer(image[..., : 2 * window, : 2 * window], predictor)
    if streamed:
        return lambda: sum(
            int(labels[0, 0, 0]) for _, labels in infer.stream(size, lambda box: crop(image, box), predictor)
        )
    return lambda: infer(image, predictor)


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    size, window, classes = ((128, 256), 64, 19) if small else ((1024, 2048), 512, 19)
    with torch.no_grad():
        yield from stitching(size, window, classes, rounds)
        yield from once(size, window, classes, rounds)
    heights = (256,) if small else (2048, 4096, 8192)
    kinds: list[tuple[int, Resize, bool]] = [(height, True, False) for height in heights]
    kinds += [(heights[-1], True, True), (heights[-1], "once", False)] * (not small) + [(heights[-1], "once", True)]
    for height, resize, streamed in kinds:
        yield memory((height, heights[-1]), window, classes, resize=resize, streamed=streamed)


def stitching(size: tuple[int, int], window: int, classes: int, rounds: int) -> Iterator[Row]:
    image, predictor = torch.randn(1, 3, *size), free(classes, window)

    def monai(mode: str = "constant") -> Tensor:
        answer = sliding_window_inference(image, (window, window), 4, predictor, overlap=0.5, mode=mode)
        assert isinstance(answer, Tensor)
        return answer

    title = f"{size[0]} x {size[1]}, {classes} classes, windows of {window}²"
    yield alternate(
        f"{title}, logits",
        {
            OURS: lambda: SlidingWindowInferer(window)(image, predictor),
            MONAI: monai,
            PADDED: lambda: padded_to_the_image(image, predictor, window, classes),
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


def once(size: tuple[int, int], window: int, classes: int, rounds: int) -> Iterator[Row]:
    image, predictor = torch.randn(1, 3, *size), free(classes, window // 4)
    outputs: tuple[Output, ...] = ("logits", "labels")
    for output in outputs:
        ways: dict[str, Resize] = {OURS: "once", PIXELS: True}
        yield alternate(
            f"{size[0]} x {size[1]}, {classes} classes at stride 4, resize='once', {output}",
            {
                way: partial(SlidingWindowInferer(window, output=output, resize=resize), image, predictor)
                for way, resize in ways.items()
            },
            rounds=rounds,
        )


def memory(size: tuple[int, int], window: int, classes: int, *, resize: Resize, streamed: bool) -> Row:
    """Of labels; streamed, their map is not there either."""
    what = ("stream" if streamed else "labels") + (", resize='once'" if resize == "once" else "")
    title = f"{what}: {size[0]} x {size[1]}, {classes} classes, windows of {window}², peak memory"
    row = peak_memory(title, labels_of, {OURS: (size, classes, window, resize, streamed)}, targets={LIMIT: 1})
    return row._replace(values={**row.values, LIMIT: [500 + (0 if streamed else size[0] * size[1] / 2**20)]})
