"""The recipes: settings that one example reads, on trees of every data set that they name."""

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documents import DOCS, python_blocks
from scripts import main
from trees import One, rgb16, saved

import gta2cityscapes
import support.arms
from gta2cityscapes import ARMS, Settings
from hrda_lib.data import Cityscapes, Resized
from support.command_line import FOUNDATION, RECIPES
from support.domains import KINDS, Domains
from support.run_folder import load

NAMES = ["cityscapes2acdc", "cityscapes2darkzurich", "dacs", "dacs_published", "daformer", "demo", "hrda", "mic"]
NAMES += ["oracle", "source_only", "synthia2cityscapes"]
SIZE = (64, 128)


def parse(recipe: str, *options: Any) -> Settings:
    """The settings of a call with a recipe, and folders of every data set."""
    arguments = [word for kind in KINDS for word in (f"--{kind.replace('_', '-')}", "DIR")]
    arguments += ["--recipe", recipe, *map(str, options)]
    return gta2cityscapes.parse(argparse.ArgumentParser(), arguments, ARMS)[0]


def test_each_is_what_its_paper_does() -> None:
    assert sorted(RECIPES) == sorted([*NAMES, "own_data", *FOUNDATION])
    settings = {name: parse(name) for name in NAMES}
    assert settings["demo"] == Settings()
    assert settings["hrda"].crop == (1024, 1024)
    assert settings["hrda"].source_size == (1440, 2560)
    assert (settings["daformer"].crop, settings["daformer"].min_crop_pixels) == ((512, 512), 1500)
    assert settings["synthia2cityscapes"].source_size == (1520, 2560)
    assert settings["cityscapes2acdc"].margins == (0, 0, 0, 0)
    assert {name: values.classes for name, values in settings.items() if values.classes != 19} == {
        "synthia2cityscapes": 16
    }
    assert {name: values.arms for name, values in settings.items() if values.arms != ("hrda",)} == {
        "dacs": ("uda",),
        "dacs_published": ("uda",),
        "daformer": ("uda",),
        "demo": ("source", "control", "hrda"),
        "oracle": ("oracle",),
        "source_only": ("control",),
    }
    papers = {name: values for name, values in settings.items() if name not in ("demo", "dacs_published")}
    for values in papers.values():
        assert (values.warmup, values.steps, values.batch_size, values.objective) == (0, 40_000, 2, "fused")
        assert (values.lr, values.lr_warmup, values.lr_power, values.head_factor) == (6e-5, 1500, 1.0, 10.0)
        assert (values.weight_decay, values.clip, values.per, values.threshold) == (0.01, 0.0, "batch", 0.968)
        assert (values.detail_weight, values.temperature, values.min_pixels) == (0.1, 0.01, 3000)
        assert (values.optimizer, values.mask_block, values.mask_on) == ("adamw", 64, "target")
    assert {name: values.mask_ratio for name, values in papers.items() if values.mask_ratio} == {"mic": 0.7}
    assert {name for name, values in papers.items() if values.ema_decay != 0.999} == {"dacs"}
    assert {name for name, values in papers.items() if not values.feature_distance} == {"dacs"}
    assert {name for name, values in papers.items() if not values.rare_classes} == {"dacs", "oracle", "source_only"}
    assert {name for name, values in papers.items() if values.augment_source} == {"oracle", "source_only"}
    assert {name: values.encoder for name, values in papers.items() if values.encoder != "mit_b5"} == {
        "dacs": "resnet101"
    }


def test_mic_is_hrda_with_masked_images() -> None:
    assert parse("mic") == replace(parse("hrda"), mask_ratio=0.7)


def test_dacs_published_is_dacs_by_sgd_for_longer() -> None:
    """``configs/configUDA.json`` of its authors."""
    optimizer = {"optimizer": "sgd", "momentum": 0.9, "lr": 2.5e-4, "weight_decay": 5e-4}
    schedule = {"steps": 250_000, "lr_warmup": 0, "lr_power": 0.9}
    assert parse("dacs_published") == replace(parse("dacs"), **optimizer, **schedule, jitter=0.25, hue=0.25)


def test_an_option_wins() -> None:
    assert parse("hrda", "--lr", 0.5).lr == 0.5
    assert parse("hrda", "--arms", "oracle").arms == ("oracle",)
    assert parse("hrda", "--clip", 0, "--margins", 0, 0, 0, 0).margins == (0, 0, 0, 0)


FRAMES = {"gta": (1052, 1914), "synthia": (760, 1280), "cityscapes": (1024, 2048), "acdc": (1080, 1920)}
FRAMES["dark_zurich"] = FRAMES["acdc"]
SYNTHIA_512 = ["--source", "synthia", "--source-size", "760", "1280"]
ACDC_512 = ["--source", "cityscapes", "--source-size", "512", "1024", "--target", "acdc", "--target-size", "540", "960"]
ACDC_512 += ["--margins", "0", "0", "0", "0"]


