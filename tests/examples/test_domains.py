"""The data sets of a run: where they are found, what is looked through before training, and when they are others."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import picture
from trees import One, acdc, cityscapes, gta, saved, synthia

import support.domains
from hrda_lib.data import CITYSCAPES, LabeledFiles, UnlabeledImages
from support.domains import KINDS, NAMES, Domains, check_ids, count_classes, fitted, open_domains
from toy.data import write_toy_data

TRAIN_IDS = {entry.id: i for i, entry in enumerate(CITYSCAPES)}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {"gta": gta(tmp_path / "gta", 3), "cityscapes": cityscapes(tmp_path / "cityscapes")}


def found(folders: dict[str, Path], out: Path, *kinds: str, **options: Any) -> Domains:
    source, target = kinds or ("gta", "cityscapes")
    return open_domains(source, target, folders, out, **{"seed": 1, "stats": None, "on_error": "raise", **options})


def test_what_is_found(folders: dict[str, Path], tmp_path: Path) -> None:
    domains = found(folders, tmp_path / "out")
    assert (len(domains.source), len(domains.target), len(domains.val)) == (3, 3, 1)
    assert domains.target.names != domains.val.names
    assert domains.counts.shape == (3, 19)
    for i, counts in enumerate(domains.counts):
        ids = picture(folders["gta"] / f"labels/{i + 1:05}.png").ravel().tolist()
        expected = [0] * 19
        for label in ids:
            if label in TRAIN_IDS:
                expected[TRAIN_IDS[label]] += 1
        assert counts.tolist() == expected
    assert (tmp_path / "out" / "gta_counts.json").exists()
    assert NAMES[:3] == ("road", "sidewalk", "building")


def test_every_pair_of_kinds(tmp_path: Path) -> None:
    assert KINDS == ("gta", "synthia", "cityscapes", "acdc", "dark_zurich")
    folders = {"synthia": synthia(tmp_path / "synthia"), "acdc": acdc(tmp_path / "acdc")}
    domains = found(folders, tmp_path / "out", "synthia", "acdc")
    assert (len(domains.source), len(domains.target), len(domains.val)) == (2, 4, 4)
    assert (tmp_path / "out" / "synthia_counts.json").exists()
    folders["cityscapes"] = cityscapes(tmp_path / "cityscapes")
    assert len(found(folders, tmp_path / "out", "cityscapes", "acdc").source) == 3


def redraw(file: Path) -> None:
    saved(file, picture(file) // 2 if picture(file).ndim == 3 else np.roll(picture(file), 1))


CHANGES = {
    "a source image": ("gta/images/00001.png", True),
    "a source label": ("gta/labels/00001.png", True),
    "a target image": ("cityscapes/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png", True),
    "a target label, which none but an oracle reads": (
        "cityscapes/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
        False,
    ),
    "a validation image": ("cityscapes/leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png", True),
    "a validation label": ("cityscapes/gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png", True),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_key_changes_with_the_data(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    before = found(folders, tmp_path / "out").key
    assert found(folders, tmp_path / "elsewhere").key == before
    name, changes = CHANGES[case]
    redraw(tmp_path / name)
    assert (found(folders, tmp_path / "out").key != before) == changes


def test_published_statistics_are_part_of_the_key_and_nothing_is_counted(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = found(folders, tmp_path / "out").key
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps([{"file": f"0000{i}_labelTrainIds.png", "0": 10 * i, "18": 7} for i in (3, 1, 2)]))
    monkeypatch.setattr(support.domains, "count_labels", None)
    domains = found(folders, tmp_path / "new", stats=stats)
    assert domains.counts[:, 0].tolist() == [10, 20, 30]
    assert domains.counts[:, [1, 18]].tolist() == [[0, 7]] * 3
    assert domains.key != before
    assert not (tmp_path / "new").exists()


def test_without_folders_the_toy_data_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(root: Path, *, seed: int) -> dict[str, str | int]:
        return write_toy_data(root, seed=seed, train=2, val=1)

    monkeypatch.setattr(support.domains, "write_toy_data", few)
    domains = found({}, tmp_path, seed=4)
    assert (len(domains.source), len(domains.target), len(domains.val)) == (2, 2, 1)
    assert {path.name for path in (tmp_path / "data/seed4").iterdir()} == {"gta", "cityscapes", "toy.json"}
    again = found({}, tmp_path, seed=4)
    assert again.key == domains.key
    shutil.copytree(tmp_path / "data", tmp_path / "moved/data")  # other times of files, the same drawings
    assert found({}, tmp_path / "moved", seed=4).key == domains.key


def test_labels_that_cannot_be_read(folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = folders["gta"] / "labels/00002.png"
    broken.write_bytes(b"")
    with pytest.raises(ValueError, match=r"labels/00002\.png: cannot be read as an image"):
        found(folders, tmp_path / "out")
    domains = found(folders, tmp_path / "out", on_error="skip")
    assert domains.counts.sum(dim=1).gt(0).tolist() == [True, False, True]
    assert "1 of 3 labels cannot be read and are left out" in caplog.text


def test_a_broken_validation_image_is_found_before_training(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / CHANGES["a validation image"][0]
    file.write_bytes(file.read_bytes()[:200])
    for on_error in ("raise", "skip"):  # results are measured on every image
        with pytest.raises(ValueError, match=r"_leftImg8bit\.png: cannot be read as an image"):
            found(folders, tmp_path / "out", on_error=on_error)


def test_labels_of_training_images_of_the_target_are_never_opened(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in (folders["cityscapes"] / "gtFine/train").rglob("*.png"):
        file.write_bytes(b"poison")
    domains = found(folders, tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        count_classes(domains.target, tmp_path / "out/cityscapes_counts.json", "raise")


def test_train_ids_in_the_place_of_ids_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    names = [f"labels/{i:05}.png" for i in (1, 2, 3)]
    for name in names:
        ids = picture(folders["gta"] / name)
        Image.fromarray((7 + ids % 7).astype(np.uint8)).save(folders["gta"] / name)  # road to fence and guard rail
    text = r"labels/00001\.png: neither this nor another of the 3 labels has a class after pole; are these train ids\?"
    with pytest.raises(ValueError, match=text):
        found(folders, tmp_path / "out")
    lonely = picture(folders["gta"] / names[2])
    lonely[0, 0] = 26  # one car is enough
    Image.fromarray(lonely).save(folders["gta"] / names[2])
    assert found(folders, tmp_path / "out").counts[:, 13].tolist() == [0, 0, 1]


def test_ids_beyond_the_classes_are_refused() -> None:
    counts = torch.zeros(1, 256, dtype=torch.int64)
    counts[0, [0, 13, 255]] = 1
    labeled: Any = One((4, 6))
    check_ids(labeled, counts)
    counts[0, 19] = 1
    with pytest.raises(ValueError, match=r"^one\.png: label 19 is outside the 19 classes"):
        check_ids(labeled, counts)


def test_an_output_that_cannot_be_made_is_known_before_labels_are_read(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(LabeledFiles, "label", None)
    with pytest.raises(OSError, match="file"):
        found(folders, tmp_path / "file" / "out")


def test_images_are_fitted_where_a_size_is_given(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
    images = UnlabeledImages([tmp_path / "a.png"])
    assert fitted(images, (0, 0)) is images
    assert fitted(images, (10, 60))[0].image.shape == (3, 10, 15)
