"""Data sets by what their folder holds."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trees
from trees import every_id, gta, list_file, mapillary, saved, write

from hrda_lib.data import (
    CITYSCAPES,
    DATASET_KINDS,
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
    open_dataset,
    open_labeled_splits,
)

# a tree, its class, a split of it and what it is then called, and the names of all with labels
SETS: dict[str, tuple[Callable[[Path], Path], type[LabeledFiles], str, str, list[str]]] = {
    "cityscapes": (trees.cityscapes, Cityscapes, "val", "val", ["cityscapes train", "cityscapes val"]),
    "synthia": (trees.synthia, Synthia, "val", "", ["synthia"]),
    "acdc": (trees.acdc, Acdc, "train", "train", ["acdc train", "acdc val"]),
    "dark_zurich": (trees.dark_zurich, DarkZurich, "test", "test", ["dark_zurich train", "dark_zurich val"]),
    "gta": (gta, Gta, "train", "", ["gta"]),
    "folders": (write, Folders, "train", "", ["folders"]),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", SETS)
def test_kinds_are_recognised(kind: str, named: bool, tmp_path: Path) -> None:
    build, of_class, split, its_name, names = SETS[kind]
    root = build(tmp_path)
    data = open_dataset(str(root), split, kind=kind if named else None)
    assert type(data) is of_class
    assert getattr(data, "split", "") == its_name
    found = open_labeled_splits(str(root), kind=kind if named else None)
    assert list(found) == names
    assert {type(one) for one in found.values()} == {of_class}
    assert [one.split for one in found.values() if hasattr(one, "split")] == [n.split()[1] for n in names if " " in n]
    assert data.classes == (() if kind == "folders" else CITYSCAPES)


def both_splits(root: Path) -> Path:
    mapillary(root)
    (root / "training" / "images").mkdir(parents=True)
    (root / "validation" / "images" / "-0mXqxOjZDsMeQ8jvjA_uw.jpg").rename(root / "training" / "images" / "a.jpg")
    return root


def test_mapillarys_own_names_of_splits(tmp_path: Path) -> None:
    root = both_splits(tmp_path)
    for split, its_name in {"train": "training", "val": "validation", "training": "training"}.items():
        data = open_dataset(root, split)
        assert isinstance(data, Mapillary)
        assert data.split == its_name
    assert list(open_labeled_splits(root)) == ["mapillary training", "mapillary validation"]


def test_the_first_split_is_for_training(tmp_path: Path) -> None:
    assert open_dataset(trees.cityscapes(tmp_path)).names == Cityscapes(tmp_path, "train").names


def test_lists(tmp_path: Path) -> None:
    file = list_file(tmp_path) / "list.txt"
    assert isinstance(open_dataset(file, "val"), ListFile)
    found = open_labeled_splits(file)
    assert list(found) == ["list.txt"]
    assert isinstance(found["list.txt"], ListFile)


def test_a_name_of_gtas_in_plain_folders(tmp_path: Path) -> None:
    root = gta(tmp_path)
    for file in (root / "labels").iterdir():
        saved(file, every_id(18, 0))  # grey, where GTA has palettes
    (root / "labels" / "00000.png").write_bytes(b"no image")
    assert type(open_dataset(root)) is Folders
    assert list(open_labeled_splits(root)) == ["folders"]
    assert type(open_dataset(root, kind="gta")) is Gta


def test_folders_of_night_alone_are_no_acdc(tmp_path: Path) -> None:
    assert isinstance(open_dataset(trees.dark_zurich(tmp_path)), DarkZurich)


KNOWN = (
    "no data set is recognised here; one holds, for cityscapes: leftImg8bit; synthia: RGB, GT; acdc: rgb_anon/fog; "
    "dark_zurich: rgb_anon/*/night; bdd100k: images/10k; mapillary: training/images | validation/images; "
    "gta: images, labels; folders: images; ROOT holds "
)
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (open_dataset, f"ROOT: {KNOWN}nothing"),
    "nothing, all splits": (open_labeled_splits, f"ROOT: {KNOWN}nothing"),
    "one split of two": (
        lambda p: open_dataset(mapillary(p)),
        "ROOT/training: no such folder; ROOT holds validation; expected ROOT/training/images/*.jpg with "
        "ROOT/training/labels/*.png",
    ),
    "kind": (
        lambda p: open_dataset(p, kind="kitti"),
        f"kind must be one of {', '.join(DATASET_KINDS)}, got 'kitti'",
    ),
    "another kind": (
        lambda p: open_dataset(gta(p), kind="synthia"),
        "ROOT/RGB: no such folder; ROOT holds images, labels; "
        "expected ROOT/RGB/0000000.png with ROOT/GT/LABELS/0000000.png",
    ),
    "split": (
        lambda p: open_dataset(trees.cityscapes(p), "validation"),
        "split must be one of train, val, test, got 'validation'; ROOT/leftImg8bit holds train, val",
    ),
    "a split is missing": (
        lambda p: (trees.bdd100k(p) / "images/10k/train").mkdir() or open_labeled_splits(p),
        "ROOT/images/10k/train: no *.jpg in this folder, which holds nothing; "
        "expected ROOT/images/10k/train/*.jpg with ROOT/labels/sem_seg/masks/train/*.png",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    call, text = BAD[case]
    with pytest.raises(ValueError, match=f"^{re.escape(text.replace('ROOT', str(tmp_path)))}$"):
        call(tmp_path)


def test_bdd100k(tmp_path: Path) -> None:
    assert isinstance(open_dataset(trees.bdd100k(tmp_path), "val"), Bdd100k)


def test_kinds() -> None:
    assert {*SETS, "bdd100k", "mapillary"} == set(DATASET_KINDS)