@pytest.mark.parametrize(
    ("recipe", "options", "source", "target", "crop"),
    [
        ("hrda", [], (1407, 2560), (1024, 2048), 1024),
        ("oracle", [], (1407, 2560), (1024, 2048), 1024),
        ("source_only", [], (1407, 2560), (1024, 2048), 1024),
        ("synthia2cityscapes", [], (1520, 2560), (1024, 2048), 1024),
        ("cityscapes2acdc", [], (1024, 2048), (1080, 1920), 1024),
        ("cityscapes2darkzurich", [], (1024, 2048), (1080, 1920), 1024),
        ("daformer", [], (704, 1280), (512, 1024), 512),
        ("dacs", [], (704, 1280), (512, 1024), 512),
        ("dacs_published", [], (704, 1280), (512, 1024), 512),
        ("mic", [], (1407, 2560), (1024, 2048), 1024),
        ("daformer", SYNTHIA_512, (760, 1280), (512, 1024), 512),
        ("daformer", ACDC_512, (512, 1024), (540, 960), 512),
    ],
)
def test_sizes_are_those_of_the_released_pipelines(
    recipe: str, options: list[str], source: tuple[int, int], target: tuple[int, int], crop: int
) -> None:
    settings = parse(recipe, *options)
    assert settings.crop == (crop, crop)
    kinds = (settings.source, settings.source_size, source), (settings.target, settings.target_size, target)
    for kind, fit, expected in kinds:
        frame = One(FRAMES[kind])
        image = Resized(frame, fit)[0].image if all(fit) else frame.image
        assert image.shape[1:] == expected
    masked = settings.target == "cityscapes" and not recipe.startswith("dacs")
    margins = (30, 240, 30, 30) if crop == 1024 else (15, 120, 0, 0)
    assert settings.margins == (margins if masked else (0, 0, 0, 0))


