"""Rare-class sampling: how often each class occurs, and which image to show next."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from hrda_lib._checks import check_generator
from hrda_lib.data.labeled_files import LabeledImages, count_of
from hrda_lib.data.skipping import OnError, Skipped, check_on_error, log

Progress = Callable[[Iterable[int]], Iterable[int]]


def count_labels(
    dataset: LabeledImages,
    *,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    on_error: OnError = "raise",
) -> Tensor:
    """Pixels of each label id in each image, (N, 256) int64. Opens every label once; images are not read.

    A data set that counts faster than it reads a label has a method ``count(index)``, as :class:`LabeledFiles` does.

    Args:
        dataset: labelled images.
        cache: a JSON file that keeps the counts; used again while the labels are unchanged.
        progress: wraps the range of images, as ``tqdm`` does.
        workers: threads; None: one a core.
        on_error: what a label does that cannot be read: "raise", or "skip": it is logged, and its row is 0, so that
            :class:`RareClasses` never draws it. Such counts are not cached.

    Raises:
        ValueError: a label cannot be read, or none can, or there is no image or no worker.
    """
    check_on_error(on_error)
    if not len(dataset) or (workers is not None and workers < 1):
        raise ValueError(f"dataset and workers must be at least one, got {len(dataset)} images and {workers} workers")
    path = None if cache is None else Path(cache)
    fingerprint = dataset.fingerprint() if path else ""
    if path and (kept := _load(path, fingerprint)) is not None:
        return kept
    skipped = Skipped(len(dataset)) if on_error == "skip" else None

    def count_or_skip(index: int) -> Tensor:
        try:
            return count_of(dataset, index)
        except (ValueError, OSError) as error:
            if skipped is None:
                raise
            skipped.add(index, error)
            return torch.zeros(256, dtype=torch.int64)

    indices, rows = range(len(dataset)), list[Tensor]()
    pool = ThreadPoolExecutor(workers or os.cpu_count())  # Pillow decodes beside other threads
    try:
        # the results come first in zip: progress moves on when a label is done
        for row, _ in zip(pool.map(count_or_skip, indices), progress(indices) if progress else indices, strict=True):
            rows.append(row)
    finally:
        pool.shutdown(cancel_futures=True)
    counts = torch.stack(rows)
    left_out = skipped.indices() if skipped else []
    if left_out:
        log.warning("%d of %d labels cannot be read and are left out", len(left_out), len(dataset))
    if len(left_out) == len(dataset):
        raise ValueError(f"{dataset.label_file(0)}: neither this nor another of the {len(dataset)} labels can be read")
    if path and not left_out:
        try:
            _save(path, fingerprint, counts)
        except OSError as error:  # the work is done: better no cache than no counts
            log.warning("%s: cannot be written, labels will be counted again (%s)", path, error)
    return counts


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
    path = Path(file)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            entries = [(where, label, pixels) for label, images in content.items() for where, pixels in images]
        else:
            entries = [(row["file"], label, row[label]) for row in content for label in row if label != "file"]
        rows = [(Path(where.replace("\\", "/")).stem, int(label), int(pixels)) for where, label, pixels in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{path}: cannot be read as sample_class_stats.json or samples_with_class.json ({error})"
        ) from None
    counts = torch.zeros(len(names), 256, dtype=torch.int64)
    index = {name: i for i, name in enumerate(names)}
    for stem, label, pixels in rows:
        ends = [i for i, letter in enumerate(f"{stem}_") if letter == "_"]
        name = next((stem[:end] for end in reversed(ends) if stem[:end] in index), None)
        if name is not None:
            if not 0 <= label < 255:
                raise ValueError(f"{path}: label {label} of {stem} is no train id")
            if not 0 <= pixels < 2**40:
                raise ValueError(f"{path}: {pixels} is no number of pixels of {stem}")
            counts[index[name], label] = pixels
    empty = (counts.sum(dim=1) == 0).nonzero().flatten()
    if len(empty):
        raise ValueError(f"{path}: no entry for {names[int(empty[0])]} ({len(empty)} of {len(names)} images have none)")
    return counts


def check_classes(dataset: LabeledImages, counts: Tensor, num_classes: int, *, ignore_index: int = 255) -> None:
    """Refuse label ids outside [0, num_classes), other than ``ignore_index``.

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
            f"{dataset.label_file(index)}: label {label} is outside the {num_classes} classes 0..{num_classes - 1} "
            f"(and not the ignored {ignore_index})"
        )


