"""Data sets by what their folder holds."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trees
from trees import COLOURS, every_id, gta, list_file, mapillary, picture, save_palette, saved, write

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


@pytest.mark.parametrize("first", [2, 2501, 24964])
def test_a_part_of_gta_is_gta(first: int, tmp_path: Path) -> None:
    root = gta(tmp_path, 3, first)
    saved(root / "labels" / f"{first:05}.png", every_id(33, 0))  # one was written again, without its palette
    assert type(open_dataset(root)) is Gta
    assert list(open_labeled_splits(root)) == ["gta"]


OTHER = [(i, 7, 7) for i in range(256)]
PLAIN: dict[str, Callable[[Path], Any]] = {
    "other colours": lambda p: save_palette(p / "labels/00001.png", every_id(18, 0), OTHER),
    "train ids in official colours": lambda p: save_palette(
        p / "labels/00001.png", every_id(18, 0), [entry.colour for entry in CITYSCAPES]
    ),
    "a palette too short": lambda p: save_palette(p / "labels/00001.png", every_id(1, 0), COLOURS[:8]),
    "grey": lambda p: saved(p / "labels/00001.png", every_id(18, 0)),
    "no label": lambda p: (p / "labels").mkdir(),
    "broken": lambda p: saved(p / "labels/0.png", every_id(1, 0)) or (p / "labels/00001.png").write_bytes(b"?"),
    "other names": lambda p: (
        save_palette(p / "labels/00001.png", every_id(33, 0)),
        (p / "images/00001.png").rename(p / "images/aachen.png"),
        (p / "labels/00001.png").rename(p / "labels/aachen.png"),
    ),
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_folders_are_never_gta(case: str, tmp_path: Path) -> None:
    picture(tmp_path / "images" / "00001.png", 0)
    PLAIN[case](tmp_path)
    assert type(open_dataset(tmp_path)) is Folders


def test_an_archive_of_dark_zurich_alone(tmp_path: Path) -> None:
    root = trees.dark_zurich(tmp_path / "Dark_Zurich_val_anon", ["val"])
    assert isinstance(open_dataset(root, "val"), DarkZurich)
    found = open_labeled_splits(root)
    assert list(found) == ["dark_zurich val"]
    assert found["dark_zurich val"][0].label.shape == (14, 20)
    with pytest.raises(ValueError, match=r"rgb_anon/train: no such folder; .*rgb_anon holds val; expected"):
        open_dataset(root)
    assert list(open_labeled_splits(trees.dark_zurich(tmp_path / "train", ["train"]))) == ["dark_zurich train"]


def test_splits_know_whether_labels_are_published(tmp_path: Path) -> None:
    root = trees.dark_zurich(tmp_path / "d")
    assert [DarkZurich(root, split).has_labels for split in ("train", "val", "test")] == [False, True, False]
    assert Acdc(trees.acdc(tmp_path / "a"), "val").has_labels
    assert Bdd100k(trees.bdd100k(tmp_path / "b"), "val").has_labels
    assert Mapillary(mapillary(tmp_path / "m"), "validation").has_labels
    assert Gta(gta(tmp_path / "g")).has_labels


def test_half_of_mapillary(tmp_path: Path) -> None:
    data = open_dataset(mapillary(tmp_path), "val")
    assert isinstance(data, Mapillary)
    assert data.split == "validation"


NEAR: dict[str, tuple[Callable[[Path], Path], str]] = {
    "the parent of sets": (
        lambda p: gta(p / "GTA").parent if trees.cityscapes(p / "Cityscapes") else p,
        "ROOT holds Cityscapes, GTA; ROOT/Cityscapes is of the kind cityscapes: give ROOT/Cityscapes; "
        "ROOT/GTA is of the kind gta: give ROOT/GTA",
    ),
    "a folder of a set": (
        lambda p: trees.cityscapes(p / "c") / "gtFine",
        "ROOT/c/gtFine holds train, val; ROOT/c is of the kind cityscapes: give ROOT/c",
    ),
    "images of plain folders": (
        lambda p: write(p / "a") / "images",
        "ROOT/a/images holds 0.png, 1.png, 2.png; ROOT/a is of the kind folders: give ROOT/a",
    ),
    "images alone": (
        lambda p: saved(p / "a" / "0.png", every_id(3, 0)) or p / "a",
        "ROOT/a holds 0.png; 1 images lie in ROOT/a itself: plain folders have them in ROOT/a/images",
    ),
}


@pytest.mark.parametrize("case", NEAR)
def test_what_lies_beside_is_named(case: str, tmp_path: Path) -> None:
    build, text = NEAR[case]
    root = build(tmp_path)
    for call in (open_dataset, open_labeled_splits):
        with pytest.raises(ValueError, match=f"folders: images; {re.escape(text.replace('ROOT', str(tmp_path)))}$"):
            call(root)


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
