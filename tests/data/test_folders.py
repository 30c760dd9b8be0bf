"""Labelled images in two plain folders."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trees import write

from hrda_lib.data import Folders, count_labels, image_files


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
