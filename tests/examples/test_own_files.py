"""own_data.py and predict.py on lists, colour-coded labels, other ids, and images of other formats and channels."""

import json
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.channels import Reader, display, jitter_and_blur, measure
from support.own_files import some
from support.report import id_table, share_table
from support.run_files import load, normalize
from test_examples import FAST, picture, write
from torch import Tensor

import own_data
import predict
from hrda_lib.data import Folders, UnlabeledImages
from support.networks import build

SIZE = (48, 64)
PALETTE = {"sky": [90, 120, 200], "Void": [0, 0, 0], "road": [80, 80, 80], "box": [200, 60, 40]}
READERS = """
import numpy as np
import torch
from PIL import Image

def npy(file):
    return torch.from_numpy(np.load(file))

def pillow(file):
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

def three(file):
    return npy(file)[:3]

def channels_last(file):
    return npy(file).permute(1, 2, 0)

def double(file):
    return npy(file).double()

def array(file):
    return np.load(file)

def broken(file):
    raise OSError("no such band")

def fifth_where_target(file):
    image = npy(file)
    return torch.cat([image, image[:1]]) if "target" in file.parts else image

def holes(file):
    return npy(file).log()
"""


@pytest.fixture(autouse=True)
def termination() -> Iterator[None]:
    """main() takes the signal over."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("code") / "readers.py"
    file.write_text(READERS)
    return file


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pictures")
    return write(root / "source"), write(root / "target", labels=False)


@pytest.fixture(scope="module")
def plain(pictures: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from two folders of 8-bit pictures and stored ids: the others must do the same from other files."""
    return adapt(tmp_path_factory.mktemp("runs") / "plain", *pictures)


def adapt(out: Path, source: Path, target: Path, *options: Any) -> Path:
    arguments = ["--source", source, "--target", target, "--out", out, *FAST, *options]
    assert own_data.main([str(argument) for argument in arguments]) == 0
    return out


def segment(model: Path, inputs: Path, out: Path, *options: Any) -> None:
    assert predict.main([str(argument) for argument in (model, inputs, "--out", out, *options)]) == 0


def weights(model: Path) -> dict[str, Tensor]:
    return torch.load(model / "last.pt", weights_only=True)["model"]


