"""Folders, rare-class sampling and training crops."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hrda_lib.data import (
    Concatenated,
    Folders,
    RareClasses,
    Relabeled,
    SourceCrops,
    TargetCrops,
    check_classes,
    count_labels,
    read_published_counts,
)


def write(root: Path, count: int = 3, size: tuple[int, int] = (24, 32), *, labels: bool = True) -> Path:
    """Images whose red channel is their label; image i has class i in its left half and class 0 elsewhere."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for i in range(count):
        label = np.zeros(size, np.uint8)
        label[:, : size[1] // 2] = i
        rgb = np.stack([label, np.full(size, i, np.uint8), np.arange(size[0] * size[1]).reshape(size) % 251], axis=2)
        Image.fromarray(rgb.astype(np.uint8)).save(root / "images" / f"{i}.png")
        if labels:
            Image.fromarray(label).save(root / "labels" / f"{i}.png")
    return root


def test_folders(tmp_path: Path) -> None:
    folders = Folders(write(tmp_path))
    assert len(folders) == 3
    image, label, name = folders[2]
    assert (image.shape, image.dtype, label.shape, label.dtype, name) == (
        (3, 24, 32),
        torch.uint8,
        (24, 32),
        torch.uint8,
        "2",
    )
    assert torch.equal(image[0], label)
    assert label.unique().tolist() == [0, 2]


def test_ignored_ids_become_255(tmp_path: Path) -> None:
    assert Folders(write(tmp_path), ignore=[2])[2].label.unique().tolist() == [0, 255]


@pytest.mark.parametrize("mode", ["L", "P", "1"])
@pytest.mark.parametrize("bits", [1, 8])
def test_label_ids_survive_every_png_kind(tmp_path: Path, mode: str, bits: int) -> None:
    write(tmp_path, 1)
    ids = np.random.default_rng(0).integers(2, size=(24, 32)).astype(np.uint8)
    picture = Image.fromarray(ids * 255 if mode == "1" else ids).convert("1") if mode == "1" else Image.fromarray(ids)
    if mode == "P":
        picture = Image.fromarray(ids, mode=None).convert("L")
        picture = picture.convert("P") if bits == 8 else picture
        picture.putdata(ids.ravel().tolist())
    picture.save(tmp_path / "labels" / "0.png", bits=bits)
    assert torch.equal(Folders(tmp_path)[0].label, torch.from_numpy(ids))


def test_a_target_has_no_label_and_never_opens_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path)
    for file in (root / "labels").iterdir():
        file.write_bytes(b"not an image")
    opened: list[str] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(str(file)) or real(file))
    target = Folders(root).unlabeled()
    crops = TargetCrops(target, (16, 16), length=6)
    samples = [target[i] for i in range(len(target))] + [crops[k] for k in range(6)]
    assert not any(hasattr(sample, "label") for sample in samples)
    assert opened
    assert not any("labels" in file for file in opened)


def test_a_target_needs_no_label_folder(tmp_path: Path) -> None:
    root = write(tmp_path, labels=False)
    (root / "labels").rmdir()
    assert Folders(root).unlabeled()[1].image.shape == (3, 24, 32)


def test_concatenated(tmp_path: Path) -> None:
    first, second = Folders(write(tmp_path / "a", 2)), Folders(write(tmp_path / "b", 3))
    both = Concatenated([first, second])
    assert len(both) == 5
    assert torch.equal(both[4].image, second[2].image)
    assert both.label_file(2) == tmp_path / "b" / "labels" / "0.png"
    assert torch.equal(count_labels(both), torch.cat([count_labels(first), count_labels(second)]))


def test_counts_are_cached_until_a_label_changes(tmp_path: Path) -> None:
    folders, cache, seen = Folders(write(tmp_path / "data")), tmp_path / "deep" / "counts.json", []

    def progress(indices: Any) -> Any:
        seen.append(len(indices))
        return indices

    counts = count_labels(folders, cache=cache, progress=progress)
    assert counts.shape == (3, 256)
    assert counts[2, [0, 2]].tolist() == [384, 384]
    assert torch.equal(count_labels(folders, cache=cache, progress=progress), counts)
    assert seen == [3]
    moved = Folders((tmp_path / "data").rename(tmp_path / "moved"))
    assert torch.equal(count_labels(moved, cache=cache, progress=progress), counts)
    assert seen == [3]
    Image.fromarray(np.full((24, 32), 7, np.uint8)).save(tmp_path / "moved" / "labels" / "1.png")
    assert count_labels(moved, cache=cache, progress=progress)[1, 7] == 768
    assert count_labels(Folders(tmp_path / "moved", ignore=[7]), cache=cache, progress=progress)[1, 255] == 768
    assert seen == [3, 3, 3]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fingerprint": 1}', '{"fingerprint": "x", "counts": [[1]]}'])
def test_a_broken_cache_is_counted_anew(tmp_path: Path, text: str) -> None:
    folders, cache = Folders(write(tmp_path / "data")), tmp_path / "counts.json"
    cache.write_text(text.replace("x", folders.fingerprint()))
    assert count_labels(folders, cache=cache).sum() == 3 * 768
    assert json.loads(cache.read_text())["fingerprint"] == folders.fingerprint()
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".part")] == []


