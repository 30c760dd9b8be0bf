"""Labels that are stored as colours."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trees import SIZE

from hrda_lib.data import Folders, StoredColours, count_labels

COLOURS = {(0, 0, 0): 255, (255, 0, 0): 0, (0, 0, 255): 1, (0, 1, 0): 2, (1, 0, 0): 2, (255, 255, 255): 3}


def indices(highest: int = len(COLOURS), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(highest, size=SIZE).astype(np.uint8)


def painted(index: np.ndarray) -> np.ndarray:
    return np.array(list(COLOURS), np.uint8)[index]


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
        "a.png: colour (10, 20, 30) of 277 pixels is not among those named; name it, with 255 to ignore it",
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
