"""How many pixels of each class every label has."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hrda_lib._processes import all_or_none, reduced
from hrda_lib.data.layout import log, plain, shown
from hrda_lib.data.samples import LabeledImages, count_of
from hrda_lib.data.skipping import OnError, Skipped

if TYPE_CHECKING:
    from hrda_lib._processes import Group

Progress = Callable[[Iterable[int]], Iterable[int]]


def count_labels(
    dataset: LabeledImages,
    *,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    on_error: OnError = "raise",
    group: "Group" = None,
) -> Tensor:
    """Pixels of each label id in each image, (N, 256) int64. Opens every label once; images are not read.

    A data set that counts faster than it reads a label has a method ``count(index)``, as :class:`LabeledFiles` does.

    Args:
        dataset: labelled images.
        cache: a JSON file that keeps the counts; used again while the labels are unchanged. None: nothing is kept.
        progress: wraps the range of images, as ``tqdm`` does; None: nothing.
        workers: threads; None: one a core.
        on_error: what a label does that cannot be read: "raise", or "skip": it is logged, and its row is 0, so that
            :class:`RareClasses` never draws it. Such counts are not cached.
        group: processes that each open a part of the labels, and all get the counts of all; the first one alone looks
            after the cache. They must have the same data set. None: this process opens them all.

    Raises:
        ValueError: a label cannot be read, on any process, or none can, or there is no image or no worker.
    """
    if not len(dataset) or (workers is not None and workers < 1):
        raise ValueError(f"dataset and workers must be at least one, got {len(dataset)} images and {workers} workers")
    skipped, path = Skipped(len(dataset), on_error), None if cache is None else Path(cache)
    rank, world = (0, 1) if group is None else (group.rank(), group.size())
    fingerprint = dataset.fingerprint() if path and not rank else ""
    of, counts = (None if path is None or rank else _load(path)) or ("", torch.zeros(0, 256, dtype=torch.int64))
    kept = _any(of == fingerprint and len(counts) == len(dataset), group)
    if not kept:
        mine = range(rank, len(dataset), world)
        counts = all_or_none(lambda: _counted(dataset, mine, skipped, progress, workers), group)
    elif rank:
        counts = torch.zeros(len(dataset), 256, dtype=torch.int64)
    counts = counts if group is None else reduced(counts, group)
    left_out = int((counts.sum(dim=1) == 0).sum())
    if left_out:
        log.warning("%d of %d labels cannot be read and are left out", left_out, len(dataset))
    if left_out == len(dataset):
        raise ValueError(
            f"{shown(dataset.label_file(0))}: neither this nor another of the {len(dataset)} labels can be read"
        )
    if path and not (rank or kept or left_out):
        try:
            _save(path, fingerprint, counts)
        except OSError as error:  # the work is done: better no cache than no counts
            log.warning("%s: cannot be written, labels will be counted again (%s)", shown(path), plain(str(error)))
    return counts


def _any(true: bool, group: "Group") -> bool:
    return true if group is None else bool(reduced(torch.tensor(int(true)), group))


def _counted(
    dataset: LabeledImages, indices: range, skipped: Skipped, progress: Progress | None, workers: int | None
) -> Tensor:
    """A row for each image of the data set, zeros for those that are not among the indices."""

    def count_or_skip(index: int) -> Tensor:
        try:
            return count_of(dataset, index)
        except (ValueError, OSError) as error:
            skipped.add(index, error)
            return torch.zeros(256, dtype=torch.int64)

    counts = torch.zeros(len(dataset), 256, dtype=torch.int64)
    pool = ThreadPoolExecutor(workers or os.cpu_count())  # Pillow decodes beside other threads
    try:
        # the results come first in zip: progress moves on when a label is done
        for row, index in zip(
            pool.map(count_or_skip, indices), progress(indices) if progress else indices, strict=True
        ):
            counts[index] = row
    finally:
        pool.shutdown(cancel_futures=True)
    return counts


def read_counts(file: str | Path) -> Tensor:
    """Pixels of each label id in each image, (N, 256) int64, that :func:`count_labels` kept; no data set is needed.

    Args:
        file: its ``cache``, such as the ``label_counts.json`` of a run folder.

    Raises:
        ValueError: there is no such file, or it is none of this kind.
    """
    kept = _load(Path(file))
    if kept is None:
        raise ValueError(f"{shown(Path(file))}: is no cache of count_labels, or cannot be read")
    return kept[1]


def read_published_counts(file: str | Path, names: Sequence[str]) -> Tensor:
    """Pixels of each class in each image, (N, 256) int64, from a JSON file of the released code.

    ``sample_class_stats.json`` lists the counts image by image, ``samples_with_class.json`` class by class; classes are
    train ids. The file ``NAME_labelTrainIds.png`` belongs to the image NAME.

    Args:
        file: one of the two.
        names: the images' names (:attr:`LabeledFiles.names`).

    Raises:
        ValueError: the file is not of this kind, or has no entry for an image.
    """
    path, counts = Path(file), torch.zeros(len(names), 256, dtype=torch.int64)
    index = {name: i for i, name in enumerate(names)}
    for stem, label, pixels in _published_rows(path):
        ends = [i for i, letter in enumerate(f"{stem}_") if letter == "_"]
        name = next((stem[:end] for end in reversed(ends) if stem[:end] in index), None)
        if name is not None:
            if not 0 <= label < 255:
                raise ValueError(f"{shown(path)}: label {label} of {shown(stem)} is no train id")
            if not 0 <= pixels < 2**40:
                raise ValueError(f"{shown(path)}: {pixels} is no number of pixels of {shown(stem)}")
            counts[index[name], label] = pixels
    empty = (counts.sum(dim=1) == 0).nonzero().flatten()
    if len(empty):
        raise ValueError(
            f"{shown(path)}: no entry for {shown(names[int(empty[0])])} ({len(empty)} of {len(names)} images have none)"
        )
    return counts


def _published_rows(path: Path) -> list[tuple[str, int, int]]:
    """(file without folder and ending, class, pixels) of either kind of file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            entries = [(where, label, pixels) for label, images in content.items() for where, pixels in images]
        else:
            entries = [(row["file"], label, row[label]) for row in content for label in row if label != "file"]
        return [(Path(where.replace("\\", "/")).stem, int(label), int(pixels)) for where, label, pixels in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{shown(path)}: cannot be read as sample_class_stats.json or samples_with_class.json ({plain(str(error))})"
        ) from None


