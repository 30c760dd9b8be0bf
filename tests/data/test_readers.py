"""Readers of one's own for images and labels."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trees import SIZE, arrays, every_id, saved

from hrda_lib.data import Concatenated, Folders, LabeledFiles, ListFile, UnlabeledImages, count_labels


def read_npy(file: Path) -> Tensor:
    return torch.from_numpy(np.load(file))


def read_ids_npy(file: Path) -> Tensor:
    return torch.from_numpy(np.load(file).astype(np.uint8))


@pytest.mark.parametrize("kind", ["folders", "list"])
def test_images_of_any_format_and_number_of_channels(tmp_path: Path, kind: str) -> None:
    root = arrays(tmp_path / "data")
    (root / "images" / ".hidden").write_text("")
    (root / "images" / "folder").mkdir()
    (root / "labels" / "notes.txt").write_text("belongs to no image")
    if kind == "folders":
        data: LabeledFiles = Folders(root, read_image=read_npy, read_label=read_ids_npy)
    else:
        (tmp_path / "list.txt").write_text("".join(f"data/images/{i}.npy\tdata/labels/{i}.npy\n" for i in range(2)))
        data = ListFile(tmp_path / "list.txt", read_image=read_npy, read_label=read_ids_npy)
    assert len(data) == 2
    image, label, _ = data[1]
    assert (image.shape, image.dtype, label.dtype) == ((4, *SIZE), torch.float32, torch.uint8)
    assert torch.equal(image[0], 10.0 * label)
    assert torch.equal(data.unlabeled()[1].image, image)
    assert count_labels(data)[1].tolist() == label.flatten().bincount(minlength=256).tolist()
    assert len(Concatenated([data, data])) == 4


def test_a_reader_of_images_alone_leaves_labels_as_they_are(tmp_path: Path) -> None:
    root = arrays(tmp_path)
    for i in range(2):
        saved(root / "labels" / f"{i}.png", every_id(2, i))
    data = Folders(root, read_image=read_npy, ignore=[2])
    assert data.label_file(0).name == "0.png"
    assert data[0].label.unique().tolist() == [0, 1, 255]


def test_fingerprints_tell_readers_apart(tmp_path: Path) -> None:
    root = arrays(tmp_path)

    def other(file: Path) -> Tensor:
        return read_ids_npy(file)

    first, second = (
        Folders(root, read_image=read_npy, read_label=read).fingerprint() for read in (read_ids_npy, other)
    )
    assert first != second
    assert Folders(root, read_image=read_npy, read_label=read_ids_npy).fingerprint() == first


def raising(file: Path) -> Tensor:
    raise KeyError("band 4\nis missing")


def interrupted(file: Path) -> Tensor:
    raise KeyboardInterrupt


def named(file: Path) -> Tensor:
    raise ValueError(f"{file}: has no band 4")


def images_of(root: Path, read: Callable[[Path], Any]) -> Any:
    return UnlabeledImages([root / "images" / "0.npy"], read_image=read)[0]


def labels_of(root: Path, read: Callable[[Path], Any]) -> Any:
    return Folders(root, read_image=read_npy, read_label=read)[0]


BAD_READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an array": (
        lambda p: images_of(p, np.load),
        "images/0.npy: read_image must give a tensor (K, H, W) of uint8 or float32, got ndarray; "
        "torch.from_numpy makes one of an array",
    ),
    "two dimensions": (
        lambda p: images_of(p, lambda file: read_npy(file)[0]),
        "0.npy: read_image must give a tensor (K, H, W) of uint8 or float32, got (14, 20) of torch.float32",
    ),
    "float64": (lambda p: images_of(p, lambda file: read_npy(file).double()), "got (4, 14, 20) of torch.float64"),
    "int32": (lambda p: images_of(p, lambda file: read_npy(file).int()), "got (4, 14, 20) of torch.int32"),
    "not finite": (
        lambda p: images_of(p, lambda file: read_npy(file).log()),
        "images/0.npy: image holds values that are not finite; let read_image replace them",
    ),
    "raises": (lambda p: images_of(p, raising), "0.npy: cannot be read (KeyError: 'band 4\\nis missing')"),
    "no file": (
        lambda p: UnlabeledImages([p / "no.npy"], read_image=read_npy)[0],
        "no.npy: cannot be read (FileNotFoundError: ",
    ),
    "channels last": (
        lambda p: Folders(p, read_image=lambda file: read_npy(file).permute(1, 2, 0), read_label=read_ids_npy)[0],
        "images/0.npy: read_image must give (K, H, W), got (H, W, K) = (14, 20, 4); permute(2, 0, 1) turns it round",
    ),
    "a label of int64": (
        lambda p: labels_of(p, lambda file: read_ids_npy(file).long()),
        "labels/0.npy: read_label must give a tensor (H, W) of uint8, got (14, 20) of torch.int64",
    ),
    "a label that is an array": (
        lambda p: labels_of(p, np.load),
        "read_label must give a tensor (H, W) of uint8, got ndarray",
    ),
    "a label of another size": (
        lambda p: labels_of(p, lambda file: read_ids_npy(file)[:-1]),
        "labels/0.npy: label must have its image's size (14, 20), got (13, 20)",
    ),
    "no label": (
        lambda p: ((p / "labels/0.npy").unlink(), labels_of(p, read_ids_npy)),
        "labels/0.*: no such file",
    ),
    "two labels": (
        lambda p: ((p / "labels/1.tif").write_text(""), labels_of(p, read_ids_npy)),
        "labels/1.tif: same name as 1.npy; a label could not be told apart",
    ),
    "two images": (
        lambda p: ((p / "images/1.tif").write_text(""), Folders(p, read_image=read_npy)),
        "images/1.tif: same name as 1.npy",
    ),
    "no image": (
        lambda p: ((p / "e/images").mkdir(parents=True), Folders(p / "e", read_image=read_npy)),
        "e/images: no image in this folder (looked for any file)",
    ),
    "ignore as well": (
        lambda p: Folders(p, ignore=[3], read_label=read_ids_npy),
        "ignore is for stored ids: got [3] with read_label, which must give 255 itself",
    ),
}


@pytest.mark.parametrize("case", BAD_READERS)
def test_mistakes_of_readers(case: str, tmp_path: Path) -> None:
    call, text = BAD_READERS[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call(arrays(tmp_path))


def test_an_error_that_names_the_file_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no band 4") as caught:
        images_of(arrays(tmp_path), named)
    assert str(caught.value) == f"{tmp_path}/images/0.npy: has no band 4"


def test_an_interruption_while_reading_is_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        images_of(arrays(tmp_path), interrupted)
