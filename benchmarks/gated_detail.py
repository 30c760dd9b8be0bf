"""Detail left out, where the context is sure or between windows that overlap: what is saved, and labels changed.

The small network of the examples is trained on streets of the toy game for a minute or two, and predicts others.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from hrda_lib import ConfusionMatrix, MultiResSegmenter, confidence_weighted_ce, crop, pseudo_labels
from hrda_lib.optim import warmup_poly
from rounds import OURS, Row, alternate

ALL, HALF = "all detail windows", "overlapping by half"
SHARES = (1.0, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.3, 0.0)


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    """Passes of each street by the share of sure cells from which a detail window is left out; alike in all rounds."""
    model = trained(2 if small else 400)
    images, labels = zip(*(street(100_000 + i) for i in range(1 if small else 20)), strict=True)
    plain, all_passes = predicted(model, images, None)
    for share in SHARES:
        said, few = predicted(model, images, share)
        changed = 100 * (said != plain).double().mean().item()
        scores = f"{mean_iou(plain, labels):.1f} to {mean_iou(said, labels):.1f}"
        yield Row(
            f"small network, 192 x 384, detail left out from {100 * share:g} % sure cells",
            "passes",
            {OURS: few, ALL: all_passes},
            note=f"{changed:.2f} % of the labels change, mean IoU {scores} %, ours {fmean(few):.2f} passes in the mean",
        )
    yield side_by_side(model, torch.cat(images), labels, rounds)


def side_by_side(model: MultiResSegmenter, images: Tensor, labels: Iterable[Tensor], rounds: int) -> Row:
    """A teacher's detail windows that do not overlap, ``detail_stride=detail_size``: 4 in place of 9."""
    few = MultiResSegmenter(
        model.encoder, model.decoder, model.attention, detail_size=model.detail_size, detail_stride=model.detail_size
    ).eval()

    def answer(teacher: MultiResSegmenter) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return pseudo_labels(teacher(images).logits, size=(images.shape[-2], images.shape[-1]), threshold=0.9)

    row = alternate(
        "small network, 192 x 384: pseudo labels of windows side by side",
        {OURS: partial(answer, few), HALF: partial(answer, model)},
        rounds=rounds,
    )
    (mine, trust), (theirs, half) = answer(few), answer(model)
    changed = 100 * (mine != theirs).double().mean().item()
    scores = f"{mean_iou(theirs, labels):.1f} to {mean_iou(mine, labels):.1f}"
    shares = f"{100 * half.mean().item():.1f} to {100 * trust.mean().item():.1f}"
    return row._replace(
        note=f"{changed:.2f} % of the labels change, mean IoU {scores} %, share of trusted pixels {shares} %"
    )


def predicted(
    model: MultiResSegmenter, images: Iterable[Tensor], confident: float | None
) -> tuple[Tensor, list[float]]:
    """Labels of the images, and how many passes each of them takes."""
    runs = [partial(model.predict, image, output="labels", confident=confident) for image in images]
    counts, labels = zip(*(passes(model, run) for run in runs), strict=True)
    return torch.cat(labels), list(counts)


def passes(model: MultiResSegmenter, run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """How many images the encoder sees, and what comes of them."""
    seen: list[int] = []
    hook = model.encoder.register_forward_hook(lambda module, given, features: seen.append(len(given[0])))
    answer = run()
    hook.remove()
    return float(sum(seen)), answer


def mean_iou(prediction: Tensor, labels: Iterable[Tensor]) -> float:
    matrix = ConfusionMatrix(19)
    matrix.update(prediction, torch.cat([*labels]))
    return 100 * matrix.mean_iou()


def trained(steps: int) -> MultiResSegmenter:
    """The small network of the examples, on streets of the toy game that it sees once each."""
    sys.path.append(str(Path(__file__).parent.parent / "examples"))
    from support.networks import NetworkSpec

    torch.manual_seed(0)
    model = NetworkSpec(tuple(str(i) for i in range(19)), detail_size=(96, 192)).build()
    assert isinstance(model, MultiResSegmenter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = warmup_poly(optimizer, total=steps, warmup=min(50, steps // 2), power=0.9)
    for step in range(steps):
        images, labels = (torch.cat(parts) for parts in zip(street(2 * step), street(2 * step + 1), strict=True))
        loss = loss_of(model, images, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def loss_of(model: MultiResSegmenter, images: Tensor, labels: Tensor) -> Tensor:
    out = model(images)
    inside = crop(labels, out.detail_box)
    return 0.9 * confidence_weighted_ce(out.logits, labels) + 0.1 * confidence_weighted_ce(out.detail_logits, inside)


def street(index: int) -> tuple[Tensor, Tensor]:
    """A street of the game: (1, 3, 192, 384), normalised, and its labels."""
    from hrda_lib.data import IMAGENET_MEAN, IMAGENET_STD, normalize
    from toy.streets import draw

    drawn = draw("game", 1, index)
    image = torch.from_numpy(drawn.image).permute(2, 0, 1)[None]
    return normalize(image, IMAGENET_MEAN, IMAGENET_STD), torch.from_numpy(drawn.label)[None].long()
