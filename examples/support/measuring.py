"""How right a network and a teacher's labels are, on labelled images."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hrda_lib import ConfusionMatrix, EMATeacher, SelfTraining, resize
from hrda_lib.data import SYNTHIA_CLASSES, SYNTHIA_CLASSES_13, LabeledImages, UnlabeledImages
from hrda_lib.distributed import mean
from support.command_line import Running
from support.networks import CELL, Network, NetworkSpec, heads
from support.processes import agreed
from support.progress import bar

MEASURED = {19: tuple(range(19)), 16: SYNTHIA_CLASSES, 13: SYNTHIA_CLASSES_13}
Say = Callable[[Network, Tensor, Sequence[int]], Mapping[str, Tensor]]


def every_head(model: Network, x: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
    """Logits of ``size`` by head, and "attention"."""
    return {name: resize(y, (size[0], size[1])) for name, y in heads(model, x).items()}


@torch.no_grad()
def measure(
    model: Network,
    spec: NetworkSpec,
    dataset: LabeledImages,
    *,
    say: Say = every_head,
    images: UnlabeledImages | None = None,
    indices: Sequence[int] | None = None,
    running: Running | None = None,
) -> tuple[dict[str, ConfusionMatrix], Tensor]:
    """A confusion matrix a head, and (C,) the mean attention that is paid to the detail on each class's pixels.

    Args:
        model, spec: as :func:`support.run_folder.load` gives them.
        dataset: images with their truth, at whose size is measured.
        say: (model, its input, (h, w)) -> logits of that size by head, and perhaps "attention".
        images: the same images as the network shall see them, perhaps resized; None: those of ``dataset``.
        indices: of the images to look at; None: all.
        running: processes that share the images, and all get what they found together; None: this one alone.
    """
    count, device = len(spec.classes), next(model.parameters()).device
    confusion = defaultdict[str, ConfusionMatrix](lambda: ConfusionMatrix(count))
    paid, pixels = torch.zeros(256, dtype=torch.float64), torch.zeros(256)
    ignored = torch.tensor(spec.ignore, dtype=torch.uint8)
    rank, world = (running.rank, running.world) if running else (0, 1)
    for i in bar((range(len(dataset)) if indices is None else indices)[rank::world], "evaluating"):
        if images is None:
            image, truth, _ = dataset[i]
        else:
            image, truth = images[i].image, dataset.label(i)
        truth = torch.where(torch.isin(truth, ignored), 255, truth)
        maps = dict(say(model, spec.feed(image[None], device), truth.shape))
        attention = maps.pop("attention", torch.zeros(1)).cpu().double().flatten()
        paid += truth.flatten().bincount(attention.expand(truth.numel()), minlength=256)
        pixels += truth.flatten().bincount(minlength=256)
        for head, logits in maps.items():
            confusion[head].update(logits.cpu().argmax(1)[0], truth.long())
    if running and running.group:
        for head in agreed(list(confusion), running.group):  # a process may have had no image
            confusion[head].all_reduce(running.group)
        paid, pixels = mean(paid, running.group), mean(pixels, running.group)
    return dict(confusion), (paid / pixels)[:count]


def average(
    model: Network,
    x: Tensor,
    size: Sequence[int],
    *,
    head: str = "fused",
    window: tuple[int, int] | None = None,
    whole: bool = False,
    scales: Sequence[float] = (),
    flip: bool = False,
    cell: int = CELL,
) -> dict[str, Tensor]:
    """Logits of one head, averaged with the mirrored image's; with ``scales``, probabilities of resized images."""
    views = []
    for scale in scales or (1.0,):
        y = resize(x, (max(round(scale * x.shape[2]), cell), max(round(scale * x.shape[3]), cell)))
        if whole:
            window = (y.shape[2] + -y.shape[2] % cell, y.shape[3] + -y.shape[3] % cell)
        for axes in ((), (-1,)) if flip else ((),):
            z = y.flip(axes)
            logits = model.predict(z, window=window) if head == "fused" else heads(model, z, window)[head]
            logits = resize(logits.flip(axes), (size[0], size[1]))
            views.append(logits.softmax(1) if scales else logits)
    return {head: sum(views[1:], views[0]) / len(views)}


@torch.no_grad()
def label_quality(
    training: SelfTraining, teacher: EMATeacher, spec: NetworkSpec, dataset: LabeledImages, images: UnlabeledImages
) -> dict[str, float]:
    """How right the teacher's labels are on a dozen labelled images: drawn, and used for nothing."""
    right, trusted, both, pixels = 0, 0, 0, 0
    device = next(teacher.parameters()).device
    teacher.eval()
    for i in range(0, len(dataset), max(len(dataset) // 12, 1)):
        x, truth = spec.feed(images[i].image[None], device), dataset.label(i)
        rows, columns = x.shape[-2:]
        labels, weight = training.pseudo_label(pad(x, (0, -columns % spec.cell, 0, -rows % spec.cell)))
        # both at the size of the truth; the images may have been resized
        maps = torch.stack([labels[0].float(), weight[0]])[:, :rows, :columns].cpu()
        labels, weight = interpolate(maps[None], size=truth.shape, mode="nearest")[0]
        known, hit, trust = truth != 255, labels == truth, weight > 0
        pixels, right = pixels + int(known.sum()), right + int((known & hit).sum())
        trusted, both = trusted + int((known & trust).sum()), both + int((known & hit & trust).sum())
    teacher.train()
    return {
        "label_accuracy": right / max(pixels, 1),
        "trusted": trusted / max(pixels, 1),
        "trusted_accuracy": both / max(trusted, 1),
    }
