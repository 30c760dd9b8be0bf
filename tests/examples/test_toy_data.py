"""The toy benchmark on disk: what lies where, in which format, and that it is complete or not there at all."""

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import picture
from torchvision.datasets import Cityscapes

from toy import streets
from toy.data import write_toy_data

# an independent table of train ids, label ids and colours
OFFICIAL = {c.train_id: (c.id, c.color) for c in Cityscapes.classes if 0 <= c.train_id < 19}
DRAWINGS = [("game", "gta", i) for i in range(4)]
DRAWINGS += [("city", "train", i) for i in range(10_000, 10_004)] + [("city", "val", i) for i in range(20_000, 20_002)]


def content(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def names(street: streets.Street, split: str, index: int) -> tuple[str, str]:
    """Image and label file, written out."""
    if split == "gta":
        return f"gta/images/0000{index + 1}.png", f"gta/labels/0000{index + 1}.png"
    folder, stem = f"{split}/{street.city}", f"{street.city}_0{index}_000019"
    image = f"cityscapes/leftImg8bit/{folder}/{stem}_leftImg8bit.png"
    return image, f"cityscapes/gtFine/{folder}/{stem}_gtFine_labelIds.png"


def write(root: Path, *, seed: int = 0, train: int = 4, val: int = 2) -> dict[str, str | int]:
    return write_toy_data(root, seed=seed, train=train, val=val)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "data"
    write(root, seed=3)
    return root


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """A cheap drawing, and the list of what it was asked for."""
    calls = []

    def draw(domain: str, seed: int, index: int) -> streets.Street:
        calls.append((domain, seed, index))
        grey = np.full((6, 8), (seed + index) % 19, np.uint8)
        return streets.Street(np.dstack([grey] * 3), grey, streets.CITIES[index % 3], 0.0)

    monkeypatch.setattr(streets, "draw", draw)
    return calls


def test_files_are_the_drawings_in_the_layouts_of_gta_and_cityscapes(built: Path) -> None:
    expected = {"toy.json"}
    for domain, split, index in DRAWINGS:
        street = streets.draw(domain, 3, index)
        image_name, label_name = names(street, split, index)
        expected |= {image_name, label_name}
        with Image.open(built / image_name) as image, Image.open(built / label_name) as label:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (384, 192))
            assert (label.format, label.mode, label.size) == ("PNG", "P" if split == "gta" else "L", (384, 192))
            np.testing.assert_array_equal(np.array(image), street.image)
            ids = np.vectorize({train_id: i for train_id, (i, _) in OFFICIAL.items()}.get)(street.label)
            np.testing.assert_array_equal(np.array(label), ids)
    assert set(content(built)) == expected


def test_every_id_and_its_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.arange(19, dtype=np.uint8)[None].repeat(2, axis=0)
    street = streets.Street(np.zeros((2, 19, 3), np.uint8), label, "oldtown", 0.0)
    monkeypatch.setattr(streets, "draw", lambda *_: street)
    write(tmp_path / "m", train=1, val=1)
    with Image.open(tmp_path / "m/gta/labels/00001.png") as game:
        assert np.array(game)[1].tolist() == [OFFICIAL[i][0] for i in range(19)]
        colours = np.array(game.convert("RGB"))[1].tolist()
    assert colours == [list(OFFICIAL[i][1]) for i in range(19)]
    city = picture(tmp_path / "m/cityscapes/gtFine/val/oldtown/oldtown_020000_000019_gtFine_labelIds.png")
    assert city[1].tolist() == [OFFICIAL[i][0] for i in range(19)]


