"""A Python file that says what the data are: what it must define, and functions of it that other processes find."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from trees import arrays, write

import support
from hrda_lib.data import Concatenated, Relabeled, SourceCrops, StepBatches
from support.data_file import read_data_file

GOOD = """
from pathlib import Path

import numpy as np
import torch

from hrda_lib.data import Folders

ROOT = Path(__file__).parent


def read(file):
    return torch.from_numpy(np.load(file))


source = Folders(ROOT / "data", read_image=read, read_label=read)
target = source.unlabeled()
names = ["a", "b", "c"]
"""


def text(file: Path, content: str = GOOD) -> Path:
    file.write_text(content)
    return file


def test_what_it_defines(tmp_path: Path) -> None:
    root = arrays(tmp_path / "data")
    found = read_data_file(text(tmp_path / "bands.py"))
    assert found.names == ("a", "b", "c")
    assert found.validation is None
    assert found.source[1].image.shape == (4, 14, 20)
    assert torch.equal(found.source[1].image[0], 10.0 * found.source[1].label)
    assert [file.name for file in found.target.files] == ["0.npy", "1.npy"]
    assert torch.equal(found.target[0].image, torch.from_numpy(np.load(root / "images" / "0.npy")))


def test_any_labelled_images(tmp_path: Path) -> None:
    write(tmp_path / "data")
    lines = "source = Concatenated([Folders(ROOT / 'data')])\nvalidation = Relabeled(source, {0: 1, 1: 0})\n"
    lines += "names = 'a', 'b', 'c'"
    found = read_data_file(text(tmp_path / "mixed.py", f"from hrda_lib.data import *\n{GOOD}{lines}"))
    assert isinstance(found.source, Concatenated)
    assert isinstance(found.validation, Relabeled)


def test_again_and_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    relative = text(Path("bands.py"))
    assert len(read_data_file(relative).source) == 2
    text(relative, GOOD.replace('"c"]', '"d"]'))  # it is run again, and not remembered
    assert read_data_file(relative).names == ("a", "b", "d")
    assert read_data_file(relative.resolve()).names == ("a", "b", "d")


def test_it_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    arrays(tmp_path / "data")
    text(tmp_path / "of_mine.py", "NAMES = ['a', 'b', 'c']")
    assert read_data_file(text(tmp_path / "bands.py", f"{GOOD}from of_mine import NAMES as names")).names == (
        "a",
        "b",
        "c",
    )


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_find_its_functions(method: str, tmp_path: Path) -> None:
    arrays(tmp_path / "data")
    found = read_data_file(text(tmp_path / "mit-Bändern 2.py"))
    crops, steps = SourceCrops(found.source, (8, 8)), StepBatches(2, 2)
    here = [images for images, _ in DataLoader(crops, batch_sampler=steps)]
    loader = DataLoader(crops, batch_sampler=steps, num_workers=1, multiprocessing_context=method)
    assert all(torch.equal(a, b) for a, (b, _) in zip(here, loader, strict=True))


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (lambda p: p / "no.py", "no.py: no such file"),
    "a folder": (lambda p: p / "data", "data: no such file"),
    "no Python file": (lambda p: text(p / "r.txt"), "r.txt: is no Python file"),
    "fails": (
        lambda p: text(p / "bad.py", "import nonsense_"),
        "bad.py: cannot be run (ModuleNotFoundError: No module named 'nonsense_')",
    ),
    "no Python": (
        lambda p: text(p / "bad.py", "names = ["),
        "bad.py: cannot be run (SyntaxError: '[' was never closed",
    ),
    "no text": (
        lambda p: ((p / "bad.py").write_bytes(b"names = '\xff'"), p / "bad.py")[1],
        "bad.py: cannot be run (SyntaxError: ",
    ),
    "ends the process": (
        lambda p: text(p / "bad.py", "import sys\nsys.exit('done')"),
        "bad.py: cannot be run (SystemExit: done)",
    ),
    "several lines": (
        lambda p: text(p / "bad.py", "raise KeyError('one\\ntwo')"),
        "bad.py: cannot be run (KeyError: 'one\\ntwo')",
    ),
    "a folder that is not there": (
        lambda p: text(p / "bad.py", GOOD.replace('"data"', '"no"')),
        "no/images: no such folder",
    ),
    "nothing": (
        lambda p: text(p / "bad.py", ""),
        "bad.py: must define source, target and names, source and target and names missing",
    ),
    "no names": (
        lambda p: text(p / "bad.py", f"{GOOD}del names"),
        "bad.py: must define source, target and names, names missing",
    ),
    "a target with labels": (
        lambda p: text(p / "bad.py", f"{GOOD}target = source"),
        "bad.py: target must be images without labels, such as Folders(...).unlabeled()",
    ),
    "a target that is a folder": (
        lambda p: text(p / "bad.py", f"{GOOD}target = ROOT"),
        "bad.py: target must be images",
    ),
    "a source without labels": (
        lambda p: text(p / "bad.py", f"{GOOD}source = target"),
        "bad.py: source must be labelled images, such as Folders(...)",
    ),
    "a list as source": (lambda p: text(p / "bad.py", f"{GOOD}source = []"), "bad.py: source must be labelled images"),
    "a validation without labels": (
        lambda p: text(p / "bad.py", f"{GOOD}validation = target"),
        "bad.py: validation must be labelled images, such as Folders(...)",
    ),
    "one name": (
        lambda p: text(p / "bad.py", f"{GOOD}names = 'abc'"),
        "bad.py: names must be a list of class names, got 'abc'",
    ),
    "no class": (lambda p: text(p / "bad.py", f"{GOOD}names = []"), "names must be a list of class names, got []"),
    "numbers as names": (
        lambda p: text(p / "bad.py", f"{GOOD}names = ['a', 1]"),
        "names must be a list of class names, got ['a', 1]",
    ),
    "a name with a dot": (lambda p: text(p / "a.b.py"), "a.b.py: a module's name has no dot; rename the file"),
    "the name of a module": (
        lambda p: text(p / "torch.py"),
        "torch.py: another module is called torch; rename the file",
    ),
    "of one that is not imported": (lambda p: text(p / "wave.py"), "another module is called wave; rename the file"),
    "of one without a file": (lambda p: text(p / "sys.py"), "another module is called sys; rename the file"),
    "of a folder that is imported": (
        lambda p: text(p / "support.py"),
        "another module is called support; rename the file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes(case: str, tmp_path: Path) -> None:
    arrays(tmp_path / "data")
    make, message = BAD[case]
    before = sys.modules["support"], sys.modules["torch"]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_data_file(make(tmp_path))
    assert len(str(error.value).splitlines()) == 1
    assert before == (support, torch)
