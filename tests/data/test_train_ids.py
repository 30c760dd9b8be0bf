"""GTA and Cityscapes in their published layout and encoding, and the classes that they are read as."""

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
from trees import COLOURS, FRAMES, cityscapes, filled, gta, pixels, save_palette, some_ignored

from hrda_lib.data import CITYSCAPES, Cityscapes, Gta, Sample, count_labels

MAP = "7→0 8→1 11→2 12→3 13→4 17→5 19→6 20→7 21→8 22→9 23→10 24→11 25→12 26→13 27→14 28→15 31→16 32→17 33→18"


KEPT = {int(pair.split("→")[0]): int(pair.split("→")[1]) for pair in MAP.split()}


NAMES = (
    "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person rider car truck "
    "bus train motorcycle bicycle"
)


def expected(ids: np.ndarray) -> Tensor:
    return torch.tensor([[KEPT.get(int(i), 255) for i in row] for row in ids], dtype=torch.uint8)


def test_the_table_of_classes() -> None:
    assert [entry.train_id for entry in CITYSCAPES] == list(range(19))
    assert {entry.id: entry.train_id for entry in CITYSCAPES} == KEPT
    assert [entry.name.replace(" ", "_") for entry in CITYSCAPES] == NAMES.split()
    assert [entry.colour for entry in CITYSCAPES] == [COLOURS[entry.id] for entry in CITYSCAPES]


def test_gta(tmp_path: Path) -> None:
    data = Gta(gta(tmp_path))
    assert len(data) == 2
    for i in range(2):
        image, label, name = data[i]
        assert name == f"0000{i + 1}"
        assert torch.equal(image, torch.from_numpy(pixels(i)).permute(2, 0, 1))
        assert torch.equal(label, expected(some_ignored(34, i)))
        assert torch.equal(data.label(i), label)
        assert data.label_file(i) == tmp_path / "labels" / f"0000{i + 1}.png"
    assert torch.equal(pickle.loads(pickle.dumps(data)).label(1), label)


def test_grey_gta_labels_are_ids(tmp_path: Path) -> None:
    Image.fromarray(some_ignored(18, 7)).save(gta(tmp_path) / "labels" / "00001.png")
    assert torch.equal(Gta(tmp_path).label(0), expected(some_ignored(18, 7)))


def test_colours_of_ignored_ids_and_of_unused_indices_say_nothing(tmp_path: Path) -> None:
    root, colours = gta(tmp_path), list(COLOURS)
    colours[:6] = [(1, 2, 3)] * 6
    colours[9] = COLOURS[7]  # an index that the label below does not use
    ids = some_ignored(34, 3)
    ids[ids == 9] = 7
    save_palette(root / "labels" / "00001.png", ids, colours)
    assert torch.equal(Gta(root).label(0), expected(ids))
    save_palette(root / "labels" / "00001.png", ids, [*colours, *COLOURS[:1] * 220, (0, 0, 142)])  # 255: -1
    assert torch.equal(Gta(root).label(0), expected(ids))
    save_palette(root / "labels" / "00001.png", ids, [(9, 9, 9)] * 17)  # a palette too short
    assert torch.equal(Gta(root).label(0), expected(ids))


@pytest.mark.parametrize("split", ["train", "val"])
def test_cityscapes(tmp_path: Path, split: str) -> None:
    data = Cityscapes(str(cityscapes(tmp_path)), split)
    frames = FRAMES[split]
    assert [sample.name for sample in data] == sorted(frame.split("/")[1] for frame in frames)
    for i, (image, label, name) in enumerate(data):
        frame = next(frame for frame in frames if frame.endswith(name))
        seed = frames.index(frame)
        assert torch.equal(image, torch.from_numpy(pixels(seed)).permute(2, 0, 1))
        assert torch.equal(label, expected(some_ignored(33, seed)))
        assert torch.equal(data.label(i), label)
        assert data.label_file(i) == tmp_path / "gtFine" / split / f"{frame}_gtFine_labelIds.png"


# Errors: the whole text, with the temporary folder written ROOT

