"""Labelled images named by a list."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trees import SIZE, every_id, list_file

from hrda_lib.data import ListFile


def test_written_and_read_back(tmp_path: Path) -> None:
    data = ListFile(list_file(tmp_path) / "list.txt")
    for sent in (data, pickle.loads(pickle.dumps(data))):  # as to the workers of a loader
        for i, (image, label, name) in enumerate(sent[i] for i in range(len(sent))):
            assert name == f"pictures of a town/größe {i}.jpg"
            assert np.array_equal(image.permute(1, 2, 0), np.asarray(Image.open(tmp_path / name)))
            assert torch.equal(label, torch.from_numpy(every_id(18, i)))
            assert torch.equal(sent.label(i), label)
            assert torch.equal(sent.count(i), label.flatten().bincount(minlength=256))
    assert i == 1
    assert torch.equal(data.unlabeled()[0].image, data[0].image)
    assert len(data.fingerprint()) == 64


def test_a_list_of_images_is_a_target(tmp_path: Path) -> None:
    file = list_file(tmp_path) / "targets.txt"
    file.write_text("pictures of a town/größe 0.jpg\n", encoding="utf-8")
    targets = ListFile(file)
    assert targets.unlabeled()[0].image.shape == (3, *SIZE)
    with pytest.raises(ValueError, match=r"targets\.txt: no label for pictures of a town/größe 0\.jpg: no such file"):
        targets.label(0)


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: ListFile(p / "list.txt"), r"list.txt: cannot be read as a list \(.*No such file"),
    "empty": (lambda p: (p / "l").write_text("\n") and ListFile(p / "l"), "/l: names no image$"),
    "three parts": (
        lambda p: (p / "l").write_text("a\tb\na\tb\tc\n") and ListFile(p / "l"),
        r"/l, line 2: image<TAB>label, or an image alone, is expected: 'a\\tb\\tc'$",
    ),
    "an image is missing": (
        lambda p: (p / "l").write_text("a.png\tb.png\n") and ListFile(p / "l")[0],
        "/a.png: no such file$",
    ),
    "ignore": (
        lambda p: list_file(p) and ListFile(p / "list.txt", ignore=[256]),
        r"ignore must hold label ids in \[0, 255\], got \[256\]$",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, tmp_path: Path) -> None:
    call, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
