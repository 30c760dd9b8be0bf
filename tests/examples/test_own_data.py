"""Two folders, or a FILE.py, adapted for a few steps: what a run keeps, how it ends, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import EXAMPLES, FAST, main, metrics, picture, run, run_together, write
from torch import Tensor

import own_data
import support.looking
from gta2cityscapes import Settings
from hrda_lib import SelfTraining
from hrda_lib.data import UnlabeledImages
from support.run_folder import DRAWN, RunFolder, load, read_metrics

SIZE = (48, 64)
READERS = """
import numpy as np
import torch
from PIL import Image
from pathlib import Path
from hrda_lib.data import *

ROOT = Path(__file__).parent

def npy(file):
    return torch.from_numpy(np.load(file))

def pillow(file):
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

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

def bytes_where_target(file):
    return (255 * npy(file)).byte() if "target" in file.parts else npy(file)

def holes(file):
    return npy(file).log()
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("data")
    target = write(root / "target", labels=False)
    (target / "labels").mkdir()
    for i in range(3):  # a target's labels are never opened: these would fail
        (target / "labels" / f"{i}.png").write_bytes(b"unreadable")
    return write(root / "source"), target


@pytest.fixture(scope="module")
def finished(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a process of its own, where warnings are errors."""
    out = tmp_path_factory.mktemp("runs") / "hrda"
    names = out.parent / "names.txt"
    names.write_text("sky\nroad\nbox\nvoid\n")
    done = run("own_data.py", "--source", folders[0], "--target", folders[1], "--out", out, "--classes", names, *FAST)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def plain(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without class names: others must do the same from other files."""
    return adapt(tmp_path_factory.mktemp("runs") / "plain", *folders)


def adapt(out: Path, source: Path, target: Path, *options: Any) -> Path:
    return start(out, "--source", source, "--target", target, *options)


def start(out: Path, *arguments: Any) -> Path:
    """A run without pictures, which take most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_curves", "draw_panel"):
            patch.setattr(own_data, name, lambda *_, **__: None)
        assert main("own_data.py", "--out", out, *FAST, *arguments) == 0
    return out


def text(file: Path, content: str) -> Path:
    file.write_text(content, encoding="utf-8")
    return file


def data_file(file: Path, source: Path, target: Path, *lines: str, read: str = "pillow") -> Path:
    """A FILE.py of these folders with readers; later lines win."""
    first = [
        f"source = Folders({str(source)!r}, read_image={read})",
        f"target = Folders({str(target)!r}, read_image={read}).unlabeled()",
        "names = ['0', '1', '2']",
    ]
    return text(file, READERS + "\n".join([*first, *lines]) + "\n")


def kept(run: Path) -> dict[str, Any]:
    return torch.load(run / "last.pt", weights_only=True)


def same_weights(first: Path, second: Path) -> bool:
    one, other = kept(first)["model"], kept(second)["model"]
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def network(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())["network"]


def losses(run: Path) -> list[float]:
    return [line["loss_source"] for line in read_metrics(run)]


# Two folders


def test_run_files(finished: Path) -> None:
    names = {file.name for file in finished.iterdir()}
    assert names == {"last.pt", "metrics.jsonl", "config.json", "label_counts.json", *DRAWN}
    lines = read_metrics(finished)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert ["loss_mixed" in line for line in lines] == [False, False, True, True]
    assert all(0 <= line["confidence"] <= 1 for line in lines[2:])
    config = json.loads((finished / "config.json").read_text())
    assert (config["seed"], config["steps"], config["warmup"], config["method"]) == (0, 2, 2, "hrda")
    assert config["network"]["classes"] == ["sky", "road", "box"]
    assert config["network"]["ignore"] == [3]
    assert config["versions"]["torch"] == torch.__version__
    entries = kept(finished)
    assert entries["step"] == 4
    assert entries["teacher"].keys() == entries["model"].keys()
    assert any(not torch.equal(entries["teacher"][name], x) for name, x in entries["model"].items())
    assert picture(finished / "panel.png").shape[1] > 800


def test_methods_without_target(folders: tuple[Path, Path], plain: Path, tmp_path: Path) -> None:
    adapt(tmp_path / "source-aug", *folders, "--method", "source-aug")
    arguments = ["--source", folders[0], "--target", folders[1], "--out", tmp_path / "source", *FAST]
    assert main("own_data.py", *arguments, "--method", "source") == 0
    assert (tmp_path / "source" / "panel.png").exists()
    for out in (tmp_path / "source", tmp_path / "source-aug"):
        assert [set(line) for line in metrics(out)] == [{"step", "loss_source", "gradient", "lr"}] * 4
        assert kept(out).keys() == {"model", "network", "step"}
    # the control sees what hrda sees of the source, until the target has changed the weights
    control = adapt(tmp_path / "control", *folders, "--method", "source-aug", "--steps", 3)
    adapted = adapt(tmp_path / "adapted", *folders, "--steps", 3)
    assert losses(control)[:4] == losses(adapted)[:4]  # the first step changes hardly anything
    assert losses(control)[4] != losses(adapted)[4]
    assert losses(tmp_path / "source")[0] != losses(plain)[0]  # without colours


def test_two_phases(folders: tuple[Path, Path], plain: Path, tmp_path: Path) -> None:
    """Each has a schedule of its own: the warm-up knows nothing of the steps after it."""
    longer = adapt(tmp_path / "longer", *folders, "--steps", 5)
    assert losses(longer)[:3] == losses(plain)[:3]
    assert len(losses(longer)) == 7
    warmup = adapt(tmp_path / "longer warm-up", *folders, "--warmup", 5)
    assert ["loss_mixed" in line for line in read_metrics(warmup)] == [False] * 5 + [True] * 2
    alone = adapt(tmp_path / "alone", *folders, "--warmup", 0)
    assert ["loss_mixed" in line for line in read_metrics(alone)] == [True] * 2
    assert losses(alone)[0] != losses(plain)[0]  # further steps see other images than the first ones
    settings, _, _ = own_data.parse(["--source", "a", "--target", "b", "--out", "c", "--steps", "7"])
    assert settings.warmup == 28


def test_two_sources_a_warm_start_and_a_timm_encoder(folders: tuple[Path, Path], plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    few = write(tmp_path / "few", 1)
    common = ["--source", folders[0], few, "--target", folders[1], *FAST]
    assert main("own_data.py", *common, "--out", tmp_path / "warm", "--init", plain / "last.pt") == 0
    assert main("own_data.py", *common, "--out", tmp_path / "cold") == 0
    assert losses(tmp_path / "warm")[0] != losses(tmp_path / "cold")[0]
    counts = [json.loads((out / "label_counts.json").read_text())["counts"] for out in (plain, tmp_path / "warm")]
    assert counts[1] == [*counts[0], counts[0][0]]
    timm = ["--out", tmp_path / "timm", "--encoder", "resnet10t", "--crop", 64, 64]
    assert main("own_data.py", *common, *timm, "--method", "source", "--warmup", 1, "--steps", 1) == 0
    assert network(tmp_path / "timm")["encoder"] == "resnet10t"


def test_an_encoder_whose_levels_are_added_takes_images_of_any_size(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("timm")
    out = tmp_path / "run"
    once = ["--encoder", "hrnet_w18_small", "--crop", 64, 64, "--warmup", 1, "--steps", 1]
    assert main("own_data.py", "--source", folders[0], "--target", folders[1], "--out", out, *FAST, *once) == 0
    Image.fromarray(np.zeros((50, 131, 3), np.uint8)).save(tmp_path / "odd.png")
    assert main("predict.py", out, tmp_path / "odd.png", "--out", tmp_path / "labels") == 0
    assert picture(tmp_path / "labels" / "odd.png").shape == (50, 131)
    whole = ["--labels", folders[0] / "labels", "--whole"]
    assert main("evaluate.py", out, folders[0] / "images", *whole, "--scales", 0.3, 1.1) == 0


def test_same_seed_same_weights(folders: tuple[Path, Path], finished: Path, tmp_path: Path) -> None:
    names = finished.parent / "names.txt"
    again = adapt(tmp_path / "again", *folders, "--classes", names)
    assert same_weights(finished, again)
    other = adapt(tmp_path / "other", *folders, "--classes", names, "--seed", 1)
    assert not same_weights(finished, other)
    boxes = adapt(tmp_path / "boxes", *folders, "--classes", names, "--mix", "boxes")
    assert not same_weights(finished, boxes)
    assert json.loads((boxes / "config.json").read_text())["mix"] == "boxes"


def test_a_crop_is_chosen_from_the_first_image(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = adapt(tmp_path / "run", *folders, "--method", "source", "--crop", 0, 0)
    assert json.loads((out / "config.json").read_text())["crop"] == [32, 48]
    assert network(out)["detail_size"] == [16, 24]


@pytest.mark.parametrize(
    ("encoder", "size", "crop"),
    [
        ("mini", (100, 200), (80, 160)),
        ("hrnet_w18_small", (100, 200), (64, 128)),
        ("hiera_tiny_224", (600, 900), (448, 448)),
    ],
)
def test_a_crop_that_the_encoder_takes(encoder: str, size: tuple[int, int], crop: tuple[int, int]) -> None:
    pytest.importorskip("timm")
    settings = replace(Settings(), encoder=encoder, crop=(0, 0))
    assert own_data.crop_of(torch.empty(3, *size), settings) == crop
    assert own_data.crop_of(torch.empty(3, *size), replace(settings, crop=(96, 32))) == (96, 32)


def test_binary_segmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write(tmp_path / "source"), write(tmp_path / "target", labels=False)
    for file in (source / "labels").iterdir():
        Image.fromarray((picture(file) == 2).astype(np.uint8)).save(file)
    names = text(tmp_path / "names.txt", "background\nbox\n")
    out = adapt(tmp_path / "run", source, target, "--classes", names)
    capsys.readouterr()
    assert main("evaluate.py", out, source / "images", "--labels", source / "labels") == 0
    numbers = re.findall(r"^ *([\d.]+|nan)  (background|box|mean IoU.*)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert [name.split()[0] for _, name in numbers] == ["background", "box", "mean"]
    background, box, mean = (float(value) for value, _ in numbers)
    assert np.isfinite([background, box, mean]).all()
    assert mean == pytest.approx((background + box) / 2, abs=0.11)


def test_class_names_that_cannot_be_read(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", folders[0], "--target", folders[1], "--out", tmp_path / "run", "--classes"]
    (tmp_path / "latin.txt").write_bytes("Häuser\n".encode("latin-1"))
    for name, message in {"no.txt": "([Errno 2]", "latin.txt": "('utf-8' codec"}.items():
        assert main("own_data.py", *arguments, tmp_path / name) == 2
        start = f"own_data.py: {tmp_path / name}: cannot be read as class names {message}"
        assert capsys.readouterr().err.startswith(start)


def test_void_in_the_middle_of_the_names(folders: tuple[Path, Path], tmp_path: Path) -> None:
    names = text(tmp_path / "names.txt", "\ufeffsky\nVoid\n box \n")
    out = adapt(tmp_path / "run", *folders, "--classes", names, "--method", "source")
    assert (network(out)["classes"], network(out)["ignore"]) == (["sky", "Void", "box"], [1])
    counts = json.loads((out / "label_counts.json").read_text())["counts"]
    assert {label for row in counts for label in row} == {"0", "2", "255"}


# How it ends


def test_broken_files_are_left_out_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write(tmp_path / "source", 4), write(tmp_path / "target", labels=False)
    broken = source / "labels" / "0.png", source / "images" / "1.png", target / "images" / "2.png"
    for file in broken:
        file.write_bytes(b"")
    arguments = ["--source", source, "--target", target, "--out", tmp_path / "run", *FAST, "--steps", 6, "--workers", 1]
    done = run("own_data.py", *arguments, "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert all(f"left out: {file}: cannot be read as an image" in done.stderr for file in broken)
    assert "1 of 4 labels cannot be read and are left out" in done.stderr
    assert len(losses(tmp_path / "run")) == 8
    Image.fromarray(np.ones((48, 64), np.uint8)).save(broken[0])
    assert main("own_data.py", *arguments, "--overwrite") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("own_data.py: stopped at step ")
    assert any(f": {file}: cannot be read as an image" in last for file in broken[1:])


def test_interrupting_leaves_a_usable_checkpoint(folders: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "own_data.py", "--source", folders[0], "--target", folders[1]]
    command += ["--out", tmp_path / "run", *FAST, "--steps", "100000"]
    arguments, pipe, environment = [*map(str, command)], subprocess.PIPE, {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, stderr=pipe, stdout=pipe, env=environment, text=True) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") > 3) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)  # of a batch system
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    interrupted(tmp_path / "run", errors)
    # the target folder holds folders, no images
    assert main("predict.py", tmp_path / "run", folders[1], "--out", tmp_path / "out") == 2
    assert main("predict.py", tmp_path / "run", folders[1] / "images", "--out", tmp_path / "out") == 0


def test_a_key_interrupts_too(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunFolder.log

    def pressed(run: RunFolder, **values: Any) -> None:
        log(run, **values)
        if run.steps > 3:
            signal.raise_signal(signal.SIGINT)

    # a shell may start the tests with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(RunFolder, "log", pressed)
    arguments = ["--source", folders[0], "--target", folders[1], "--out", tmp_path / "run", *FAST]
    try:
        assert main("own_data.py", *arguments, "--steps", "100000") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    interrupted(tmp_path / "run", capsys.readouterr().err)


def interrupted(run: Path, errors: str) -> None:
    step = kept(run)["step"]
    assert step > 3
    assert errors.splitlines()[-1] == f"own_data.py: stopped at step {step}: interrupted; --resume goes on"
    assert len(losses(run)) == step
    assert (run / "panel.png").exists()
    assert "teacher" in kept(run)


def test_a_broken_image_met_while_training_keeps_the_weights(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = write(tmp_path / "target", 2, labels=False)
    (target / "images" / "1.png").write_bytes(b"broken")
    arguments = ["--source", folders[0], "--target", target, "--out", tmp_path / "run", *FAST]
    assert main("own_data.py", *arguments, "--steps", 9) == 1
    message = f": {target}/images/1.png: cannot be read as an image"
    step = kept(tmp_path / "run")["step"]
    assert step == len(losses(tmp_path / "run"))
    assert step >= 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"own_data.py: stopped at step {step}{message}")
    # where no step reads it, the panel does
    assert main("own_data.py", *arguments, "--overwrite", "--method", "source") == 1
    assert kept(tmp_path / "run")["step"] == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"own_data.py{message}")


def test_a_finished_run_is_not_overwritten(
    folders: tuple[Path, Path], plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file.name: file.read_bytes() for file in plain.iterdir()}
    assert main("own_data.py", "--source", folders[0], "--target", folders[1], "--out", plain, *FAST) == 2
    message = "already holds a run; choose another --out (--init starts from it), or --overwrite"
    assert capsys.readouterr().err == f"own_data.py: {plain}: {message}\n"
    assert {file.name: file.read_bytes() for file in plain.iterdir()} == before
    # nor by one that is refused before its first step
    again = ["--source", folders[0], "--target", folders[1], "--out", plain, *FAST, "--overwrite"]
    assert main("own_data.py", *again, "--balance", 99) == 2
    assert {file.name: file.read_bytes() for file in plain.iterdir()} == before


# A FILE.py


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
def test_remote_sensing(high: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = fields(tmp_path, high=high)
    file = data_file(tmp_path / "remote.py", source, target, "names = [*'012345']", read="npy")
    out = start(tmp_path / "run", "--data", file)
    rows = re.findall(r"^\| (\d) +\| +([\d.]+) \| +(\d) \| +([\d.]+) \|$", capsys.readouterr().out, flags=re.MULTILINE)
    assert [row[0] for row in rows] == list("012345")
    assert rows[5][2] == "1"
    assert float(rows[5][1]) == pytest.approx(100 * 144 / (8 * 48 * 64), abs=0.01)
    assert max(rows, key=lambda row: float(row[3]))[0] == "5"
    lines = read_metrics(out)
    assert len(lines) == 4
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert "loss_mixed" in lines[3]

    about = network(out)
    images = np.stack([np.load(file) for file in (source / "images").iterdir()]).astype(np.float64)
    np.testing.assert_allclose(about["mean"], images.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(about["std"], images.std(axis=(0, 2, 3)), rtol=1e-6)
    assert about["channels"] == 4
    assert json.loads((out / "config.json").read_text())["data"] == str(file)

    arguments = [out, target / "images", "--out", tmp_path / "out", "--save-attention"]
    assert main("predict.py", *arguments, "--data", file) == 0
    capsys.readouterr()
    assert main("predict.py", *arguments) == 2
    message = "predict.py: this run's images are no RGB pictures; give the FILE.py of its training by --data"
    assert capsys.readouterr().err.splitlines()[-1] == message
    model, spec = load(out)
    mean, std = (torch.tensor(values).view(4, 1, 1) for values in (spec.mean, spec.std))
    for i in range(3):
        label = picture(tmp_path / "out" / f"{i}.png")
        image = torch.from_numpy(np.load(target / "images" / f"{i}.npy"))[None]
        assert np.array_equal(label, model.predict((image - mean) / std, output="labels")[0].numpy())
        assert picture(tmp_path / "out" / f"{i}_overlay.png").shape == (*SIZE, 3)
        assert picture(tmp_path / "out" / f"{i}_attention.png").shape == SIZE


def test_remote_sensing_twice_is_the_same(tmp_path: Path) -> None:
    file = data_file(tmp_path / "remote.py", *fields(tmp_path), "names = [*'012345']", read="npy")
    first, second = (start(tmp_path / name, "--data", file) for name in ("a", "b"))
    assert same_weights(first, second)
    assert not same_weights(first, start(tmp_path / "c", "--data", file, "--seed", 1))


def test_lists_of_tiff_files_with_four_bands(tmp_path: Path) -> None:
    for i in range(4):
        image, label = field(i, high=255)
        Image.fromarray(image.transpose(1, 2, 0).astype(np.uint8)).save(tmp_path / f"{i}.tif")
        Image.fromarray(label).save(tmp_path / f"{i}_label.png")
    text(tmp_path / "source.txt", "".join(f"{i}.tif\t{i}_label.png\n" for i in range(3)) + "3.tif\t3_label.png")
    text(tmp_path / "target.txt", "0.tif\n1.tif\n")
    lines = ["source = ListFile(ROOT / 'source.txt', read_image=pillow)", "names = [*'012345']"]
    lines.append("target = ListFile(ROOT / 'target.txt', read_image=pillow).unlabeled()")
    file = text(tmp_path / "tiff.py", READERS + "\n".join(lines))
    out = start(tmp_path / "run", "--data", file)
    assert network(out)["channels"] == 4
    assert 10 / 255 < network(out)["mean"][0] < 250 / 255
    assert main("predict.py", out, tmp_path / "3.tif", "--out", tmp_path / "out", "--data", file) == 0
    assert picture(tmp_path / "out" / "3.png").shape == SIZE


def test_lists(plain: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = folders
    lines = [f"{source}/images/{i}.png\t{source}/labels/{i}.png\n" for i in range(3)]
    text(tmp_path / "source.txt", "".join(lines))
    text(tmp_path / "target.txt", "".join(f"{target}/images/{i}.png\tno/label\n" for i in range(3)))
    lines = ["source = ListFile(ROOT / 'source.txt')", "target = ListFile(ROOT / 'target.txt').unlabeled()"]
    out = start(tmp_path / "run", "--data", data_file(tmp_path / "lists.py", source, target, *lines))
    assert same_weights(out, plain)


def test_a_reader_of_8_bit_pictures_changes_nothing(plain: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    file = data_file(tmp_path / "own_reader.py", *folders)
    out = start(tmp_path / "run", "--data", file)
    assert same_weights(out, plain)
    assert network(out) == network(plain)
    images = folders[1] / "images"
    assert main("predict.py", plain, images, "--out", tmp_path / "plain") == 0
    assert main("predict.py", out, images, "--out", tmp_path / "read", "--data", file) == 0
    assert len(list((tmp_path / "plain").iterdir())) == 7  # with the legend
    for written in (tmp_path / "plain").iterdir():
        assert (tmp_path / "read" / written.name).read_bytes() == written.read_bytes()


def test_colours(plain: Path, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "source")
    colours = np.array([(90, 120, 200), (80, 80, 80), (200, 60, 40)], np.uint8)
    for file in (source / "labels").iterdir():
        Image.fromarray(colours[picture(file)]).save(file)
    known = "{(90, 120, 200): 0, (0, 0, 0): 255, (80, 80, 80): 1, (200, 60, 40): 2}"
    lines = [f"source = Folders({str(source)!r}, read_label=StoredColours({known}))", "validation = source"]
    file = data_file(tmp_path / "colours.py", *folders, *lines, "names = ['sky', 'road', 'box']")
    out = start(tmp_path / "run", "--data", file)
    assert network(out)["classes"] == ["sky", "road", "box"]
    assert same_weights(out, plain)
    assert ious(capsys, out, "--data", file) == ious(capsys, plain, folders[0])


def other_ids(root: Path) -> Path:
    """The classes of write() under the ids 7, 3 and 200; of some pixels of the first, 9."""
    write(root)
    for file in (root / "labels").iterdir():
        label = np.array([7, 3, 200], np.uint8)[picture(file)]
        label[:4] = 9
        Image.fromarray(label).save(file)
    return root


def test_other_ids(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, same = other_ids(tmp_path / "source"), write(tmp_path / "same")
    for file in (same / "labels").iterdir():
        label = picture(file)
        label[:4] = 255
        Image.fromarray(label).save(file)
    lines = [f"source = Relabeled(Folders({str(source)!r}), {{7: 0, 3: 1, 200: 2, 4: 1}})", "validation = source"]
    file = data_file(tmp_path / "ids.py", *folders, *lines, "names = ['sky', 'road', 'box']")
    out = start(tmp_path / "run", "--data", file)
    assert "8.33 % of the source's pixels are ignored" in capsys.readouterr().out
    expected = adapt(tmp_path / "expected", same, folders[1])
    assert same_weights(out, expected)
    assert ious(capsys, out, "--data", file) == ious(capsys, expected, same)


def ious(capsys: pytest.CaptureFixture[str], *arguments: Any) -> list[str]:
    """Of three classes and their mean, as evaluate.py prints them."""
    capsys.readouterr()
    assert main("evaluate.py", *arguments) == 0
    found = re.findall(r"^ *([\d.]+|nan)  \w", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(found) == 4
    return found


def test_labels_are_counted_again_where_code_may_have_changed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def lines(box: int) -> list[str]:
        reader = f"def read(file):\n    label = pillow_label(file)\n    label[label == 2] = {box}\n    return label\n"
        helper = "def pillow_label(file):\n    return torch.from_numpy(np.array(Image.open(file)))\n"
        return [helper, reader, f"source = Folders({str(folders[0])!r}, read_label=read)"]

    counts = []
    for box in (2, 1):
        file = data_file(tmp_path / "mine.py", *folders, *lines(box))
        out = start(tmp_path / "run", "--data", file, "--overwrite", "--method", "source")
        counts.append({label for row in json.loads((out / "label_counts.json").read_text())["counts"] for label in row})
    assert counts == [{"0", "1", "2"}, {"0", "1"}]


# Mistakes


def with_label(root: Path, value: int, count: int = 2) -> Path:
    write(root, count)
    Image.fromarray(np.full((48, 64), value, np.uint8)).save(root / "labels" / f"{count - 1}.png")
    return root


OPTIONS: dict[str, tuple[list[Any], str]] = {
    "encoder": (["--encoder", "nonsense"], "encoder 'nonsense'"),
    "crop": (
        ["--crop", 30, 48],
        "detail_size must be a multiple of 8 (by scale, output_stride and multiple_of), got (15, 24)",
    ),
    "steps": (["--steps", 0], "--steps must be finite and at least 1, got 0"),
    "batch size": (["--batch-size", 0], "batch_size must be positive, got 0"),
    "learning rate": (["--lr", -1], "--lr must be finite and at least 0, got -1.0"),
    "weight decay": (["--weight-decay", -1], "--weight-decay must be finite and at least 0, got -1.0"),
    "threshold": (["--threshold", 2], "threshold must be"),
    "temperature": (["--temperature", 0], "temperature must be"),
    "no class of this size": (["--min-pixels", 9999], "no image has more than min_pixels=9999 pixels"),
    "balance": (["--balance", -1], "--balance must be finite and at least 0, got -1.0"),
    "too much balance": (["--balance", 99], "balance must be a small number from 0 on, got 99.0"),
    "workers": (["--workers", -1], "--workers must be at least 0, got -1"),
    "device": (["--device", "foo"], "device"),
    "decay": (["--ema-decay", 1.0], "decay must be in [0, 1), got 1.0"),
    "clip": (["--clip", -1], "--clip must be finite and at least 0, got -1.0"),
}
BAD: dict[str, Callable[[Path, Path, Path], tuple[Sequence[Any], str]]] = {
    "no source": lambda p, s, t: (["--source", p / "no", "--target", t], f"{p / 'no'}/images: no such folder"),
    "no target": lambda p, s, t: (["--source", s, "--target", p / "no"], f"{p / 'no'}/images: no such folder"),
    "empty folder": lambda p, s, t: (
        ["--source", s, "--target", ((p / "e" / "images").mkdir(parents=True), p / "e")[1]],
        f"{p / 'e'}/images: no image in this folder",
    ),
    "label outside": lambda p, s, t: (
        ["--source", with_label(p / "l", 9), "--target", t],
        f"{p / 'l'}/labels/1.png: label 9 is outside the 3 classes 0..2",
    ),
    "label missing": lambda p, s, t: (
        ["--source", (write(p / "m"), (p / "m/labels/0.png").unlink(), p / "m")[2], "--target", t],
        f"{p / 'm'}/labels/0.png: no such file",
    ),
    "label broken": lambda p, s, t: (
        ["--source", (write(p / "m"), (p / "m/labels/0.png").write_bytes(b""), p / "m")[2], "--target", t],
        f"{p / 'm'}/labels/0.png: cannot be read as an image",
    ),
    "tiny images": lambda p, s, t: (
        ["--source", arrays_of_pictures(p / "tiny", (40, 15)), "--target", t, "--crop", 0, 0],
        "got (16, 0)",
    ),
    "all ignored": lambda p, s, t: (
        ["--source", with_label(p / "v", 255, 1), "--target", t],
        "0.png: this and all other labels hold nothing but 255, the ignored id",
    ),
    "encoder weights": lambda p, s, t: (
        ["--source", s, "--target", t, "--encoder-weights", s / "labels/0.png"],
        "0.png: not a state dict of this encoder",
    ),
    "init": lambda p, s, t: (["--source", s, "--target", t, "--init", s / "labels/0.png"], "0.png: cannot be loaded"),
    "out is a file": lambda p, s, t: (["--source", s, "--target", t, "--out", s / "labels/0.png"], "0.png"),
    "no FILE.py": lambda p, s, t: (["--data", p / "no.py"], "no.py: no such file"),
    "colours": lambda p, s, t: (
        ["--data", data_file(p / "d.py", s, t, f"source = Folders('{s}', read_label=StoredColours({{(0, 0, 0): 0}}))")],
        "0.png: colour (1, 1, 1) of 1408 pixels is not among those named",
    ),
    "a source without labels": lambda p, s, t: (
        ["--data", data_file(p / "d.py", s, t, f"source = ListFile({str(text(p / 'l.txt', f'{s}/images/0.png'))!r})")],
        "no label for ",
    ),
    "an empty list": lambda p, s, t: (
        ["--data", data_file(p / "d.py", s, t, f"target = ListFile({str(text(p / 'l.txt', ''))!r})")],
        "d.py: cannot be run (ValueError: ",
    ),
    "fewer names than ids": lambda p, s, t: (
        ["--data", data_file(p / "d.py", s, t, "names = ['a', 'b']")],
        "0.png: label 2 is outside the 2 classes 0..1",
    ),
    "channels last": lambda p, s, t: (reading(p, "channels_last"), "0.npy: read_image must give (K, H, W), got"),
    "float64": lambda p, s, t: (
        reading(p, "double"),
        "(K, H, W) of uint8 or float32, got (4, 48, 64) of torch.float64",
    ),
    "an array": lambda p, s, t: (reading(p, "array"), "got ndarray; torch.from_numpy makes one of an array"),
    "a reader that raises": lambda p, s, t: (reading(p, "broken"), "0.npy: cannot be read (OSError: no such band)"),
    "not finite": lambda p, s, t: (
        reading(p, "holes"),
        "0.npy: image holds values that are not finite; let read_image",
    ),
    "a target with other channels": lambda p, s, t: (
        reading(p, "fifth_where_target"),
        "images of source and target must have 4 channels of torch.float32, as the first has, "
        "got 5 channels of torch.float32",
    ),
    "a target of another type": lambda p, s, t: (
        reading(p, "bytes_where_target"),
        "must have 4 channels of torch.float32, as the first has, got 4 channels of torch.uint8",
    ),
}


def arrays_of_pictures(root: Path, size: tuple[int, int]) -> Path:
    write(root, 1)
    for folder, shape in (("images", (*size, 3)), ("labels", size)):
        Image.fromarray(np.zeros(shape, np.uint8)).save(root / folder / "0.png")
    return root


def reading(folder: Path, read: str) -> list[Any]:
    return ["--data", data_file(folder / "d.py", *fields(folder / "npy"), "names = [*'012345']", read=read)]


@pytest.mark.parametrize("case", [*OPTIONS, *BAD])
def test_bad_input_is_one_line_and_exit_2(
    case: str, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = text(tmp_path / "names.txt", "sky\nroad\nbox\n")
    if case in BAD:
        arguments, message = BAD[case](tmp_path, *folders)
    else:
        options, message = OPTIONS[case]
        arguments = ["--source", folders[0], "--target", folders[1], *options]
    arguments = [*arguments, *([] if "--data" in arguments else ["--classes", names])]
    assert main("own_data.py", "--out", tmp_path / "run", *FAST, *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "reading labels" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("own_data.py: ")
    assert message in lines[0]
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--source", "a"],
        ["--target", "a"],
        ["--data", "a.py", "--target", "b"],
        ["--data", "a.py", "--classes", "c"],
    ],
)
def test_folders_or_a_file(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("own_data.py", "--out", tmp_path, *arguments) == 2
    message = "error: either --source DIR --target DIR [--classes FILE] or --data FILE.py is needed"
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)


# Parts


def test_some_evenly_spaced_images(tmp_path: Path) -> None:
    def read(file: Path) -> Tensor:
        return torch.full((1, 2, 2), int(file.read_text())).byte()

    files = [text(tmp_path / f"{i}.txt", str(i)) for i in range(9)]
    images = UnlabeledImages(files, read_image=read)
    assert [int(image.max()) for image in own_data.some(images, 4, "raise")] == [0, 2, 4, 6]
    assert len(list(own_data.some(images, 20, "raise"))) == 9
    text(files[2], "x")
    assert [int(image.max()) for image in own_data.some(images, 4, "skip")] == [0, 4, 6]
    with pytest.raises(ValueError, match=r"2\.txt: cannot be read \(ValueError"):
        list(own_data.some(images, 4, "raise"))
    for file in files:
        text(file, "x")
    with pytest.raises(ValueError, match=r"^none of 4 images can be read; the last: .*6\.txt: cannot be read"):
        list(own_data.some(images, 4, "skip"))


def test_class_weights() -> None:
    counts = torch.tensor([[8_000_000, 1_000_000, 0, 0], [0, 0, 1_000_000, 0]])
    weights = own_data.class_weights(counts, 0.5)
    assert weights[3] == 1  # of what no label shows
    assert weights[0] / weights[1] == pytest.approx((0.8 / 0.1) ** -0.5)
    assert (weights[:3] * torch.tensor([0.8, 0.1, 0.1])).sum() == pytest.approx(1, abs=1e-3)  # of a pixel on average
    assert own_data.class_weights(counts, 0).tolist() == [1] * 4


def test_the_limit_of_pixels_is_an_option(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", folders[0], "--target", folders[1], "--out", tmp_path / "run", *FAST, "--max-pixels", 3071]
    assert main("own_data.py", *arguments) == 2
    assert "0.png: 48 x 64 pixels are more than max_pixels=3071" in capsys.readouterr().err


# Long runs


def test_a_complete_run_has_nothing_to_go_on_with(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = json.loads((plain / "config.json").read_text())
    folders = ["--source", *options["source"], "--target", options["target"], "--out", plain, *FAST]
    before = (plain / "last.pt").stat().st_mtime_ns
    assert main("own_data.py", *folders, "--resume") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{plain}: this run is complete"
    assert main("own_data.py", *folders, "--resume", "--lr", 0.5, "--method", "source") == 2
    message = "--resume needs the settings that it began with, augment_source 1, not 0, lr 0.003, not 0.5, method"
    assert capsys.readouterr().err == f"own_data.py: {plain}: {message} 'hrda', not 'source'\n"
    assert (plain / "last.pt").stat().st_mtime_ns == before


def test_a_start_that_fails_is_no_run_to_go_on_with(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", folders[0], "--target", folders[1], "--out", tmp_path / "run", *FAST, "--warmup", 0]
    assert main("own_data.py", *arguments, "--margins", 48, 0, 0, 0) == 1
    assert "stopped at step 0: margins (48, 0, 0, 0) leave nothing of" in capsys.readouterr().err
    assert not (tmp_path / "run" / "last.pt").exists()
    assert main("own_data.py", *arguments) == 0


def test_a_complete_run_that_does_not_say_its_settings_is_taken_for_none(
    folders: tuple[Path, Path], plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "last.pt").write_bytes((plain / "last.pt").read_bytes())
    arguments = ["--source", folders[0], "--target", folders[1], "--out", out, *FAST, "--resume"]
    for content in ("", '{"lr": 1}', "[]"):
        (out / "config.json").write_text(content)
        assert main("own_data.py", *arguments) == 2
        message = "config.json: does not say the run's settings; choose another --out, or --overwrite"
        assert capsys.readouterr().err == f"own_data.py: {out}/{message}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_of_a_run_is_one_to_the_run(
    number: int, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    line = [
        sys.executable,
        EXAMPLES / "own_data.py",
        "--source",
        folders[0],
        "--target",
        folders[1],
        "--out",
        out,
        *FAST,
    ]
    line += ["--steps", 100_000, "--workers", 1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    given = {"stderr": subprocess.PIPE, "env": environment, "text": True, "start_new_session": True}
    heard = partial(signal.signal, number, signal.SIG_DFL)  # the tests may run where it is ignored, as nohup does
    with subprocess.Popen([*map(str, line)], preexec_fn=heard, **given) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) > 3:
                break
            time.sleep(0.1)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert re.fullmatch(r"own_data.py: stopped at step \d+: interrupted; --resume goes on", errors.splitlines()[-1])
    assert kept(out)["step"] == len(losses(out)) > 3


def test_a_damaged_checkpoint_is_no_start(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunFolder.log

    def broken(run: RunFolder, **values: Any) -> None:
        log(run, **values)
        if run.steps == 3:
            raise OSError("no room")

    arguments = ["--source", folders[0], "--target", folders[1], "--out", tmp_path / "run", *FAST, "--save-every", 1]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", broken)
        assert main("own_data.py", *arguments, "--keep", 2) == 1
    assert capsys.readouterr().err.endswith("own_data.py: stopped at step 3: no room; --resume goes on\n")
    run_of_it = tmp_path / "run"
    (run_of_it / "last.pt").write_bytes((run_of_it / "last.pt").read_bytes()[:1000])
    assert main("own_data.py", *arguments, "--resume") == 2
    text = (
        r"/run/last\.pt: cannot be loaded .*; a former checkpoint, last\.1\.pt of --keep, can take its place, or --over"
    )
    assert re.search(text, capsys.readouterr().err.splitlines()[-1])
    (run_of_it / "last.1.pt").replace(run_of_it / "last.pt")
    assert main("own_data.py", *arguments, "--resume") == 0
    assert "run: goes on at step 2" in capsys.readouterr().err
    assert [line["step"] for line in read_metrics(run_of_it)] == [0, 1, 2, 3]


def test_steps_that_are_not_finite_are_left_out_as_often_as_asked(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, count = SelfTraining.source, iter(range(100))

    def broken(self: SelfTraining, *arguments: Any, **named: Any) -> Any:
        loss, parts = source(self, *arguments, **named)
        return loss * (float("nan") if next(count) in (1, 2) else 1), parts

    monkeypatch.setattr(SelfTraining, "source", broken)
    arguments = ["--source", folders[0], "--target", folders[1], *FAST]
    assert main("own_data.py", *arguments, "--out", tmp_path / "two", "--skip", 2) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    text = r"two: step 1 is left out, 1 more may be: loss_source is not finite; .* its images: \d, \d; the batch is in "
    assert re.match(text, said[0])
    assert "step 0 is left out, 0 more may be" in said[1]  # of the second phase
    lines = read_metrics(tmp_path / "two")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert ["loss_source" in line for line in lines] == [True, False, False, True]
    count = iter(range(100))
    assert main("own_data.py", *arguments, "--out", tmp_path / "one", "--skip", 1) == 1
    assert "stopped at step 2: loss_source is not finite" in capsys.readouterr().err.splitlines()[-1]


def test_what_one_sees_while_it_trains_changes_nothing(
    folders: tuple[Path, Path], plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    val = write(tmp_path / "val")
    seen = ["--val", val, "--val-every", 2, "--panel-every", 2, "--log", "tensorboard", "--keep", 2, "--save-every", 1]
    run_of_it = adapt(tmp_path / "run", *folders, *seen)
    assert losses(run_of_it) == losses(plain)
    first, second = (torch.load(run / "last.pt", weights_only=True)["model"] for run in (run_of_it, plain))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert ["val_iou" in line for line in read_metrics(run_of_it)] == [False, True, False, True]
    panels = sorted(file.name for file in (run_of_it / "panels").iterdir())
    assert panels == ["000002.png", "000004.png"]
    assert picture(run_of_it / "panels" / "000004.png").shape[1] > 500
    assert list((run_of_it / "tensorboard").glob("events*"))
    assert {file.name for file in run_of_it.glob("last*.pt")} == {"last.pt", "last.1.pt"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_alike(precision: str, folders: tuple[Path, Path], plain: Path, tmp_path: Path) -> None:
    run_of_it = adapt(tmp_path / "run", *folders, "--precision", precision)
    assert losses(run_of_it) != losses(plain)
    assert losses(run_of_it) == pytest.approx(losses(plain), rel=0.1)
    assert (
        torch.load(run_of_it / "last.pt", weights_only=True)["model"]["decoder.classifier.weight"].dtype
        == torch.float32
    )


def test_two_processes_adapt_as_one(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for count in (1, 2):
        arguments = ["--source", folders[0], "--target", folders[1], "--out", tmp_path / str(count), *FAST]
        done = run_together(count, "own_data.py", *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("next: python examples/predict.py") == 1  # the first process alone speaks
    one, two = (losses(tmp_path / count) for count in "12")
    assert two == pytest.approx(one, rel=0.02)  # the attention head's batch norm sees each process's images
    load(tmp_path / "2")


@pytest.mark.parametrize("mix", ["classes", "boxes"])
def test_the_picture_of_a_step_is_mixed_as_the_step_is(
    mix: str, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = list[Any]()
    monkeypatch.setattr(support.looking, "draw_step", lambda *_, mask: masks.append(mask))
    arguments = ["--source", folders[0], "--target", folders[1], "--out", tmp_path / "run", *FAST, "--warmup", 0]
    assert main("own_data.py", *arguments, "--steps", 1, "--panel-every", 1, "--mix", mix) == 0
    (mask,) = masks
    if mix == "classes":
        assert mask is None
    else:
        rows, columns = mask[0].any(dim=1).sum(), mask[0].any(dim=0).sum()
        assert mask[0].sum() == rows * columns < mask[0].numel()  # one box
