"""Data sets at another resolution."""

from pathlib import Path

import bilinear
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from trees import One, gta

from hrda_lib.data import Folders, Gta, Resized, ResizedImages, UnlabeledImages


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


# Drafts


def photos(root: Path, *sizes: tuple[int, int], orientation: int = 1) -> Folders:
    """Smooth JPEGs, and labels of the size at which they stand upright."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i, (rows, columns) in enumerate(sizes):
        y, x = np.mgrid[:rows, :columns] / 40
        picture = np.stack([np.sin(y + i), np.cos(x), np.sin(x + y)], axis=-1)
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray((127 + 120 * picture).astype(np.uint8)).save(
            root / "images" / f"{i}.jpg", quality=95, exif=exif
        )
        upright = (columns, rows) if orientation > 4 else (rows, columns)
        Image.fromarray(np.zeros(upright, np.uint8)).save(root / "labels" / f"{i}.png")
    return Folders(root)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(
    ("size", "within", "share"),
    [
        ((160, 240), (80, 120), 2),
        ((161, 243), (80, 120), 2),
        ((160, 240), (81, 121), 1),
        ((333, 250), (60, 60), 4),
        ((320, 480), (20, 30), 8),
        ((40, 60), (80, 90), 1),
        ((150, 153), (60, 60), 2),  # fits as 59 x 60; its half, 75 x 77, as 58 x 60
    ],
)
def test_drafts_are_close_and_of_the_same_size(
    size: tuple[int, int], within: tuple[int, int], share: int, orientation: int, tmp_path: Path
) -> None:
    data = photos(tmp_path, size, orientation=orientation)
    drafted = data.drafted(0, within).image
    upright = size[::-1] if orientation > 4 else size
    if orientation <= 4:
        assert tuple(drafted.shape[1:]) == tuple(-(-side // share) for side in upright)
    plain, draft = Resized(data, within)[0], Resized(data, within, draft=True)[0]
    assert draft.image.shape == plain.image.shape
    assert torch.equal(draft.label, plain.label)
    # a draft's pixel is the mean of those that it stands for, whose middle the plain one interpolates
    assert (draft.image.float() - plain.image.float()).abs().mean() < 5
    target = ResizedImages(data.unlabeled(), within, draft=True)
    assert torch.equal(target[0].image, draft.image)
    assert torch.equal(target.with_files(target.files)[0].image, draft.image)


def test_drafts_fit_the_upright_picture(tmp_path: Path) -> None:
    data = photos(tmp_path, (160, 480), orientation=6)
    assert data.drafted(0, (240, 80)).image.shape == (3, 240, 80)
    assert data.drafted(0, (80, 240)).image.shape == (3, 120, 40)  # 80 x 27 fit


def test_only_jpegs_have_drafts(tmp_path: Path) -> None:
    data = Gta(gta(tmp_path))
    for index in range(len(data)):
        assert torch.equal(Resized(data, (4, 4), draft=True)[index].image, Resized(data, (4, 4))[index].image)


def test_drafts_of_a_reader_of_ones_own_are_its_images(tmp_path: Path) -> None:
    photos(tmp_path, (64, 96))
    data = Folders(tmp_path, read_image=lambda file: torch.full((3, 64, 96), 7, dtype=torch.uint8))
    assert torch.equal(Resized(data, (16, 24), draft=True)[0].image, torch.full((3, 16, 24), 7, dtype=torch.uint8))


def test_a_draft_has_its_labels_size_all_the_same(tmp_path: Path) -> None:
    data = photos(tmp_path, (64, 96))
    Image.fromarray(np.zeros((32, 48), np.uint8)).save(tmp_path / "labels" / "0.png")
    with pytest.raises(ValueError, match=r"0\.png: label must have its image's size \(64, 96\), got \(32, 48\)"):
        Resized(data, (16, 24), draft=True)[0]


def test_drafts_are_made_where_files_are_decoded(tmp_path: Path) -> None:
    data = photos(tmp_path, (64, 96))
    message = r"^draft must be False for Resized, which decodes no files itself; resize what it is made of$"
    with pytest.raises(ValueError, match=message):
        Resized(Resized(data, (32, 48)), (16, 24), draft=True)
    with pytest.raises(ValueError, match=r"^draft must be False for ResizedImages"):
        ResizedImages(ResizedImages(data.unlabeled(), (32, 48)), (16, 24), draft=True)
    whole, draft = (ResizedImages(data.unlabeled(), (16, 24), draft=draft).fingerprint() for draft in (False, True))
    assert whole != draft
