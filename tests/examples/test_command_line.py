"""Settings from defaults, a recipe and the command line; what the help says; and how every script ends."""

import argparse
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scripts import EXAMPLES, main

import ablation
import gta2cityscapes
from support.command_line import (
    ALONE,
    DEVICE,
    GROUPS,
    RECIPES,
    add_running,
    add_settings,
    options_of,
    read_running,
    read_settings,
    setting,
)
from support.data_file import read_data_file
from support.ending import Stopped, reason, run_main

SCRIPTS = sorted(file.stem for file in EXAMPLES.glob("*.py") if "argparse" in file.read_text(encoding="utf-8"))


def helped(script: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(script, "--help") == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_says_what_holds_without_an_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    own = helped("own_data.py", capsys)
    assert "steps of adaptation, and of its control (default: 600)" in own
    assert "steps on the source alone, before adaptation (default: -1, 4 times --steps)" in own
    assert "--balance X" in own
    assert "0: all are 1 (default: 0.5)" in own
    street = helped("gta2cityscapes.py", capsys)
    assert "steps of adaptation, and of its control (default: 1000)" in street
    assert "--crop H W" in street
    assert "half as high and wide (default: 192 384)" in street
    assert "in place of a learned attention (default: none)" in street
    assert "optimiser of torch (adamw or sgd; default: adamw)" in street
    assert "arms to train and measure (default: source control control-long" in helped("ablation.py", capsys)


class Built(Exception):
    """Carries the parser of a script, which then does nothing."""


def parser_of(script: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def stop(self: argparse.ArgumentParser, *_: Any) -> None:
        raise Built(self)

    module = importlib.import_module(script)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Built) as caught:
        module.main([])
    monkeypatch.undo()
    return caught.value.args[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_has_a_group_a_phrase_and_a_default_that_is_said(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = parser_of(script, monkeypatch)
    assert not missing(parser)
    titles = [group.title for group in parser._action_groups if group.title in GROUPS]
    assert tuple(titles) == GROUPS
    assert len(parser.format_usage()) < 80  # options are in their groups


def missing(parser: argparse.ArgumentParser) -> list[str]:
    """What the help of a parser lacks."""
    groups = [group for group in parser._action_groups if group.title in GROUPS]
    grouped = {action.dest for group in groups for action in group._group_actions}
    wrong = list[str]()
    for action in parser._actions:
        name, text = "/".join(action.option_strings) or action.dest, action.help or ""
        if len(text.split()) < 2:
            wrong.append(f"{name}: no phrase")
        if not action.option_strings or action.dest == "help":
            continue
        if action.dest not in grouped:
            wrong.append(f"{name}: no group")
        if "default: " not in text and "no default" not in text:
            wrong.append(f"{name}: its default is not said")
        if action.nargs != 0 and action.metavar is None:
            wrong.append(f"{name}: no metavar")
        for choice in action.choices or ():
            if len(re.findall(rf"(?<![\w-]){re.escape(str(choice))}(?![\w-])", text)) < 1:
                wrong.append(f"{name}: {choice} is not said")
    return wrong


def test_the_check_sees_what_the_help_lacks() -> None:
    parser = argparse.ArgumentParser()
    add = options_of(parser, "data").add_argument
    add("--good", metavar="N", choices=("a", "b"), help="a phrase (a or b; default: a)")
    add("--flag", action="store_true", help="a phrase (default: off)")
    assert not missing(parser)
    add("--bare")
    add("--some", metavar="N", choices=("b", "ab"), help="a phrase (ab; default: ab)")
    parser.add_argument("--outside", metavar="N", help="a phrase (default: 0)")
    parser.add_argument("place")
    assert missing(parser) == [
        "--bare: no phrase",
        "--bare: its default is not said",
        "--bare: no metavar",
        "--some: b is not said",
        "--outside: no group",
        "place: no phrase",
    ]


def test_groups_are_in_one_order_whoever_adds_first() -> None:
    parser = argparse.ArgumentParser(prog="x")
    options_of(parser, "output").add_argument("--last", help="last")
    options_of(parser, "data").add_argument("--first", help="first")
    options_of(parser, "output").add_argument("--very-last", help="very last")
    text = parser.format_help()
    assert text.startswith("usage: x [option ...]\n")
    places = [text.index(word) for word in ("data:", "--first", "output:", "--last", "--very-last")]
    assert places == sorted(places)
    assert text.count("output:") == 1
    assert "network:" not in text  # a group without options is not shown


def test_own_data_has_no_option_that_it_would_not_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("own_data.py", "--data", "x.py", "--out", "run", "--feature-distance", "0.005") == 2
    assert "unrecognized arguments: --feature-distance" in capsys.readouterr().err


def test_without_a_warm_up_the_arms_that_are_one_are_left_out() -> None:
    parser = argparse.ArgumentParser()
    parser.set_defaults(arms=ablation.ALL)
    arguments = ["--gta", "GTA", "--cityscapes", "CITYSCAPES"]  # the settings are those of the recipe hrda
    settings, *_ = gta2cityscapes.parse(parser, arguments, ablation.ARMS)
    assert settings.warmup == 0
    assert settings.arms == ablation.ALL[1:]
    assert main("ablation.py", *arguments, "--arms", "source") == 2


def test_a_file_of_data_is_read_twice_from_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/images/0.png").touch()
    text = 'from hrda_lib.data import Folders\nsource = Folders("data")\ntarget = source.unlabeled()\nnames = ["a"]\n'
    (tmp_path / "read_twice.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for file in (Path("read_twice.py"), Path("read_twice.py"), tmp_path / "read_twice.py"):
        assert len(read_data_file(file).target) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other/read_twice.py").write_text(text)
    with pytest.raises(ValueError, match="another module is called read_twice"):
        read_data_file(Path("other/read_twice.py"))


# Settings


@dataclass(frozen=True)
class Few:
    """One setting of each kind."""

    name: str = setting("a", "a word", ("a", "b"))
    steps: int = setting(3, "a number", lowest=-1)
    lr: float = setting(0.5, "a share")
    mix: float | None = setting(None, "nothing, or a share")
    size: tuple[int, int] = setting((1, 2), "two sides")
    arms: tuple[str, ...] = setting(("x", "y"), "any number of words")


def given(*arguments: Any, recipe: str | None = None, but: Sequence[str] = ()) -> Few:
    parser = argparse.ArgumentParser()
    add_settings(parser, Few, but=but, recipe=recipe)
    return read_settings(Few, recipe, vars(parser.parse_args([*map(str, arguments)])))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = tmp_path / "few.toml"
    file.write_text('lr = 0.25\nsize = [5, 6]\narms = ["z"]\nname = "b"\n')
    monkeypatch.setitem(RECIPES, "few", file)
    return "few"


def test_an_option_goes_before_a_recipe_and_a_recipe_before_defaults(recipe: str) -> None:
    assert given() == Few()
    assert given(recipe=recipe) == Few(name="b", lr=0.25, size=(5, 6), arms=("z",))
    found = given("--lr", 0, "--size", 0, 0, "--name", "a", "--arms", "u", "v", "w", recipe=recipe)
    assert found == Few(lr=0.0, size=(0, 0), arms=("u", "v", "w"))  # 0 is given too
    found = given("--mix", 0, "--steps", "-1")
    assert (found.mix, found.steps) == (0.0, -1)
    assert [type(x) for x in (found.mix, found.steps, found.size)] == [float, int, tuple]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--name", "c"], "argument --name: invalid choice: 'c'"),
        (["--steps", "1.5"], "argument --steps: invalid int value: '1.5'"),
        (["--size", "1"], "argument --size: expected 2 arguments"),
        (["--arms"], "argument --arms: expected at least one argument"),
        (["--other", "1"], "unrecognized arguments: --other 1"),
    ],
)
def test_what_the_parser_refuses(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        given(*arguments)
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--steps", "-2"], "--steps must be finite and at least -1, got -2"),
        (["--lr", "-0.5"], "--lr must be finite and at least 0, got -0.5"),
        (["--lr", "nan"], "--lr must be finite and at least 0, got nan"),
        (["--mix", "inf"], "--mix must be finite and at least 0, got inf"),
        (["--size", "1", "-1"], r"--size must be finite and at least 0, got \[1, -1\]"),
    ],
)
def test_numbers_that_no_setting_can_be(arguments: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        given(*arguments)


def test_a_recipe_s_numbers_are_checked_too(recipe: str) -> None:
    RECIPES[recipe].write_text("lr = -1\n")
    with pytest.raises(ValueError, match=r"^--lr must be finite and at least 0, got -1$"):
        given("--steps", 1, recipe=recipe)


def test_settings_that_a_script_fixes_have_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        given("--lr", 1, but=("lr",))
    assert "unrecognized arguments: --lr 1" in capsys.readouterr().err


def test_what_changes_no_result(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_running(parser, "runs/x")
    running = read_running(vars(parser.parse_args([])))
    assert running[:5] == (Path("runs/x"), False, DEVICE, 0, "raise")
    assert running[5:] == ALONE[5:]
    arguments = ["--out", str(tmp_path), "--overwrite", "--device", "meta", "--workers", "3", "--on-error", "skip"]
    assert read_running(vars(parser.parse_args(arguments)))[:5] == (tmp_path, True, "meta", 3, "skip")
    with pytest.raises(ValueError, match="--resume goes on with a run, which --overwrite replaces: give one of them"):
        read_running(vars(parser.parse_args(["--resume", "--overwrite"])))
    for option, text in (
        ("--workers=-1", "--workers must be at least 0, got -1"),
        ("--keep=0", "--keep must be at least 1, got 0"),
        ("--device=foo", "Expected one of"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=text):
            read_running(vars(parser.parse_args([option])))
    required = argparse.ArgumentParser()
    add_running(required, None)
    with pytest.raises(SystemExit):
        required.parse_args([])


# How a script ends


def stopped_by(cause: BaseException) -> Stopped:
    stop = Stopped("stopped at step 7: why")
    stop.__cause__ = cause
    return stop


def one_line(text: str) -> ValueError:
    """What a loader's process raises: ours, below a traceback."""
    return ValueError(f"Caught ValueError in DataLoader worker process 0.\nTraceback ...\n  line\nValueError: {text}\n")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("lr must be positive"), 2, "lr must be positive"),
        (ValueError("two\nlines"), 2, "two"),
        (ValueError(), 2, "ValueError"),
        (one_line("a.png: broken"), 2, "a.png: broken"),
        (OSError(28, "No space left on device", "x"), 2, "[Errno 28] No space left on device: 'x'"),
        (RuntimeError("CUDA out of memory\nmore"), 2, "CUDA out of memory"),
        (AssertionError("Torch not compiled with CUDA enabled"), 2, "Torch not compiled with CUDA enabled"),
        (MemoryError(), 2, "MemoryError"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (stopped_by(ValueError("why")), 1, "stopped at step 7: why"),
        (stopped_by(KeyboardInterrupt()), 130, "stopped at step 7: why"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @run_main
    def fails(arguments: None) -> int:
        raise error

    assert fails(None) == status
    assert capsys.readouterr() == ("", f"test_command_line.py: {said}\n")


def test_a_mistake_in_the_code_keeps_its_traceback() -> None:
    @run_main
    def fails() -> int:
        raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        fails()


def test_its_own_status_is_passed_on_and_its_name_kept() -> None:
    @run_main
    def main(arguments: None = None) -> int:
        """Text."""
        return 1

    assert main() == 1
    assert (main.__name__, main.__doc__) == ("main", "Text.")


def test_a_batch_system_s_stop_is_a_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    @run_main
    def stops() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        return 0

    assert stops() == 130
    assert capsys.readouterr().err == "test_command_line.py: interrupted\n"


def test_the_reason_of_an_error() -> None:
    assert reason(KeyboardInterrupt()) == "interrupted"
    assert reason(StopIteration()) == "StopIteration"
    assert reason(one_line("TypeError: not ours")) == "TypeError: not ours"
