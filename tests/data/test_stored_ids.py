"""Labels that are stored as ids."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from trees import SIZE, write

from hrda_lib.data import Folders, StoredColours, count_ids
from hrda_lib.data.pictures import read_image
from hrda_lib.data.stored_ids import StoredIds, ignoring


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


def test_what_pillow_would_change_is_refused(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(3, size=SIZE).astype(np.uint8)
    Image.fromarray(ids).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg: JPEG changes ids, labels must be stored as PNG$"):
        StoredIds(ignoring(()))(tmp_path / "a.jpg")
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), np.full((*SIZE, 3), 300, np.uint16))
    with pytest.raises(ValueError, match=r"deep\.png: image must have 8 bits a channel, got mode RGB;16B; convert it$"):
        read_image(deep)
    with pytest.raises(ValueError, match=r"deep\.png: colours of 8 bits a channel are expected, got mode RGB"):
        StoredColours({(1, 1, 1): 0})(deep)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 11), (2, 3, 4)])
def test_counts_are_those_of_numpy(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    label = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    counts = count_ids(label)
    assert counts.dtype == torch.int64
    assert counts.tolist() == np.bincount(label.numpy().ravel().astype(np.int64), minlength=256).tolist()


def test_counts_of_a_view() -> None:
    label = torch.randint(4, (6, 10), generator=torch.Generator().manual_seed(1)).byte()[:, ::3].T
    assert count_ids(label).tolist() == label.flatten().bincount(minlength=256).tolist()


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (np.zeros(3, np.uint8), "label must be a tensor of uint8 or int64 on the CPU, got ndarray"),
        (torch.zeros(3), "label must be a tensor of uint8 or int64 on the CPU, got torch.float32 on cpu"),
        (torch.zeros(3, dtype=torch.uint8, device="meta"), "on the CPU, got torch.uint8 on meta"),
        (torch.tensor([3, -1]), "label must hold ids in [0, 255], got -1 to 3"),
        (torch.tensor([3, 256]), "label must hold ids in [0, 255], got 3 to 256"),
    ],
)
def test_mistakes_in_counting(label: Any, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        count_ids(label)