def same_weights(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(model: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]


def network(model: Path) -> dict[str, Any]:
    return json.loads((model / "config.json").read_text())["network"]


def ious(printed: str) -> list[str]:
    """What predict.py says with --labels."""
    return re.findall(r"^ *([\d.]+|nan)  \w", printed, flags=re.MULTILINE)


def dump(file: Path, content: Any) -> Path:
    file.write_text(json.dumps(content))
    return file


# Remote sensing


def field(seed: int, *, low: float = 0.0, high: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Four bands of reflectance and six classes; the last is rare."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.repeat(rng.integers(5, size=(6, 8)), 8, axis=0), 8, axis=1).astype(np.uint8)
    label[:3, :5] = np.arange(5)
    if seed == 3:
        label[20:32, 30:42] = 5
    spectra = np.random.default_rng(99).random((6, 4))
    bands = spectra[label].transpose(2, 0, 1) + 0.05 * rng.standard_normal((4, *SIZE))
    return (low + (high - low) * bands.clip(0, 1)).astype(np.float32), label


def fields(root: Path, **ranges: float) -> tuple[Path, Path]:
    """Eight labelled images, and three of another brightness without labels."""
    for folder in ("source/images", "source/labels", "target/images"):
        (root / folder).mkdir(parents=True)
    for i in range(8):
        image, label = field(i, **ranges)
        np.save(root / "source/images" / f"{i}.npy", image)
        Image.fromarray(label).save(root / "source/labels" / f"{i}.png")
    for i in range(3):
        np.save(root / "target/images" / f"{i}.npy", 0.6 * field(i + 20, **ranges)[0])
    return root / "source", root / "target"


@pytest.mark.parametrize("high", [0.3, 10_000.0])
def test_remote_sensing(high: float, tmp_path: Path, readers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = fields(tmp_path, high=high)
    out = adapt(tmp_path / "run", source, target, "--read", f"{readers}:npy")
    rows = re.findall(r"^\| (\d) +\| +([\d.]+) \| +(\d) \| +([\d.]+) \|$", capsys.readouterr().out, flags=re.MULTILINE)
    assert [row[0] for row in rows] == list("012345")
    assert rows[5][2] == "1"
    assert float(rows[5][1]) == pytest.approx(100 * 144 / (8 * 48 * 64), abs=0.01)
    assert max(rows, key=lambda row: float(row[3]))[0] == "5"
    lines = losses(out)
    assert len(lines) == 4
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert "loss_mixed" in lines[3]

    kept = network(out)
    images = np.stack([np.load(file) for file in (source / "images").iterdir()]).astype(np.float64)
    np.testing.assert_allclose(kept["mean"], images.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(kept["std"], images.std(axis=(0, 2, 3)), rtol=1e-6)
    assert (kept["channels"], kept["dtype"], kept["read"]) == (4, "float32", f"{readers}:npy")

    segment(out, target / "images", tmp_path / "out", "--save-attention", "--read", f"{readers}:npy")
    assert predict.main([str(out), str(target / "images"), "--out", str(tmp_path / "no")]) == 2
    message = f"predict.py: this run's images were read by {readers}:npy; give that, or its like, as --read"
    assert capsys.readouterr().err.splitlines()[-1] == message
    model, settings = load(out, pictures=False)
    for i in range(3):
        label = picture(tmp_path / "out" / f"{i}.png")
        image = torch.from_numpy(np.load(target / "images" / f"{i}.npy"))[None]
        mean, std = (torch.tensor(settings[name]).view(4, 1, 1) for name in ("mean", "std"))
        assert np.array_equal(label, model.predict((image - mean) / std, output="labels")[0].numpy())
        assert picture(tmp_path / "out" / f"{i}_overlay.png").shape == (*SIZE, 3)
    with pytest.raises(ValueError, match=re.escape("takes no pictures, but what ")):
        load(out)


def test_remote_sensing_twice_is_the_same(tmp_path: Path, readers: Path) -> None:
    data = fields(tmp_path)
    first, second = (adapt(tmp_path / name, *data, "--read", f"{readers}:npy") for name in ("a", "b"))
    assert same_weights(first, second)
    other = adapt(tmp_path / "c", *data, "--read", f"{readers}:npy", "--seed", 1)
    assert not same_weights(first, other)


def test_lists_of_tiff_files_with_four_bands(tmp_path: Path, readers: Path) -> None:
    for i in range(4):
        image, label = field(i, high=255)
        Image.fromarray(image.transpose(1, 2, 0).astype(np.uint8)).save(tmp_path / f"{i}.tif")
        Image.fromarray(label).save(tmp_path / f"{i}_label.png")
    (tmp_path / "source.txt").write_text("".join(f"{i}.tif\t{i}_label.png\n" for i in range(3)) + "3.tif\t3_label.png")
    (tmp_path / "target.txt").write_text("0.tif\n1.tif\n")
    out = adapt(tmp_path / "run", tmp_path / "source.txt", tmp_path / "target.txt", "--read", f"{readers}:pillow")
    assert (network(out)["channels"], network(out)["dtype"]) == (4, "uint8")
    assert 10 < network(out)["mean"][0] < 250
    segment(out, tmp_path / "3.tif", tmp_path / "out", "--read", f"{readers}:pillow")
    assert picture(tmp_path / "out" / "3.png").shape == SIZE


def test_binary_segmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write(tmp_path / "source"), write(tmp_path / "target", labels=False)
    for file in (source / "labels").iterdir():
        Image.fromarray((picture(file) == 2).astype(np.uint8)).save(file)
    (tmp_path / "names.txt").write_text("background\nbox\n")
    out = adapt(tmp_path / "run", source, target, "--classes", tmp_path / "names.txt")
    segment(out, source / "images", tmp_path / "out", "--labels", source / "labels")
    printed = capsys.readouterr().out
    numbers = re.findall(r"^ *([\d.]+|nan)  (background|box|mean IoU .*)$", printed, flags=re.MULTILINE)
    assert [name.split()[0] for _, name in numbers] == ["background", "box", "mean"]
    background, box, mean = (float(value) for value, _ in numbers)
    assert np.isfinite([background, box, mean]).all()
    assert mean == pytest.approx((background + box) / 2, abs=0.11)


# Other files, the same run


def test_lists(plain: Path, pictures: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = pictures
    lines = [f"{source}/images/{i}.png\t{source}/labels/{i}.png\n" for i in range(3)]
    (tmp_path / "source.txt").write_text("".join(lines))
    (tmp_path / "target.txt").write_text("".join(f"{target}/images/{i}.png\tno/label\n" for i in range(3)))
    assert same_weights(adapt(tmp_path / "run", tmp_path / "source.txt", tmp_path / "target.txt"), plain)


def test_a_reader_of_8_bit_pictures_changes_nothing(
    plain: Path, pictures: tuple[Path, Path], readers: Path, tmp_path: Path
) -> None:
    out = adapt(tmp_path / "run", *pictures, "--read", f"{readers}:pillow")
    assert same_weights(out, plain)
    assert "mean" not in network(out)
    with pytest.raises(ValueError, match="takes no pictures, but what "):
        load(out)
    segment(plain, pictures[1] / "images", tmp_path / "plain")
    segment(out, pictures[1] / "images", tmp_path / "read", "--read", f"{readers}:pillow")
    assert all(
        (tmp_path / "read" / file.name).read_bytes() == file.read_bytes() for file in (tmp_path / "plain").iterdir()
    )


def test_a_palette(
    plain: Path, pictures: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "source")
    colours = np.array([PALETTE[name] for name in ("sky", "road", "box")], np.uint8)
    for file in (source / "labels").iterdir():
        Image.fromarray(colours[picture(file)]).save(file)
    palette = dump(tmp_path / "palette.json", PALETTE)
    out = adapt(tmp_path / "run", source, pictures[1], "--palette", palette)
    assert network(out)["class_names"] == ["sky", "road", "box"]
    assert same_weights(out, plain)
    capsys.readouterr()
    segment(out, source / "images", tmp_path / "a", "--labels", source / "labels", "--palette", palette)
    segment(plain, source / "images", tmp_path / "b", "--labels", pictures[0] / "labels")
    colourful, ids = (ious(part) for part in capsys.readouterr().out.split(str(tmp_path / "b")))
    assert colourful == ids
    assert len(ids) == 4


def other_ids(root: Path) -> Path:
    """The classes of write() under the ids 7, 3 and 200; of some pixels of the first, 9."""
    write(root)
    for file in (root / "labels").iterdir():
        label = np.array([7, 3, 200], np.uint8)[picture(file)]
        label[:4] = 9
        Image.fromarray(label).save(file)
    return root


def test_an_id_map(pictures: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, same = other_ids(tmp_path / "source"), write(tmp_path / "same")
    for file in (same / "labels").iterdir():
        label = picture(file)
        label[:4] = 255
        Image.fromarray(label).save(file)
    (tmp_path / "names.txt").write_text("sky\nroad\nbox\nvoid\n")
    ids = dump(tmp_path / "ids.json", {"7": 0, "3": 1, "200": 2, "4": 1})
    out = adapt(tmp_path / "run", source, pictures[1], "--ids", ids, "--classes", tmp_path / "names.txt")
    printed = capsys.readouterr().out
    for row in (r"0 sky +\| +7 \|", r"1 road +\| +3, 4 \|", r"2 box +\| +200 \|", r"ignored +\| +9 \| +8\.33 \|"):
        assert re.search(row, printed), row
    assert "8.33 % of the source's pixels are ignored" in printed
    expected = adapt(tmp_path / "expected", same, pictures[1], "--classes", tmp_path / "names.txt")
    assert same_weights(out, expected)
    capsys.readouterr()
    segment(out, source / "images", tmp_path / "a", "--labels", source / "labels", "--ids", ids)
    segment(out, source / "images", tmp_path / "b", "--labels", same / "labels")
    mapped, direct = (ious(part) for part in capsys.readouterr().out.split(str(tmp_path / "b")))
    assert mapped == direct
    assert len(direct) == 4


def test_an_id_map_names_what_it_joins(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    palette = dump(tmp_path / "palette.json", PALETTE)
    source = write(tmp_path / "source")
    colours = np.array([PALETTE[name] for name in ("sky", "road", "box")], np.uint8)
    for file in (source / "labels").iterdir():
        Image.fromarray(colours[picture(file)]).save(file)
    ids = dump(tmp_path / "ids.json", {"0": 1, "1": 0, "2": 1})
    data = prepared(tmp_path, "--source", source, "--target", pictures[1], "--palette", palette, "--ids", ids)
    assert data.names == ["road", "sky/box"]
    assert data.source.label(0).unique().tolist() == [0, 1]


def test_an_id_map_without_names_numbers_them(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    ids = dump(tmp_path / "ids.json", {"7": 0, "3": 1, "200": 255})
    source = other_ids(tmp_path / "source")
    data = prepared(tmp_path, "--source", source, "--target", pictures[1], "--ids", ids)
    assert data.names == ["0", "1"]
    assert data.source.label(0).unique().tolist() == [0, 1, 255]


# Mistakes


def prepared(folder: Path, *arguments: Any) -> own_data.Data:
    options = ["--out", folder / "run", *FAST, *arguments]
    return own_data.prepare(own_data.parse([str(option) for option in options]))


def text(file: Path, content: str) -> Path:
    file.write_text(content)
    return file


BAD: dict[str, tuple[Callable[[Path], Sequence[Any]], str]] = {
    "palette and classes": (
        lambda p: ["--palette", dump(p / "p.json", PALETTE), "--classes", text(p / "n.txt", "a")],
        "--palette names the classes; leave --classes out",
    ),
    "no palette": (lambda p: ["--palette", p / "no.json"], "no.json: cannot be read as JSON ([Errno 2]"),
    "bad JSON": (lambda p: ["--palette", text(p / "p.json", '{"a": ')], "cannot be read as JSON (Expecting value"),
    "a JSON list": (lambda p: ["--palette", dump(p / "p.json", [1])], "p.json: a JSON object {...} with at least one"),
    "an empty object": (lambda p: ["--ids", dump(p / "p.json", {})], "p.json: a JSON object {...} with at least one"),
    "two numbers": (
        lambda p: ["--palette", dump(p / "p.json", {"a": [1, 2]})],
        "p.json: 'a' must have [red, green, blue] of 0 to 255, got [1, 2]",
    ),
    "a light colour": (lambda p: ["--palette", dump(p / "p.json", {"a": [1, 2, 256]})], "got [1, 2, 256]"),
    "one colour twice": (
        lambda p: ["--palette", dump(p / "p.json", {"a": [1, 2, 3], "b": [1, 2, 3]})],
        "p.json: 'a' and 'b' have the same colour [1, 2, 3]",
    ),
    "one name twice": (
        lambda p: ["--palette", text(p / "p.json", '{"a": [1, 2, 3], "a": [1, 2, 4]}')],
        "p.json: 'a' is there twice",
    ),
    "void alone": (
        lambda p: ["--palette", dump(p / "p.json", {"void": [1, 2, 3]})],
        "p.json: must name 1 to 255 classes, got 0",
    ),
    "a colour not in the palette": (
        lambda p: ["--palette", dump(p / "p.json", {"a": [0, 0, 0], "b": [1, 1, 1]})],
        "0.png: colour (2, 2, 2) of 256 pixels is not among those named; name it, with 255 to ignore it",
    ),
    "ids that are words": (
        lambda p: ["--ids", dump(p / "i.json", {"car": 1})],
        "i.json: {\"old id\": new id} of 0 to 255 is expected, got 'car': 1",
    ),
    "ids out of range": (lambda p: ["--ids", dump(p / "i.json", {"300": 1})], "is expected, got '300': 1"),
    "new ids that are no number": (lambda p: ["--ids", dump(p / "i.json", {"3": True})], "is expected, got '3': True"),
    "ids that keep nothing": (lambda p: ["--ids", dump(p / "i.json", {"3": 255})], "i.json: maps no id to a class"),
    "ids with a gap": (
        lambda p: ["--ids", dump(p / "i.json", {"0": 0, "1": 2})],
        "i.json: new ids must be 0 to 1, without gaps, got 0, 2",
    ),
    "ids outside the names": (
        lambda p: ["--ids", dump(p / "i.json", {"0": 0, "1": 1}), "--classes", text(p / "n.txt", "a\nvoid\n")],
        "i.json: new ids must be 0 to 0, one for each of the 1 class names, got 0, 1",
    ),
    "void among the names": (
        lambda p: ["--ids", dump(p / "i.json", {"0": 0}), "--classes", text(p / "n.txt", "a\nvoid\nb\n")],
        "i.json: ignores what it does not name; leave 'void' out of the class names",
    ),
    "names without an id": (
        lambda p: ["--ids", dump(p / "i.json", {"0": 0, "1": 1}), "--classes", text(p / "n.txt", "a\nb\nc\n")],
        "i.json: new ids must be 0 to 2, one for each of the 3 class names, got 0, 1",
    ),
    "ids outside the palette": (
        lambda p: ["--ids", dump(p / "i.json", {"3": 0}), "--palette", dump(p / "p.json", grey(3))],
        "i.json: old id 3 is none of the palette's 3 classes 0..2",
    ),
    "ids that do not occur": (
        lambda p: ["--ids", dump(p / "i.json", {"77": 0})],
        "0.png: this and all other labels hold nothing but ids that ",
    ),
    "a source without labels": (
        lambda p: ["--source", text(p / "l.txt", f"{p}/pictures/images/0.png\n")],
        "no label for ",
    ),
    "an empty list": (lambda p: ["--target", text(p / "l.txt", "\n")], "l.txt: names no image"),
    "no reader file": (
        lambda p: ["--read", p / "no.py:npy"],
        "no.py:npy: FILE.py:NAME is expected, and ",
    ),
    "no reader name": (lambda p: ["--read", text(p / "r.py", READERS)], "r.py: FILE.py:NAME is expected"),
    "no such reader": (lambda p: ["--read", f"{text(p / 'r.py', READERS)}:x"], "r.py: has no function 'x'"),
    "reader is no code": (
        lambda p: ["--read", f"{text(p / 'r.py', 'import nonsense_')}:npy"],
        "r.py: cannot be run (ModuleNotFoundError: No module named 'nonsense_')",
    ),
    "reader is no Python file": (lambda p: ["--read", f"{text(p / 'r.txt', '')}:npy"], "r.txt is no Python file"),
    "channels last": (lambda p: with_reader(p, "channels_last"), "0.npy: read_image must give (K, H, W), got"),
    "float64": (lambda p: with_reader(p, "double"), "(K, H, W) of uint8 or float32, got (4, 48, 64) of torch.float64"),
    "an array": (lambda p: with_reader(p, "array"), "got ndarray; torch.from_numpy makes one of an array"),
    "a reader that raises": (lambda p: with_reader(p, "broken"), "0.npy: cannot be read (OSError: no such band)"),
    "not finite": (
        lambda p: with_reader(p, "holes"),
        "0.npy: image holds values that are not finite; let holes replace them",
    ),
    "a target with other channels": (
        lambda p: with_reader(p, "fifth_where_target"),
        "target/images/0.npy: image must have 4 channels of torch.float32, as the first source image has, "
        "got 5 channels of torch.float32",
    ),
}  # fmt: skip


def grey(count: int) -> dict[str, list[int]]:
    return {f"class {i}": [i, i, i] for i in range(count)}


def with_reader(folder: Path, name: str) -> list[Any]:
    source, target = fields(folder / "npy")
    return ["--source", source, "--target", target, "--read", f"{text(folder / 'r.py', READERS)}:{name}"]


@pytest.mark.parametrize("case", BAD)
def test_mistakes(case: str, tmp_path: Path) -> None:
    pictures = write(tmp_path / "pictures")
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        prepared(tmp_path, "--source", pictures, "--target", pictures, *arguments(tmp_path))


def test_a_mistake_is_one_line_and_exit_2(tmp_path: Path, readers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = fields(tmp_path)
    arguments = ["--source", source, "--target", target, "--out", tmp_path / "run", "--read", f"{readers}:broken"]
    assert own_data.main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "reading labels" not in line]
    assert lines == [f"own_data.py: {source}/images/0.npy: cannot be read (OSError: no such band)"]


BAD_PREDICTIONS: dict[str, tuple[Callable[[Path], Sequence[Any]], str]] = {
    "a palette without labels": (
        lambda p: ["--palette", dump(p / "p.json", PALETTE)],
        "--palette and --ids say how --labels are stored, which is not given",
    ),
    "another palette": (
        lambda p: ["--labels", p, "--palette", dump(p / "p.json", PALETTE)],
        "p.json: its classes sky, road, box are not the run's 0, 1, 2",
    ),
    "ids outside the run's": (
        lambda p: ["--labels", p, "--ids", dump(p / "i.json", {"0": 3})],
        "i.json: new id 3 is none of the run's 3 classes",
    ),
    "no reader": (lambda p: ["--read", p / "no.py:npy"], "no.py:npy: FILE.py:NAME is expected"),
}


@pytest.mark.parametrize("case", BAD_PREDICTIONS)
def test_mistakes_in_predicting(
    case: str, plain: Path, pictures: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = BAD_PREDICTIONS[case]
    arguments = [plain, pictures[1] / "images", "--out", tmp_path / "out", *options(tmp_path)]
    assert predict.main([str(argument) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


def test_predict_reports_an_image_of_other_channels_and_goes_on(
    plain: Path, tmp_path: Path, readers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", np.zeros((3 + i, *SIZE), np.uint8))
    arguments = [plain, tmp_path, "--out", tmp_path / "out", "--read", f"{readers}:npy"]
    assert predict.main([str(argument) for argument in arguments]) == 1
    expected = "1.npy: image must have 3 channels of torch.uint8, as the first source image has, got 4 channels"
    assert expected in capsys.readouterr().err
    assert picture(tmp_path / "out" / "0.png").shape == SIZE


# Parts


def test_measured_over_some_images(tmp_path: Path, readers: Path) -> None:
    source, _ = fields(tmp_path, low=3000, high=3001)
    reader = Reader(f"{readers}:npy")
    for file in (source / "images").iterdir():
        image = np.load(file)
        image[3] = 7
        np.save(file, image)
    mean, std = measure(some(Folders(source, read_image=reader).unlabeled(), 50, "raise"))
    images = np.stack([np.load(file) for file in (source / "images").iterdir()]).astype(np.float64)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(std[:3], images.std(axis=(0, 2, 3))[:3], rtol=1e-3)
    assert std[3] == 1  # of a constant channel


def test_some_evenly_spaced_images(tmp_path: Path) -> None:
    files = [text(tmp_path / f"{i}.txt", str(i)) for i in range(9)]
    images = UnlabeledImages(files, read_image=lambda file: torch.full((1, 2, 2), int(file.read_text())).byte())
    assert [int(image.max()) for image in some(images, 4, "raise")] == [0, 2, 4, 6]
    assert len(list(some(images, 20, "raise"))) == 9
    text(files[2], "x")
    assert [int(image.max()) for image in some(images, 4, "skip")] == [0, 4, 6]
    with pytest.raises(ValueError, match=r"2\.txt: cannot be read \(ValueError"):
        list(some(images, 4, "raise"))
    for file in files:
        text(file, "x")
    with pytest.raises(ValueError, match=r"^none of 4 images can be read; the last: .*6\.txt: cannot be read"):
        list(some(images, 4, "skip"))


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_jitter_and_blur(channels: int) -> None:
    flat = torch.zeros(2, channels, 16, 24)
    drawn = [jitter_and_blur(flat, torch.Generator().manual_seed(seed)) for seed in range(40)]
    for images in drawn:  # brightness alone: of one image all pixels and channels alike
        assert images.shape == flat.shape
        assert (images - images[:, :1, :1, :1]).abs().max() < 1e-6
    shifts = torch.stack([images[:, 0, 0, 0] for images in drawn])
    assert 0.3 < shifts.abs().max() <= 0.5
    assert 0.6 < (shifts != 0).any(dim=1).float().mean() < 0.95
    noise = torch.randn(2, channels, 16, 24, generator=torch.Generator().manual_seed(0))
    first, again = (jitter_and_blur(noise, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    changed = [jitter_and_blur(noise, torch.Generator().manual_seed(seed)) for seed in range(40)]
    contrast = torch.stack([(x.std((1, 2, 3)) / noise.std((1, 2, 3))) for x in changed])
    # neighbours of noise differ by more than itself, unless they are blurred
    before, *rough = (x.diff(dim=-1).std((1, 2, 3)) / x.std((1, 2, 3)) for x in (noise, *changed))
    sharp = (torch.stack(rough) - before).abs() < 1e-3
    assert 0.3 < sharp.all(dim=1).float().mean() < 0.7
    assert 0.8 <= contrast[sharp].min() < 0.9
    assert 1.1 < contrast[sharp].max() <= 1.2001


def test_display() -> None:
    rgb = torch.randint(256, (3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert display(rgb) is rgb
    bands = torch.linspace(-4, 9000, 4 * 200).view(4, 10, 20)
    shown = display(bands)
    assert (shown.shape, shown.dtype) == ((3, 10, 20), torch.uint8)
    assert [(int(band.min()), int(band.max())) for band in shown] == [(0, 255)] * 3
    two = display(bands[:2])
    assert torch.equal(two[0], shown[0])
    assert torch.equal(two[0], two[2])
    assert display(torch.full((1, 4, 4), 7.0)).unique().tolist() == [0]


def test_normalize() -> None:
    images = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (255 * torch.tensor(value) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(normalize(images), normalize(images, mean.tolist(), std.tolist()), atol=1e-6)
    assert normalize(torch.ones(1, 2, 3, 3), [1.0, 0.0], [1.0, 0.5])[0, :, 0, 0].tolist() == [0, 2]


def test_networks_of_other_channels() -> None:
    images = torch.zeros(1, 5, 64, 64)
    assert build("mini", 3, detail_size=(32, 32), channels=5).predict(images).shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"model 'hrda' takes images of 3 channels, got 5; 'small' takes any number"):
        build("mit_b0", 3, detail_size=(32, 32), model="hrda", channels=5)
    pytest.importorskip("timm")
    assert build("resnet10t", 3, detail_size=(64, 64), channels=5).predict(torch.zeros(1, 5, 128, 128)).shape[1] == 3


def test_tables() -> None:
    counts = torch.zeros(2, 256, dtype=torch.int64)
    counts[0, :3], counts[1, 0] = torch.tensor([10, 20, 30]), 40
    table = share_table(["a", "b", "c"], counts[:, :3], torch.tensor([0.1, 0.2, 0.7]))
    assert [re.sub(" +", " ", row) for row in table.splitlines()[2:5]] == [
        "| a | 50.00 | 2 | 10.0 |",
        "| b | 20.00 | 1 | 20.0 |",
        "| c | 30.00 | 1 | 70.0 |",
    ]
    table = id_table(["x", "y"], {0: 1, 9: 1, 2: 0, 3: 255}, counts)
    assert [re.sub(" +", " ", row) for row in table.splitlines()[2:5]] == [
        "| 0 x | 2 | 30.00 |",
        "| 1 y | 0, 9 | 50.00 |",
        "| ignored | 1 | 20.00 |",
    ]


def test_a_reader_takes_one_kind_of_image(tmp_path: Path, readers: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 6, 6), np.float32))
    np.save(tmp_path / "b.npy", np.zeros((4, 6, 6), np.uint8))
    images = UnlabeledImages([tmp_path / "a.npy", tmp_path / "b.npy"], read_image=Reader(f"{readers}:npy"))
    assert images[0].image.shape == (4, 6, 6)
    with pytest.raises(
        ValueError, match=r"b.npy: image must have 4 channels of torch.float32, .* got 4 channels of torch.u"
    ):
        images[1]