def check_classes(dataset: LabeledImages, counts: Tensor, num_classes: int, *, ignore_index: int = 255) -> None:
    """Refuse label ids outside [0, num_classes) other than ``ignore_index``, and labels of one class beside it.

    Binary labels that are stored as 0 and 255 are the usual case: all of their foreground would be ignored.

    Args:
        dataset: labelled images, for messages.
        counts: (N, 256) pixels of each id in each of its labels, or (1, 256) in all (:func:`count_labels`).
        num_classes: how many classes there are.
        ignore_index: the id that is no class.

    Raises:
        ValueError: names the first file and the id.
    """
    outside = counts.clone()
    outside[:, :num_classes] = 0
    outside[:, ignore_index] = 0
    found = outside.nonzero()
    if len(found):
        index, label = found[0].tolist()
        raise ValueError(
            f"{shown(dataset.label_file(index))}: label {label} is outside the {num_classes} classes "
            f"0..{num_classes - 1} (and not the ignored {ignore_index})"
        )
    classes = counts.sum(dim=0).nonzero().flatten().tolist()
    if len(classes) == 2 and ignore_index in classes:
        only = sum(classes) - ignore_index
        raise ValueError(
            f"{shown(dataset.label_file(0))}: this and all other labels show class {only} and the ignored "
            f"{ignore_index} alone, of which nothing can be learnt; where {ignore_index} is a class of its own, map it "
            f"to one: read_label=StoredColours({{(0, 0, 0): 0, (255, 255, 255): 1}}) reads 0 and 255 as 0 and 1"
        )


def _load(path: Path) -> tuple[Any, Tensor] | None:
    """What files a cache is of, and its counts; None: it is missing, older, broken or foreign."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        rows = kept["counts"]
        if not all(map(_is_row, rows)):
            return None
        counts = torch.zeros(len(rows), 256, dtype=torch.int64)
        for row, pixels in zip(counts, rows, strict=True):
            row[[int(label) for label in pixels]] = torch.tensor(list(pixels.values()))
        return kept["fingerprint"], counts
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_row(pixels: dict[str, int]) -> bool:
    """Whether this is what :func:`_save` writes of a label: at least one pixel, none of them of another id."""
    known = all(label.isascii() and label == str(int(label)) and 0 <= int(label) < 256 for label in pixels)
    return bool(pixels) and known and all(type(n) is int and 0 < n < 2**40 for n in pixels.values())


def _save(path: Path, fingerprint: str, counts: Tensor) -> None:
    rows = [{label: pixels for label, pixels in enumerate(row) if pixels} for row in counts.tolist()]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps({"fingerprint": fingerprint, "counts": rows}), encoding="utf-8")
    os.replace(part, path)
