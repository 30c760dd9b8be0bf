"""GTA and Cityscapes in their published layout and encoding, and resizing."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bilinear
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hrda_lib.data import (
    CITYSCAPES,
    Cityscapes,
    Concatenated,
    Folders,
    Gta,
    LabeledFiles,
    Resized,
    ResizedImages,
    Sample,
    TargetCrops,
    UnlabeledImages,
    count_labels,
)

# all ids of Cityscapes with their colours, typed in from its label definitions; 34 is GTA's licence plate
COLOURS = [
    *[(0, 0, 0)] * 5,
    *[(111, 74, 0), (81, 0, 81), (128, 64, 128), (244, 35, 232), (250, 170, 160), (230, 150, 140), (70, 70, 70)],
    *[(102, 102, 156), (190, 153, 153), (180, 165, 180), (150, 100, 100), (150, 120, 90), (153, 153, 153)],
    *[(153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180)],
    *[(220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 0, 90), (0, 0, 110), (0, 80, 100)],
    *[(0, 0, 230), (119, 11, 32), (0, 0, 142)],
]
MAP = "7→0 8→1 11→2 12→3 13→4 17→5 19→6 20→7 21→8 22→9 23→10 24→11 25→12 26→13 27→14 28→15 31→16 32→17 33→18"
KEPT = {int(pair.split("→")[0]): int(pair.split("→")[1]) for pair in MAP.split()}
NAMES = (
    "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person rider car truck "
    "bus train motorcycle bicycle"
)
SIZE = (14, 20)


def every_id(highest: int, seed: int) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(highest + 1, size=SIZE).astype(np.uint8)
    ids.flat[: highest + 1] = np.arange(highest + 1)
    ids[-1] = 255
    return ids


def expected(ids: np.ndarray) -> Tensor:
    return torch.tensor([[KEPT.get(int(i), 255) for i in row] for row in ids], dtype=torch.uint8)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(*SIZE, 3)).astype(np.uint8)


def save_palette(file: Path, ids: np.ndarray, colours: list[tuple[int, int, int]] = COLOURS) -> None:
    image = Image.fromarray(ids).convert("L")
    image.putpalette([value for colour in colours for value in colour])
    assert image.mode == "P"
    image.save(file)


def gta(root: Path, count: int = 2) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for i in range(count):
        Image.fromarray(picture(i)).save(root / "images" / f"{i + 1:05}.png")
        save_palette(root / "labels" / f"{i + 1:05}.png", every_id(34, i))
    return root


FRAMES = {
    "train": ["aachen/aachen_000000_000019", "zurich/zurich_000001_000019", "bochum/bochum_000000_000313"],
    "val": ["frankfurt/frankfurt_000000_000294"],
}


def cityscapes(root: Path, *, labels: bool = True) -> Path:
    for split, frames in FRAMES.items():
        for i, frame in enumerate(frames):
            image = root / "leftImg8bit" / split / f"{frame}_leftImg8bit.png"
            image.parent.mkdir(parents=True)
            Image.fromarray(picture(i)).save(image)
            if labels:
                label = root / "gtFine" / split / f"{frame}_gtFine_labelIds.png"
                label.parent.mkdir(parents=True)
                Image.fromarray(every_id(33, i)).save(label)
                save_palette(label.with_name(label.name.replace("labelIds", "color")), every_id(33, i))
    return root


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
        assert torch.equal(image, torch.from_numpy(picture(i)).permute(2, 0, 1))
        assert torch.equal(label, expected(every_id(34, i)))
        assert torch.equal(data.label(i), label)
        assert data.label_file(i) == tmp_path / "labels" / f"0000{i + 1}.png"
    assert torch.equal(pickle.loads(pickle.dumps(data)).label(1), label)


def test_grey_gta_labels_are_ids(tmp_path: Path) -> None:
    Image.fromarray(every_id(18, 7)).save(gta(tmp_path) / "labels" / "00001.png")
    assert torch.equal(Gta(tmp_path).label(0), expected(every_id(18, 7)))


def test_colours_of_ignored_ids_and_of_unused_indices_say_nothing(tmp_path: Path) -> None:
    root, colours = gta(tmp_path), list(COLOURS)
    colours[:6] = [(1, 2, 3)] * 6
    colours[9] = COLOURS[7]  # an index that the label below does not use
    ids = every_id(34, 3)
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
        assert torch.equal(image, torch.from_numpy(picture(seed)).permute(2, 0, 1))
        assert torch.equal(label, expected(every_id(33, seed)))
        assert torch.equal(data.label(i), label)
        assert data.label_file(i) == tmp_path / "gtFine" / split / f"{frame}_gtFine_labelIds.png"


def test_counts_are_of_train_ids(tmp_path: Path) -> None:
    counts = count_labels(Cityscapes(cityscapes(tmp_path), "val"), cache=tmp_path / "counts.json")
    ids = expected(every_id(33, 0))
    assert counts[0].tolist() == [int((ids == i).sum()) for i in range(256)]


def poison(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.write_bytes(b"not an image")


@pytest.mark.parametrize("kind", ["gta", "cityscapes"])
def test_a_target_never_opens_a_label(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = gta(tmp_path) if kind == "gta" else cityscapes(tmp_path)
    names = [sample.name for sample in (Gta(root) if kind == "gta" else Cityscapes(root, "train"))]
    poison(root / ("labels" if kind == "gta" else "gtFine"))
    opened: list[str] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(str(file)) or real(file))
    target = (Gta(root) if kind == "gta" else Cityscapes(root, "train")).unlabeled()
    resized = ResizedImages(target, 12)
    crops = TargetCrops(resized, (8, 8), length=6)
    samples = [sample for data in (target, resized, crops) for sample in (data[i] for i in range(len(data)))]
    assert not any(hasattr(sample, "label") for sample in samples)
    assert [sample.name for sample in target] == names
    assert opened
    assert not any("labels" in file or "gtFine" in file for file in opened)


def test_a_target_needs_no_labels(tmp_path: Path) -> None:
    data = Cityscapes(cityscapes(tmp_path, labels=False), "val").unlabeled()
    assert isinstance(data, UnlabeledImages)
    assert data[0].name == "frankfurt_000000_000294"
    assert torch.equal(data[0].image, torch.from_numpy(picture(0)).permute(2, 0, 1))
    (root := gta(tmp_path / "gta")).joinpath("labels").rename(tmp_path / "elsewhere")
    assert len(Gta(root).unlabeled()) == 2


def test_looking_for_files_opens_none(tmp_path: Path) -> None:
    poison(gta(tmp_path) / "labels")
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
    assert torch.equal(data.label(0), torch.from_numpy(every_id(34, 1)))
    assert data.unlabeled()[1].name == "y"
    assert len(Concatenated([data, Gta(root)])) == 4


# Resizing


class One:
    """A labelled data set of one random sample."""

    def __init__(self, size: tuple[int, int], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.image = torch.from_numpy(random.integers(256, size=(3, *size)).astype(np.uint8))
        self.ids = torch.from_numpy(random.integers(20, size=size).astype(np.uint8))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.image, self.ids, "one")

    def label(self, index: int) -> Tensor:
        return self.ids

    def label_file(self, index: int) -> Path:
        return Path("one.png")

    def fingerprint(self) -> str:
        return "one"


def nearest(ids: Tensor, size: tuple[int, int]) -> Tensor:
    """Each new pixel has the id of the old pixel that holds its upper left corner."""
    new = torch.empty(size, dtype=torch.uint8)
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = (i * have // want for i, have, want in zip((row, column), ids.shape, size, strict=True))
            new[row, column] = ids[y, x]
    return new


@pytest.mark.parametrize(
    ("have", "within", "size"),
    [
        ((20, 33), (29, 44), (27, 44)),
        ((33, 20), (29, 44), (29, 18)),
        ((31, 40), (17, 30), (17, 22)),
        ((16, 24), (32, 48), (32, 48)),
        ((16, 24), (16, 24), (16, 24)),
        ((3, 100), (10, 10), (1, 10)),
    ],
)
def test_resized(have: tuple[int, int], within: tuple[int, int], size: tuple[int, int]) -> None:
    data = One(have)
    resized = Resized(data, within)
    image, label, name = resized[0]
    assert (name, image.dtype, image.shape[1:]) == ("one", torch.uint8, size)
    error = image.numpy() - bilinear.resize(data.image.numpy(), size)
    assert np.abs(error).max() < 1.1  # torch rounds after each of the two directions
    assert torch.equal(label, nearest(data.ids, size))
    assert torch.equal(resized.label(0), label)
    assert (len(resized), resized.label_file(0)) == (1, Path("one.png"))


@pytest.mark.parametrize(
    ("have", "within", "size"),
    [
        ((1052, 1914), (1440, 2560), (1407, 2560)),
        ((1046, 1914), (1440, 2560), (1399, 2560)),
        ((760, 1280), (1520, 2560), (1520, 2560)),
    ],
)
def test_sizes_of_the_paper(have: tuple[int, int], within: tuple[int, int], size: tuple[int, int]) -> None:
    image, label, _ = Resized(One(have), within)[0]
    assert image.shape == (3, *size)
    assert label.shape == size


def test_resized_targets(tmp_path: Path) -> None:
    data = Gta(gta(tmp_path))
    labelled, target = Resized(data, (30, 35)), ResizedImages(data.unlabeled(), (30, 35))
    assert len(target) == len(labelled) == 2
    assert target[1].image.shape == (3, 25, 35)
    assert torch.equal(target[1].image, labelled[1].image)
    assert target[1].name == "00002"
    assert [sample.name for sample in target] == [sample.name for sample in labelled]


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


def filled(value: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full(size, value, np.uint8)


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
        "ROOT/images: no such folder; ROOT holds gta; " + GTA_LAYOUT,
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
        lambda p: labelled(p, picture(0)),
        "ROOT/labels/00002.png: label must be a single-channel 8-bit or palette PNG of ids, got mode RGB",
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
        lambda p: street(p, picture(0)),
        f"ROOT/{VAL}: label must be a single-channel 8-bit or palette PNG of ids, got mode RGB",
    ),
    "files: lengths": (
        lambda p: LabeledFiles([p], [], ["a"]),
        "images, labels and names must be equally many, got 1, 0 and 1",
    ),
    "files: names": (
        lambda p: LabeledFiles([p], [p], []),
        "images, labels and names must be equally many, got 1, 1 and 0",
    ),
    "files: a label is missing": (
        lambda p: LabeledFiles([p / "a.png"], [p / "b.png"], ["a"]).check_files(),
        "ROOT/b.png: no such file",
    ),
    "size": (
        lambda p: Resized(One((4, 4)), (0, 4)),
        "size must be a positive int or two of them (height, width), got (0, 4)",
    ),
    "size of a target": (
        lambda p: ResizedImages(UnlabeledImages([]), -1),
        "size must be a positive int or two of them (height, width), got -1",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, tmp_path: Path) -> None:
    call, text = MISTAKES[case]
    with pytest.raises(ValueError, match=f"^{re.escape(text.replace('ROOT', str(tmp_path)))}$"):
        call(tmp_path)