class RareClasses:
    r"""Draw a class, rare ones more often, then an image that shows enough of it.

    .. math::
        P(c) \propto \exp((1 - f_c) / T)

    with :math:`f_c` the share of class c among all counted pixels (DAFormer, arXiv 2111.14887, section 3.3). A class
    that no image shows enough of is never drawn.

    Args:
        counts: (N, C) pixels of each class in each image (:func:`count_labels`, cut to the classes).
        temperature: T; the larger, the more even.
        min_pixels: an image is drawn for a class if it has more pixels of it, at the resolution of the counts.

    ``.probabilities`` is P, (C,) float64.

    Raises:
        ValueError: a setting is out of its range, or no image has more than ``min_pixels`` of any class.

    Example:
        >>> rare = RareClasses(torch.tensor([[9000, 0], [4000, 5000]]), temperature=0.1)
        >>> [round(p, 3) for p in rare.probabilities.tolist()]
        [0.012, 0.988]
        >>> index, label = rare.draw(torch.Generator().manual_seed(0))
        >>> index, label
        (1, 1)
    """

    def __init__(self, counts: Tensor, *, temperature: float = 0.01, min_pixels: int = 3000) -> None:
        if counts.dim() != 2 or 0 in counts.shape:
            raise ValueError(f"counts must be (images, classes) and not empty, got {tuple(counts.shape)}")
        if counts.shape[1] > 255:
            raise ValueError(f"counts must be cut to the classes, counts[:, :num_classes], got {tuple(counts.shape)}")
        if not temperature > 0 or min_pixels < 0:
            raise ValueError(
                f"temperature must be positive and min_pixels not negative, got {temperature}, {min_pixels}"
            )
        self.min_pixels, self.num_images = min_pixels, len(counts)
        self._images = [(column > min_pixels).nonzero().flatten() for column in counts.T]
        shown = torch.tensor([len(images) > 0 for images in self._images])
        if not shown.any():
            raise ValueError(
                f"no image has more than min_pixels={min_pixels} pixels of any class; choose a smaller number"
            )
        shares = counts.sum(dim=0).double() / counts.sum()
        self.probabilities = torch.where(shown, (1 - shares) / temperature, -torch.inf).softmax(dim=0)

    def draw(self, generator: torch.Generator | None = None) -> tuple[int, int]:
        """(image index, class)."""
        check_generator(generator)
        label = int(torch.multinomial(self.probabilities, 1, generator=generator))
        images = self._images[label]
        return int(images[torch.randint(len(images), (), generator=generator)]), label


def _load(path: Path, fingerprint: str) -> Tensor | None:
    """Counts of the same files, or None: a missing, older or broken cache is counted anew."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["fingerprint"] != fingerprint:
            return None
        counts = torch.zeros(len(kept["counts"]), 256, dtype=torch.int64)
        for row, pixels in zip(counts, kept["counts"], strict=True):
            row[[int(label) for label in pixels]] = torch.tensor(list(pixels.values()), dtype=torch.int64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError):
        return None
    return counts


def _save(path: Path, fingerprint: str, counts: Tensor) -> None:
    rows = [{label: pixels for label, pixels in enumerate(row) if pixels} for row in counts.tolist()]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps({"fingerprint": fingerprint, "counts": rows}), encoding="utf-8")
    os.replace(part, path)
