"""What the help of the scripts says, and which arms a call without --arms runs."""

import argparse

import pytest
from scripts import main

import ablation
import gta2cityscapes


def helped(script: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(script, "--help") == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_says_what_holds_without_an_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    own = helped("own_data.py", capsys)
    assert "steps of adaptation, and of its control (default: 600)" in own
    assert "--balance BALANCE" in own
    assert "0: none (default: 0.5)" in own
    assert "steps of adaptation, and of its control (default: 1000)" in helped("gta2cityscapes.py", capsys)
    assert "what to run (default: ('source', 'control', 'control-long'" in helped("ablation.py", capsys)


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
