"""The data sets of a source and a target of street scenes, looked through before anything is trained on them."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrda_lib.data import (
    CITYSCAPES,
    Concatenated,
    LabeledFiles,
    LabeledImages,
    OnError,
    ResizedImages,
    Sample,
    UnlabeledImages,
    check_classes,
    check_sizes,
    count_labels,
    open_dataset,
    read_published_counts,
)
from support.processes import first_alone
from support.progress import bar
from toy.data import write_toy_data

KINDS = ("gta", "synthia", "cityscapes", "acdc", "dark_zurich")
NAMES = tuple(entry.name for entry in CITYSCAPES)


class Domains(NamedTuple):
    """Labelled source, target whose labels only an oracle reads, and what the results are measured on."""

    source: LabeledImages
    target: LabeledFiles
    val: LabeledFiles
    counts: Tensor
    """Pixels of each class in each source image."""
    key: str
    """Changes when an image or a label does."""


def open_domains(
    source: str | Sequence[str],
    target: str,
    folders: Mapping[str, Path],
    out: Path,
    *,
    seed: int,
    stats: Path | None,
    on_error: OnError,
    labelled_target: int = 0,
    group: Any = None,
) -> Domains:
    """Find the data sets in their folders, or without any draw the toy ones; every label is counted once.

    Processes of ``group`` each count a part. The source may be several data sets. ``labelled_target``: as many of the
    target's training images, evenly spaced, are further images of the source.

    Raises:
        ValueError: a folder, file or label is missing or broken, or holds other ids.
    """
    key = ""
    if not folders:
        root = out / "data" / f"seed{seed}"
        with first_alone(group):
            key = str(write_toy_data(root, seed=seed))
        folders = {"gta": root / "gta", "cityscapes": root / "cityscapes"}
    kinds = (source,) if isinstance(source, str) else source
    sets = {kind: open_dataset(folders[kind], "train", kind=kind) for kind in kinds}
    train, val = (open_dataset(folders[target], split, kind=target) for split in ("train", "val"))
    if stats:
        counts = [read_published_counts(stats, part.names)[:, : len(NAMES)] for part in sets.values()]
    else:
        counts = [count_classes(part, out / f"{kind}_counts.json", on_error, group) for kind, part in sets.items()]
    for part in sets.values():
        compare_sizes(part, on_error)
    labeled: LabeledImages = Concatenated(list(sets.values())) if len(sets) > 1 else sets[kinds[0]]
    if labelled_target:
        some = Some(train, labelled_target)
        counts.append(count_labels(some, on_error=on_error, group=group)[:, : len(NAMES)])
        labeled = Concatenated([labeled, some])
    pixels = torch.zeros(1, 256, dtype=torch.int64)
    for i in bar(range(len(val)), "checking val"):  # images too: a broken one would be found after training
        pixels += val[i].label.flatten().bincount(minlength=256)
    check_ids(val, pixels)
    images = [part.unlabeled().fingerprint() for part in (*sets.values(), train, val)]
    key = key or " ".join([labeled.fingerprint(), val.fingerprint(), *images])
    key += f" {labelled_target} labelled" if labelled_target else ""
    return Domains(labeled, train, val, torch.cat(counts), f"{stats} {key}")


class Some:
    """So many images of a labelled data set, evenly spaced."""

    def __init__(self, dataset: LabeledFiles, count: int) -> None:
        if count > len(dataset):
            raise ValueError(f"--labelled-target must be at most the target's {len(dataset)} images, got {count}")
        self.dataset, self.chosen = dataset, [i * len(dataset) // count for i in range(count)]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.chosen[index]]

    def label(self, index: int) -> Tensor:
        return self.dataset.label(self.chosen[index])

    def label_file(self, index: int) -> Path:
        return self.dataset.label_file(self.chosen[index])

    def fingerprint(self) -> str:
        return f"{self.dataset.fingerprint()} {self.chosen}"


def fitted(images: UnlabeledImages, size: tuple[int, int]) -> UnlabeledImages:
    """Images that fit into (h, w); (0, 0) leaves them as they are."""
    return ResizedImages(images, size) if all(size) else images


def count_classes(labeled: LabeledFiles, cache: Path, on_error: OnError, group: Any = None) -> Tensor:
    """Pixels of each class in each image, (N, 19); every label is read once, and refused if it holds no ids."""
    counts = read_labels(labeled, cache, on_error, group)
    check_ids(labeled, counts)
    return counts[:, : len(NAMES)]


def read_labels(labeled: LabeledImages, cache: Path, on_error: OnError, group: Any = None) -> Tensor:
    """(N, 256) pixels of each id in each label, of which each process of ``group`` reads a part."""
    cache.parent.mkdir(parents=True, exist_ok=True)  # where it cannot be, that is known now
    shown = partial(bar, title="reading labels")
    return count_labels(labeled, cache=cache, progress=shown, on_error=on_error, group=group)


def compare_sizes(labeled: LabeledImages, on_error: OnError) -> None:
    """Refuse labels of another size than their images, unless such files are to be left out."""
    if on_error == "raise":
        check_sizes(labeled, lambda x: bar(x, "reading labels' and images' sizes"))


def check_ids(labeled: LabeledFiles, counts: Tensor) -> None:
    """Refuse ids that are no class, and train ids stored in the place of ids: read as ids they are road to wall."""
    check_classes(labeled, counts, len(NAMES))
    if not counts[:, NAMES.index("traffic light") : len(NAMES)].any():
        raise ValueError(
            f"{labeled.label_file(0)}: neither this nor another of the {len(labeled)} labels has a class after pole; "
            "are these train ids? The ids of GTA and Cityscapes are expected (*_labelIds.png)"
        )