GTA_LAYOUT = "expected ROOT/images/00001.png with ROOT/labels/00001.png"


STREETS = "expected ROOT/leftImg8bit/{0}/CITY/*_leftImg8bit.png with ROOT/gtFine/{0}/CITY/*_gtFine_labelIds.png"


GTA_IDS = "GTA ids are expected, from 7 for road to 33 for bicycle"


LABEL = Path("labels", "00002.png")


VAL = Path("gtFine", "val", "frankfurt", "frankfurt_000000_000294_gtFine_labelIds.png")


def without(root: Path, path: str | Path) -> Path:
    (root / path).rename(root / "moved")
    return root


def empty(root: Path, folder: str) -> Path:
    (root / folder).mkdir(parents=True)
    return root


def labelled(root: Path, ids: np.ndarray, colours: list[tuple[int, int, int]] | None = None) -> Sample:
    """Sample 1 of GTA with this label."""
    gta(root)
    if colours is None:
        Image.fromarray(ids).save(root / LABEL)
    else:
        save_palette(root / LABEL, ids, colours)
    return Gta(root)[1]


def street(root: Path, ids: np.ndarray) -> Tensor:
    Image.fromarray(ids).save(cityscapes(root) / VAL)
    return Cityscapes(root, "val").label(0)


TRAIN_COLOURS = [COLOURS[i] for i in KEPT]


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gta: no folder": (
        lambda p: Gta(empty(p, "gta") / "nowhere"),
        "ROOT/nowhere: no such folder; ROOT holds gta; " + GTA_LAYOUT.replace("ROOT", "ROOT/nowhere"),
    ),
    "gta: a folder too high": (
        lambda p: Gta(gta(p / "gta").parent),
        "ROOT/images: no such folder; ROOT holds gta; "
        + GTA_LAYOUT
        + "; ROOT/gta/images holds 2 images: give ROOT/gta",
    ),
    "gta: Cityscapes": (
        lambda p: Gta(cityscapes(p)),
        "ROOT/images: no such folder; ROOT holds gtFine, leftImg8bit; " + GTA_LAYOUT,
    ),
    "gta: a file": (
        lambda p: Gta(gta(p) / LABEL),
        "ROOT/labels/00002.png: no such folder; ROOT/labels holds 00001.png, 00002.png; "
        + GTA_LAYOUT.replace("ROOT", "ROOT/labels/00002.png"),
    ),
    "gta: no images": (
        lambda p: Gta(empty(p, "images")),
        "ROOT/images: no *.png in this folder, which holds nothing; " + GTA_LAYOUT,
    ),
    "gta: images of another kind": (
        lambda p: Gta(
            [(folder / f"{i}.jpg").touch() for folder in [empty(p, "images") / "images"] for i in range(6)] and p
        ),
        "ROOT/images: no *.png in this folder, which holds 0.jpg, 1.jpg, 2.jpg, 3.jpg, 2 more; " + GTA_LAYOUT,
    ),
    "gta: a label is missing": (
        lambda p: Gta(without(gta(p), LABEL))[1],
        "ROOT/labels/00002.png: no such file; ROOT/labels holds 00001.png; " + GTA_LAYOUT,
    ),
    "gta: a link to nowhere": (
        lambda p: (without(gta(p), LABEL) / LABEL).symlink_to(p / "gone.png") or Gta(p)[1],
        "ROOT/labels/00002.png: a link to ROOT/gone.png, which cannot be followed (No such file or directory)",
    ),
    "gta: a label file is missing": (
        lambda p: Gta(without(gta(p, 3), LABEL)).check_files(),
        "ROOT/labels/00002.png: no such file; ROOT/labels holds 00001.png, 00003.png; " + GTA_LAYOUT,
    ),
    "gta: no labels": (
        lambda p: count_labels(Gta(without(gta(p), "labels")), cache=p / "counts.json"),
        "ROOT/labels: no such folder; ROOT holds images, moved; " + GTA_LAYOUT,
    ),
    "gta: id": (
        lambda p: labelled(p, filled(35)),
        f"ROOT/labels/00002.png: label 35 is outside 0..34 (and not the ignored 255); {GTA_IDS}",
    ),
    "gta: train ids": (
        lambda p: labelled(p, filled(0), TRAIN_COLOURS),
        f"ROOT/labels/00002.png: palette index 0 has the colour of road, whose id is 7; {GTA_IDS}",
    ),
    "gta: bicycle as 18": (
        lambda p: labelled(p, filled(18), TRAIN_COLOURS),
        f"ROOT/labels/00002.png: palette index 18 has the colour of bicycle, whose id is 33; {GTA_IDS}",
    ),
    "gta: another class's colour": (
        lambda p: labelled(p, filled(26), [*COLOURS[:26], COLOURS[24]]),
        f"ROOT/labels/00002.png: palette index 26 has the colour of person, whose id is 24; {GTA_IDS}",
    ),
    "gta: colours": (
        lambda p: labelled(p, pixels(0)),
        "ROOT/labels/00002.png: label must be a single-channel 8-bit or palette PNG of ids, got mode RGB; "
        "colours? see StoredColours",
    ),
    "gta: size": (
        lambda p: labelled(p, filled(7, (14, 19))),
        "ROOT/labels/00002.png: label must have its image's size (14, 20), got (14, 19)",
    ),
    "cityscapes: split": (
        lambda p: Cityscapes(cityscapes(p), "valid"),
        "split must be one of train, val, test, got 'valid'; ROOT/leftImg8bit holds train, val",
    ),
    "cityscapes: split of nothing": (
        lambda p: Cityscapes(p, "training"),
        "split must be one of train, val, test, got 'training'; ROOT/leftImg8bit holds nothing",
    ),
    "cityscapes: no such split": (
        lambda p: Cityscapes(cityscapes(p), "test"),
        "ROOT/leftImg8bit/test: no such folder; ROOT/leftImg8bit holds train, val; " + STREETS.format("test"),
    ),
    "cityscapes: GTA": (
        lambda p: Cityscapes(gta(p), "train"),
        "ROOT/leftImg8bit: no such folder; ROOT holds images, labels; " + STREETS.format("train"),
    ),
    "cityscapes: no images": (
        lambda p: Cityscapes(empty(p, "leftImg8bit/val/ulm"), "val"),
        "ROOT/leftImg8bit/val: no */*_leftImg8bit.png in this folder, which holds ulm; " + STREETS.format("val"),
    ),
    "cityscapes: no labels": (
        lambda p: Cityscapes(cityscapes(p, labels=False), "val").check_files(),
        "ROOT/gtFine: no such folder; ROOT holds leftImg8bit; " + STREETS.format("val"),
    ),
    "cityscapes: no labels of a split": (
        lambda p: count_labels(Cityscapes(without(cityscapes(p), "gtFine/val"), "val"), cache=p / "counts.json"),
        "ROOT/gtFine/val: no such folder; ROOT/gtFine holds train; " + STREETS.format("val"),
    ),
    "cityscapes: a label is missing": (
        lambda p: Cityscapes(without(cityscapes(p), VAL), "val").label(0),
        f"ROOT/{VAL}: no such file; ROOT/{VAL.parent} holds frankfurt_000000_000294_gtFine_color.png; "
        + STREETS.format("val"),
    ),
    "cityscapes: id": (
        lambda p: street(p, filled(34)),
        f"ROOT/{VAL}: label 34 is outside 0..33 (and not the ignored 255); {GTA_IDS.replace('GTA', 'Cityscapes')}",
    ),
    "cityscapes: colours": (
        lambda p: street(p, pixels(0)),
        f"ROOT/{VAL}: label must be a single-channel 8-bit or palette PNG of ids, got mode RGB; "
        "colours? see StoredColours",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, tmp_path: Path) -> None:
    call, text = MISTAKES[case]
    with pytest.raises(ValueError, match=f"^{re.escape(text.replace('ROOT', str(tmp_path)))}$"):
        call(tmp_path)
