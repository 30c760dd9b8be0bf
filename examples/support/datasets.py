"""Data sets by name, and by what their folder holds."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from hrda_lib.data import (
    Acdc,
    Bdd100k,
    Cityscapes,
    DarkZurich,
    Folders,
    Gta,
    LabeledFiles,
    ListFile,
    Mapillary,
    Synthia,
)

# kind -> (how it is opened, its splits, what a folder of this kind holds)
KINDS: dict[str, tuple[Callable[..., LabeledFiles], tuple[str, ...], tuple[str, ...]]] = {
    "cityscapes": (Cityscapes, ("train", "val"), ("leftImg8bit",)),
    "synthia": (Synthia, (), ("RGB", "GT")),
    "acdc": (Acdc, ("train", "val"), ("rgb_anon/fog",)),
    "dark_zurich": (DarkZurich, ("train", "val"), ("rgb_anon/train/night",)),
    "bdd100k": (Bdd100k, ("train", "val"), ("images/10k",)),
    "mapillary": (Mapillary, ("training", "validation"), ("training/images",)),
    "gta": (Gta, (), ("images/00001.png",)),
    "folders": (Folders, (), ("images",)),
}


def open_all(root: Path, kind: str | None = None, *, splits: Sequence[str] | None = None) -> dict[str, LabeledFiles]:
    """The data set below ``root``, a name for each of its splits; a file is a list of images.

    Args:
        root: its folder, or a file of lines ``image<TAB>label``.
        kind: a key of ``KINDS``; None: by what the folder holds.
        splits: those to open, where it has any; None: all with labels.

    Raises:
        ValueError: it is of no kind that is known, or cannot be read.
    """
    if root.is_file():
        return {root.name: ListFile(root)}
    fitting = [name for name, (_, _, signs) in KINDS.items() if all((root / sign).exists() for sign in signs)]
    if fitting == ["gta", "folders"] and not any(map(_has_palette, sorted((root / "labels").glob("*.png"))[:9])):
        fitting = ["folders"]  # with a name of GTA's by chance
    found = kind or next(iter(fitting), None)
    if found is None:
        signs = "; ".join(f"{name}: {', '.join(signs)}" for name, (_, _, signs) in KINDS.items())
        raise ValueError(f"{root}: no data set is recognised here; one holds, for {signs}")
    build, labeled, _ = KINDS[found]
    if not labeled:
        return {found: build(root)}
    return {f"{found} {split}": build(root, split) for split in splits or labeled}


def _has_palette(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return image.mode == "P"
    except OSError:
        return False


def open_split(kind: str, root: Path, split: str) -> LabeledFiles:
    """One split, "train" or "val", of a street data set; those without splits have "train" alone.

    Raises:
        ValueError: the data set has no such split, or cannot be read.
    """
    build, splits, _ = KINDS[kind]
    if splits:
        return build(root, split)
    if split != "train":
        raise ValueError(f"{kind} has no images to measure on")
    return build(root)
