"""The demo, shortened: a few images of the toy benchmark, a few steps, every arm."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.mini_scenes import write_mini_data
from support.report import arm_table, class_table, spread
from support.run_files import load, read_metrics
from test_examples import run

import gta2cityscapes
from hrda_lib.models import daformer, to_reference_state_dict

Size = tuple[int, int]
FAST = ["--warmup", "2", "--steps", "2", "--crop", "192", "384", "--source-size", "0", "0", "--min-pixels", "150"]
FAST += ["--margins", "0", "0", "0", "0"]


def few(root: Path, *, seed: int) -> tuple[Path, Path]:
    """The toy data with three images of each part."""
    return write_mini_data(root, seed=seed, train=3, val=3, workers=1, progress=False)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini") / "data"
    write_mini_data(root, seed=7, train=4, val=3, workers=1, progress=False)
    return root


def start(root: Path, out: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    data = ["--gta", root / "gta", "--cityscapes", root / "cityscapes"]
    return run("gta2cityscapes.py", *data, "--out", out, *FAST, *arguments)


@pytest.fixture(scope="module")
def finished(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("runs") / "demo"
    done = start(mini, out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_run_files_and_table(finished: tuple[Path, str]) -> None:
    out, printed = finished
    assert {file.name for file in out.iterdir()} == {"table.md", "classes.png", "seed1", "gta_counts.json"}
    assert {file.name for file in (out / "seed1").iterdir()} == {
        "source",
        "control",
        "hrda",
        "panel.png",
        "curves.png",
    }
    for arm in ("source", "control", "hrda"):
        files = {file.name for file in (out / "seed1" / arm).iterdir()}
        assert files == {"config.json", "metrics.jsonl", "last.pt", "result.json"}
    assert (out / "table.md").read_text() in printed
    shares, results = printed.split("\n\n", 1)
    assert re.sub(r"\s+", " ", shares.splitlines()[0]) == "| class | pixels, % | images | drawn, % |"
    head, ruler, road, *_ = results[results.index("| IoU, %") :].splitlines()
    assert re.sub(r"\s+", " ", head) == "| IoU, % | source | control | hrda | hrda - control |"
    assert re.fullmatch(r"\| -+ \|( -+: \|){4}", ruler)
    assert road.startswith("| road ")


def test_the_arms_differ_in_what_their_row_says(finished: tuple[Path, str]) -> None:
    seed = finished[0] / "seed1"
    results = {arm: json.loads((seed / arm / "result.json").read_text()) for arm in gta2cityscapes.DEMO}
    assert [results[arm]["steps"] for arm in gta2cityscapes.DEMO] == [2, 4, 4]
    lines = {arm: (seed / arm / "metrics.jsonl").read_text().splitlines() for arm in gta2cityscapes.DEMO}
    assert all(len(metrics) == 2 for metrics in lines.values())
    assert ["loss_mixed" in metrics[0] for metrics in lines.values()] == [False, False, True]
    assert "label_accuracy" in lines["hrda"][-1]
    kept = {arm: torch.load(seed / arm / "last.pt", weights_only=True) for arm in gta2cityscapes.DEMO}
    assert ["teacher" in entries for entries in kept.values()] == [False, False, True]
    teacher, student, start = kept["hrda"]["teacher"], kept["hrda"]["model"], kept["source"]["model"]
    parameters = [name for name, _ in load(seed / "hrda")[0].named_parameters()]
    moved = {name: [float((x[name] - start[name]).norm()) for x in (teacher, student)] for name in parameters}
    assert all(by_teacher < by_student for by_teacher, by_student in moved.values())  # it follows
    # the control and hrda draw the same source images in the same order and augment the first alike
    first = [json.loads(lines[arm][0])["loss_source"] for arm in ("control", "hrda")]
    assert first[0] == first[1]


def test_an_arm_is_kept_and_other_settings_are_refused(mini: Path, finished: tuple[Path, str]) -> None:
    out, printed = finished
    before = (out / "seed1" / "hrda" / "last.pt").stat().st_mtime_ns
    again = start(mini, out)
    assert again.returncode == 0
    assert again.stdout.splitlines()[:-1] == printed.splitlines()[:-1]  # the last line is the time
    assert (out / "seed1" / "hrda" / "last.pt").stat().st_mtime_ns == before
    file = out / "seed1" / "hrda" / "last.pt"  # without a teacher, as it was before there was one
    kept = torch.load(file, weights_only=True)
    torch.save({name: value for name, value in kept.items() if name != "teacher"}, file)
    before = file.stat().st_mtime_ns
    assert start(mini, out).returncode == 0
    assert file.stat().st_mtime_ns == before
    torch.save(kept, file)
    other = start(mini, out, "--lr", "0.1")
    assert other.returncode == 2
    assert other.stderr.splitlines()[-1] == (
        f"gta2cityscapes.py: {out}/seed1/source: holds a run of other settings or data; choose another --out, "
        "or --overwrite"
    )


@pytest.mark.parametrize("damage", ["result.json", "last.pt", "metrics.jsonl"])
def test_a_damaged_arm_is_trained_again(damage: str, mini: Path, finished: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "out")
    file = tmp_path / "out" / "seed1" / "hrda" / damage
    file.write_bytes(file.read_bytes()[:20])
    done = start(mini, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:16] == finished[1].splitlines()[:16]
    assert file.stat().st_size > 20


def test_other_labels_are_other_data(mini: Path, finished: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(mini, tmp_path / "data")
    file = next((tmp_path / "data" / "cityscapes" / "gtFine" / "val").glob("*/*.png"))
    with Image.open(file) as image:
        Image.fromarray(np.where(np.array(image) == 7, 8, np.array(image)).astype(np.uint8)).save(file)
    done = start(tmp_path / "data", finished[0], "--arms", "source")
    assert done.returncode == 2
    assert "holds a run of other settings or data" in done.stderr.splitlines()[-1]


def test_later_steps_see_other_crops_and_colours(finished: tuple[Path, str]) -> None:
    losses = []
    for arm in ("source", "control"):
        lines = (finished[0] / "seed1" / arm / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss_source"] for line in lines])
    assert losses[0][0] != losses[1][0]


def test_weights_that_are_not_finite_are_no_result(
    mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["params"][0].data.fill_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", diverge)
    data = ["--gta", str(mini / "gta"), "--cityscapes", str(mini / "cityscapes"), "--out", str(tmp_path)]
    assert gta2cityscapes.main([*data, *FAST, "--arms", "source", "--warmup", "1"]) == 2
    assert "weights are not finite after 1 steps; choose a smaller --lr" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "seed1" / "source" / "last.pt").exists()


def test_images_of_any_size(mini: Path, tmp_path: Path) -> None:
    shutil.copytree(mini, tmp_path / "data")
    for file in (tmp_path / "data" / "cityscapes").glob("*/val/*/*.png"):
        with Image.open(file) as image:
            image.crop((0, 0, 381, 190)).save(file)
    done = start(tmp_path / "data", tmp_path / "out", "--arms", "hrda")
    assert done.returncode == 0, done.stderr


def test_every_arm_runs_and_two_seeds_have_a_spread(mini: Path, tmp_path: Path) -> None:
    done = start(mini, tmp_path, "--ablation", "--arms", "control", "oracle", "control-long", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"\s*\|\s*", line)[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    arms = {row[0]: row[1:] for row in rows if row[0] in gta2cityscapes.ARMS}
    assert list(arms) == ["control", "oracle", "control-long", *gta2cityscapes.ABLATION]
    assert all(re.fullmatch(r"\d+\.\d ± \d+\.\d", row[1]) for row in arms.values())
    assert [row[5] for row in arms.values()] == ["4", "4", "7", "4", "4", "4", "4", "4"]
    assert (tmp_path / "seed2" / "separate-source" / "result.json").exists()


def test_without_arguments_it_draws_the_toy_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gta2cityscapes, "write_mini_data", few)
    assert gta2cityscapes.main(["--arms", "source", "--warmup", "1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "data" / "seed1" / "cityscapes" / "gtFine").is_dir()
    assert (tmp_path / "seed1" / "panel.png").exists()


def test_labels_of_the_target_are_poison_to_all_but_the_oracle(mini: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(mini, root)
    for file in (root / "cityscapes" / "gtFine" / "train").glob("*/*.png"):
        file.write_bytes(b"poison")
    assert start(root, tmp_path / "a", "--arms", "hrda").returncode == 0
    done = start(root, tmp_path / "a", "--arms", "oracle")
    assert done.returncode == 2
    assert "cannot be read as an image" in done.stderr.splitlines()[-1]


def test_broken_training_files_are_left_out_on_request(mini: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(mini, root)
    broken = [
        root / "gta" / "labels" / "00001.png",
        root / "gta" / "images" / "00002.png",
        sorted((root / "cityscapes" / "leftImg8bit" / "train").glob("*/*.png"))[0],
    ]
    for file in broken:
        file.write_bytes(b"")
    out, arguments = tmp_path / "out", ["--arms", "hrda", "--steps", 6, "--workers", 1]
    done = start(root, out, *arguments, "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    for file in broken:
        assert f"left out: {file}: cannot be read as an image" in done.stderr
    for domain in ("source", "target"):
        assert f"seed1/hrda: training left out 1 broken {domain} images" in done.stderr
    assert "1 of 4 labels cannot be read and are left out" in done.stderr
    done = start(root, out, *arguments, "--overwrite")  # at the start
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"gta2cityscapes.py: {broken[0]}: cannot be read as an image")
    shutil.copy(mini / "gta" / "labels" / "00001.png", broken[0])
    done = start(root, out, *arguments, "--overwrite")  # at the step, in another process
    assert done.returncode == 2
    assert re.match(r"gta2cityscapes.py: .*/0000\d.png: cannot be read as an image", done.stderr.splitlines()[-1])


def test_workers_change_nothing(mini: Path, finished: tuple[Path, str], tmp_path: Path) -> None:
    assert start(mini, tmp_path, "--workers", 2, "--arms", "hrda").returncode == 0
    for name in ("source", "hrda"):
        assert read_metrics(tmp_path / "seed1" / name) == read_metrics(finished[0] / "seed1" / name)


def break_data(case: str, root: Path) -> str:
    """Damage the tree; returns what the message must say."""
    gta, fine = root / "gta", root / "cityscapes" / "gtFine"
    if case == "no gta":
        shutil.rmtree(gta)
        return f"{gta}: no such folder"
    if case == "no gtFine":
        shutil.rmtree(fine)
        return f"{fine}: no such folder"
    if case == "no label":
        (gta / "labels" / "00002.png").unlink()
        return f"{gta}/labels/00002.png: no such file"
    if case == "no val label":
        file = next((fine / "val").glob("*/*.png"))
        file.unlink()
        return f"{file}: no such file"
    if case == "train ids":  # with the palette that draws them: the usual mistake
        file = gta / "labels" / "00001.png"
        with Image.open(file) as image:
            ids = np.zeros((image.height, image.width), np.uint8)
        picture = Image.fromarray(ids).convert("P")
        picture.putdata(ids.ravel().tolist())
        picture.putpalette([128, 64, 128] + [0] * 765)
        picture.save(file)
        return f"{file}: palette index 0 has the colour of road"
    if case == "grey train ids":  # _labelTrainIds under the name of _labelIds
        files = sorted((fine / "val").glob("*/*.png"))
        for file in files:
            with Image.open(file) as image:
                ids = np.array(image)
            Image.fromarray(np.where(ids < 13, ids - 7, 255).astype(np.uint8)).save(file)
        return f"{files[0]}: neither this nor another of the 3 labels has a class after pole; are these train ids?"
    if case == "truncated val image":
        file = next((root / "cityscapes" / "leftImg8bit" / "val").glob("*/*.png"))
        file.write_bytes(file.read_bytes()[:-5000])
        return f"{file}: cannot be read as an image"
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    ["no gta", "no gtFine", "no label", "no val label", "train ids", "grey train ids", "truncated val image"],
)
def test_damaged_data_is_one_line_and_exit_2(case: str, mini: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(mini, root)
    expected = break_data(case, root)
    done = start(root, tmp_path / "out")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"gta2cityscapes.py: {expected}"), done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("**/last.pt"))  # found before anything is trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gta", "somewhere"], "--cityscapes is missing: the data go from gta to cityscapes"),
        (["--arms", "nothing"], "invalid choice: 'nothing'"),
        (["--seeds", "0"], "--seeds must be positive, got 0"),
        (["--seed", "-1"], "--seed must not be negative, got -1"),
        (["--warmup", "-1"], "--warmup must not be negative, got -1"),
        (["--arms", "source", "--warmup", "0"], "--arms source is the warm-up, which takes --warmup 0 steps"),
        (["--model", "hrda", "--arms", "source"], "--arms source is the warm-up, which takes --warmup 0 steps"),
        (["--steps", "0"], "--steps must be positive, got 0"),
        (["--lr", "0"], "--lr must be positive, got 0"),
        (["--crop", "100", "384"], "--crop must be positive multiples of 16, got (100, 384)"),
        (["--model", "hrda", "--crop", "96", "192"], "--crop must be positive multiples of 64, got (96, 192)"),
        (["--per", "patch"], "invalid choice: 'patch'"),
        (["--lr", "inf"], "--lr must be finite, got inf"),
        (["--ema-decay", "1"], "--ema-decay must be in [0, 1), got 1.0"),
        (["--threshold", "1.5"], "--threshold must be in [0, 1], got 1.5"),
        (["--workers", "-1"], "--workers must not be negative, got -1"),
        (["--source-size", "100", "0"], "--source-size must be two sides, or 0 0, got (100, 0)"),
        (["--margins", "-1", "0", "0", "0"], "--margins must not be negative, got (-1, 0, 0, 0)"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_drawn(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        gta2cityscapes.main(["--out", str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_drawn_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gta2cityscapes, "write_mini_data", few)
    monkeypatch.setattr(Image.Image, "save", full)
    assert gta2cityscapes.main(["--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert len(error.splitlines()) == 1
    assert not list((tmp_path / "data").iterdir()) if (tmp_path / "data").exists() else True


def test_tables_against_numbers_by_hand() -> None:
    def result(road: float, car: float, seconds: float) -> dict[str, Any]:
        numbers: dict[str, Any] = {
            head: {"road": 0.5, "bus": None, "car": 0.25} for head in ("context", "detail", "average")
        }
        return {
            "classes": {"fused": {"road": road, "bus": None, "car": car}, **numbers},
            "steps": 10,
            "seconds": seconds,
        }

    control = [result(0.5, 0.1, 60), result(0.6, 0.2, 120)]
    hrda = [result(0.7, 0.3, 60), result(0.6, 0.5, 60)]
    text = class_table({"control": control, "hrda": hrda})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line]
    assert rows[0] == ["IoU, %", "control", "hrda", "hrda - control"]
    assert rows[2:] == [
        ["road", "55.0 ± 7.1", "65.0 ± 7.1", "+10.0 ± 14.1"],
        ["car", "15.0 ± 7.1", "40.0 ± 14.1", "+25.0 ± 7.1"],
        ["mean", "35.0 ± 7.1", "52.5 ± 3.5", "+17.5 ± 3.5"],
    ]
    text = arm_table({"control": control}, {"control": "the control"})
    cells = [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]
    assert cells == ["control", "the control", "35.0 ± 7.1", *["37.5 ± 0.0"] * 3, "10", "1.5"]
    assert spread([-1.25], signed=True) == "-1.2"


def official_trees(root: Path, *, source: Size, target: Size, val: Size) -> list[str]:
    """Two source images, one of the target and one of validation; the arguments that name them."""
    rng = np.random.default_rng(0)

    def write(file: Path, size: Size, *, label: bool = False) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        ids = np.full(size, 23, np.uint8)
        ids[size[0] // 2 :] = 7
        ids[size[0] // 3 :, : size[1] // 3] = 11
        noise = rng.integers(0, 60, (*size, 3))
        picture = Image.fromarray(ids if label else (3 * ids[..., None] + noise).astype(np.uint8))
        picture.save(file, compress_level=1)

    for i in (1, 2):
        write(root / "gta" / "images" / f"{i:05}.png", source)
        write(root / "gta" / "labels" / f"{i:05}.png", source, label=True)
    for split, size in {"train": target, "val": val}.items():
        stem = f"{split}/ulm/ulm_000000_000019"
        write(root / "cityscapes" / "leftImg8bit" / f"{stem}_leftImg8bit.png", size)
        write(root / "cityscapes" / "gtFine" / f"{stem}_gtFine_labelIds.png", size, label=True)
    return ["--gta", str(root / "gta"), "--cityscapes", str(root / "cityscapes"), "--out", str(root / "out")]


def test_the_paper_s_network_and_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    entries = to_reference_state_dict(daformer("mit_b0"))
    published = {name.removeprefix("backbone."): x for name, x in entries.items() if name.startswith("backbone.")}
    torch.save(published, tmp_path / "mit_b0.pth")
    data = official_trees(tmp_path, source=(128, 192), target=(128, 192), val=(64, 128))
    small = ["--crop", "64", "128", "--source-size", "0", "0", "--margins", "0", "0", "0", "0", "--steps", "2"]
    small += ["--min-pixels", "150"]
    paper = ["--model", "hrda", "--encoder", "mit_b0", "--encoder-weights", str(tmp_path / "mit_b0.pth")]
    assert gta2cityscapes.main([*data, *small, *paper]) == 0, capsys.readouterr().err
    assert "without --encoder-weights" not in capsys.readouterr().err
    folder = tmp_path / "out" / "seed1"
    assert {file.name for file in folder.iterdir() if file.is_dir()} == {"control", "hrda"}
    config = json.loads((folder / "hrda" / "config.json").read_text())
    settings = {"lr": 6e-5, "lr_warmup": 1500, "lr_power": 1.0, "head_factor": 10.0, "weight_decay": 0.01, "clip": 0.0}
    settings |= {"warmup": 0, "ema_decay": 0.999, "threshold": 0.968, "per": "batch", "temperature": 0.01}
    settings |= {"min_crop_pixels": 6000, "feature_distance": 0.005, "augment_source": 0, "batch_size": 2}
    assert {name: config[name] for name in settings} == settings
    distances = [line["feature_distance"] for line in read_metrics(folder / "hrda")]
    assert len(distances) == 2
    assert "feature_distance" not in read_metrics(folder / "control")[0]
    student, network = load(folder / "hrda")
    assert (network["model"], network["detail_size"]) == ("hrda", (32, 64))
    for name, start in published.items():
        change = (to_reference_state_dict(student)[f"backbone.{name}"] - start).abs().max()
        assert change < 1e-3  # two steps of the warm-up from the file's weights


def test_a_bad_network_is_found_before_any_data(mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--gta", str(mini / "gta"), "--cityscapes", str(mini / "cityscapes"), "--out", str(tmp_path / "out")]
    for options, message in (
        (["--model", "hrda", "--encoder", "mit_b9"], "the encoder's size must be one of mit_b0"),
        (["--model", "hrda", "--encoder", "mit_b0", "--encoder-weights", "x.pth"], "x.pth: no such file"),
        (["--encoder", "mit_b0"], "encoder 'mit_b0': gta2cityscapes.py takes it with --model hrda"),
        (["--device", "foo"], "Expected one of cpu, cuda"),
    ):
        assert gta2cityscapes.main([*data, *options]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()


def test_the_paper_s_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, options = gta2cityscapes.parse(["--model", "hrda", "--gta", "a", "--cityscapes", "b"])
    assert (
        gta2cityscapes.main(["--model", "hrda", "--encoder", "mit_b0", "--gta", str(tmp_path), "--cityscapes", "b"])
        == 2
    )
    assert capsys.readouterr().err.startswith("without --encoder-weights: random weights, and no feature distance\n")
    assert options.arms == ["control", "hrda"]
    assert (config.encoder, config.steps, config.batch_size, config.crop) == ("mit_b5", 40_000, 2, (1024, 1024))
    assert [gta2cityscapes.NAMES[i] for i in gta2cityscapes.THINGS] == [
        *("traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    ]


def test_official_sizes(tmp_path: Path) -> None:
    """The official layout and, but for validation, image sizes: source images are resized, target images are not."""
    # windows over a whole validation image take long
    data = official_trees(tmp_path, source=(1052, 1914), target=(1024, 2048), val=(256, 512))
    settings = ["--crop", "512", "512", "--warmup", "1", "--steps", "2", "--arms", "hrda"]
    done = run("gta2cityscapes.py", *data, *settings)
    assert done.returncode == 0, done.stderr
    kept = torch.load(tmp_path / "out" / "seed1" / "hrda" / "last.pt", weights_only=True)
    assert kept["network"]["detail_size"] == (256, 256)
    config = json.loads((tmp_path / "out" / "seed1" / "hrda" / "config.json").read_text())
    assert config["source_size"] == [1440, 2560]
    assert config["margins"] == [30, 240, 30, 30]
