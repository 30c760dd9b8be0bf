"""SYNTHIA, ACDC, Dark Zurich, BDD100K and Mapillary Vistas in their published layout and encoding."""

import pickle
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trees import (
    BDD,
    NIGHT,
    SIZE,
    VISTAS,
    acdc,
    bdd100k,
    dark_zurich,
    every_id,
    mapillary,
    pixels,
    rgb16,
    save_palette,
    saved,
    some_ignored,
    synthia,
)

from hrda_lib.data import (
    CITYSCAPES,
    SYNTHIA_CLASSES,
    SYNTHIA_CLASSES_13,
    Acdc,
    Bdd100k,
    DarkZurich,
    LabeledFiles,
    Mapillary,
    Synthia,
    count_labels,
)

# the maps of the released code, typed in from its description
SYNTHIA = "3→0 4→1 2→2 21→3 5→4 7→5 15→6 9→7 6→8 16→9 1→10 10→11 17→12 8→13 18→14 19→15 20→16 12→17 11→18"
VISTAS_IDS = "13,24,41→0 2,15→1 17→2 6→3 3→4 45,47→5 48→6 50→7 30→8 29→9 27→10 19→11 20,21,22→12 55→13 61→14 54→15"
VISTAS_IDS += " 58→16 57→17 52→18"


def table(text: str) -> dict[int, int]:
    pairs = [entry.split("→") for entry in text.split()]
    return {int(index): int(train_id) for ids, train_id in pairs for index in ids.split(",")}


AS_STORED = {i: i for i in range(19)}
# a tree, how it is opened, the highest id, the train ids of those that are kept, and names
DATA: dict[str, tuple[Callable[[Path], Path], Callable[[Path], LabeledFiles], int, dict[int, int], Sequence[str]]] = {
    "synthia": (synthia, Synthia, 22, table(SYNTHIA), ["0000000", "0000001"]),
    "acdc": (acdc, lambda p: Acdc(p, "val"), 18, AS_STORED, [f"GOPR0{i}_frame_000041" for i in (1, 3, 2, 0)]),
    "dark_zurich": (dark_zurich, lambda p: DarkZurich(p, "val"), 18, AS_STORED, [NIGHT.partition("/")[2]]),
    "bdd100k": (bdd100k, lambda p: Bdd100k(p, "val"), 18, AS_STORED, BDD),
    "mapillary": (mapillary, lambda p: Mapillary(p, "validation"), 65, table(VISTAS_IDS), VISTAS),
    "mapillary 2.0": (
        lambda p: mapillary(p, "v1.2/labels"),
        lambda p: Mapillary(p, "validation"),
        65,
        table(VISTAS_IDS),
        VISTAS,
    ),
}


@pytest.mark.parametrize("kind", DATA)
def test_workers_that_are_spawned_get_it(kind: str, tmp_path: Path) -> None:
    write_tree, open_tree, *_ = DATA[kind]
    data = open_tree(write_tree(tmp_path))
    sent = pickle.loads(pickle.dumps(data))
    assert torch.equal(sent[0].label, data[0].label)
    assert sent.unlabeled().files == data.unlabeled().files


@pytest.mark.parametrize("kind", DATA)
def test_written_and_read_back(kind: str, tmp_path: Path) -> None:
    write_tree, open_tree, highest, kept, names = DATA[kind]
    data = open_tree(write_tree(tmp_path))
    assert data.classes == CITYSCAPES
    assert [sample.name for sample in (data[i] for i in range(len(data)))] == list(names)
    for i, name in enumerate(names):
        seed = int(name.split("_")[0][-1]) if kind == "acdc" else i
        ids = (some_ignored if kept is AS_STORED else every_id)(highest, seed)
        expected = torch.tensor([[kept.get(int(x), 255) for x in row] for row in ids], dtype=torch.uint8)
        sample = data[i]
        file = data.unlabeled().files[i]
        written = pixels(seed) if file.suffix == ".png" else np.asarray(Image.open(file))
        assert np.array_equal(sample.image.permute(1, 2, 0), written)
        assert torch.equal(sample.label, expected)
        assert torch.equal(data.label(i), expected)
        assert torch.equal(data.count(i), expected.flatten().bincount(minlength=256))
    target = data.unlabeled()
    assert torch.equal(target[0].image, data[0].image)
    assert not hasattr(target[0], "label")
    assert len(data.fingerprint()) == 64


def test_images_of_acdc_by_condition(tmp_path: Path) -> None:
    data = Acdc(acdc(tmp_path), "val")
    assert data.conditions == ["fog", "night", "rain", "snow"]
    night = Acdc(tmp_path, "train", condition="night")
    assert (len(night), night.conditions) == (1, ["night"])
    assert night.label_file(0) == tmp_path / "gt/night/train/GOPR03/GOPR03_frame_000041_gt_labelTrainIds.png"


def test_splits_without_labels_are_targets(tmp_path: Path) -> None:
    dark_zurich(tmp_path)
    for split in ("train", "test"):
        assert len(DarkZurich(tmp_path, split).unlabeled()) == 1
    with pytest.raises(ValueError, match=r"gt/train: no such folder; .*gt holds val; expected .*rgb_anon/train/night"):
        DarkZurich(tmp_path, "train").label(0)


