"""The look through data sets before a long run."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trees import cityscapes, dark_zurich, gta, write

import check_data
from hrda_lib.data import Cityscapes, RareClasses, count_labels


def test_a_sound_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Cityscapes(cityscapes(tmp_path / "data"), "train")
    assert check_data.main([str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "cityscapes train: 3 images, 0 with a problem\n  sizes (h, w): (14, 20): 3\n" in printed
    shares = [
        float(x) for x in re.findall(r"^\| [a-z ]+ \| +([0-9.]+) \| +[0-9]+ \| +[0-9.-]+ \|$", printed, re.MULTILINE)
    ]
    assert len(shares) == 38
    assert sum(shares) == pytest.approx(200, abs=0.2)
    ignored = [float(x) for x in re.findall(r"([0-9.]+) % of the pixels are ignored", printed)]
    label = torch.stack([data.label(i) for i in range(3)])
    assert ignored[0] == pytest.approx(100 * (label == 255).float().mean().item(), abs=0.006)
    assert "rare-class sampling: no image has more than min_pixels=3000 pixels of any class" in printed
    names = {f"cityscapes_{split}{kind}.png" for split in ("train", "val") for kind in ("", "_classes")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names


def test_rare_classes_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Cityscapes(cityscapes(tmp_path / "data"), "train")
    arguments = [str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--min-pixels", "0", "--temperature", "0.02"]
    for file in (tmp_path / "data").glob("gtFine/*/*/*_labelIds.png"):
        ids = np.array(Image.open(file))
        ids[ids == 31] = 0
        Image.fromarray(ids).save(file)
    assert check_data.main(arguments) == 0
    printed = capsys.readouterr().out
    rare = RareClasses(count_labels(data)[:, :19], temperature=0.02, min_pixels=0)
    assert re.search(rf"\| road +\| +[0-9.]+ \| +3 \| +{100 * rare.probabilities[0]:.1f} \|", printed)
    assert re.search(r"\| train +\| +0\.00 \| +0 \| +0\.0 \|", printed)
    assert "no label shows train\n" in printed


def test_every_problem_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = gta(tmp_path / "data", 6)
    (root / "labels" / "00001.png").unlink()
    (root / "labels" / "00002.png").write_bytes((root / "labels" / "00002.png").read_bytes()[:50])
    (root / "images" / "00003.png").write_bytes(b"")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(root / "labels" / "00004.png")
    Image.fromarray(np.full((14, 20), 200, np.uint8)).save(root / "labels" / "00005.png")
    assert check_data.main([str(root), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "gta: 6 images, 5 with a problem\n  sizes (h, w): (14, 20): 1\n" in printed
    for text in (
        r"labels/00001\.png: no such file",
        r"labels/00002\.png: cannot be read as an image",
        r"images/00003\.png: cannot be read as an image",
        r"labels/00004\.png: label must have its image's size \(14, 20\), got \(3, 4\)",
        r"labels/00005\.png: label 200 is outside 0..34",
    ):
        assert re.search(text, printed)


def test_a_target_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cityscapes(tmp_path / "data", labels=False)
    arguments = [str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert check_data.main([*arguments, "--no-labels"]) == 0
    assert "%" not in capsys.readouterr().out
    assert check_data.main(arguments) == 1
    assert check_data.main([str(tmp_path / "nowhere"), *arguments[1:]]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("check_data.py: ")


def test_dark_zurich_has_labels_to_measure_on_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path / "out"), "--min-pixels", "0"]
    assert check_data.main([str(dark_zurich(tmp_path / "a")), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "dark_zurich train: 1 images, 0 with a problem" in printed
    assert "dark_zurich val: 1 images, 0 with a problem" in printed
    assert check_data.main([str(dark_zurich(tmp_path / "b", ["val"])), *arguments]) == 0


def test_plain_frames_are_suspicious_and_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = gta(tmp_path / "data", 4)
    for name, value in (("00002", 0), ("00004", 255)):
        Image.fromarray(np.full((14, 20, 3), value, np.uint8)).save(root / "images" / f"{name}.png")
    assert check_data.main([str(root), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "gta: 4 images, 0 with a problem\n" in printed
    for name in ("00002", "00004"):
        assert f"  suspicious, not counted as a problem: {name} is one plain colour\n" in printed
    assert printed.count("suspicious") == 2


def test_files_left_out_and_sizes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "data", 3)
    for name in ("a.gif", "b.gif", "._c.png"):
        (root / "images" / name).touch()
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(root / "labels" / "1.png")
    assert check_data.main([str(root), "--out", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().out.splitlines()
    wrong = f"{root}/labels/1.png: label must have its image's size (24, 32), got (24, 30)"
    assert lines[:2] == [
        f"{root}/images: left out: 2 .gif; the first is a.gif",
        f"folders, by the headers of the files: {wrong}",
    ]
    assert lines[2] == "folders: 3 images, 1 with a problem"
    assert lines[4] == f"  {wrong}"


def test_the_limit_of_pixels_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(write(tmp_path / "data", 2)), "--out", str(tmp_path / "out"), "--max-pixels"]
    assert check_data.main([*arguments, "767"]) == 1
    assert "0.png: 24 x 32 pixels are more than max_pixels=767" in capsys.readouterr().out
    assert check_data.main([*arguments, "768"]) == 0
    assert check_data.main([*arguments, "0"]) == 2


def test_names_are_shown_without_what_steers_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = gta(tmp_path / "data", 1)
    for folder in ("images", "labels"):
        (root / folder / "00001.png").rename(root / folder / "a\x1b[2J.png")
    Image.fromarray(np.zeros((14, 20, 3), np.uint8)).save(root / "images" / "a\x1b[2J.png")
    assert check_data.main([str(root), "--kind", "gta", "--out", str(tmp_path / "out")]) == 0
    (root / "labels" / "a\x1b[2J.png").write_bytes(b"")
    assert check_data.main([str(root), "--kind", "gta", "--out", str(tmp_path / "out")]) == 1
    assert "\x1b[2J" not in capsys.readouterr().out