def test_same_seed_same_bytes(built: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", seed=3)
    assert content(tmp_path / "again") == content(built)
    write(tmp_path / "other", seed=4, train=1, val=1)
    assert content(tmp_path / "other")["gta/images/00001.png"] != content(built)["gta/images/00001.png"]


def test_a_second_call_draws_nothing_and_says_the_same(tmp_path: Path, drawn: list[tuple[str, int, int]]) -> None:
    first = write(tmp_path / "data")
    assert first.items() > {"seed": 0, "train": 4, "val": 2}.items()
    assert drawn == [(domain, 0, index) for domain, _, index in DRAWINGS]
    before = content(tmp_path)
    # what preparation scripts put beside the labels is no reason to draw again
    (tmp_path / "data/cityscapes/gtFine/x_gtFine_labelTrainIds.png").write_bytes(b"")
    assert write(tmp_path / "data") == first
    assert len(drawn) == len(DRAWINGS)
    assert content(tmp_path).items() > before.items()


def foreign(root: Path, _: pytest.MonkeyPatch) -> dict[str, int]:
    for file in root.rglob("*.*"):
        file.unlink()
    (root / "mine.txt").write_text("mine")
    return {}


def spoil(text: bytes) -> Callable[[Path, pytest.MonkeyPatch], dict[str, int]]:
    def change(root: Path, _: pytest.MonkeyPatch) -> dict[str, int]:
        (root / "toy.json").write_bytes(text)
        return {}

    return change


def redraw(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    changed = root.parent / "streets.py"
    changed.write_text(Path(streets.__file__).read_text() + "# changed\n")
    monkeypatch.setattr(streets, "__file__", str(changed))
    return {}


def replace(root: Path, _: pytest.MonkeyPatch) -> dict[str, int]:
    root.rename(root.parent / "moved")
    root.write_text("mine")
    return {}


OTHER: dict[str, Callable[[Path, pytest.MonkeyPatch], dict[str, int]]] = {
    "another's folder": foreign,
    "not JSON": spoil(b"{"),
    "not text": spoil(b"\xff"),
    "another's toy.json": spoil(b'{"seed": 0, "train": 4, "val": 2}'),
    "another kind of toy.json": spoil(b"[1]"),
    "a file in the place of the folder": replace,
    "other drawing code": redraw,
    "another seed": lambda *_: {"seed": 1},
    "fewer images": lambda *_: {"train": 3},
    "more for validation": lambda *_: {"val": 3},
}


@pytest.mark.parametrize("case", OTHER)
def test_other_content_is_refused_and_kept(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[tuple[str, int, int]]
) -> None:
    root = tmp_path / "data"
    write(root)
    settings = OTHER[case](root, monkeypatch)
    drawn.clear()
    kept = content(tmp_path)
    text = f"{root}: holds something else than these toy data; remove it or choose another folder"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        write(root, **settings)
    assert not drawn
    assert content(tmp_path) == kept


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file"), ValueError, "No space left on device"),
        (OSError("encoder error -2"), ValueError, "encoder error -2"),  # Pillow's own have no number
        (RuntimeError("no paint"), RuntimeError, ""),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
    ids=["full disk", "encoder", "drawing", "interrupt"],
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.usefixtures("drawn")
def test_a_failure_leaves_nothing(
    there: bool,
    error: BaseException,
    raised: type[BaseException],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, save, count = tmp_path / "data", Image.Image.save, iter(range(100))
    if there:
        root.mkdir()

    def failing(self: Image.Image, file: Path, **options: int) -> None:
        if next(count) == 7:
            file.write_bytes(b"half")
            raise error
        save(self, file, **options)

    monkeypatch.setattr(Image.Image, "save", failing)
    message = f"^{re.escape(f'{root}: the toy data cannot be written ({text})')}$" if text else None
    with pytest.raises(raised, match=message):
        write(root)
    assert list(tmp_path.rglob("*")) == ([root] if there else [])


def test_the_slower_of_two_runs_keeps_the_faster_one_s_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[tuple[str, int, int]]
) -> None:
    root, draw, kept = tmp_path / "data", streets.draw, {}

    def overtaken(domain: str, seed: int, index: int) -> streets.Street:
        if index == 20_001:  # our last; the other run starts and ends now
            monkeypatch.setattr(streets, "draw", draw)
            write(root)
            kept.update(content(root))
        return draw(domain, seed, index)

    monkeypatch.setattr(streets, "draw", overtaken)
    with pytest.raises(ValueError, match=r"/data: the toy data cannot be written \(Directory not empty\)$"):
        write(root)
    assert len(drawn) == 2 * len(DRAWINGS)
    assert content(root) == kept
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.usefixtures("drawn")
def test_new_empty_and_linked_folders(tmp_path: Path) -> None:
    write(tmp_path / "far" / "away")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "empty")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "far" / "away") == content(tmp_path / "empty") == content(tmp_path / "disk" / "empty")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk", "empty", "far", "link"]


@pytest.mark.usefixtures("drawn")
def test_progress_is_for_terminals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "one")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    write(tmp_path / "two")
    assert "drawing toy data: 100%" in (said := capsys.readouterr().err)
    assert "10/10" in said