def test_class_probabilities_follow_the_equation() -> None:
    counts = torch.tensor([[9000, 0, 10], [4000, 5000, 10], [0, 4000, 0]])
    shares = counts.sum(0).double() / counts.sum()
    weights = np.exp((1 - shares.numpy()) / 0.1)
    weights[2] = 0  # no image has more than 3000 pixels of class 2
    got = RareClasses(counts, temperature=0.1).probabilities
    np.testing.assert_allclose(got.numpy(), weights / weights.sum(), rtol=1e-12)
    assert got.dtype == torch.float64


def test_a_cold_temperature_does_not_underflow() -> None:
    got = RareClasses(torch.tensor([[99_000, 5000]]), temperature=1e-4).probabilities
    assert got.tolist() == [0.0, 1.0]


def test_drawn_images_show_the_drawn_class(generator: torch.Generator) -> None:
    counts = torch.tensor([[9000, 0], [4000, 5000], [3000, 4000]])
    rare = RareClasses(counts, temperature=1.0)
    drawn = [rare.draw(generator) for _ in range(300)]
    assert {index for index, label in drawn if label == 0} == {0, 1}  # strictly more than 3000
    assert {index for index, label in drawn if label == 1} == {1, 2}


def surprise(drawn: Sequence[int], probabilities: Sequence[float]) -> float:
    """Pearson's chi-square of the draws, as standard deviations of a normal variable (Wilson and Hilferty)."""
    observed = np.bincount(drawn, minlength=len(probabilities))
    expected = len(drawn) * np.asarray(probabilities)
    assert not observed[expected == 0].any()
    kept = expected > 0
    chi_square, degrees = ((observed - expected)[kept] ** 2 / expected[kept]).sum(), kept.sum() - 1
    spread = 2 / (9 * degrees)
    return float(((chi_square / degrees) ** (1 / 3) - (1 - spread)) / spread**0.5)


def test_classes_and_images_are_drawn_with_their_probabilities() -> None:
    counts = torch.randint(0, 2000, (40, 6), generator=torch.Generator().manual_seed(0))
    counts[:, 4] //= 20
    counts[5:, 5] = 0
    rare = RareClasses(counts, temperature=0.1, min_pixels=60)
    generator = torch.Generator().manual_seed(1)
    drawn = [rare.draw(generator) for _ in range(3000)]
    assert surprise([label for _, label in drawn], rare.probabilities.tolist()) < 3.5
    assert surprise([label for _, label in drawn], rare.probabilities.roll(1).tolist()) > 10
    for wanted in range(6):
        shows = (counts[:, wanted] > 60).double()
        of_class = [index for index, label in drawn if label == wanted]
        assert surprise(of_class, (shows / shows.sum()).tolist()) < 3.5


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


COUNTS = torch.tensor([[10, 0]])


def broken(root: Path, **kinds: Any) -> Path:
    """A source with one fault."""
    write(root, 2)
    for name, content in kinds.items():
        file = root / name.replace("__", "/").replace("_png", ".png").replace("_jpg", ".jpg")
        if content is None:
            file.unlink()
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            Image.fromarray(content).save(file)
    return root


