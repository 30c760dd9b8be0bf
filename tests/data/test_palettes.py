"""Palettes of one data set's labels agree on the colours of the ids that occur."""

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from trees import COLOURS, SIZE, every_id, gta, mapillary, picture, save_palette, saved

from hrda_lib.data import (
    Concatenated,
    Folders,
    Gta,
    LabeledFiles,
    ListFile,
    Mapillary,
    StoredColours,
    check_sizes,
    count_labels,
    palettes,
)

Colour = tuple[int, int, int]
BLACK, ROAD, HOUSE, TREE = (0, 0, 0), (128, 64, 128), (70, 70, 70), (107, 142, 35)
ORDER = [BLACK, ROAD, HOUSE, TREE]


def folders(root: Path, *labels: tuple[Sequence[int], Sequence[Colour]] | Sequence[int]) -> Path:
    """Plain folders: the ids that occur in each label, with a palette or as grey levels."""
    for i, label in enumerate(labels):
        ids, colours = label if isinstance(label, tuple) else (label, None)
        array = np.resize(np.array(ids, np.uint8), SIZE)
        picture(root / "images" / f"{i}.png", i)
        if colours is None:
            saved(root / "labels" / f"{i}.png", array)
        else:
            save_palette(root / "labels" / f"{i}.png", array, list(colours))
    return root


SORTED = [TREE, ROAD, BLACK, HOUSE]
DIFFER: dict[str, tuple[list[Any], int, int, int]] = {  # labels, the wrong one, what it is compared with, and the id
    "sorted anew": ([((0, 1, 2, 3), ORDER), ((0, 1, 2, 3), SORTED)], 1, 0, 0),
    "the third": ([((0, 1), ORDER), ((0, 1, 2), ORDER), ((1, 2), [BLACK, ROAD, TREE, HOUSE])], 2, 0, 2),
    "an id that the first file names and does not show": ([((0,), ORDER), ((3,), SORTED)], 1, 0, 3),
    "grey first": ([[0, 1], ((0, 1), ORDER), ((0, 2), SORTED)], 2, 1, 0),
}


def message(root: Path, wrong: int, first: int, index: int) -> str:
    return (
        f"^{re.escape(str(root))}/labels/{wrong}\\.png: palette colour of id {index} is \\(.*\\), but \\(.*\\) in "
        f"{re.escape(str(root))}/labels/{first}\\.png; an id must be one class"
    )


@pytest.mark.parametrize("case", DIFFER)
def test_a_palette_that_differs_is_an_error_that_names_both_files(case: str, tmp_path: Path) -> None:
    labels, wrong, first, index = DIFFER[case]
    root = folders(tmp_path, *labels)
    for read in (lambda d: d.label(wrong), lambda d: d[wrong], lambda d: d.count(wrong)):  # whatever is read first
        data = Folders(root)
        with pytest.raises(ValueError, match=message(root, wrong, first, index)):
            read(data)
        with pytest.raises(ValueError, match=message(root, wrong, first, index)):
            read(Folders(root) and pickle.loads(pickle.dumps(data)))
        assert all(data[i].label.shape == SIZE for i in range(len(labels)) if i != wrong)
    with pytest.raises(ValueError, match=message(root, wrong, first, index)):
        count_labels(Folders(root), workers=2)
    check_sizes(Folders(root))


AGREE: dict[str, list[Any]] = {
    "grey": [[0, 1], [2, 3]],
    "grey and palettes": [((0, 1), ORDER), [0, 1], ((1, 2), ORDER)],
    "one palette": [((0, 1), ORDER), ((2, 3), ORDER)],
    "shorter palettes": [((0, 1), ORDER[:2]), ((0, 3), ORDER)],
    "what does not occur": [((0, 1), ORDER), ((0, 1), [BLACK, ROAD, TREE, HOUSE])],
    "filled up with black": [((0, 1), [BLACK, ROAD] + 254 * [BLACK]), ((2, 3), ORDER)],
    "filled up with grey levels": [((0,), [BLACK] + [(i, i, i) for i in range(1, 256)]), ((1, 2), ORDER)],
}


