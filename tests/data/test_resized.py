"""Data sets at another resolution."""

from pathlib import Path

import bilinear
import numpy as np
import pytest
import torch
from torch import Tensor
from trees import One, gta

from hrda_lib.data import Gta, Resized, ResizedImages, UnlabeledImages


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


def test_sizes_are_positive() -> None:
    text = r"^size must be a positive int or two of them \(height, width\), got "
    with pytest.raises(ValueError, match=rf"{text}\(0, 4\)$"):
        Resized(One((4, 4)), (0, 4))
    with pytest.raises(ValueError, match=rf"{text}-1$"):
        ResizedImages(UnlabeledImages([]), -1)
