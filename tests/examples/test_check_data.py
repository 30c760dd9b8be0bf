"""The look through data sets before a long run."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import main, picture
from trees import cityscapes, dark_zurich, gta, list_file, saved, write

import check_data
import own_data
from hrda_lib.data import Cityscapes, RareClasses, count_labels


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files in place of pictures, which take most of the time."""
    for name in ("draw_grid", "draw_shares"):
        monkeypatch.setattr(check_data, name, lambda file, *_: file.touch())


def test_a_sound_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Cityscapes(cityscapes(tmp_path / "data"), "train")
    assert check_data.main([str(tmp_path / "data"), "--recipe", "hrda", "--out", str(tmp_path / "out")]) == 0
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


@pytest.mark.usefixtures("quick")
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


def test_where_nothing_can_be_used_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = gta(tmp_path / "data", 2)
    for file in (root / "images").iterdir():
        file.write_bytes(b"")
    assert check_data.main([str(root), "--out", str(tmp_path / "out")]) == 1
    text = "gta: 2 images, 2 with a problem\n  none of them can be used: no sizes, no shares and no pictures\n"
    assert text in capsys.readouterr().out


def test_a_target_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cityscapes(tmp_path / "data", labels=False)
    arguments = [str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert check_data.main([*arguments, "--no-labels"]) == 0
    assert "%" not in capsys.readouterr().out
    assert check_data.main(arguments) == 1
    plain = write(tmp_path / "plain", labels=False)  # of classes that nobody names
    assert check_data.main([str(plain), *arguments[1:], "--no-labels"]) == 0
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


@pytest.mark.usefixtures("quick")
def test_a_file_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data", 5)
    lines = ["from hrda_lib.data import Folders", f"source = validation = Folders({str(tmp_path / 'data')!r})"]
    lines += ["target = source.unlabeled()", "names = ['left', 'one', 'two', 'three', 'four', 'none']"]
    (tmp_path / "five.py").write_text("\n".join(lines))
    arguments = ["--data", str(tmp_path / "five.py"), "--out", str(tmp_path / "out")]
    assert check_data.main(arguments) == 0
    printed = capsys.readouterr().out
    for title in ("source", "target", "validation"):
        assert f"{title}: 5 images, 0 with a problem\n  sizes (h, w): (24, 32): 5\n" in printed
    assert printed.count("| class | ") == 2  # a target has no labels
    assert printed.count("no label shows none\n") == 2
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("five_source.png", "five_source_classes.png", "five_target.png"),
        *("five_validation.png", "five_validation_classes.png"),
    }
    (tmp_path / "five.py").write_text("\n".join([*lines, "names = names[:4]"]))
    assert check_data.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "source: 5 images, 1 with a problem\n" in printed
    assert "  4: label 4 is none of the 4 classes\n" in printed
    assert check_data.main([*arguments, str(tmp_path / "data")]) == 1  # beside another data set
    assert "folders: 5 images, 0 with a problem\n" in capsys.readouterr().out


