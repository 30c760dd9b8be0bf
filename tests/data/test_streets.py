"""SYNTHIA, ACDC, Dark Zurich, BDD100K, Mapillary Vistas and lists, in their published layout and encoding."""

import pickle
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from hrda_lib.data import (
    CITYSCAPES,
    SYNTHIA_CLASSES,
    SYNTHIA_CLASSES_13,
    Acdc,
    Bdd100k,
    DarkZurich,
    LabeledFiles,
    ListFile,
    Mapillary,
    Synthia,
    count_labels,
)

SIZE = (12, 20)
# the maps of the released code, typed in from its description
SYNTHIA = "3→0 4→1 2→2 21→3 5→4 7→5 15→6 9→7 6→8 16→9 1→10 10→11 17→12 8→13 18→14 19→15 20→16 12→17 11→18"
VISTAS = "13,24,41→0 2,15→1 17→2 6→3 3→4 45,47→5 48→6 50→7 30→8 29→9 27→10 19→11 20,21,22→12 55→13 61→14 54→15"
VISTAS += " 58→16 57→17 52→18"


def table(text: str) -> dict[int, int]:
    pairs = [entry.split("→") for entry in text.split()]
    return {int(index): int(train_id) for ids, train_id in pairs for index in ids.split(",")}


def every_id(highest: int, seed: int) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(highest + 1, size=SIZE).astype(np.uint8)
    ids.flat[: highest + 1] = np.arange(highest + 1)
    return ids


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(*SIZE, 3)).astype(np.uint8)


