"""The toy benchmark on disk: what lies where, in which format, and that it is complete or not there at all."""

import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes

from support import mini_street
from support.mini_scenes import write_mini_data

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {"train": 4, "val": 2}
# an independent table of train ids, label ids and colours
OFFICIAL = {c.train_id: (c.id, c.color) for c in Cityscapes.classes if 0 <= c.train_id < 19}
DRAWINGS = [("game", "gta", i) for i in range(4)]
DRAWINGS += [("city", "train", i) for i in range(10_000, 10_004)] + [("city", "val", i) for i in range(20_000, 20_002)]


def content(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def names(street: mini_street.Street, split: str, index: int) -> tuple[str, str]:
    """Image and label file, written out."""
    if split == "gta":
        return f"gta/images/0000{index + 1}.png", f"gta/labels/0000{index + 1}.png"
    folder, stem = f"{split}/{street.city}", f"{street.city}_0{index}_000019"
    image = f"cityscapes/leftImg8bit/{folder}/{stem}_leftImg8bit.png"
    return image, f"cityscapes/gtFine/{folder}/{stem}_gtFine_labelIds.png"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini") / "data"
    assert write_mini_data(root, seed=3, **SMALL, workers=1) == (root / "gta", root / "cityscapes")
    return root


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """A cheap drawing, and the list of what it was asked for."""
    calls = []

    def draw(domain: str, seed: int, index: int) -> mini_street.Street:
        calls.append((domain, seed, index))
        grey = np.full((6, 8), (seed + index) % 19, np.uint8)
        return mini_street.Street(np.dstack([grey] * 3), grey, mini_street.CITIES[index % 3], 0.0)

    monkeypatch.setattr(mini_street, "draw", draw)
    return calls


def write(root: Path, *, seed: int = 0, train: int = 4, val: int = 2) -> None:
    write_mini_data(root, seed=seed, train=train, val=val, workers=1, progress=False)


def start(root: Path, *, before: str = "", train: int = 4) -> "subprocess.Popen[str]":
    """A process of its own that builds with two workers, in a group of its own, as a terminal would start it."""
    code = f"import sys; from pathlib import Path; from support.mini_scenes import write_mini_data; {before}\n"
    code += f"try: write_mini_data(Path({str(root)!r}), seed=3, train={train}, val=2, workers=2, progress=False)\n"
    code += "except ValueError as error: sys.exit(str(error))\nexcept KeyboardInterrupt: sys.exit(130)"
    attend = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell may have ignored it
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=attend,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """What it said on stderr; waits until its workers, too, have closed their end of that pipe."""
    try:
        return process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def test_files_are_the_drawings_in_the_layouts_of_gta_and_cityscapes(built: Path) -> None:
    expected = {"mini.json"}
    for domain, split, index in DRAWINGS:
        street = mini_street.draw(domain, 3, index)
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
    street = mini_street.Street(np.zeros((2, 19, 3), np.uint8), label, "oldtown", 0.0)
    monkeypatch.setattr(mini_street, "draw", lambda *_: street)
    write(tmp_path / "m", train=1, val=1)
    with Image.open(tmp_path / "m/gta/labels/00001.png") as game:
        assert np.array(game)[1].tolist() == [OFFICIAL[i][0] for i in range(19)]
        colours = np.array(game.convert("RGB"))[1].tolist()
    assert colours == [list(OFFICIAL[i][1]) for i in range(19)]
    folder = tmp_path / "m/cityscapes/gtFine/val/oldtown"
    with Image.open(folder / "oldtown_020000_000019_gtFine_labelIds.png") as city:
        assert np.array(city)[1].tolist() == [OFFICIAL[i][0] for i in range(19)]


def test_same_seed_same_bytes_with_any_number_of_workers(built: Path, tmp_path: Path) -> None:
    with start(tmp_path / "two") as process:
        assert finish(process) == ""
    assert content(tmp_path / "two") == content(built)
    write(tmp_path / "other", seed=4)
    assert content(tmp_path / "other")["gta/images/00001.png"] != content(built)["gta/images/00001.png"]


def test_a_second_call_draws_nothing(built: Path, drawn: list[tuple[str, int, int]]) -> None:
    before = content(built)
    # what preparation scripts put beside the labels is no reason to draw again
    others = next((built / "cityscapes/gtFine").glob("*/*")) / "x_gtFine_labelTrainIds.png"
    others.write_bytes(b"")
    try:
        write(built, seed=3)
    finally:
        others.unlink()
    assert not drawn
    assert content(built) == before


def lose(root: Path, _: pytest.MonkeyPatch) -> dict[str, int]:
    (root / "gta/labels/00002.png").unlink()
    return {}


def cut(root: Path, _: pytest.MonkeyPatch) -> dict[str, int]:
    file = next((root / "cityscapes/leftImg8bit/val").rglob("*.png"))
    file.write_bytes(file.read_bytes()[:-5])
    return {}


def redraw(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    changed = root.parent / "mini_street.py"
    changed.write_text(Path(mini_street.__file__).read_text() + "# changed\n")
    monkeypatch.setattr(mini_street, "__file__", str(changed))
    return {}


STALE: dict[str, Callable[[Path, pytest.MonkeyPatch], dict[str, int]]] = {
    "a lost file": lose,
    "a cut file": cut,
    "other drawing code": redraw,
    "another seed": lambda *_: {"seed": 1},
    "fewer images": lambda *_: {"train": 3},
    "more for validation": lambda *_: {"val": 3},
}


@pytest.mark.parametrize("case", STALE)
def test_a_stale_tree_is_replaced(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[tuple[str, int, int]]
) -> None:
    root = tmp_path / "data"
    write(root)
    settings = STALE[case](root, monkeypatch)
    drawn.clear()
    write(root, **settings)
    assert len(drawn) == 2 * settings.get("train", 4) + settings.get("val", 2)
    write(tmp_path / "fresh", **settings)
    assert content(root) == content(tmp_path / "fresh")
    assert {file.name for file in tmp_path.iterdir()} <= {"data", "fresh", "mini_street.py"}


def fail_at_save(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The eighth picture cannot be saved."""
    save, count = Image.Image.save, iter(range(100))

    def failing(self: Image.Image, file: Path, **options: int) -> None:
        if next(count) == 7:
            file.write_bytes(b"half")
            raise error
        save(self, file, **options)

    monkeypatch.setattr(Image.Image, "save", failing)


@pytest.mark.parametrize("before", ["nothing", "stale"])
@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file"),
            ValueError,
            "{}: cannot write the mini data (No space left on device); it needs about 2 MB",
        ),
        # Pillow's own have no number
        (
            OSError("encoder error -2"),
            ValueError,
            "{}: cannot write the mini data (encoder error -2); it needs about 2 MB",
        ),
        (RuntimeError("no paint"), ValueError, "{}: cannot make the mini data (RuntimeError: no paint)"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
    ids=["full disk", "encoder", "drawing", "interrupt"],
)
@pytest.mark.usefixtures("drawn")
def test_a_failure_leaves_what_was_there(
    before: str,
    error: BaseException,
    raised: type[BaseException],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "data"
    if before == "stale":
        write(root, seed=1)
    kept = content(tmp_path)
    fail_at_save(monkeypatch, error)
    with pytest.raises(raised, match=f"^{re.escape(text.format(root))}$"):
        write(root)
    assert content(tmp_path) == kept
    assert list(tmp_path.iterdir()) == ([root] if before == "stale" else [])


def test_a_failure_in_a_worker_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    # a limit on file size is a full disk that needs no disk
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))"
    with start(tmp_path / "data", before=limit) as process:
        said = finish(process)
    assert process.returncode == 1
    assert said == f"{tmp_path / 'data'}: cannot write the mini data (File too large); it needs about 2 MB\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reached", ["", "gta/images/00020.png"], ids=["as workers start", "as they draw"])
def test_an_interrupt_with_workers_leaves_nothing_and_does_not_linger(reached: str, tmp_path: Path) -> None:
    with start(tmp_path / "data", train=2_000) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(f"data.*.part/{reached}")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1 if not reached else 0)
        os.killpg(process.pid, signal.SIGINT)
        said = finish(process)  # which takes far less than 4000 drawings
    assert (process.returncode, said) == (130, "")
    assert not list(tmp_path.iterdir())


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with start(tmp_path / "data", train=2_000) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("data.*.part/gta/images/00020.png")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        finish(process)
    assert not (tmp_path / "data").exists()


def test_two_runs_at_once(built: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    with start(root) as first, start(root) as second:
        assert finish(first) == finish(second) == ""
    assert content(root) == content(built)
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize("before", ["nothing", "stale"])
def test_the_slower_run_keeps_the_faster_one_s_tree(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[tuple[str, int, int]]
) -> None:
    root, draw = tmp_path / "data", mini_street.draw
    if before == "stale":
        write(root, seed=1)
    inodes = []

    def overtaken(domain: str, seed: int, index: int) -> mini_street.Street:
        if index == 20_001:  # our last; the other run starts and ends now
            monkeypatch.setattr(mini_street, "draw", draw)
            write(root)
            inodes.append((root / "mini.json").stat().st_ino)
        return draw(domain, seed, index)

    drawn.clear()
    monkeypatch.setattr(mini_street, "draw", overtaken)
    write(root)
    assert len(drawn) == 20
    assert [(root / "mini.json").stat().st_ino] == inodes
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.usefixtures("drawn")
def test_a_run_overtaken_at_the_very_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, rename, inodes = tmp_path / "data", Path.rename, []

    def overtaken(self: Path, target: Path) -> Path:
        if not inodes:
            inodes.append(0)
            write(root)
            inodes.append((root / "mini.json").stat().st_ino)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    write(root)
    assert (root / "mini.json").stat().st_ino == inodes[1]
    assert list(tmp_path.iterdir()) == [root]


def spoil(root: Path, name: str, text: str = "") -> str:
    (root / name).write_text(text)
    return f"holds {name}, which is not of the mini data; choose a new or empty folder"


def replace(root: Path, text: str) -> str:
    (root / "mini.json").write_text(text)
    return "holds cityscapes, which is not of the mini data; choose a new or empty folder"


FOREIGN: dict[str, Callable[[Path], str]] = {
    "no mini.json": lambda root: [(root / "mini.json").unlink(), "holds cityscapes, which is not"][1],
    "not JSON": lambda root: replace(root, "{"),
    "not text": lambda root: [(root / "mini.json").write_bytes(b"\xff"), "holds cityscapes, which is not"][1],
    "another's mini.json": lambda root: replace(root, json.dumps({"seed": 0, "train": 4, "val": 2})),
    "another kind of mini.json": lambda root: replace(root, "[1]"),
    "a file of the user's beside ours": lambda root: spoil(root, "notes.txt"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_ours_is_never_replaced(case: str, tmp_path: Path, drawn: list[tuple[str, int, int]]) -> None:
    root = tmp_path / "data"
    write(root)
    text = FOREIGN[case](root)
    kept = content(tmp_path)
    drawn.clear()
    with pytest.raises(ValueError, match=f"^{re.escape(f'{root}: {text}')}"):
        write(root, seed=1)
    assert not drawn
    assert content(tmp_path) == kept


def test_what_comes_in_between_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[tuple[str, int, int]]
) -> None:
    root, draw = tmp_path / "data", mini_street.draw
    root.mkdir()

    def meanwhile(domain: str, seed: int, index: int) -> mini_street.Street:
        (root / "notes.txt").write_text("mine")
        return draw(domain, seed, index)

    monkeypatch.setattr(mini_street, "draw", meanwhile)
    with pytest.raises(ValueError, match=r"data: holds notes\.txt, which is not of the mini data"):
        write(root)
    assert content(tmp_path) == {"data/notes.txt": b"mine"}
    assert list(tmp_path.iterdir()) == [root]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path, drawn: list[tuple[str, int, int]]) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(ValueError, match=f"^{tmp_path}/data: is no folder; choose another one for the mini data$"):
        write(tmp_path / "data")
    assert not drawn
    assert content(tmp_path) == {"data": b"mine"}


@pytest.mark.usefixtures("drawn")
def test_new_empty_and_linked_folders(tmp_path: Path) -> None:
    write(tmp_path / "far" / "away")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    (tmp_path / "disk" / "stale").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "stale")
    write(tmp_path / "link", seed=1)
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "far" / "away") == content(tmp_path / "empty") == content(tmp_path / "disk" / "stale")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk", "empty", "far", "link"]


@pytest.mark.usefixtures("drawn")
def test_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mini_data(tmp_path / "a", seed=0, **SMALL, workers=1, progress=False)
    assert capsys.readouterr() == ("", "")
    write_mini_data(tmp_path / "b", seed=0, **SMALL, workers=1)
    assert "drawing mini data: 100%" in (said := capsys.readouterr().err)
    assert "10/10" in said


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"train": 0}, "train must be 1 to 10000 images, got 0"),
        ({"train": 10_001}, "train must be 1 to 10000 images, got 10001"),
        ({"val": 0}, "val must be 1 to 10000 images, got 0"),
        ({"seed": -1}, "seed must be 0 or more and workers 1 or more, got -1 and 1"),
        ({"workers": 0}, "seed must be 0 or more and workers 1 or more, got 0 and 0"),
    ],
)
def test_bad_arguments(change: dict[str, int], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        write_mini_data(tmp_path / "data", **{"seed": 0, **SMALL, "workers": 1, **change})
    assert not list(tmp_path.iterdir())
