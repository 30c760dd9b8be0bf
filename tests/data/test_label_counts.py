"""How many pixels of each class every label has, counted, cached and published."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trees import cityscapes, some_ignored, write

from hrda_lib.data import (
    CITYSCAPES,
    Cityscapes,
    Folders,
    LabeledFiles,
    StoredColours,
    check_classes,
    count_labels,
    read_counts,
    read_published_counts,
)
from hrda_lib.data.stored_ids import StoredIds, ignoring


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


FOREIGN: dict[str, Any] = {
    "fewer": lambda rows: rows[:2],
    "more": lambda rows: [*rows, rows[0]],
    "no list": lambda rows: {str(i): row for i, row in enumerate(rows)},
    "negative": lambda rows: [{"0": -768}, *rows[1:]],
    "huge": lambda rows: [{"0": 10**30}, *rows[1:]],
    "fractions": lambda rows: [{"0": 768.5}, *rows[1:]],
    "text": lambda rows: [{"0": "768"}, *rows[1:]],
    "truth": lambda rows: [{"0": True}, *rows[1:]],
    "nothing counted": lambda rows: [{}, *rows[1:]],
    "no such id": lambda rows: [{"256": 768}, *rows[1:]],
    "an id below 0": lambda rows: [{"-1": 768}, *rows[1:]],
    "ids of another kind": lambda rows: [{"road": 768}, *rows[1:]],
    "an id twice": lambda rows: [{"0": 700, "00": 68}, *rows[1:]],
    "other digits": lambda rows: [{"\u0663": 768}, *rows[1:]],
    "rows of another kind": lambda rows: [[768], *rows[1:]],
    "nulls": lambda rows: [None] * 3,
    "deep": lambda rows: [eval("[" * 90 + "]" * 90), *rows[1:]],
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_cache_is_never_believed(tmp_path: Path, case: str) -> None:
    folders, cache = Folders(write(tmp_path / "data")), tmp_path / "counts.json"
    counts = count_labels(folders, cache=cache)
    kept = json.loads(cache.read_text())
    cache.write_text(json.dumps({**kept, "counts": FOREIGN[case](kept["counts"])}))
    assert torch.equal(count_labels(folders, cache=cache), counts)
    assert json.loads(cache.read_text()) == kept


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0" * 99, b"[" * 100_000, b'{"fingerprint": NaN}', b"1e999"])
def test_a_cache_that_is_none(tmp_path: Path, content: bytes) -> None:
    folders, cache = Folders(write(tmp_path / "data")), tmp_path / "counts.json"
    cache.write_bytes(content)
    assert count_labels(folders, cache=cache).sum() == 3 * 768
    cache.unlink()
    cache.mkdir()
    assert count_labels(folders, cache=cache).sum() == 3 * 768


def test_counts_are_read_without_their_data(tmp_path: Path) -> None:
    cache = tmp_path / "counts.json"
    counts = count_labels(Folders(write(tmp_path / "data")), cache=cache)
    assert torch.equal(read_counts(str(cache)), counts)
    for broken in ('{"counts": [{"0": 768}]}', '{"fingerprint": "", "counts": [{"0": -1}]}', "["):
        cache.write_text(broken)
        with pytest.raises(ValueError, match=rf"^{cache}: is no cache of count_labels, or cannot be read"):
            read_counts(cache)
    with pytest.raises(ValueError, match="is no cache of count_labels"):
        read_counts(tmp_path / "none.json")


def test_one_class_beside_255_is_refused(tmp_path: Path) -> None:
    data = Folders(write(tmp_path, 2))
    for i in range(2):
        Image.fromarray(255 * np.eye(24, 32, dtype=np.uint8)).save(tmp_path / "labels" / f"{i}.png")
    counts = count_labels(data)
    text = (
        "labels/0.png: this and all other labels show class 0 and the ignored 255 alone, of which nothing can be learnt"
    )
    for some in (counts, counts.sum(dim=0, keepdim=True)):
        with pytest.raises(ValueError, match=re.escape(text)):
            check_classes(data, some, 19)
    mapped = Folders(tmp_path, read_label=StoredColours({(0, 0, 0): 0, (255, 255, 255): 1}))
    check_classes(mapped, count_labels(mapped), 2)
    assert count_labels(mapped)[0, :2].tolist() == [24 * 31, 24]
    Image.fromarray(np.full((24, 32), 1, np.uint8)).save(tmp_path / "labels" / "1.png")
    check_classes(data, count_labels(data), 2)  # a class more in any label is enough


def test_the_ignored_id_may_be_another(tmp_path: Path) -> None:
    data = Folders(write(tmp_path))
    counts = torch.zeros(3, 256, dtype=torch.int64)
    counts[:, [1, 7]] = 9
    check_classes(data, counts, 8)
    with pytest.raises(ValueError, match="show class 1 and the ignored 7 alone"):
        check_classes(data, counts, 8, ignore_index=7)
    counts[:, 7] = 0
    check_classes(data, counts, 8)  # one class, and nothing of it ignored


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


def test_counts_survive_a_cache_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Folders(write(tmp_path, 4))
    (tmp_path / "file").write_text("")
    counts = count_labels(data, cache=tmp_path / "file" / "counts.json")
    assert torch.equal(counts, count_labels(data))
    assert "counts.json: cannot be written, labels will be counted again" in caplog.text


READ = StoredIds(ignoring(()))


def test_a_cache_knows_its_reader(tmp_path: Path) -> None:
    write(tmp_path)
    files = [tmp_path / "images" / "0.png"], [tmp_path / "labels" / "0.png"], ["0"]
    cache = tmp_path / "counts.json"
    for label in (1, 2):
        for reader in (StoredColours({(0, 0, 0): label}), lambda file, label=label: READ(file) + label):
            counts = count_labels(LabeledFiles(*files, read_label=reader), cache=cache)
            assert counts[0].nonzero().flatten().tolist() == [label]


def test_counts_are_of_train_ids(tmp_path: Path) -> None:
    counts = count_labels(Cityscapes(cityscapes(tmp_path), "val"), cache=tmp_path / "counts.json")
    train_ids = {entry.id: entry.train_id for entry in CITYSCAPES}
    ids = [train_ids.get(int(i), 255) for i in some_ignored(33, 0).flat]
    assert counts[0].tolist() == [ids.count(i) for i in range(256)]


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a class too many": (
        lambda p: check_classes(f := Folders(write(p)), count_labels(f), 2),
        "labels/2.png: label 2 is outside the 2 classes 0..1 (and not the ignored 255)",
    ),
    "a label is missing": (
        lambda p: (write(p) / "labels/1.png").unlink() or count_labels(Folders(p), cache=p / "c"),
        "labels/1.png: no such file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    call, text = BAD[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call(tmp_path)