def test_each_has_a_row_in_the_docs() -> None:
    page = (DOCS / "reproducing.md").read_text(encoding="utf-8")
    table = page.partition("| Recipe | Command |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = {name.strip(" `"): command.strip(" `") for _, name, command, *_ in (line.split("|") for line in table)}
    assert sorted(rows) == sorted(set(NAMES) - {"demo"})
    for name, command in rows.items():
        # complete, or it would stop here
        found = gta2cityscapes.parse(argparse.ArgumentParser(), shlex.split(command), ARMS)
        settings, _, folders, options = found
        assert (options["recipe"], set(folders)) == (name, {settings.source, settings.target})


def ids(road: int, building: int, person: int) -> np.ndarray:
    label = np.full(SIZE, building, np.uint8)
    label[SIZE[0] // 2 :] = road
    label[: SIZE[0] // 3, : SIZE[1] // 3] = person
    return label


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("trees"), np.random.default_rng(0)

    def write(image: str, label: str, stored: tuple[int, int, int] | None) -> None:
        saved(root / image, rng.integers(256, size=(*SIZE, 3)).astype(np.uint8))
        if stored:
            (rgb16 if "synthia" in label else saved)(root / label, ids(*stored))

    for i in (1, 2):
        write(f"gta/images/{i:05}.png", f"gta/labels/{i:05}.png", (7, 11, 24))
        write(f"synthia/RGB/{i:07}.png", f"synthia/GT/LABELS/{i:07}.png", (3, 2, 10))
    for split in ("train", "val"):
        image = f"cityscapes/leftImg8bit/{split}/ulm/ulm_0_0_leftImg8bit.png"
        write(image, f"cityscapes/gtFine/{split}/ulm/ulm_0_0_gtFine_labelIds.png", (7, 11, 24))
        for kind in ("fog", "night", "rain", "snow"):
            image = f"acdc/rgb_anon/{kind}/{split}/GOPR1/GOPR1_frame_1_rgb_anon.png"
            write(image, f"acdc/gt/{kind}/{split}/GOPR1/GOPR1_frame_1_gt_labelTrainIds.png", (0, 2, 11))
        image = f"dark_zurich/rgb_anon/{split}/night/GOPR1/GOPR1_frame_1_rgb_anon.png"
        label = f"dark_zurich/gt/{split}/night/GOPR1/GOPR1_frame_1_gt_labelTrainIds.png"
        write(image, label, (0, 2, 11) if split == "val" else None)
    return root


def test_the_documentation_of_data_runs(trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "GTA").symlink_to(trees / "gta")
    (tmp_path / "CITYSCAPES").symlink_to(trees / "cityscapes")
    (tmp_path / "DIR/images").mkdir(parents=True)
    np.save(tmp_path / "DIR/images/a.npy", np.zeros((4, 2, 3), np.float32))
    saved(tmp_path / "DIR/labels/a.png", np.full((2, 3, 3), (0, 128, 0), np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Cityscapes, "margins", (3, 24, 3, 3))  # the trees' images are small
    page = DOCS / "api" / "data.md"
    names: dict[str, object] = {}
    exec(compile(python_blocks(page), str(page), "exec"), names)
    assert names["fields"][0].image.shape == (4, 2, 3)
    assert (names["fields"][0].label == 1).all()
    assert names["images"].shape == (2, 3, 1024, 1024)
    assert names["valid"].sum() == 2 * (64 - 27) * (128 - 6)


FAST = ["--steps", 2, "--crop", 64, 64, "--margins", 0, 0, 0, 0, "--min-pixels", 100, "--min-crop-pixels", 0]
FAST += ["--source-size", 0, 0, "--feature-distance", 0]
SMALL = ["--model", "small", "--encoder", "mini", "--warmup", 0]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("recipe", "data", "settings"),
    [
        ("hrda", ("gta", "cityscapes"), ["--encoder", "mit_b0", "--target-size", 0, 0]),
        ("daformer", ("gta", "cityscapes"), ["--encoder", "mit_b0", "--target-size", 32, 64, "--crop", 32, 32]),
        ("dacs", ("gta", "cityscapes"), ["--target-size", 0, 0]),
        ("dacs_published", ("gta", "cityscapes"), ["--target-size", 0, 0, *SMALL]),
        ("mic", ("gta", "cityscapes"), SMALL),
        ("oracle", ("gta", "cityscapes"), SMALL),
        ("source_only", ("gta", "cityscapes"), SMALL),
        ("synthia2cityscapes", ("synthia", "cityscapes"), SMALL),
        ("cityscapes2acdc", ("cityscapes", "acdc"), SMALL),
        ("cityscapes2darkzurich", ("cityscapes", "dark_zurich"), SMALL),
    ],
)
def test_each_starts(
    recipe: str,
    data: tuple[str, str],
    settings: list[Any],
    trees: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(0)
    folders = [word for kind in data for word in (f"--{kind.replace('_', '-')}", trees / kind)]
    status = main("gta2cityscapes.py", "--recipe", recipe, *folders, "--out", tmp_path, *FAST, *settings)
    assert status == 0, capsys.readouterr().err[-2000:]
    road = capsys.readouterr().out.splitlines()[2]
    assert road.startswith("| road ")
    assert road.endswith("- |") == (
        recipe in ("dacs", "dacs_published", "oracle", "source_only")
    )  # how often it is drawn
    (run,) = (file.parent for file in (tmp_path / "seed1").glob("*/result.json"))
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 2
    measured = {name for name, value in result["classes"]["fused"].items() if value is not None}
    assert measured == {"road", "building", "person"}
    assert ("context" in result["classes"]) == (recipe not in ("daformer", "dacs"))
    load(run)


@pytest.mark.usefixtures("no_pictures")
def test_published_class_statistics_take_the_place_of_counting(
    trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = tmp_path / "sample_class_stats.json"
    entries = [{"file": f"data/gta/labels/0000{i}_labelTrainIds.png", "2": 5000, "11": 4000} for i in (1, 2)]
    stats.write_text(json.dumps(entries))
    folders = ["--gta", trees / "gta", "--cityscapes", trees / "cityscapes", "--out", tmp_path / "out"]
    arguments = ["--recipe", "hrda", *folders, *FAST, *SMALL, "--steps", 1]
    assert main("gta2cityscapes.py", *arguments, "--class-stats", stats) == 0
    assert "no label of gta shows road, sidewalk" in capsys.readouterr().out
    assert not (tmp_path / "out" / "gta_counts.json").exists()
    assert main("gta2cityscapes.py", *arguments) == 2  # a kept result of other statistics
    assert "holds a run of other settings or data" in capsys.readouterr().err


def test_classes_that_the_source_lacks_are_named(
    trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise ValueError("seen enough")

    def lacking(*arguments: Any, **settings: Any) -> Domains:
        counts = torch.full((2, 19), 10_000)
        counts[:, [9, 14, 16]] = 0
        return opened(*arguments, **settings)._replace(counts=counts)

    opened = support.arms.open_domains
    monkeypatch.setattr(support.arms, "open_domains", lacking)
    monkeypatch.setattr(support.arms.Experiment, "run", stop)
    folders = ["--synthia", trees / "synthia", "--cityscapes", trees / "cityscapes", "--out", tmp_path / "out"]
    arguments = ["--recipe", "synthia2cityscapes", *folders, *FAST, *SMALL]
    assert main("gta2cityscapes.py", *arguments, "--classes", 19) == 2
    text = "no label of synthia shows terrain, truck, train: only the oracle can learn it\n"
    assert capsys.readouterr().out.endswith(f"\n{text}")
    assert main("gta2cityscapes.py", *arguments) == 2
    assert "no label" not in capsys.readouterr().out  # of the 16 classes it has all
