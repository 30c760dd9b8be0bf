"""Data sets by what their folder holds."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hrda_lib.data.folders import Folders
from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.layout import contents, is_clutter, pictures_in, shown, subfolders
from hrda_lib.data.list_file import ListFile
from hrda_lib.data.palettes import colours_of
from hrda_lib.data.pictures import opened
from hrda_lib.data.streets import Acdc, Bdd100k, Cityscapes, DarkZurich, Gta, Mapillary, Synthia
from hrda_lib.data.streets.train_ids import is_drawn_officially


class _Kind(NamedTuple):
    build: Callable[..., LabeledFiles]
    splits: tuple[str, ...]  # with labels, as the data set calls "train" and "val"
    signs: tuple[str, ...]  # patterns of what a folder of this kind holds


# the first that fits is taken
_KINDS = {
    "cityscapes": _Kind(Cityscapes, ("train", "val"), ("leftImg8bit",)),
    "synthia": _Kind(Synthia, (), ("RGB", "GT")),
    "acdc": _Kind(Acdc, ("train", "val"), ("rgb_anon/fog",)),
    "dark_zurich": _Kind(DarkZurich, ("train", "val"), ("rgb_anon/*/night",)),
    "bdd100k": _Kind(Bdd100k, ("train", "val"), ("images/10k",)),
    "mapillary": _Kind(Mapillary, ("training", "validation"), ("training/images | validation/images",)),
    "gta": _Kind(Gta, (), ("images", "labels")),
    "folders": _Kind(Folders, (), ("images",)),
}

DATASET_KINDS = tuple(_KINDS)
"""The kinds of data set that :func:`open_dataset` tells apart."""


def open_dataset(
    root: str | Path, split: str = "train", *, kind: str | None = None, max_pixels: int | None = None
) -> LabeledFiles:
    """The data set in a folder, or of a list of files, by what is there.

    Args:
        root: its folder, or a file of lines ``image<TAB>label`` (:class:`ListFile`).
        split: "train", "val" or another of the data set's own; "train" and "val" of :class:`Mapillary` are its
            "training" and "validation". Left out for GTA, SYNTHIA, plain folders and lists, which have none.
        kind: one of :data:`DATASET_KINDS`; None: by what the folder holds. GTA, and any part of it, is told from plain
            folders by the colours of its palettes.
        max_pixels: as of :class:`LabeledFiles`.

    Raises:
        ValueError: the folder is of no kind that is known (the message says what lies in it), or what
            opening the data set raises.
    """
    root = Path(root)
    if root.is_file():
        return ListFile(root, max_pixels=max_pixels)
    build, splits, _ = _KINDS[_kind_of(root, kind)]
    own = dict(zip(("train", "val"), splits, strict=False)).get(split, split)
    return build(root, own, max_pixels=max_pixels) if splits else build(root, max_pixels=max_pixels)


def open_labeled_splits(
    root: str | Path, *, kind: str | None = None, max_pixels: int | None = None
) -> dict[str, LabeledFiles]:
    """Splits to train and to measure on, by name: "cityscapes train", "cityscapes val"; or "gta".

    ``.has_labels`` is False where none are published, as for "train" of :class:`DarkZurich`. Its archives lie in one
    folder or apart: those that are there are opened.

    Args:
        root: its folder, or a file of lines ``image<TAB>label``, whose name is then the only one.
        kind, max_pixels: as of :func:`open_dataset`.

    Raises:
        ValueError: as :func:`open_dataset`.
    """
    root = Path(root)
    if root.is_file():
        return {root.name: ListFile(root, max_pixels=max_pixels)}
    found = _kind_of(root, kind)
    build, splits, _ = _KINDS[found]
    if build is DarkZurich:
        splits = tuple(split for split in splits if (root / "rgb_anon" / split).is_dir()) or splits
    if not splits:
        return {found: build(root, max_pixels=max_pixels)}
    return {f"{found} {split}": build(root, split, max_pixels=max_pixels) for split in splits}


def _kind_of(root: Path, kind: str | None) -> str:
    if kind is not None:
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(DATASET_KINDS)}, got {kind!r}")
        return kind
    if found := _recognised(root):
        return found
    signs = "; ".join(f"{name}: {', '.join(signs)}" for name, (_, _, signs) in _KINDS.items())
    raise ValueError(
        f"{shown(root)}: no data set is recognised here; one holds, for {signs}; {shown(root)} holds {contents(root)}"
        f"{_beside(root)}"
    )


def _recognised(root: Path) -> str | None:
    fitting = [name for name, (_, _, signs) in _KINDS.items() if all(_holds(root, sign) for sign in signs)]
    if "gta" in fitting and not _is_gta(root):
        fitting.remove("gta")
    return fitting[0] if fitting else None


def _holds(root: Path, sign: str) -> bool:
    return any(any(root.glob(pattern)) for pattern in sign.split(" | "))


def _beside(root: Path) -> str:
    """The end of a message: data sets in the folder, or around it."""
    around = (
        [root.parent] if root.name in ("images", "labels", "leftImg8bit", "gtFine", "rgb_anon", "gt", "RGB") else []
    )
    found = [(folder, name) for folder in (*around, *subfolders(root)) if (name := _recognised(folder))]
    if not found and (count := pictures_in(root)):
        return f"; {count} images lie in {shown(root)} itself: plain folders have them in {shown(root / 'images')}"
    return "".join(f"; {shown(folder)} is of the kind {name}: give {shown(folder)}" for folder, name in found[:4])


def _is_gta(root: Path) -> bool:
    """Whether images are numbered as GTA's are, and the palette of one of the first labels has its colours."""
    images, labels = (
        sorted(file for file in (root / name).glob("*.png") if not is_clutter(file))[:9]
        for name in ("images", "labels")
    )
    numbered = bool(images) and all(len(file.stem) == 5 and file.stem.isdigit() for file in images)
    return numbered and any(map(_has_gta_colours, labels))


def _has_gta_colours(file: Path) -> bool:
    try:
        with opened(file) as image:
            return image.mode == "P" and is_drawn_officially(colours_of(image))
    except ValueError:
        return False
