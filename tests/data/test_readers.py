"""Readers of one's own for images and labels, and labels stored as colours."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hrda_lib.data import Concatenated, Folders, LabeledFiles, ListFile, StoredColours, UnlabeledImages, count_labels

COLOURS = {(0, 0, 0): 255, (255, 0, 0): 0, (0, 0, 255): 1, (0, 1, 0): 2, (1, 0, 0): 2, (255, 255, 255): 3}
SIZE = (12, 20)


def indices(highest: int = len(COLOURS), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(highest, size=SIZE).astype(np.uint8)


def painted(index: np.ndarray) -> np.ndarray:
    return np.array(list(COLOURS), np.uint8)[index]


def read_npy(file: Path) -> Tensor:
    return torch.from_numpy(np.load(file))


def read_ids_npy(file: Path) -> Tensor:
    return torch.from_numpy(np.load(file).astype(np.uint8))


def arrays(root: Path, count: int = 2, channels: int = 4) -> Path:
    """Images whose first channel is 10 times their label."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        label = indices(3, seed=i)
        image = np.stack([10 * label, *np.random.default_rng(i).random((channels - 1, *SIZE))]).astype(np.float32)
        np.save(root / "images" / f"{i}.npy", image)
        np.save(root / "labels" / f"{i}.npy", label)
    return root