@pytest.mark.parametrize("case", AGREE)
def test_palettes_that_agree(case: str, tmp_path: Path) -> None:
    data = Folders(folders(tmp_path, *AGREE[case]))
    for i in reversed(range(len(data))):
        label = AGREE[case][i]
        ids = label[0] if isinstance(label, tuple) else label
        assert data.label(i).unique().tolist() == sorted(ids)
    assert count_labels(data).sum() == len(data) * SIZE[0] * SIZE[1]


def test_colours_are_mapped_whatever_the_palette(tmp_path: Path) -> None:
    root = folders(tmp_path, ((0, 1, 2, 3), ORDER), ((2, 1, 3, 0), SORTED))
    data = Folders(root, read_label=StoredColours({colour: i for i, colour in enumerate(ORDER)}))
    assert torch.equal(data.label(0), data.label(1))


def test_other_sets_of_palettes(tmp_path: Path) -> None:
    root = folders(tmp_path / "a", *DIFFER["sorted anew"][0])
    files = [sorted((root / name).iterdir()) for name in ("images", "labels")]
    (root / "list.txt").write_text("".join(f"images/{i}.png\tlabels/{i}.png\n" for i in range(2)))
    for data in (LabeledFiles(*files, ["0", "1"]), ListFile(root / "list.txt"), Concatenated([Folders(root)])):
        with pytest.raises(ValueError, match="palette colour of id 0"):
            data.label(1)
    vistas = mapillary(tmp_path / "m")
    save_palette(
        sorted((vistas / "validation" / "labels").iterdir())[1], every_id(65, 1), [(9, 9, i) for i in range(256)]
    )
    with pytest.raises(ValueError, match="palette colour of id 0"):
        Mapillary(vistas, "validation").label(1)


def test_official_colours_are_asked_for_instead(tmp_path: Path) -> None:
    """Ignored ids of GTA may be drawn in any colour."""
    root = gta(tmp_path)
    save_palette(root / "labels" / "00002.png", np.full(SIZE, 1, np.uint8), [(i, 9, 9) for i in range(7)] + COLOURS[7:])
    assert Gta(root).label(1).unique().tolist() == [255]


def test_two_sets_may_have_two_palettes(tmp_path: Path) -> None:
    one, two = (folders(tmp_path / name, ((0, 1), order)) for name, order in (("a", ORDER), ("b", SORTED)))
    both = Concatenated([Folders(one), Folders(two)])
    assert both.label(0).unique().tolist() == both.label(1).unique().tolist() == [0, 1]


def test_a_broken_first_file_is_passed_over(tmp_path: Path) -> None:
    root = folders(tmp_path, ((0, 1), ORDER), ((0, 1), ORDER), ((0, 1), SORTED))
    (root / "labels" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"labels/2\.png: palette colour .* in .*labels/1\.png"):
        Folders(root).label(2)
    counts = count_labels(Folders(root), on_error="skip")
    assert counts.sum(dim=1).tolist() == [0, SIZE[0] * SIZE[1], 0]


def test_the_first_palette_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, opened = Folders(folders(tmp_path, *[((0, 1), ORDER)] * 4)), list[Path]()
    real = palettes.open_label
    monkeypatch.setattr(palettes, "open_label", lambda file, *limit: opened.append(file) or real(file, *limit))
    for i in (3, 1, 0, 2, 3):
        data.label(i)
    assert opened == [data.label_file(0)]


def test_grey_labels_ask_for_no_palette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Folders(folders(tmp_path, [0, 1], [1, 2]))
    monkeypatch.setattr(palettes, "opened", lambda *_: pytest.fail("looked for a palette"))
    assert data.label(1).unique().tolist() == [1, 2]


def test_workers_agree_on_the_first_file(tmp_path: Path) -> None:
    root = folders(tmp_path, *[((0, 1), ORDER)] * 3, ((0, 1), SORTED))
    loader = DataLoader(Folders(root), batch_size=1, sampler=[3, 2], num_workers=1, collate_fn=lambda samples: samples)
    with pytest.raises(ValueError, match=r"labels/3\.png: palette colour of id 0 .* in .*labels/0\.png"):
        list(loader)
    for file in (root / "labels").iterdir():
        with Image.open(file) as label:
            assert label.mode == "P"
