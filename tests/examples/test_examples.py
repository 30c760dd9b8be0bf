"""The examples as a user runs them, shortened: on small pictures, for a few steps."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hrda_lib import ConfusionMatrix

EXAMPLES = Path(__file__).parents[2] / "examples"
FAST = ["--steps", "2", "--warmup", "2", "--crop", "32", "48", "--min-pixels", "20"]


def run(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def write(root: Path, count: int = 3, *, labels: bool = True) -> Path:
    """Street-like pictures: sky above road, with a box in between."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels") if labels else ("images",):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        label = np.zeros((48, 64), np.uint8)
        label[24:] = 1
        label[16:32, 8 * i : 8 * i + 16] = 2
        rgb = np.array([(90, 120, 200), (80, 80, 80), (200, 60, 40)])[label] + rng.integers(0, 30, (48, 64, 3))
        Image.fromarray(rgb.astype(np.uint8)).save(root / "images" / f"{i}.png")
        if labels:
            Image.fromarray(label).save(root / "labels" / f"{i}.png")
    return root


def picture(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image)


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
    out = tmp_path_factory.mktemp("runs") / "hrda"
    names = out.parent / "names.txt"
    names.write_text("sky\nroad\nbox\nvoid\n")
    done = run("own_data.py", "--source", folders[0], "--target", folders[1], "--out", out, "--classes", names, *FAST)
    assert done.returncode == 0, done.stderr
    return out


def test_run_files(finished: Path) -> None:
    names = {file.name for file in finished.iterdir()}
    assert names == {"last.pt", "metrics.jsonl", "config.json", "panel.png", "curves.png", "label_counts.json"}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert ["loss_mixed" in line for line in lines] == [False, False, True, True]
    assert all(0 <= line["confidence"] <= 1 for line in lines[2:])
    config = json.loads((finished / "config.json").read_text())
    assert config["seed"] == 0
    assert config["network"]["class_names"] == ["sky", "road", "box"]
    assert config["versions"]["torch"] == torch.__version__
    kept = torch.load(finished / "last.pt", weights_only=True)
    assert kept["step"] == 4
    assert kept["teacher"].keys() == kept["model"].keys()
    assert any(not torch.equal(kept["teacher"][name], x) for name, x in kept["model"].items())
    assert picture(finished / "panel.png").shape[1] > 800


@pytest.mark.parametrize("method", ["source", "source-aug"])
def test_methods_without_target(folders: tuple[Path, Path], tmp_path: Path, method: str) -> None:
    done = run(
        "own_data.py", "--source", folders[0], "--target", folders[1], "--out", tmp_path, "--method", method, *FAST
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"step", "loss_source", "seconds"}] * 4
    assert (tmp_path / "panel.png").exists()
    assert torch.load(tmp_path / "last.pt", weights_only=True).keys() == {"model", "network", "step"}


