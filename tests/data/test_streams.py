"""Training crops of a source and a target."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from trees import write

from hrda_lib.data import Folders, RareClasses, SourceCrops, TargetCrops, count_labels


def test_source_crops_line_up_and_depend_on_seed_and_k_alone(tmp_path: Path) -> None:
    folders = Folders(write(tmp_path))
    crops = SourceCrops(folders, (16, 8), length=12, seed=1, max_class_share=1)
    loaded = [DataLoader(crops, 2, num_workers=workers) for workers in (0, 2)]
    for (image, label), (again, label_again) in zip(*loaded, strict=True):
        assert image.shape == (2, 3, 16, 8)
        assert torch.equal(image[:, 0], label)
        assert torch.equal(image, again)
        assert torch.equal(label, label_again)
    assert torch.equal(crops[7].image, SourceCrops(folders, (16, 8), length=8, seed=1, max_class_share=1)[7].image)
    different = [SourceCrops(folders, (16, 8), length=12, seed=s, max_class_share=1)[7].image for s in range(2, 6)]
    assert any(not torch.equal(crops[7].image, other) for other in different)


def test_crops_are_flipped_half_of_the_time_and_reach_every_edge(tmp_path: Path) -> None:
    folders = Folders(write(tmp_path, 1))
    ramp = folders[0].image[2]
    places, flips = set(), 0
    for k in range(400):
        image = TargetCrops(folders.unlabeled(), (22, 30), length=400)[k].image[2]
        flipped = bool(image[0, 0].int() - image[0, 1].int() in (1, -250))
        flips += flipped
        corner = image[0, -1] if flipped else image[0, 0]
        places.add(divmod((ramp[:3, :3] == corner).flatten().int().argmax().item(), 3))
    assert 160 < flips < 240
    assert places == {(r, c) for r in range(3) for c in range(3)}


def test_no_class_fills_a_source_crop(tmp_path: Path) -> None:
    folders = Folders(write(tmp_path, 2))
    rare = RareClasses(count_labels(folders)[:, :2], temperature=0.01, min_pixels=100)
    for k in range(40):
        label = SourceCrops(folders, (16, 16), length=40, rare_classes=rare, tries=200)[k].label
        assert label.flatten().bincount().max() <= 0.75 * 256
        assert (label == 1).sum() > 50  # half of min_pixels


def test_the_last_try_is_taken(tmp_path: Path) -> None:
    folders = Folders(write(tmp_path, 1))
    assert SourceCrops(folders, (16, 16), length=1, max_class_share=0.1, tries=1)[0].label.shape == (16, 16)


def test_small_images_are_padded(tmp_path: Path) -> None:
    folders = Folders(write(tmp_path, 2))
    label = SourceCrops(folders, (40, 32), length=4, max_class_share=1)[1].label
    assert (label[24:] == 255).all()
    assert (label[:24] != 255).all()
    _, valid = TargetCrops(folders.unlabeled(), (40, 32), length=4)[1]
    assert valid[:24].all()
    assert not valid[24:].any()


def test_margins_are_of_the_full_image(tmp_path: Path) -> None:
    crops = TargetCrops(Folders(write(tmp_path, 1)).unlabeled(), (24, 32), length=4, margins=(2, 3, 4, 4))
    valid = crops[0].valid
    assert valid[2:21, 4:28].all()
    assert valid.sum() == 19 * 24


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "length": (lambda p: TargetCrops(Folders(write(p)).unlabeled(), 8, length=0), "length must be positive, got 0"),
    "seed": (
        lambda p: TargetCrops(Folders(write(p)).unlabeled(), 8, seed=-1),
        "seed must not be negative, got -1",
    ),
    "counts of other images": (
        lambda p: SourceCrops(Folders(write(p)), 8, rare_classes=RareClasses(torch.ones(2, 3), min_pixels=0)),
        "rare_classes must have the counts of dataset's 3 images, got 2",
    ),
    "size": (
        lambda p: SourceCrops(Folders(write(p)), (8, 0), length=1),
        "size must be a positive int or two of them (height, width), got (8, 0)",
    ),
    "class share": (
        lambda p: SourceCrops(Folders(write(p)), 8, length=1, max_class_share=0),
        "max_class_share must be in (0, 1] and tries positive, got 0, 10",
    ),
    "margins": (
        lambda p: TargetCrops(Folders(write(p)).unlabeled(), 8, length=1, margins=(1, 1, 1, -1)),
        "margins must be four numbers of pixels (top, bottom, left, right), 0 for none, got (1, 1, 1, -1)",
    ),
    "margins of the whole image": (
        lambda p: TargetCrops(Folders(write(p, 1)).unlabeled(), 8, length=1, margins=(14, 10, 0, 0))[0],
        "margins (14, 10, 0, 0) leave nothing of 0, which has (24, 32) pixels; take smaller ones (top, bottom, left, "
        "right), or leave the image out",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    call, text = BAD[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call(tmp_path)
