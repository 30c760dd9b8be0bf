"""The arms of the ablation, shortened: every one on two seeds, what each of them changes, and what is kept."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripts import FAST_STREETS, main, write_streets

import ablation
import gta2cityscapes
from gta2cityscapes import Settings
from hrda_lib import MultiResSegmenter
from support.run_folder import DRAWN, load


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_streets(tmp_path_factory.mktemp("toy") / "data", train=2, val=1)


def start(root: Path, out: Path, *arguments: Any) -> int:
    folders = ["--gta", root / "gta", "--cityscapes", root / "cityscapes"]
    return main("ablation.py", *folders, "--out", out, *FAST_STREETS, *arguments)


def trained(out: Path) -> dict[str, int]:
    """When each arm was trained."""
    return {str(file.parent.relative_to(out)): file.stat().st_mtime_ns for file in out.glob("seed*/*/last.pt")}


@pytest.mark.usefixtures("no_pictures")
def test_every_arm_on_two_seeds(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(toy, tmp_path, "--arms", "control", "context", "--seeds", 1) == 0
    before = trained(tmp_path)
    assert before.keys() == {f"seed1/{name}" for name in ("source", "control", "context-source", "context")}
    printed = capsys.readouterr().out
    assert "±" not in printed  # one seed has no spread

    assert start(toy, tmp_path, "--seeds", 2) == 0  # adds arms and a seed
    assert trained(tmp_path).items() > before.items()
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text(encoding="utf-8") in printed
    rows = [re.split(r"\s*\|\s*", line)[1:-1] for line in printed.splitlines() if line.startswith("|")]
    arms = {row[0]: row[1:] for row in rows if row[0] in ablation.ARMS}
    assert list(arms) == [
        *("source", "control", "control-long", "oracle", "context", "detail", "average", "separate", "mic", "hrda"),
    ]
    assert all(re.fullmatch(r"\d+\.\d ± \d+\.\d", row[1]) for row in arms.values())
    assert [row[5] for row in arms.values()] == ["2", "4", "7", "4", "4", "4", "4", "4", "4", "4"]
    heads = next(row for row in rows if row[0] == "IoU, %")
    assert heads[1:] == ["source", "control", "hrda", "hrda - control"]  # the variants have their means alone

    names = {name.removeprefix("seed2/") for name in trained(tmp_path) if name.startswith("seed2/")}
    assert names == {*arms, *(f"{name}-source" for name in ablation.VARIANTS)}
    config = {name: json.loads((tmp_path / "seed2" / name / "config.json").read_text()) for name in names}
    assert {values["seed"] for values in config.values()} == {2}
    defaults = {"objective": "fused", "detail_weight": 0.1, "fixed_attention": None}
    changes = {
        "context": {"objective": "context", "fixed_attention": 0.0},
        "detail": {"objective": "detail", "fixed_attention": 1.0},
        "average": {"fixed_attention": 0.5},
        "separate": {"objective": "separate", "detail_weight": 0.5, "fixed_attention": 0.5},
    }
    for name, values in config.items():
        expected = defaults | changes.get(name.removesuffix("-source"), {})
        assert {key: values[key] for key in defaults} == expected, name
        network, _ = load(tmp_path / "seed2" / name)
        assert isinstance(network, MultiResSegmenter)
        assert network.attention == expected["fixed_attention"] or expected["fixed_attention"] is None
    start_of = {name: values["start"] for name, values in config.items() if values["start"]}
    assert start_of == {
        **dict.fromkeys(("control", "control-long", "oracle", "mic", "hrda"), "source"),
        **{name: f"{name}-source" for name in ablation.VARIANTS},
    }


def test_a_panel_and_curves_of_the_arms_that_stand_first(toy: Path, tmp_path: Path) -> None:
    assert start(toy, tmp_path, "--arms", "average", "--seeds", 1, "--warmup", 0, "--steps", 1) == 0
    assert {file.name for file in (tmp_path / "seed1").iterdir()} == {"average", *DRAWN}
    assert (tmp_path / "classes.png").exists()
    assert (tmp_path / "classes.pdf").exists()


def test_it_has_the_arms_of_the_demo_too() -> None:
    assert ablation.ARMS.items() >= gta2cityscapes.ARMS.items()
    assert set(Settings.arms) < set(ablation.ALL) < set(ablation.ARMS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds must be positive, got 0"),
        (["--seed", "-1"], "--seed must be finite and at least 0, got -1"),
        (
            ["--arms", "nothing"],
            "invalid choice: 'nothing' (choose from source, control, hrda, oracle, uda, ",
        ),
        (["--model", "daformer", "--encoder", "mit_b0", "--arms", "average"], "--arms average needs two scales"),
    ],
)
def test_bad_settings_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("ablation.py", "--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