def test_two_sources_a_warm_start_and_a_timm_encoder(
    folders: tuple[Path, Path], finished: Path, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    few = write(tmp_path / "few", 1)
    common = ["--source", folders[0], few, "--target", folders[1], *FAST]
    done = run("own_data.py", *common, "--out", tmp_path / "warm", "--init", finished / "last.pt")
    assert done.returncode == 0, done.stderr
    done = run("own_data.py", *common, "--out", tmp_path / "timm", "--encoder", "resnet10t", "--crop", "64", "64")
    assert done.returncode == 0, done.stderr


def test_same_seed_same_weights(folders: tuple[Path, Path], finished: Path, tmp_path: Path) -> None:
    names = finished.parent / "names.txt"
    done = run(
        "own_data.py", "--source", folders[0], "--target", folders[1], "--out", tmp_path, "--classes", names, *FAST
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(run / "last.pt", weights_only=True)["model"] for run in (finished, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_broken_files_are_left_out_on_request(tmp_path: Path) -> None:
    source, target = write(tmp_path / "source", 4), write(tmp_path / "target", labels=False)
    broken = source / "labels" / "0.png", source / "images" / "1.png", target / "images" / "2.png"
    for file in broken:
        file.write_bytes(b"")
    arguments = ["--source", source, "--target", target, "--out", tmp_path / "run", *FAST, "--steps", 6, "--workers", 1]
    done = run("own_data.py", *arguments, "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert all(f"left out: {file}: cannot be read as an image" in done.stderr for file in broken)
    assert "1 of 4 labels cannot be read and are left out" in done.stderr
    assert "\ntraining left out 1 broken source images\ntraining left out 1 broken target images\n" in done.stderr
    done = run("own_data.py", *arguments, "--overwrite")
    assert (done.returncode, done.stderr.splitlines()[-1][:60]) == (2, f"own_data.py: {broken[0]}: cannot"[:60])
    Image.fromarray(np.ones((48, 64), np.uint8)).save(broken[0])
    done = run("own_data.py", *arguments, "--overwrite")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("own_data.py: stopped at step ")
    assert any(f": {file}: cannot be read as an image" in last for file in broken[1:])


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_leaves_a_usable_checkpoint(
    folders: tuple[Path, Path], tmp_path: Path, stop: signal.Signals
) -> None:
    command = [sys.executable, str(EXAMPLES / "own_data.py"), "--source", folders[0], "--target", folders[1]]
    command += ["--out", tmp_path / "run", *FAST, "--steps", "100000"]
    # a shell may start the tests with SIGINT ignored, which a child would inherit
    attend = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    arguments, pipe = [str(part) for part in command], subprocess.PIPE
    with subprocess.Popen(arguments, stderr=pipe, stdout=pipe, preexec_fn=attend) as process:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") > 3) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(stop)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] >= 3
    done = run("predict.py", tmp_path / "run", folders[1], "--out", tmp_path / "out")
    assert done.returncode == 2  # the target folder holds folders, no images
    done = run("predict.py", tmp_path / "run", folders[1] / "images", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_predict_any_size_and_go_on_after_a_bad_file(
    finished: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    sizes = {"small": (7, 9), "odd": (61, 83), "grey": (48, 64)}
    for name, (height, width) in sizes.items():
        Image.new("L" if name == "grey" else "RGB", (width, height), 100).save(tmp_path / f"{name}.jpg")
    (tmp_path / "bad.png").write_bytes(b"no image")
    out = tmp_path / "out"
    done = run("predict.py", finished, tmp_path, folders[1] / "images", "--out", out, "--flip", "--save-attention")
    assert done.returncode == 1
    assert f"{tmp_path / 'bad.png'}: cannot be read as an image" in done.stderr
    stems = {*sizes, "0", "1", "2"}
    assert {file.name for file in out.iterdir()} == {
        f"{stem}{ending}.png" for stem in stems for ending in ("", "_overlay", "_attention")
    }
    for name, (height, width) in sizes.items():
        label = picture(out / f"{name}.png")
        assert (label.dtype, label.shape) == (np.uint8, (height, width))
        assert label.max() <= 2
        assert picture(out / f"{name}_overlay.png").shape == (height, width, 3)


def test_minimal_loop() -> None:
    done = run("minimal_loop.py")
    assert done.returncode == 0, done.stderr
    assert "step 1 mixed" in done.stdout
    assert len((EXAMPLES / "minimal_loop.py").read_text().splitlines()) <= 60


def with_label(root: Path, value: int, count: int = 2) -> Path:
    write(root, count)
    Image.fromarray(np.full((48, 64), value, np.uint8)).save(root / "labels" / f"{count - 1}.png")
    return root


BAD = {
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
    "no class file": lambda p, s, t: (["--source", s, "--target", t, "--classes", p / "no.txt"], "no.txt"),
    "encoder": lambda p, s, t: (["--source", s, "--target", t, "--encoder", "nonsense"], "encoder 'nonsense'"),
    "encoder weights": lambda p, s, t: (
        ["--source", s, "--target", t, "--encoder-weights", s / "labels/0.png"],
        "0.png: not a state dict of this encoder",
    ),
    "init": lambda p, s, t: (["--source", s, "--target", t, "--init", s / "labels/0.png"], "0.png: cannot be loaded"),
    "crop": lambda p, s, t: (
        ["--source", s, "--target", t, "--crop", 30, 48],
        "crop must be a positive multiple of 16",
    ),
    "steps": lambda p, s, t: (["--source", s, "--target", t, "--steps", 0], "steps must be positive, got 0"),
    "device": lambda p, s, t: (["--source", s, "--target", t, "--device", "foo"], "device"),
    "decay": lambda p, s, t: (["--source", s, "--target", t, "--ema-decay", 1.0], "decay must be in [0, 1), got 1.0"),
    "clip": lambda p, s, t: (["--source", s, "--target", t, "--clip", -1], "clip must be positive, got -1.0"),
    "all ignored": lambda p, s, t: (
        ["--source", with_label(p / "v", 255, 1), "--target", t],
        "0.png: this and all other labels hold nothing but 255, the ignored id",
    ),
    "out is a file": lambda p, s, t: (["--source", s, "--target", t, "--out", s / "labels/0.png"], "0.png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_2(case: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("sky\nroad\nbox\n")
    arguments, text = BAD[case](tmp_path, *folders)
    done = run("own_data.py", "--out", tmp_path / "run", "--classes", names, *FAST, *arguments)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line and "reading labels" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("own_data.py: ")
    assert text in lines[0]
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_finished_run_is_not_overwritten(folders: tuple[Path, Path], finished: Path) -> None:
    before = (finished / "last.pt").read_bytes()
    done = run("own_data.py", "--source", folders[0], "--target", folders[1], "--out", finished, *FAST)
    assert done.returncode == 2
    assert "already holds a run; choose another --out (--init starts from it), or --overwrite" in done.stderr
    assert (finished / "last.pt").read_bytes() == before


def test_a_broken_image_met_while_training_keeps_the_weights(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target = write(tmp_path / "target", 2, labels=False)
    (target / "images" / "1.png").write_bytes(b"broken")
    done = run("own_data.py", "--source", folders[0], "--target", target, "--out", tmp_path / "run", *FAST)
    assert done.returncode == 1
    assert "stopped at step 2: " in done.stderr
    assert "1.png: cannot be read as an image" in done.stderr
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 2


def test_predict_measures_against_labels(finished: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    source = folders[0]
    done = run("predict.py", finished, source / "images", "--out", tmp_path, "--labels", source / "labels")
    assert done.returncode == 0, done.stderr
    confusion = ConfusionMatrix(3)
    for i in range(3):
        confusion.update(*(torch.from_numpy(picture(d / f"{i}.png")) for d in (tmp_path, source / "labels")))
    assert f"{100 * confusion.mean_iou():6.1f}  mean IoU" in done.stdout
    assert f"{100 * confusion.iou()[0]:6.1f}  sky" in done.stdout


def test_predict_overwrites_no_input(finished: Path, folders: tuple[Path, Path]) -> None:
    images = folders[1] / "images"
    before = (images / "0.png").read_bytes()
    done = run("predict.py", finished, images, "--out", images)
    assert done.returncode == 2
    assert "0.png: its results would overwrite an input or another result; choose another --out" in done.stderr
    assert (images / "0.png").read_bytes() == before


def test_predict_without_a_run(tmp_path: Path) -> None:
    done = run("predict.py", tmp_path, tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2
    expected = f"predict.py: {tmp_path}/last.pt: no such file; a run folder of own_data.py"
    assert done.stderr.strip() == f"{expected}, or an arm of gta2cityscapes.py, is expected"