def picture(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(file)


def grey(file: Path, ids: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(file)


def palette(file: Path, ids: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("P")
    image.putpalette(np.random.default_rng(0).integers(256, size=768).tolist())
    assert np.array_equal(np.asarray(image), ids)
    image.save(file)


def rgb16(file: Path, ids: np.ndarray) -> None:
    """Class in the first channel, instance in the second, as SYNTHIA stores them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    instance = np.arange(ids.size, dtype=np.uint16).reshape(ids.shape)
    assert cv2.imwrite(str(file), np.stack([0 * instance, instance, ids.astype(np.uint16)], axis=2))


def synthia(root: Path) -> LabeledFiles:
    for i in range(2):
        picture(root / "RGB" / f"{i:07}.png", i)
        rgb16(root / "GT" / "LABELS" / f"{i:07}.png", every_id(22, i))
    return Synthia(root)


def acdc(root: Path) -> LabeledFiles:
    for i, kind in enumerate(("snow", "fog", "rain", "night")):
        for split in ("train", "val"):
            frame = f"GOPR0{i}/GOPR0{i}_frame_000041"
            picture(root / "rgb_anon" / kind / split / f"{frame}_rgb_anon.png", i)
            labels = every_id(18, i)
            labels[0] = 255
            grey(root / "gt" / kind / split / f"{frame}_gt_labelTrainIds.png", labels)
            grey(root / "gt" / kind / split / f"{frame}_gt_labelIds.png", labels)
    return Acdc(root, "val")


def dark_zurich(root: Path) -> LabeledFiles:
    for split in ("train", "val", "test"):
        picture(root / "rgb_anon" / split / "night" / "GOPR0356" / "GOPR0356_frame_000321_rgb_anon.png", 0)
    picture(root / "rgb_anon" / "train" / "day" / "GOPR0351" / "GOPR0351_frame_000001_rgb_ref_anon.png", 0)
    grey(root / "gt" / "val" / "night" / "GOPR0356" / "GOPR0356_frame_000321_gt_labelTrainIds.png", every_id(18, 0))
    return DarkZurich(root, "val")


def bdd100k(root: Path) -> LabeledFiles:
    for i, name in enumerate(("7d06fefd-f7be05a6", "7d128593-0ccfea4c")):
        picture(root / "images" / "10k" / "val" / f"{name}.jpg", i)
        grey(root / "labels" / "sem_seg" / "masks" / "val" / f"{name}.png", every_id(18, i))
    return Bdd100k(root, "val")


def mapillary(root: Path, masks: str = "labels") -> LabeledFiles:
    for i, name in enumerate(("-0mXqxOjZDsMeQ8jvjA_uw", "AaUpMv1_2zsvcbFhqBMqbw")):
        picture(root / "validation" / "images" / f"{name}.jpg", i)
        palette(root / "validation" / masks / f"{name}.png", every_id(65, i))
    return Mapillary(root, "validation")


def list_file(root: Path) -> LabeledFiles:
    for i in range(2):
        picture(root / "pictures of a town" / f"größe {i}.jpg", i)
        grey(root / "ids" / f"{i}.png", every_id(18, i))
    lines = [f"pictures of a town/größe {i}.jpg\tids/{i}.png" for i in range(2)]
    (root / "list.txt").write_text("\n".join([lines[0], "", lines[1], ""]), encoding="utf-8")
    return ListFile(root / "list.txt")


AS_STORED = {i: i for i in range(19)}
DATA: dict[str, tuple[Callable[[Path], LabeledFiles], int, dict[int, int], Sequence[str]]] = {
    "synthia": (synthia, 22, table(SYNTHIA), ["0000000", "0000001"]),
    "acdc": (acdc, 18, AS_STORED, [f"GOPR0{i}_frame_000041" for i in (1, 3, 2, 0)]),
    "dark_zurich": (dark_zurich, 18, AS_STORED, ["GOPR0356_frame_000321"]),
    "bdd100k": (bdd100k, 18, AS_STORED, ["7d06fefd-f7be05a6", "7d128593-0ccfea4c"]),
    "mapillary": (mapillary, 65, table(VISTAS), ["-0mXqxOjZDsMeQ8jvjA_uw", "AaUpMv1_2zsvcbFhqBMqbw"]),
    "mapillary 2.0": (
        lambda root: mapillary(root, "v1.2/labels"),
        65,
        table(VISTAS),
        ["-0mXqxOjZDsMeQ8jvjA_uw", "AaUpMv1_2zsvcbFhqBMqbw"],
    ),
    "list": (list_file, 18, AS_STORED, [f"pictures of a town/größe {i}.jpg" for i in range(2)]),
}


@pytest.mark.parametrize("kind", DATA)
def test_workers_that_are_spawned_get_it(kind: str, tmp_path: Path) -> None:
    data = DATA[kind][0](tmp_path)
    sent = pickle.loads(pickle.dumps(data))
    assert torch.equal(sent[0].label, data[0].label)
    assert sent.unlabeled().files == data.unlabeled().files


@pytest.mark.parametrize("kind", DATA)
def test_written_and_read_back(kind: str, tmp_path: Path) -> None:
    build, highest, kept, names = DATA[kind]
    data = build(tmp_path)
    assert [sample.name for sample in (data[i] for i in range(len(data)))] == list(names)
    for i in range(len(data)):
        seed = int(names[i].split("_")[0][-1]) if kind == "acdc" else i
        ids = every_id(highest, seed)
        if kind == "acdc":
            ids[0] = 255
        expected = torch.tensor([[kept.get(int(x), 255) for x in row] for row in ids], dtype=torch.uint8)
        sample = data[i]
        assert sample.image.shape == (3, *SIZE)
        file = data.unlabeled().files[i]
        if file.suffix == ".png":
            seed_of_image = seed if kind == "acdc" else i
            assert np.array_equal(sample.image.permute(1, 2, 0), pixels(seed_of_image))
        else:
            assert np.array_equal(sample.image.permute(1, 2, 0), np.asarray(Image.open(file)))
        assert torch.equal(sample.label, expected)
        assert torch.equal(data.label(i), expected)
        assert torch.equal(data.count(i), expected.flatten().bincount(minlength=256))
    target = data.unlabeled()
    assert torch.equal(target[0].image, data[0].image)
    assert not hasattr(target[0], "label")
    assert len(data.fingerprint()) == 64


def test_images_of_acdc_by_condition(tmp_path: Path) -> None:
    data = acdc(tmp_path)
    assert isinstance(data, Acdc)
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
    list_file(tmp_path / "list")
    (tmp_path / "list" / "targets.txt").write_text("pictures of a town/größe 0.jpg\n", encoding="utf-8")
    targets = ListFile(tmp_path / "list" / "targets.txt")
    assert targets.unlabeled()[0].image.shape == (3, *SIZE)
    with pytest.raises(ValueError, match=r"targets\.txt: no label for pictures of a town/größe 0\.jpg: no such file"):
        targets.label(0)


def test_classes_of_synthia(tmp_path: Path) -> None:
    names = [CITYSCAPES[i].name for i in range(19) if i not in SYNTHIA_CLASSES]
    assert names == ["terrain", "truck", "train"]
    assert [CITYSCAPES[i].name for i in SYNTHIA_CLASSES if i not in SYNTHIA_CLASSES_13] == ["wall", "fence", "pole"]
    assert (len(SYNTHIA_CLASSES), len(SYNTHIA_CLASSES_13)) == (16, 13)
    assert count_labels(synthia(tmp_path)).sum() == 2 * SIZE[0] * SIZE[1]


def test_pillow_would_read_zeros(tmp_path: Path) -> None:
    """The reason for OpenCV; when this fails, Pillow has learnt it."""
    synthia(tmp_path)
    with Image.open(tmp_path / "GT" / "LABELS" / "0000000.png") as image:
        assert not np.asarray(image).any()


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "synthia: grey label": (
        lambda p: (synthia(p) and grey(p / "GT/LABELS/0000000.png", every_id(18, 0))) or Synthia(p)[0],
        r"GT/LABELS/0000000.png: SYNTHIA's labels are PNGs of three channels of 16 bits, got uint8 \(12, 20\)$",
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
            (acdc(p) and grey(p / "gt/fog/val/GOPR01/GOPR01_frame_000041_gt_labelTrainIds.png", every_id(33, 0)))
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
            (mapillary(p) and palette(p / "validation/labels/-0mXqxOjZDsMeQ8jvjA_uw.png", every_id(123, 0)))
            or Mapillary(p, "validation")[0]
        ),
        r"_uw.png: label 66 is outside 0..65 \(and not the ignored 255\); ids of Mapillary Vistas 1.2 are expected$",
    ),
    "list: missing": (lambda p: ListFile(p / "list.txt"), r"list.txt: cannot be read as a list \(.*No such file"),
    "list: empty": (lambda p: (p / "l").write_text("\n") and ListFile(p / "l"), "/l: names no image$"),
    "list: three parts": (
        lambda p: (p / "l").write_text("a\tb\na\tb\tc\n") and ListFile(p / "l"),
        r"/l, line 2: image<TAB>label, or an image alone, is expected: 'a\\tb\\tc'$",
    ),
    "list: an image is missing": (
        lambda p: (p / "l").write_text("a.png\tb.png\n") and ListFile(p / "l")[0],
        "/a.png: no such file$",
    ),
    "list: ignore": (
        lambda p: list_file(p) and ListFile(p / "list.txt", ignore=[256]),
        r"ignore must hold label ids in \[0, 255\], got \[256\]$",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, tmp_path: Path) -> None:
    call, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


def test_synthia_without_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = synthia(tmp_path)
    monkeypatch.setitem(sys.modules, "cv2", None)
    message = "GT/LABELS/0000000.png: SYNTHIA's 16-bit labels need OpenCV: pip install 'hrda_lib[synthia]'"
    with pytest.raises(ValueError, match=re.escape(message)):
        data.label(0)
    assert data.unlabeled()[0].image.shape == (3, *SIZE)