def test_a_sheet_has_labels_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, tuple[list[int], list[str], list[int]]] = {}

    def keep(file: Path, rows: list[list[Any]], titles: list[str], names: list[str], legend: Iterable[int]) -> None:
        drawn[file.stem] = [len(row) for row in rows], list(titles), list(legend)

    monkeypatch.setattr(check_data, "draw_grid", keep)
    monkeypatch.setattr(check_data, "draw_shares", lambda *_: None)
    for name, count in (("many", 5), ("one", 1)):
        write(tmp_path / name, count)
        assert check_data.main([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 0
    assert drawn["many"] == ([6, 4], ["image", "label"] * 3, [0, 1, 2, 3, 4])
    assert drawn["one"] == ([2], ["image", "label"], [0])
    for name in ("many", "one"):
        assert check_data.main([str(tmp_path / name), "--out", str(tmp_path / "out"), "--no-labels"]) == 0
    assert drawn["many"] == ([4, 1], ["image"] * 4, [])
    assert drawn["one"] == ([1], ["image"], [])


def test_images_of_other_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    for i in range(2):
        np.save(tmp_path / "data" / "images" / f"{i}.npy", np.random.default_rng(i).normal(size=(4, 14, 20)))
        saved(tmp_path / "data" / "labels" / f"{i}.png", np.full((14, 20), i, np.uint8))
    lines = ["import numpy as np", "import torch", "from hrda_lib.data import Folders"]
    lines += ["def read(file):", "    return torch.from_numpy(np.load(file)).float()"]
    lines += [f"source = Folders({str(tmp_path / 'data')!r}, read_image=read)", "target = source.unlabeled()"]
    (tmp_path / "of_four.py").write_text("\n".join([*lines, "names = ['a', 'b']"]))
    assert check_data.main(["--data", str(tmp_path / "of_four.py"), "--out", str(tmp_path / "out")]) == 0
    assert re.search(r"\| a +\| +50\.00 \|", capsys.readouterr().out)
    assert picture(tmp_path / "out" / "of_four_source.png").ndim == 3


@pytest.mark.usefixtures("quick")
def test_plain_folders_and_lists_have_no_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roots = [write(tmp_path / "a"), write(tmp_path / "b/a", 4), list_file(tmp_path / "c") / "list.txt"]
    assert check_data.main([*map(str, roots), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    sets = re.findall(r"^(.*): (\d) images, 0 with a problem$", printed, re.MULTILINE)
    assert sets == [("folders", "3"), ("folders 2", "4"), ("list.txt", "2")]
    assert re.search(r"\| 3 +\| +12\.50 \| +1 \|", printed)  # half of one of four images
    names = {f"{name}{kind}.png" for name in ("a", "a_2", "list.txt") for kind in ("", "_classes")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names


def test_without_a_root(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check_data.main([])
    assert capsys.readouterr().err.endswith("error: a ROOT, --source DIR --target DIR or --data FILE.py is needed\n")
    with pytest.raises(SystemExit):
        check_data.main(["root", "--source", "source"])
    assert "error: either --source DIR --target DIR [--classes FILE] or --data FILE.py" in capsys.readouterr().err


def table(printed: str) -> list[str]:
    """The first table that a script prints."""
    lines = printed.splitlines()
    (start, *_) = (i for i, line in enumerate(lines) if line.startswith("| class "))
    return [line for line in lines[start : start + 20] if line.startswith("|")]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("options", [[], ["--temperature", "0.3", "--min-pixels", "90"], ["--rare-classes", "0"]])
@pytest.mark.parametrize("by_file", [False, True], ids=["folders", "file"])
def test_what_is_drawn_is_what_training_draws(
    by_file: bool,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, count in (("day", 4), ("more", 2), ("dusk", 2)):
        write(tmp_path / name, count)
    (tmp_path / "names.txt").write_text("left\none\nvoid\nthree\n")
    lines = ["from hrda_lib.data import Folders", f"source = Folders({str(tmp_path / 'day')!r}, ignore=(1,))"]
    lines += ["target = source.unlabeled()", "names = ['left', 'one', 'two', 'three']"]
    (tmp_path / "own_day.py").write_text("\n".join(lines))
    given = ["--source", tmp_path / "day", tmp_path / "more", "--target", tmp_path / "dusk"]
    given = ["--data", tmp_path / "own_day.py"] if by_file else [*given, "--classes", tmp_path / "names.txt"]
    monkeypatch.setattr(own_data, "adapt", stop)  # everything before the first step
    assert main("own_data.py", *given, *options, "--crop", 16, 16, "--out", tmp_path / "run") == 2
    trained = table(capsys.readouterr().out)
    assert main("check_data.py", *given, *options, "--out", tmp_path / "out") == 0
    looked = table(capsys.readouterr().out)
    assert looked == trained
    drawn = [row.split("|")[-2].strip() for row in looked[2:]]
    assert drawn == ["-"] * 4 if "--rare-classes" in options else sum(map(float, drawn)) == pytest.approx(100, abs=0.2)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names >= ({"own_day_source.png"} if by_file else {"day_source.png", "dusk_target.png"})


def stop(*_: object, **__: object) -> None:
    raise ValueError("enough")


@pytest.mark.usefixtures("quick")
def test_what_is_drawn_by_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "data", 5)
    values = {"hrda": [], "dacs": ["--rare-classes", "0"], "own_data": ["--temperature", "0.05", "--min-pixels", "200"]}
    for recipe, options in values.items():
        assert check_data.main([str(root), "--recipe", recipe, "--out", str(tmp_path / "out")]) == 0
        printed = capsys.readouterr().out
        assert ("min_pixels=3000" in printed) == (recipe == "hrda")
        if options:
            assert check_data.main([str(root), *options, "--out", str(tmp_path / "out")]) == 0
            assert table(capsys.readouterr().out) == table(printed)
    assert check_data.main([str(root), "--out", str(tmp_path / "out")]) == 0
    assert table(capsys.readouterr().out) == table(printed)  # own_data is the default


def test_many_problems_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = gta(tmp_path / "data", 23)
    for file in (root / "images").iterdir():
        file.write_bytes(b"")
    assert check_data.main([str(root), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "gta: 23 images, 23 with a problem\n" in printed
    assert printed.count("cannot be read as an image") == 20
    assert printed.endswith("  and 3 more\n")
    assert not list((tmp_path / "out").iterdir())