def test_classes_of_synthia(tmp_path: Path) -> None:
    names = [CITYSCAPES[i].name for i in range(19) if i not in SYNTHIA_CLASSES]
    assert names == ["terrain", "truck", "train"]
    assert [CITYSCAPES[i].name for i in SYNTHIA_CLASSES if i not in SYNTHIA_CLASSES_13] == ["wall", "fence", "pole"]
    assert (len(SYNTHIA_CLASSES), len(SYNTHIA_CLASSES_13)) == (16, 13)
    assert count_labels(Synthia(synthia(tmp_path))).sum() == 2 * SIZE[0] * SIZE[1]


def test_pillow_would_read_zeros(tmp_path: Path) -> None:
    """The reason for OpenCV; when this fails, Pillow has learnt it."""
    synthia(tmp_path)
    with Image.open(tmp_path / "GT" / "LABELS" / "0000000.png") as image:
        assert not np.asarray(image).any()


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "synthia: grey label": (
        lambda p: (synthia(p) and saved(p / "GT/LABELS/0000000.png", every_id(18, 0))) or Synthia(p)[0],
        r"GT/LABELS/0000000.png: SYNTHIA's labels are PNGs of three channels of 16 bits, got uint8 \(14, 20\)$",
    ),
    "synthia: zeros": (
        lambda p: (synthia(p) and rgb16(p / "GT/LABELS/0000000.png", 0 * every_id(18, 0))) or Synthia(p)[0],
        r"GT/LABELS/0000000.png: every pixel is 0 \(void\); was it written by a program that cannot read 16 bits\?",
    ),
    "synthia: another id": (
        lambda p: (synthia(p) and rgb16(p / "GT/LABELS/0000000.png", 0 * every_id(18, 0) + 23)) or Synthia(p)[0],
        r"GT/LABELS/0000000.png: label 23 is outside SYNTHIA's 0..22$",
    ),
    "synthia: text": (
        lambda p: synthia(p) and (p / "GT/LABELS/0000000.png").write_text("no image") and Synthia(p)[0],
        r"GT/LABELS/0000000.png: cannot be read as an image$",
    ),
    "synthia: empty": (
        lambda p: (synthia(p) and (p / "GT/LABELS/0000000.png").write_text("")) or Synthia(p)[0],
        r"GT/LABELS/0000000.png: cannot be read as an image$",
    ),
    "synthia: no folder": (
        lambda p: Synthia(p),
        r"/RGB: no such folder; .* holds nothing; expected .*/RGB/0000000.png with .*/GT/LABELS/0000000.png$",
    ),
    "acdc: ids instead of train ids": (
        lambda p: (
            (acdc(p) and saved(p / "gt/fog/val/GOPR01/GOPR01_frame_000041_gt_labelTrainIds.png", every_id(33, 0)))
            or Acdc(p, "val")[0]
        ),
        r"gt/fog/val/GOPR01/GOPR01_frame_000041_gt_labelTrainIds.png: label 19 is outside 0..18 "
        r"\(and not the ignored 255\); train ids are expected$",
    ),
    "acdc: condition": (
        lambda p: acdc(p) and Acdc(p, "val", condition="dust"),
        "condition must be one of fog, night, rain, snow, got 'dust'; .*/rgb_anon holds fog, night, rain, snow$",
    ),
    "acdc: split": (
        lambda p: acdc(p) and Acdc(p, "valid"),
        "split must be one of train, val, test, got 'valid'; .*/rgb_anon/fog holds train, val$",
    ),
    "acdc: a condition is missing": (
        lambda p: acdc(p) and (p / "rgb_anon/rain").rename(p / "rain") and Acdc(p, "val"),
        r"rgb_anon/rain: no such folder; .* holds fog, night, snow; expected .*/CONDITION/val/SEQUENCE/\*_rgb_anon.png",
    ),
    "dark zurich: split": (
        lambda p: dark_zurich(p) and DarkZurich(p, "night"),
        "split must be one of train, val, test, got 'night'; .*/rgb_anon holds test, train, val$",
    ),
    "bdd100k: split": (
        lambda p: bdd100k(p) and Bdd100k(p, "validation"),
        "split must be one of train, val, test, got 'validation'; .*/images/10k holds val$",
    ),
    "bdd100k: no labels": (
        lambda p: bdd100k(p) and (p / "labels").rename(p / "moved") and Bdd100k(p, "val")[0],
        r"/labels: no such folder; .* holds images, moved; expected .*/images/10k/val/\*.jpg with .*masks/val/\*.png$",
    ),
    "mapillary: split": (
        lambda p: mapillary(p) and Mapillary(p, "val"),
        "split must be one of training, validation, testing, got 'val'; .* holds validation$",
    ),
    "mapillary: ids of version 2": (
        lambda p: (
            (mapillary(p) and save_palette(p / "validation/labels/-0mXqxOjZDsMeQ8jvjA_uw.png", every_id(123, 0)))
            or Mapillary(p, "validation")[0]
        ),
        r"_uw.png: label 66 is outside 0..65 \(and not the ignored 255\); ids of Mapillary Vistas 1.2 are expected$",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, tmp_path: Path) -> None:
    call, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


def test_synthia_without_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Synthia(synthia(tmp_path))
    monkeypatch.setitem(sys.modules, "cv2", None)
    message = "GT/LABELS/0000000.png: SYNTHIA's 16-bit labels need OpenCV: pip install 'hrda_lib[synthia]'"
    with pytest.raises(ValueError, match=re.escape(message)):
        data.label(0)
    assert data.unlabeled()[0].image.shape == (3, *SIZE)
