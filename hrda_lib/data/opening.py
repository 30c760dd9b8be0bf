"""Data sets by what their folder holds."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hrda_lib.data.folders import Folders
from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.list_file import ListFile
from hrda_lib.data.streets import Acdc, Bdd100k, Cityscapes, DarkZurich, Gta, Mapillary, Synthia


class _Kind(NamedTuple):
    build: Callable[..., LabeledFiles]
    splits: tuple[str, ...]  # with labels, as the data set calls "train" and "val"
    signs: tuple[str, ...]  # what a folder of this kind holds


# the first that fits is taken
_KINDS = {
    "cityscapes": _Kind(Cityscapes, ("train", "val"), ("leftImg8bit",)),
    "synthia": _Kind(Synthia, (), ("RGB", "GT")),
    "acdc": _Kind(Acdc, ("train", "val"), ("rgb_anon/fog",)),
    "dark_zurich": _Kind(DarkZurich, ("train", "val"), ("rgb_anon/train/night",)),
    "bdd100k": _Kind(Bdd100k, ("train", "val"), ("images/10k",)),
    "mapillary": _Kind(Mapillary, ("training", "validation"), ("training/images",)),
    "gta": _Kind(Gta, (), ("images/00001.png",)),
    "folders": _Kind(Folders, (), ("images",)),
}

DATASET_KINDS = tuple(_KINDS)
"""The kinds of data set that :func:`open_dataset` tells apart."""


def open_dataset(root: str | Path, split: str = "train", *, kind: str | None = None) -> LabeledFiles:
    """The data set in a folder, or of a list of files, by what is there.

    Args:
        root: its folder, or a file of lines ``image<TAB>label`` (:class:`ListFile`).
        split: "train", "val" or another of the data set's own; "train" and "val" of :class:`Mapillary` are its
            "training" and "validation". Left out for GTA, SYNTHIA, plain folders and lists, which have none.
        kind: one of :data:`DATASET_KINDS`; None: by what the folder holds.

    Raises:
        ValueError: the folder is of no kind that is known, or what opening the data set raises.

    Example:
        >>> from hrda_lib.data import open_dataset
        >>> open_dataset("no/such/folder", kind="gta")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: no: no such folder; . holds ...; expected no/such/folder/images/00001.png with ...
    """
    root = Path(root)
    if root.is_file():
        return ListFile(root)
    build, splits, _ = _KINDS[_kind_of(root, kind)]
    own = dict(zip(("train", "val"), splits, strict=False)).get(split, split)
    return build(root, own) if splits else build(root)


def open_labeled_splits(root: str | Path, *, kind: str | None = None) -> dict[str, LabeledFiles]:
    """Every split of a data set that has labels, by its name: "cityscapes train", "cityscapes val"; or "gta".

    Args:
        root: its folder, or a file of lines ``image<TAB>label``, whose name is then the only one.
        kind: as of :func:`open_dataset`.

    Raises:
        ValueError: as :func:`open_dataset`.
    """
    root = Path(root)
    if root.is_file():
        return {root.name: ListFile(root)}
    found = _kind_of(root, kind)
    build, splits, _ = _KINDS[found]
    return {f"{found} {split}": build(root, split) for split in splits} if splits else {found: build(root)}


def _kind_of(root: Path, kind: str | None) -> str:
    if kind is not None:
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(DATASET_KINDS)}, got {kind!r}")
        return kind
    fitting = [name for name, (_, _, signs) in _KINDS.items() if all((root / sign).exists() for sign in signs)]
    if fitting == ["gta", "folders"] and not any(map(_has_palette, sorted((root / "labels").glob("*.png"))[:9])):
        return "folders"  # with a name of GTA's by chance
    if not fitting:
        signs = "; ".join(f"{name}: {', '.join(signs)}" for name, (_, _, signs) in _KINDS.items())
        raise ValueError(f"{root}: no data set is recognised here; one holds, for {signs}")
    return fitting[0]


def _has_palette(file: Path) -> bool:
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            return image.mode == "P"
    except OSError:
        return False
