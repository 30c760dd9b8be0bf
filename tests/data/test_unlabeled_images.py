"""Targets: images whose labels are never looked for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from trees import SIZE, arrays, cityscapes, gta, write

from hrda_lib.data import Cityscapes, Folders, Gta, LabeledFiles, ResizedImages, TargetCrops, UnlabeledImages, pictures

KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], LabeledFiles], str]] = {
    "folders": (write, Folders, "labels"),
    "gta": (gta, Gta, "labels"),
    "cityscapes": (cityscapes, lambda root: Cityscapes(root, "train"), "gtFine"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_never_opens_a_label(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree, open_tree, labels = KINDS[kind]
    root = write_tree(tmp_path)
    names = [sample.name for sample in open_tree(root)]
    for file in (root / labels).rglob("*.png"):
        file.write_bytes(b"not an image")
    opened: list[str] = []
    real = pictures.opened
    monkeypatch.setattr(pictures, "opened", lambda file, *limit: opened.append(str(file)) or real(file, *limit))
    target = open_tree(root).unlabeled()
    resized = ResizedImages(target, 12)
    crops = TargetCrops(resized, (8, 8), length=6)
    samples = [sample for data in (target, resized, crops) for sample in (data[i] for i in range(len(data)))]
    assert not any(hasattr(sample, "label") for sample in samples)
    assert [sample.name for sample in target] == names
    assert opened
    assert not any(labels in file for file in opened)


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_needs_no_labels(tmp_path: Path, kind: str) -> None:
    write_tree, open_tree, labels = KINDS[kind]
    root = write_tree(tmp_path / "data")
    expected = open_tree(root)[0]
    (root / labels).rename(tmp_path / "elsewhere")
    target = open_tree(root).unlabeled()
    assert isinstance(target, UnlabeledImages)
    assert target[0].name == expected.name
    assert torch.equal(target[0].image, expected.image)


def read_npy(file: Path) -> Tensor:
    return torch.from_numpy(np.load(file))


def test_a_target_of_readers_never_looks_for_labels(tmp_path: Path) -> None:
    (root := arrays(tmp_path / "data")).joinpath("labels").rename(tmp_path / "elsewhere")
    assert Folders(root, read_image=read_npy).unlabeled()[0].image.shape == (4, *SIZE)
    assert Folders(root, read_image=read_npy, read_label=read_npy).unlabeled()[0].name == "0"


def test_other_files_are_read_in_the_same_way(tmp_path: Path) -> None:
    first, second = (arrays(tmp_path / name, count) for name, count in (("a", 2), ("b", 3)))
    target = Folders(first, read_image=read_npy).unlabeled()
    files = [second / "images" / f"{i}.npy" for i in (2, 0)]
    other = target.with_files(files)
    assert (other.files, len(other), [sample.name for sample in other]) == (files, 2, ["2", "0"])
    assert torch.equal(other[0].image, read_npy(files[0]))
    resized = ResizedImages(target, 10).with_files(files)
    assert resized[1].image.shape == (4, 7, 10)
    assert torch.equal(resized[1].image, ResizedImages(other, 10)[1].image)


def test_fingerprints_tell_files_apart_but_not_where_they_lie(tmp_path: Path) -> None:
    root = write(tmp_path / "a")
    target = Folders(root).unlabeled()
    first = target.fingerprint()
    assert target.with_files(target.files[:2]).fingerprint() != first
    assert len({first, *(ResizedImages(target, size).fingerprint() for size in ((8, 9), (9, 8)))}) == 3
    moved = Folders(root.rename(tmp_path / "b")).unlabeled()
    assert moved.fingerprint() == first
    moved.files[1].write_bytes(b"longer or shorter")
    assert moved.fingerprint() != first