def read(root: Path) -> list[Any]:
    folders = Folders(root)
    return [folders[i] for i in range(len(folders))]


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda p: Folders(p / "nowhere"), "nowhere/images: no such folder"),
    "no image": (
        lambda p: Folders((p / "images").mkdir() or p),
        "images: no image in this folder (looked for .png, .jpg, .jpeg, .bmp, .webp)",
    ),
    "two endings": (
        lambda p: read(broken(p, images__0_jpg=np.zeros((4, 4, 3), np.uint8))),
        "0.png: same name as 0.jpg; a label could not be told apart",
    ),
    "label missing": (lambda p: read(broken(p, labels__1_png=None)), "labels/1.png: no such file"),
    "label missing, cached count": (
        lambda p: count_labels(Folders(broken(p, labels__1_png=None)), cache=p / "c"),
        "labels/1.png: no such file",
    ),
    "broken label": (lambda p: read(broken(p, labels__1_png=b"?")), "labels/1.png: cannot be read as an image"),
    "broken image": (lambda p: read(broken(p, images__1_png=b"?")), "images/1.png: cannot be read as an image"),
    "empty image": (lambda p: read(broken(p, images__1_png=b"")), "images/1.png: cannot be read as an image"),
    "label in colour": (
        lambda p: read(broken(p, labels__1_png=np.zeros((24, 32, 3), np.uint8))),
        "labels/1.png: label must be a single-channel 8-bit or palette PNG of ids, got mode RGB",
    ),
    "label of 16 bits": (
        lambda p: read(broken(p, labels__1_png=np.zeros((24, 32), np.uint16))),
        "labels/1.png: label must be a single-channel 8-bit or palette PNG of ids, got mode I;16",
    ),
    "image of 16 bits": (
        lambda p: read(broken(p, images__1_png=np.zeros((24, 32), np.uint16))),
        "images/1.png: image must have 8 bits a channel, got mode I;16B; convert it",
    ),
    "sizes differ": (
        lambda p: read(broken(p, labels__1_png=np.zeros((24, 30), np.uint8))),
        "labels/1.png: label must have its image's size (24, 32), got (24, 30)",
    ),
    "ignore": (lambda p: Folders(p, ignore=[300]), "ignore must hold label ids in [0, 255], got [300]"),
    "no data set": (lambda p: Concatenated([]), "datasets must hold at least one data set, got none"),
    "a class too many": (
        lambda p: check_classes(f := Folders(write(p)), count_labels(f), 2),
        "labels/2.png: label 2 is outside the 2 classes 0..1 (and not the ignored 255)",
    ),
    "counts": (lambda p: RareClasses(COUNTS[0]), "counts must be (images, classes) and not empty, got (2,)"),
    "temperature": (
        lambda p: RareClasses(COUNTS, temperature=0),
        "temperature must be positive and min_pixels not negative, got 0, 3000",
    ),
    "no image shows enough": (
        lambda p: RareClasses(COUNTS),
        "no image has more than min_pixels=3000 pixels of any class; choose a smaller number",
    ),
    "length": (lambda p: TargetCrops(Folders(write(p)).unlabeled(), 8, length=0), "length must be positive, got 0"),
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
        "margins must be four numbers of pixels (top, bottom, left, right), got (1, 1, 1, -1)",
    ),
    "margins of the whole image": (
        lambda p: TargetCrops(Folders(write(p, 1)).unlabeled(), 8, length=1, margins=(14, 10, 0, 0))[0],
        "margins (14, 10, 0, 0) leave nothing of 0, which has (24, 32) pixels",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    call, text = BAD[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call(tmp_path)


PUBLISHED = {
    "sample_class_stats.json": [
        {"0": 5, "13": 7, "file": "data/gta/labels/00001_labelTrainIds.png"},
        {"2": 9, "file": "data\\gta\\labels\\00010_labelTrainIds.png"},
        {"3": 1, "file": "data/gta/labels/00099_labelTrainIds.png"},
    ],
    "samples_with_class.json": {
        "0": [["data/gta/labels/00001_labelTrainIds.png", 5]],
        "2": [["data/gta/labels/00010_labelTrainIds.png", 9]],
        "13": [["data/gta/labels/00001_labelTrainIds.png", 7]],
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(PUBLISHED[name]))
    counts = read_published_counts(tmp_path / name, ["00001", "00010"])
    expected = torch.zeros(2, 256, dtype=torch.int64)
    expected[0, 0], expected[0, 13], expected[1, 2] = 5, 7, 9
    assert torch.equal(counts, expected)
    with pytest.raises(ValueError, match=r"\.json: no entry for 0001 \(1 of 2 images have none\)"):
        read_published_counts(tmp_path / name, ["00001", "0001"])


@pytest.mark.parametrize("text", ["", "no json", "3", '[{"0": 5}]', '{"0": 3}', '{"road": [["a", 3]]}'])
def test_other_files_are_no_published_counts(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: cannot be read as sample_class_stats\.json or samples_with_class"):
        read_published_counts(tmp_path / "x.json", ["a"])


def test_other_class_ids(tmp_path: Path) -> None:
    data = Folders(write(tmp_path, 4))
    common = Relabeled(data, {0: 3, 2: 3, 1: 0})
    expected = torch.tensor([3, 0, 3, 255], dtype=torch.uint8)
    for i in range(4):
        label = torch.where(data.label(i) == 0, expected[0], expected[i])
        assert torch.equal(common.label(i), label)
        assert torch.equal(common[i].label, label)
        assert torch.equal(common[i].image, data[i].image)
        assert common[i].name == data[i].name
    assert len(common) == 4
    assert common.label_file(1) == data.label_file(1)
    assert common.fingerprint() != Relabeled(data, {0: 3}).fingerprint()
    assert sorted(count_labels(common).sum(0).nonzero().flatten().tolist()) == [0, 3, 255]
    for ids in ({}, {256: 0}, {0: -1}):
        with pytest.raises(
            ValueError, match=re.escape(f"ids must map label ids in [0, 255] to others, at least one, got {ids}")
        ):
            Relabeled(data, ids)


def test_counting_in_threads(tmp_path: Path) -> None:
    data, seen = Folders(write(tmp_path, 9)), list[int]()
    one = count_labels(data, workers=1)
    assert torch.equal(one, torch.stack([data.label(i).flatten().bincount(minlength=256) for i in range(9)]))

    def progress(indices: Any) -> Any:
        for index in indices:
            yield index
            seen.append(index)

    assert torch.equal(count_labels(data, workers=4, progress=progress), one)
    assert seen == list(range(9))
    (tmp_path / "labels" / "5.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"labels/5\.png: cannot be read as an image"):
        count_labels(data, workers=3)
    with pytest.raises(ValueError, match="got 9 images and 0 workers"):
        count_labels(data, workers=0)
