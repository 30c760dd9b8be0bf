"""Image files with a label file each."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trees import SIZE, cityscapes, gta, save_palette, some_ignored

from hrda_lib.data import CITYSCAPES, Cityscapes, Concatenated, Folders, Gta, LabeledFiles, Resized


def test_looking_for_files_opens_none(tmp_path: Path) -> None:
    for file in (gta(tmp_path) / "labels").iterdir():
        file.write_bytes(b"not an image")
    Gta(tmp_path).check_files()
    assert Gta(tmp_path).fingerprint()


def test_fingerprints(tmp_path: Path) -> None:
    root = gta(tmp_path / "a")
    first = Gta(root).fingerprint()
    assert Gta(root).fingerprint() == first
    assert Folders(root).fingerprint() != first  # other labels from the same files
    assert Resized(Gta(root), (8, 9)).fingerprint() not in (first, Resized(Gta(root), (9, 8)).fingerprint())
    root = root.rename(tmp_path / "b")
    assert Gta(root).fingerprint() == first
    save_palette(root / "labels" / "00002.png", np.zeros(SIZE, np.uint8))
    assert Gta(root).fingerprint() != first
    streets = cityscapes(tmp_path / "c")
    assert Cityscapes(streets, "train").fingerprint() != Cityscapes(streets, "val").fingerprint()


def test_lists_of_files(tmp_path: Path) -> None:
    root = gta(tmp_path)
    images, labels = (sorted((root / name).iterdir()) for name in ("images", "labels"))
    data = LabeledFiles(images, labels[::-1], ["x", "y"])
    assert data[0].name == "x"
    assert torch.equal(data.label(0), torch.from_numpy(some_ignored(34, 1)))
    assert data.unlabeled()[1].name == "y"
    assert len(Concatenated([data, Gta(root)])) == 4


def test_what_is_known_of_classes_and_conditions(tmp_path: Path) -> None:
    root = gta(tmp_path)
    for data in (Folders(root), LabeledFiles([tmp_path], [tmp_path], ["a"])):
        assert (data.classes, data.conditions, data.margins) == ((), [], (0, 0, 0, 0))
    assert (Gta(root).classes, Gta(root).conditions) == (CITYSCAPES, [])


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "labels": (
        lambda p: LabeledFiles([p], [], ["a"]),
        "images, labels and names must be equally many, got 1, 0 and 1",
    ),
    "names": (
        lambda p: LabeledFiles([p], [p], []),
        "images, labels and names must be equally many, got 1, 1 and 0",
    ),
    "a label is missing": (
        lambda p: LabeledFiles([p / "a.png"], [p / "b.png"], ["a"]).check_files(),
        "ROOT/b.png: no such file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    call, text = BAD[case]
    with pytest.raises(ValueError, match=f"^{re.escape(text.replace('ROOT', str(tmp_path)))}$"):
        call(tmp_path)
