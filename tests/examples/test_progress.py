"""How far a script is: a bar in a terminal, lines with pauses where there is none, and the same in all scripts."""

import ast
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import EXAMPLES, main, write
from trees import saved

import check_data
from support import progress
from support.networks import NetworkSpec
from support.progress import Progress, bar, clock
from support.run_folder import RunFolder


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line after every item but the last."""
    monkeypatch.setattr(progress, "PAUSE", -1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and images with labels."""
    root = tmp_path_factory.mktemp("progress")
    torch.manual_seed(0)
    spec = NetworkSpec(("sky", "road", "box"), (32, 32))
    (root / "run").mkdir()
    RunFolder(root / "run", spec).finish(spec.build(), None)
    write(root / "data", 3)
    return root


def test_without_a_terminal_there_are_lines_and_pauses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for _ in bar(range(10), "counting"):
        now[0] += 12
    said = ["counting: 3 of 10, left 1:24", "counting: 6 of 10, left 0:48", "counting: 9 of 10, left 0:12"]
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in said))
    for _ in bar(iter(range(3)), "of no length"):
        now[0] += 31
    assert capsys.readouterr().err == "of no length: 1\nof no length: 2\nof no length: 3\n"


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(bar(range(1000), "quick")) == list(range(1000))
    assert capsys.readouterr() == ("", "")


def test_in_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(bar(range(3), "counting")) == [0, 1, 2]
    assert "counting: 100%" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")  # it stays
    monkeypatch.setattr(sys, "stderr", part := Terminal())
    assert list(bar(range(3), "a part", leave=False)) == [0, 1, 2]
    assert part.getvalue().endswith("\r")  # nothing is left of it


def test_only_the_first_of_several_processes_shows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, talkative: None
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert list(Progress([1, 2], "second")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_hours_and_minutes() -> None:
    assert [clock(x) for x in (0, 59.6, 61, 3600, 36_061)] == ["0:00", "1:00", "1:01", "1:00:00", "10:01:01"]


@pytest.mark.usefixtures("talkative")
@pytest.mark.parametrize("script", ["predict", "evaluate", "compare", "check_data"])
def test_every_script_says_how_far_it_is(
    script: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check_data, "draw_grid", lambda *_: None)
    monkeypatch.setattr(check_data, "draw_shares", lambda *_: None)
    arguments = {
        "predict": [folder / "run", folder / "data/images", "--out", tmp_path],
        "evaluate": [folder / "run", folder / "data"],
        "compare": [folder / "data", folder / "run", folder / "run"],
        "check_data": [folder / "data", "--out", tmp_path],
    }
    titles = {"predict": ["predicting"], "evaluate": ["evaluating"], "compare": ["comparing"]}
    assert main(f"{script}.py", *arguments[script]) == 0
    said = capsys.readouterr().err
    for title in titles.get(script, ["folders, sizes", "folders"]):
        assert f"{title}: 1 of 3, left 0:0" in said
        assert f"{title}: 2 of 3, left 0:0" in said
    assert "\r" not in said


@pytest.mark.usefixtures("talkative")
def test_an_array_says_how_many_windows_are_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "large.npy", np.zeros((100, 70, 3), np.uint8))
    saved(tmp_path / "small.png", np.zeros((20, 30, 3), np.uint8))
    assert (
        main("predict.py", folder / "run", tmp_path / "large.npy", tmp_path / "small.png", "--out", tmp_path / "out")
        == 0
    )
    said = capsys.readouterr().err
    assert "large.npy: 1 of " in said
    assert "predicting: 1 of 2, left " in said
    assert "\r" not in said


def test_no_script_draws_a_bar_of_its_own() -> None:
    callers = set()
    for file in EXAMPLES.rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]
        if any(isinstance(call, ast.Name) and call.id in ("tqdm", "trange") for call in calls):
            callers.add(file.relative_to(EXAMPLES).as_posix())
    assert callers == {"support/progress.py", "toy/data.py"}  # the toy stands alone
