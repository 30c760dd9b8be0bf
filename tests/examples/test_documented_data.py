"""The files of docs/data_files, each on small images of its kind: check, adapt, predict, compare, evaluate."""

import json
import shutil
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import FAST, main, picture

from hrda_lib.data import IMAGENET_MEAN

FILES = Path(__file__).parents[2] / "docs" / "data_files"
SIZE = (48, 64)
Saver = Callable[[Path, np.ndarray], None]


def scene(seed: int) -> np.ndarray:
    """The class of each pixel: the first above the second, a box of the third in front of both."""
    label = np.zeros(SIZE, np.uint8)
    label[24:] = 1
    label[16:32, 8 * seed : 8 * seed + 16] = 2
    return label


def seen(label: np.ndarray, values: Sequence[object], noise: float, seed: int) -> np.ndarray:
    """A value, or one a channel, for each class, and noise."""
    image = np.array(values, np.float32)[label]
    return image + noise * np.random.default_rng(seed).random(image.shape, np.float32)


def rgb(label: np.ndarray, seed: int) -> np.ndarray:
    return seen(label, [(90, 120, 200), (80, 80, 80), (200, 60, 40)], 30, seed).astype(np.uint8)


def png(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


def folder(root: Path, count: int, label: Callable[[np.ndarray], np.ndarray] | None) -> None:
    """Pictures, and labels as ``label`` stores them."""
    for i in range(count):
        png(root / f"images/{i}.png", rgb(scene(i), i))
        if label:
            png(root / f"labels/{i}.png", label(scene(i)))


def stored(values: Sequence[object]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda label: np.array(values, np.uint8)[label]


# What the files name


def colours(root: Path) -> None:
    paint = stored([(70, 130, 180), (128, 64, 128), (0, 0, 142)])
    folder(root / "source", 3, paint)
    folder(root / "target", 3, None)
    folder(root / "validation", 2, paint)
    black = paint(scene(0))
    black[:2] = 0
    png(root / "source/labels/0.png", black)


def other_ids(root: Path) -> None:
    folder(root / "source", 3, stored([23, 7, 26]))
    folder(root / "target", 3, None)
    folder(root / "validation", 2, stored([10, 0, 13]))
    ids = np.array([23, 8, 26], np.uint8)[scene(1)]
    ids[:2] = 11  # of no class
    png(root / "source/labels/1.png", ids)


def lists(root: Path) -> None:
    for part, count in (("source", 3), ("target", 3), ("validation", 2)):
        folder(root / part, count, None if part == "target" else stored([0, 1, 2]))
        label = "" if part == "target" else f"\t{part}/labels/{{i}}.png"
        lines = [f"{part}/images/{{i}}.png{label}".format(i=i) for i in range(count)]
        (root / f"{part}.txt").write_text("\n".join(lines))
    ids = scene(0)
    ids[:2] = 3
    png(root / "source/labels/0.png", ids)


def fields(root: Path, ending: str, save: Saver, values: Sequence[object], noise: float) -> None:
    for part, light in (("source", 1.0), ("target", 0.7)):
        (root / part / "images").mkdir(parents=True)
        for i in range(3):
            save(root / part / f"images/{i}.{ending}", light * seen(scene(i), values, noise, i))
            if part == "source":
                png(root / part / f"labels/{i}.png", scene(i))


def bands(root: Path) -> None:
    spectra = np.random.default_rng(0).random((3, 4)).tolist()
    fields(root, "npy", lambda file, x: np.save(file, x.transpose(2, 0, 1)), spectra, 0.1)


def tiff(root: Path) -> None:
    fields(root, "tif", lambda file, x: Image.fromarray(x.astype(np.uint16)).save(file), [900, 5000, 20_000], 400)


def masks(root: Path) -> None:
    folder(root / "source", 3, stored([0, 0, 255]))
    folder(root / "target", 3, None)


def few_labels(root: Path) -> None:
    folder(root / "target", 3, None)
    for part, count in (("source", 3), ("few", 1), ("validation", 2)):
        folder(root / part, count, stored([0, 1, 2]))


CASES = (colours, other_ids, lists, bands, tiff, masks, few_labels)


def test_each_file_has_a_case_and_at_most_twelve_lines() -> None:
    files = {file.stem: file.read_text() for file in FILES.glob("*.py")}
    assert files.keys() == {case.__name__ for case in CASES}
    assert max(len(text.splitlines()) for text in files.values()) <= 12
    page = (FILES.parent / "examples.md").read_text()
    assert all(f"{{literalinclude}} data_files/{name}.py" in page for name in files)
    assert textwrap.indent(files["bands"], "    ") in (FILES.parents[1] / "README.md").read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_file_serves_every_script(
    case: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    case(tmp_path / "data")
    file, images = Path(f"{case.__name__}.py"), Path("data/target/images")
    text = shutil.copy(FILES / file, file).read_text()

    assert main("check_data.py", "--data", file, "--out", "sheets") == 0
    assert " 0 with a problem" in capsys.readouterr().out
    sheets = {f"{file.stem}_{name}.png" for name in ("source", "target", "source_classes")}
    assert sheets <= {sheet.name for sheet in Path("sheets").iterdir()}

    assert main("own_data.py", "--data", file, "--out", "run", *FAST) == 0
    counts = capsys.readouterr().out
    assert "no label shows" not in counts  # every class was found
    ignored = 2 * SIZE[1] / (3 * SIZE[0] * SIZE[1]) if case in (colours, other_ids, lists) else 0
    assert f"{100 * ignored:.2f} % of the source's pixels are ignored" in counts
    network = json.loads(Path("run/config.json").read_text())["network"]
    assert repr(network["classes"]).replace("'", '"') in text
    assert network["channels"] == {bands: 4, tiff: 1}.get(case, 3)

    pictures = tuple(network["mean"]) == IMAGENET_MEAN
    assert pictures == (case not in (bands, tiff))
    assert main("predict.py", "run", images, "--out", "labels", "--data", file) == 0
    assert {picture(Path(f"labels/{i}.png")).shape for i in range(3)} == {SIZE}
    assert main("predict.py", "run", images, "--out", "again") == (0 if pictures else 2)
    if pictures:
        assert all(np.array_equal(*(picture(Path(f"{out}/{i}.png")) for out in ("labels", "again"))) for i in range(3))

    assert main("compare.py", "data/target", "run", "run", "--data", file) == 0
    assert main("compare.py", "data/target", "run") == (0 if pictures else 2)

    capsys.readouterr()
    measured = "validation" in text
    assert main("evaluate.py", "run", "--data", file) == (0 if measured else 2)
    said = capsys.readouterr()
    assert ("mean IoU, in %" in said.out) == measured
    assert ("defines no validation" in said.err) != measured
