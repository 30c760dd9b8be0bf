"""The recipes: settings that one example reads, on trees of every data set that they name."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.run_files import load
from test_docs import DOCS, python_blocks
from trees import One, rgb16

import gta2cityscapes
from hrda_lib.data import Cityscapes, Resized

RECIPES = sorted(file.stem for file in gta2cityscapes.RECIPES.glob("*.toml"))
SIZE = (64, 128)


def test_each_is_plain_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert [
        *("cityscapes2acdc", "cityscapes2darkzurich", "dacs", "daformer", "hrda", "oracle", "source_only"),
        "synthia2cityscapes",
    ] == RECIPES
    printed = {}
    for name in RECIPES:
        text = (gta2cityscapes.RECIPES / f"{name}.toml").read_text()
        assert len(text.splitlines()) <= 30
        tomllib.loads(text)
        assert gta2cityscapes.main(["--recipe", name, "--print"]) == 0
        printed[name] = json.loads(capsys.readouterr().out)
    assert printed["hrda"]["crop"] == [1024, 1024]
    assert printed["hrda"]["source_size"] == [1440, 2560]
    assert (printed["daformer"]["crop"], printed["daformer"]["min_crop_pixels"]) == ([512, 512], 1500)
    assert printed["synthia2cityscapes"]["source_size"] == [1520, 2560]
    assert printed["cityscapes2acdc"]["margins"] == [0, 0, 0, 0]
    assert {name: values["arms"] for name, values in printed.items() if values["arms"] != ["hrda"]} == {
        "dacs": ["uda"],
        "daformer": ["uda"],
        "oracle": ["oracle"],
        "source_only": ["control"],
    }
    assert gta2cityscapes.main(["--recipe", "hrda", "--lr", "0.5", "--print"]) == 0
    assert json.loads(capsys.readouterr().out)["lr"] == 0.5  # an option wins
    assert gta2cityscapes.main(["--recipe", "hrda", "--arms", "oracle", "--print"]) == 0
    assert json.loads(capsys.readouterr().out)["arms"] == ["oracle"]


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
        ("daformer", SYNTHIA_512, (760, 1280), (512, 1024), 512),
        ("daformer", ACDC_512, (512, 1024), (540, 960), 512),
    ],
)
def test_sizes_are_those_of_the_released_pipelines(
    recipe: str, options: list[str], source: tuple[int, int], target: tuple[int, int], crop: int
) -> None:
    config, _ = gta2cityscapes.parse(["--recipe", recipe, *options, "--print"])
    assert config.crop == (crop, crop)
    kinds = (config.source, config.source_size, source), (config.target, config.target_size, target)
    for kind, fit, expected in kinds:
        frame = One(FRAMES[kind])
        image = Resized(frame, fit)[0].image if all(fit) else frame.image
        assert image.shape[1:] == expected
    masked = config.target == "cityscapes" and recipe != "dacs"
    margins = (30, 240, 30, 30) if crop == 1024 else (15, 120, 0, 0)
    assert config.margins == (margins if masked else (0, 0, 0, 0))


def test_each_has_a_row_in_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reproducing.md").read_text(encoding="utf-8")
    table = page.partition("| Recipe | Command |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = {name.strip(" `"): command.strip(" `") for _, name, command, *_ in (line.split("|") for line in table)}
    assert sorted(rows) == RECIPES
    for name, command in rows.items():
        config, options = gta2cityscapes.parse(command.split())  # complete, or it would stop here
        given = {kind for kind in gta2cityscapes.FOLDERS if getattr(options, kind)}
        assert (options.recipe, given) == (name, {config.source, config.target})


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(256, size=(*SIZE, 3)).astype(np.uint8)).save(file)


def ids(road: int, building: int, person: int) -> np.ndarray:
    label = np.full(SIZE, building, np.uint8)
    label[SIZE[0] // 2 :] = road
    label[: SIZE[0] // 3, : SIZE[1] // 3] = person
    return label


def grey(file: Path, label: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(file)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trees")
    for i in (1, 2):
        picture(root / f"gta/images/{i:05}.png")
        grey(root / f"gta/labels/{i:05}.png", ids(7, 11, 24))
        picture(root / f"synthia/RGB/{i:07}.png")
        rgb16(root / f"synthia/GT/LABELS/{i:07}.png", ids(3, 2, 10))
    for split in ("train", "val"):
        picture(root / f"cityscapes/leftImg8bit/{split}/ulm/ulm_0_0_leftImg8bit.png")
        grey(root / f"cityscapes/gtFine/{split}/ulm/ulm_0_0_gtFine_labelIds.png", ids(7, 11, 24))
        for kind in ("fog", "night", "rain", "snow"):
            picture(root / f"acdc/rgb_anon/{kind}/{split}/GOPR1/GOPR1_frame_1_rgb_anon.png")
            grey(root / f"acdc/gt/{kind}/{split}/GOPR1/GOPR1_frame_1_gt_labelTrainIds.png", ids(0, 2, 11))
        picture(root / f"dark_zurich/rgb_anon/{split}/night/GOPR1/GOPR1_frame_1_rgb_anon.png")
    grey(root / "dark_zurich/gt/val/night/GOPR1/GOPR1_frame_1_gt_labelTrainIds.png", ids(0, 2, 11))
    return root


def test_the_documentation_of_data_runs(trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "GTA").symlink_to(trees / "gta")
    (tmp_path / "CITYSCAPES").symlink_to(trees / "cityscapes")
    (tmp_path / "DIR/images").mkdir(parents=True)
    np.save(tmp_path / "DIR/images/a.npy", np.zeros((4, 2, 3), np.float32))
    grey(tmp_path / "DIR/labels/a.png", np.full((2, 3, 3), (0, 128, 0), np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Cityscapes, "margins", (3, 24, 3, 3))  # the trees' images are small
    page = DOCS / "api" / "data.md"
    names: dict[str, object] = {}
    exec(compile(python_blocks(page), str(page), "exec"), names)
    assert names["fields"][0].image.shape == (4, 2, 3)
    assert (names["fields"][0].label == 1).all()
    assert names["images"].shape == (2, 3, 1024, 1024)
    assert names["valid"].sum() == 2 * (64 - 27) * (128 - 6)


FAST = ["--steps", "2", "--crop", "64", "64", "--margins", "0", "0", "0", "0", "--min-pixels", "100"]
FAST += ["--min-crop-pixels", "0", "--source-size", "0", "0", "--feature-distance", "0"]
SMALL = ["--model", "small", "--encoder", "mini", "--warmup", "0"]


@pytest.mark.parametrize(
    ("recipe", "data", "settings"),
    [
        ("hrda", ("gta", "cityscapes"), ["--encoder", "mit_b0", "--target-size", "0", "0"]),
        ("daformer", ("gta", "cityscapes"), ["--encoder", "mit_b0", "--target-size", "32", "64", "--crop", "32", "32"]),
        ("dacs", ("gta", "cityscapes"), ["--target-size", "0", "0"]),
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
    settings: list[str],
    trees: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(0)
    folders = [word for kind in data for word in (f"--{kind.replace('_', '-')}", str(trees / kind))]
    status = gta2cityscapes.main(["--recipe", recipe, *folders, "--out", str(tmp_path), *FAST, *settings])
    assert status == 0, capsys.readouterr().err[-2000:]
    printed = capsys.readouterr().out
    assert ("| road " in printed.split("IoU, %")[0]) == (recipe not in ("dacs", "oracle", "source_only"))
    (run,) = (file.parent for file in (tmp_path / "seed1").glob("*/result.json"))
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 2
    measured = {name for name, value in result["classes"]["fused"].items() if value is not None}
    assert measured == {"road", "building", "person"}
    assert ("context" in result["classes"]) == (recipe not in ("daformer", "dacs"))
    load(run)


def test_published_class_statistics_take_the_place_of_counting(
    trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = tmp_path / "sample_class_stats.json"
    entries = [{"file": f"data/gta/labels/0000{i}_labelTrainIds.png", "2": 5000, "11": 4000} for i in (1, 2)]
    stats.write_text(json.dumps(entries))
    folders = ["--gta", str(trees / "gta"), "--cityscapes", str(trees / "cityscapes"), "--out", str(tmp_path / "out")]
    arguments = ["--recipe", "hrda", *folders, *FAST, *SMALL, "--steps", "1"]
    assert gta2cityscapes.main([*arguments, "--class-stats", str(stats)]) == 0
    assert "no label of gta shows road, sidewalk" in capsys.readouterr().out
    assert not (tmp_path / "out" / "gta_counts.json").exists()
    assert gta2cityscapes.main(arguments) == 2  # a kept result of other statistics
    assert "holds a run of other settings or data" in capsys.readouterr().err


def test_classes_that_the_source_lacks_are_named() -> None:
    config, _ = gta2cityscapes.parse(["--recipe", "synthia2cityscapes", "--classes", "19", "--print"])
    source = torch.full((2, 19), 10_000)
    source[:, [9, 14, 16]] = 0
    text = gta2cityscapes.describe(config, source)
    assert text.endswith("\nno label of synthia shows terrain, truck, train: only the oracle can learn it\n")
    config, _ = gta2cityscapes.parse(["--recipe", "synthia2cityscapes", "--print"])
    assert "no label" not in gta2cityscapes.describe(config, source)  # of the 16 classes it has all


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "hrda"], "--recipe needs data: --gta DIR --cityscapes DIR"),
        (["--recipe", "cityscapes2darkzurich"], "--recipe needs data: --cityscapes DIR --dark-zurich DIR"),
        (["--synthia", "x", "--cityscapes", "y"], "--gta is missing: the data go from gta to cityscapes"),
        (["--source", "synthia"], "the toy data are --source gta --target cityscapes"),
        (["--model", "daformer", "--arms", "hrda"], "--arms hrda needs two scales, which --model daformer has not"),
        (["--target-size", "0", "5"], "--target-size must be two sides, or 0 0, got (0, 5)"),
        (["--recipe", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_contradictions_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gta2cityscapes.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
