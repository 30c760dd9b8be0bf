"""Labelled images in two plain folders."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trees import acdc, cityscapes, filled, gta, list_file, mapillary, pixels, saved, synthia, write

from hrda_lib.data import (
    Acdc,
    Cityscapes,
    Folders,
    Gta,
    LabeledFiles,
    ListFile,
    Mapillary,
    Synthia,
    count_labels,
    image_files,
)


def test_folders(tmp_path: Path) -> None:
    folders = Folders(write(tmp_path))
    assert len(folders) == 3
    image, label, name = folders[2]
    assert (image.shape, image.dtype, label.shape, label.dtype, name) == (
        (3, 24, 32),
        torch.uint8,
        (24, 32),
        torch.uint8,
        "2",
    )
    assert torch.equal(image[0], label)
    assert label.unique().tolist() == [0, 2]


def test_ignored_ids_become_255(tmp_path: Path) -> None:
    assert Folders(write(tmp_path), ignore=[2])[2].label.unique().tolist() == [0, 255]


def broken(root: Path, **kinds: Any) -> Path:
    """A source with one fault."""
    write(root, 2)
    for name, content in kinds.items():
        file = root / name.replace("__", "/").replace("_png", ".png").replace("_jpg", ".jpg")
        if content is None:
            file.unlink()
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            Image.fromarray(content).save(file)
    return root


def read(root: Path) -> list[Any]:
    folders = Folders(root)
    return [folders[i] for i in range(len(folders))]


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda p: Folders(p / "nowhere"), "nowhere/images: no such folder"),
    "no image": (
        lambda p: Folders((p / "images").mkdir() or p),
        "images: no image in this folder (looked for .png, .jpg, .jpeg, .bmp, .webp, .tif, .tiff)",
    ),
    "two endings": (
        lambda p: read(broken(p, images__0_jpg=np.zeros((4, 4, 3), np.uint8))),
        "0.png: same name as 0.jpg; a label could not be told apart",
    ),
    "label missing": (lambda p: read(broken(p, labels__1_png=None)), "labels/1.png: no such file"),
    "broken label": (lambda p: read(broken(p, labels__1_png=b"?")), "labels/1.png: cannot be read as an image"),
    "broken image": (lambda p: read(broken(p, images__1_png=b"?")), "images/1.png: cannot be read as an image"),
    "empty image": (lambda p: read(broken(p, images__1_png=b"")), "images/1.png: cannot be read as an image"),
    "label in colour": (
        lambda p: read(broken(p, labels__1_png=np.zeros((24, 32, 3), np.uint8))),
        "labels/1.png: label must be a single-channel 8-bit or palette PNG of ids, got mode RGB; "
        "colours? see StoredColours",
    ),
    "label of 16 bits": (
        lambda p: read(broken(p, labels__1_png=np.zeros((24, 32), np.uint16))),
        "labels/1.png: label must be a single-channel 8-bit or palette PNG of ids, got mode I;16",
    ),
    "image of 16 bits": (
        lambda p: read(broken(p, images__1_png=np.zeros((24, 32), np.uint16))),
        "images/1.png: image must have 8 bits a channel, got mode I;16B; convert it",
    ),
    "sizes differ": (
        lambda p: read(broken(p, labels__1_png=np.zeros((24, 30), np.uint8))),
        "labels/1.png: label must have its image's size (24, 32), got (24, 30)",
    ),
    "ignore": (lambda p: Folders(p, ignore=[300]), "ignore must hold label ids in [0, 255], got [300]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    call, text = BAD[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call(tmp_path)


def test_names_with_spaces_and_other_letters(tmp_path: Path) -> None:
    root = write(tmp_path / "Straßen in Zürich, été", 1)
    for folder in ("images", "labels"):
        (root / folder / "0.png").rename(root / folder / "große Straße 1.png")
    data, cache = Folders(root), tmp_path / "Zähler 1.json"
    assert torch.equal(count_labels(data, cache=cache), count_labels(data, cache=cache))
    assert data[0].name == data.unlabeled()[0].name == "große Straße 1"


def test_image_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.tif", ".d.png"):
        (tmp_path / name).touch()
    (tmp_path / "e.png").mkdir()
    assert [file.name for file in image_files(str(tmp_path), any_ending=True)] == ["a.JPG", "b.png", "c.tif"]
    (tmp_path / "e.png").rmdir()
    assert [file.name for file in image_files(tmp_path)] == ["a.JPG", "b.png"]


def test_tiffs_of_eight_bits_are_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path, 2)
    for name, array in {
        "colour.tif": pixels(0),
        "grey.TIFF": pixels(0)[..., 0],
        "deep.tif": pixels(0)[..., 0].astype(np.uint16),
        "float.tiff": pixels(0)[..., 0].astype(np.float32),
    }.items():
        saved(root / "images" / name, array)
        saved(root / "labels" / f"{name.split('.')[0]}.png", filled(1))
    (root / "images" / "broken.tif").write_bytes(b"II*\0")
    data = Folders(root)
    assert data.names == ["0", "1", "colour", "grey"]
    assert torch.equal(data[2].image, torch.from_numpy(pixels(0)).permute(2, 0, 1))
    assert torch.equal(data[3].image, torch.from_numpy(pixels(0)[..., 0]).expand(3, -1, -1))
    assert caplog.messages == [f"{root}/images: left out: 2 .tif, 1 .tiff; the first is broken.tif"]


def test_what_is_left_out_is_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path, 2)
    for name in ("a.gif", "b.gif", "c.HEIC", "notes.txt", "._0.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (root / "images" / name).touch()
    assert [file.name for file in image_files(root / "images")] == ["0.png", "1.png"]
    assert caplog.messages == [f"{root}/images: left out: 2 .gif, 1 .heic; the first is a.gif"]
    caplog.clear()
    anything = image_files(root / "images", any_ending=True)
    assert [file.name for file in anything] == ["0.png", "1.png", "a.gif", "b.gif", "c.HEIC", "notes.txt"]
    assert not caplog.messages


FORKS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], LabeledFiles]]] = {
    "gta": (gta, Gta),
    "synthia": (synthia, Synthia),
    "cityscapes": (cityscapes, lambda p: Cityscapes(p, "train")),
    "acdc": (acdc, lambda p: Acdc(p, "val")),
    "mapillary": (mapillary, lambda p: Mapillary(p, "validation")),
    "list": (list_file, lambda p: ListFile(p / "list.txt")),
    "folders": (write, Folders),
}


@pytest.mark.parametrize("kind", FORKS)
def test_resource_forks_are_left_out_everywhere(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build, open_tree = FORKS[kind]
    data = open_tree(build(tmp_path))
    for file in data.unlabeled().files:
        (file.parent / f"._{file.name}").write_bytes(b"\0\5\x16\7 no picture")
        for name in ("Thumbs.db", ".DS_Store", ".hidden.png"):
            (file.parent / name).touch()
    if kind == "list":
        lines = (tmp_path / "list.txt").read_text(encoding="utf-8")
        (tmp_path / "list.txt").write_text(f"x/._0.jpg\ty/._0.png\n{lines}Thumbs.db\n", encoding="utf-8")
    assert open_tree(tmp_path).names == data.names
    left_out = [f"{tmp_path}/list.txt: left out: 2 hidden files; the first is x/._0.jpg"] if kind == "list" else []
    assert caplog.messages == left_out


def test_pictures_of_another_ending_in_a_street_set_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = gta(tmp_path)
    (root / "images" / "00009.jpg").touch()
    assert len(Gta(root)) == 2
    assert caplog.messages == [f"{root}/images: left out: 1 .jpg; the first is 00009.jpg"]


def tree(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


MEANT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "its images": (
        lambda p: Folders(write(p / "a") / "images"),
        "ROOT/a/images/images: no such folder; ROOT/a/images holds 3 images: give ROOT/a",
    ),
    "its labels": (
        lambda p: Folders(write(p / "a") / "labels"),
        "ROOT/a/labels/images: no such folder; ROOT/a/images holds 3 images: give ROOT/a",
    ),
    "the parent": (
        lambda p: Folders(write(p / "a").parent),
        "ROOT/images: no such folder; ROOT/a/images holds 3 images: give ROOT/a",
    ),
    "images themselves": (
        lambda p: Folders(tree(p / "a", "0.png", "1.jpg", "._1.jpg")),
        "ROOT/a/images: no such folder; ROOT/a holds 2 images: move them to ROOT/a/images",
    ),
    "deeper": (
        lambda p: Folders(tree(p / "a", "images/town/0.png")),
        "ROOT/a/images: no image in this folder (looked for .png, .jpg, .jpeg, .bmp, .webp, .tif, .tiff); "
        "images lie in ROOT/a/images/town, but folders inside are not searched",
    ),
    "a target": (
        lambda p: image_files(write(p / "a")),
        "ROOT/a: no image in this folder (looked for .png, .jpg, .jpeg, .bmp, .webp, .tif, .tiff); "
        "ROOT/a/images holds 3 images: give ROOT/a/images",
    ),
    "a target's parent": (
        lambda p: image_files(tree(p, "a/0.png").joinpath("b").mkdir() or p / "b"),
        "ROOT/b: no image in this folder (looked for .png, .jpg, .jpeg, .bmp, .webp, .tif, .tiff)",
    ),
    "a street set's images": (
        lambda p: Gta(gta(p / "a") / "images"),
        "ROOT/a/images/images: no such folder; ROOT/a/images holds 00001.png, 00002.png; expected "
        "ROOT/a/images/images/00001.png with ROOT/a/images/labels/00001.png; ROOT/a/images holds 2 images: give ROOT/a",
    ),
    "a street set's folder": (
        lambda p: Cityscapes(cityscapes(p / "a") / "gtFine", "val"),
        "ROOT/a/gtFine/leftImg8bit: no such folder; ROOT/a/gtFine holds train, val; expected "
        "ROOT/a/gtFine/leftImg8bit/val/CITY/*_leftImg8bit.png with "
        "ROOT/a/gtFine/gtFine/val/CITY/*_gtFine_labelIds.png; ROOT/a/leftImg8bit holds train, val: give ROOT/a",
    ),
}


@pytest.mark.parametrize("case", MEANT)
def test_the_folder_that_was_meant_is_named(case: str, tmp_path: Path) -> None:
    call, text = MEANT[case]
    with pytest.raises(ValueError, match=f"^{re.escape(text.replace('ROOT', str(tmp_path)))}$"):
        call(tmp_path)