# Colours


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "P, transparent"])
def test_colours_are_those_of_a_slow_search(tmp_path: Path, mode: str) -> None:
    index = indices()
    picture = Image.fromarray(painted(index)).convert(mode if mode == "RGBA" else "RGB")
    settings = {}
    if mode.startswith("P"):
        picture = Image.fromarray(index).convert("P")
        picture.putpalette([channel for colour in COLOURS for channel in colour])
        assert np.array_equal(np.asarray(picture), index)
        settings = {"transparency": bytes([0, 255, 9])} if "transparent" in mode else {}
    picture.save(tmp_path / "a.png", **settings)
    expected = [[COLOURS[tuple(pixel)] for pixel in row] for row in painted(index).tolist()]
    label = StoredColours(COLOURS)(tmp_path / "a.png")
    assert label.dtype == torch.uint8
    assert label.tolist() == expected


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_pictures_have_grey_colours(tmp_path: Path, mode: str) -> None:
    mask = indices(2) * 255
    Image.fromarray(mask).convert(mode).save(tmp_path / "a.png")
    read = StoredColours({(0, 0, 0): 0, (255, 255, 255): 1})
    assert read(tmp_path / "a.png").tolist() == (mask // 255).tolist()


def test_every_colour_may_be_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(*SIZE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    colours = {tuple(pixel): i % 256 for i, pixel in enumerate(pixels.reshape(-1, 3).tolist())}
    label = StoredColours(colours)(tmp_path / "a.png")  # type: ignore[arg-type]
    assert label.flatten().tolist() == [colours[tuple(pixel)] for pixel in pixels.reshape(-1, 3).tolist()]


def test_unused_palette_entries_need_no_name(tmp_path: Path) -> None:
    picture = Image.fromarray(np.ones(SIZE, np.uint8)).convert("P")
    picture.putpalette([9, 9, 9, 255, 0, 0, 8, 8, 8])
    picture.save(tmp_path / "a.png")
    assert StoredColours(COLOURS)(tmp_path / "a.png").unique().tolist() == [0]


def saved(file: Path, pixels: np.ndarray, **settings: Any) -> Path:
    Image.fromarray(pixels).save(file, **settings)
    return file


def with_unknown() -> np.ndarray:
    pixels = painted(indices())
    pixels[0, :7] = (10, 20, 30)
    pixels[1, :3] = (10, 20, 31)
    return pixels


def two_colours(file: Path) -> Path:
    index = np.ones(SIZE, np.uint8)
    index[0, :3] = 0
    picture = Image.fromarray(index).convert("P")
    picture.putpalette([255, 0, 0, 10, 20, 30])
    picture.save(file)
    return file


BAD_COLOURS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a colour that is not named": (
        lambda p: StoredColours(COLOURS)(saved(p / "a.png", with_unknown())),
        "a.png: colour (10, 20, 30) of 7 pixels is not among those named, and 1 more; name it, with 255 to ignore it",
    ),
    "in a palette": (
        lambda p: StoredColours(COLOURS)(two_colours(p / "a.png")),
        "a.png: colour (10, 20, 30) of 237 pixels is not among those named; name it, with 255 to ignore it",
    ),
    "a JPEG": (
        lambda p: StoredColours(COLOURS)(saved(p / "a.jpg", painted(indices()))),
        "is not among those named, and",
    ),
    "a JPEG, advice": (
        lambda p: StoredColours(COLOURS)(saved(p / "a.jpg", painted(indices()))),
        "JPEG changes colours, labels must be stored as PNG",
    ),
    "16 bits": (
        lambda p: StoredColours(COLOURS)(saved(p / "a.png", indices().astype(np.uint16))),
        "a.png: colours of 8 bits a channel are expected, got mode I;16",
    ),
    "no file": (lambda p: StoredColours(COLOURS)(p / "a.png"), "a.png: no such file"),
    "no colour": (lambda p: StoredColours({}), "colours must name at least one colour, got none"),
    "an id": (
        lambda p: StoredColours({(0, 0, 0): 256}),
        "colours must map (red, green, blue) to an id, all in [0, 255], got (0, 0, 0): 256",
    ),
    "a channel": (lambda p: StoredColours({(0, -1, 0): 1}), "all in [0, 255], got (0, -1, 0): 1"),
    "two numbers": (lambda p: StoredColours({(0, 0): 1}), "got (0, 0): 1"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("case", BAD_COLOURS)
def test_mistakes_in_colours(case: str, tmp_path: Path) -> None:
    call, text = BAD_COLOURS[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call(tmp_path)


def test_colours_of_folders_are_counted_and_tell_their_counts_apart(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    saved(root / "images" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    saved(root / "labels" / "a.png", painted(indices()))
    read = StoredColours(COLOURS)
    folders = Folders(root, read_label=read)
    expected = np.bincount([COLOURS[tuple(pixel)] for pixel in painted(indices()).reshape(-1, 3).tolist()])
    assert count_labels(folders).flatten().tolist() == expected.tolist()
    fingerprint = folders.fingerprint()
    assert Folders(root, read_label=StoredColours(dict(reversed(COLOURS.items())))).fingerprint() == fingerprint
    assert Folders(root, read_label=pickle.loads(pickle.dumps(read))).fingerprint() == fingerprint
    other = {**COLOURS, (255, 0, 0): 1}
    assert Folders(root, read_label=StoredColours(other)).fingerprint() != fingerprint


# Readers


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
        saved(root / "labels" / f"{i}.png", indices(3, seed=i))
    data = Folders(root, read_image=read_npy, ignore=[2])
    assert data.label_file(0).name == "0.png"
    assert data[0].label.unique().tolist() == [0, 1, 255]


def test_a_target_never_looks_for_labels(tmp_path: Path) -> None:
    root = arrays(tmp_path)
    for file in (root / "labels").iterdir():
        file.unlink()
    (root / "labels").rmdir()
    assert Folders(root, read_image=read_npy).unlabeled()[0].image.shape == (4, *SIZE)
    assert Folders(root, read_image=read_npy, read_label=read_ids_npy).unlabeled()[0].name == "0"


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
        "0.npy: read_image must give a tensor (K, H, W) of uint8 or float32, got (12, 20) of torch.float32",
    ),
    "float64": (lambda p: images_of(p, lambda file: read_npy(file).double()), "got (4, 12, 20) of torch.float64"),
    "int32": (lambda p: images_of(p, lambda file: read_npy(file).int()), "got (4, 12, 20) of torch.int32"),
    "raises": (lambda p: images_of(p, raising), "0.npy: cannot be read (KeyError: 'band 4\\nis missing')"),
    "no file": (
        lambda p: UnlabeledImages([p / "no.npy"], read_image=read_npy)[0],
        "no.npy: cannot be read (FileNotFoundError: ",
    ),
    "channels last": (
        lambda p: Folders(p, read_image=lambda file: read_npy(file).permute(1, 2, 0), read_label=read_ids_npy)[0],
        "images/0.npy: read_image must give (K, H, W), got (H, W, K) = (12, 20, 4); permute(2, 0, 1) turns it round",
    ),
    "a label of int64": (
        lambda p: labels_of(p, lambda file: read_ids_npy(file).long()),
        "labels/0.npy: read_label must give a tensor (H, W) of uint8, got (12, 20) of torch.int64",
    ),
    "a label that is an array": (
        lambda p: labels_of(p, np.load),
        "read_label must give a tensor (H, W) of uint8, got ndarray",
    ),
    "a label of another size": (
        lambda p: labels_of(p, lambda file: read_ids_npy(file)[:-1]),
        "labels/0.npy: label must have its image's size (12, 20), got (11, 20)",
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
