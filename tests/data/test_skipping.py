"""Files that cannot be read: named at once, or left out, counted and logged."""

import logging
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from trees import filled, saved, write

from hrda_lib.data import (
    Folders,
    RareClasses,
    SourceCrops,
    StepBatches,
    TargetCrops,
    UnlabeledImages,
    count_labels,
    pictures,
)


def truncated(file: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(256, size=(24, 32)).astype(np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:200])


def without_palette(file: Path) -> None:
    """A PNG of palette indices that holds no palette, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 24, 8, 3, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress((b"\0" + b"\1" * 32) * 24))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + rows + chunk(b"IEND", b""))


def linked_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def cut_header(file: Path) -> None:
    """A PNG whose first chunk is too short, of which Pillow says nothing about the file."""
    data = bytearray(file.read_bytes())
    file.write_bytes(data[:8] + struct.pack(">I", 10) + data[12:26] + data[29:])


UNREADABLE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "truncated label": ("labels", truncated, r"cannot be read as an image \(image file is truncated"),
    "truncated image": ("images", truncated, r"cannot be read as an image \(image file is truncated"),
    "empty label": ("labels", lambda file: file.write_bytes(b""), "cannot be read as an image"),
    "empty image": ("images", lambda file: file.write_bytes(b""), "cannot be read as an image"),
    "label without palette": ("labels", without_palette, "a palette PNG without its palette; write it again"),
    "image without palette": ("images", without_palette, "a palette PNG without its palette; write it again"),
    "label of a cut header": ("labels", cut_header, "cannot be read"),
    "image of a cut header": ("images", cut_header, "cannot be read"),
    "label of another size": (
        "labels",
        lambda file: saved(file, filled(1, (24, 30))),
        r"label must have its image's size \(24, 32\), got \(24, 30",
    ),
    "label is missing": ("labels", Path.unlink, "no such file"),
    "label links to itself": (
        "labels",
        linked_to_itself,
        r"a link to 2.png, which cannot be followed \(Too many levels",
    ),
    "image links to itself": ("images", linked_to_itself, r"cannot be read as an image \(.*symbolic links"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_files_are_named_or_left_out(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, spoil, text = UNREADABLE[case]
    data, bad = Folders(write(tmp_path, 4)), tmp_path / folder / "2.png"
    spoil(bad)
    message = f"^{re.escape(str(bad))}: {text}"
    at_once = folder == "labels" and case != "label of another size"
    if at_once:
        with pytest.raises(ValueError, match=message):
            count_labels(data)
    crops = SourceCrops(data, 16, max_class_share=1)
    with pytest.raises(ValueError, match=message):
        [crops[k] for k in range(30)]

    with caplog.at_level(logging.WARNING):
        counts = count_labels(data, on_error="skip", cache=tmp_path / "counts.json")
        assert (counts[2].sum() == 0) == at_once == (not (tmp_path / "counts.json").exists())
        rare = RareClasses(counts[:, :4], temperature=1.0, min_pixels=0) if at_once else None
        crops = SourceCrops(data, 16, max_class_share=1, rare_classes=rare, on_error="skip")
        seen = {int(crops[k].image[1, 0, 0]) for k in range(30)}
    assert seen == {0, 1, 3}
    assert crops.skipped == ([] if at_once else [2])
    left_out, *summary = [record.getMessage() for record in caplog.records]
    assert left_out.startswith(f"left out: {bad}")
    assert summary == (["1 of 4 labels cannot be read and are left out"] if at_once else [])


def test_unreadable_target_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = Folders(write(tmp_path, 4)).unlabeled()
    truncated(tmp_path / "images" / "1.png")
    with pytest.raises(ValueError, match=r"images/1\.png: cannot be read as an image"):
        [TargetCrops(target, 16)[k] for k in range(30)]
    crops = TargetCrops(target, 16, on_error="skip")
    assert {int(crops[k].image[1, 0, 0]) for k in range(30)} == {0, 2, 3}
    assert crops.skipped == [1]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_add_to_one_list(workers: int, tmp_path: Path) -> None:
    data = Folders(write(tmp_path, 4))
    for i in (1, 3):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"")
    crops = SourceCrops(data, 16, max_class_share=1, on_error="skip")
    loader = DataLoader(crops, batch_sampler=StepBatches(2, 10), num_workers=workers)
    images = torch.cat([image for image, _ in loader])
    assert set(images[:, 1].flatten().tolist()) == {0, 2}
    assert crops.skipped == [1, 3]
    assert torch.equal(images[7], SourceCrops(data, 16, max_class_share=1, on_error="skip")[7].image)


def test_an_error_in_a_worker_names_the_file(tmp_path: Path) -> None:
    data = Folders(write(tmp_path, 1))
    (tmp_path / "images" / "0.png").write_bytes(b"")
    loader = DataLoader(SourceCrops(data, 16), batch_sampler=StepBatches(1, 3), num_workers=1)
    with pytest.raises(ValueError, match=r"\nValueError: .*/images/0\.png: cannot be read as an image"):
        next(iter(loader))


def no_permission(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """As for a user who may not read; tests may run as one who may read everything."""
    real = open

    def opened(file: Path, mode: str) -> Any:
        if folder in str(file):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, mode)

    monkeypatch.setattr(pictures, "open", opened, raising=False)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Folders(write(tmp_path, 4))
    no_permission(monkeypatch, "labels")
    with pytest.raises(ValueError, match=r"labels/0\.png: cannot be read as an image \(.*Permission denied"):
        count_labels(data)
    with pytest.raises(ValueError, match=r"labels/0\.png: neither this nor another of the 4 labels can be read"):
        count_labels(data, on_error="skip")
    assert data.unlabeled()[0].name == "0"


def test_nothing_can_be_read(tmp_path: Path) -> None:
    data = Folders(write(tmp_path, 1))
    (tmp_path / "images" / "0.png").write_bytes(b"")
    crops = TargetCrops(data.unlabeled(), 16, on_error="skip")
    with pytest.raises(ValueError, match=r"^100 images in a row cannot be read; the last: .*/images/0\.png: cannot be"):
        crops[0]


def test_no_image_and_one_image(tmp_path: Path) -> None:
    for crops in (TargetCrops, SourceCrops):
        with pytest.raises(ValueError, match=r"^dataset must hold at least one image, got none$"):
            crops(UnlabeledImages([]), 16)
    one = TargetCrops(Folders(write(tmp_path, 1)).unlabeled(), 16)
    assert {tuple(one[k].image.shape) for k in range(5)} == {(3, 16, 16)}


def test_on_error_is_one_of_two(tmp_path: Path) -> None:
    data = Folders(write(tmp_path, 1))
    for call in (
        lambda: SourceCrops(data, 16, on_error="ignore"),
        lambda: TargetCrops(data.unlabeled(), 16, on_error="ignore"),
        lambda: count_labels(data, on_error="ignore"),
    ):
        with pytest.raises(ValueError, match=r"^on_error must be 'raise' or 'skip', got 'ignore'$"):
            call()
