"""Runs compared on images without labels: the measures against networks whose answers are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import main
from torch import Tensor, nn
from trees import saved

import compare
from hrda_lib.data import Folders
from support.networks import NetworkSpec
from support.run_folder import RunFolder

SPEC = NetworkSpec(("low", "high"), (32, 32))


class Bright(nn.Module):
    """Says "high" where the first channel is above 0, and is sure or not."""

    def __init__(self, sure: float = 9.0, *, left: bool = False) -> None:
        super().__init__()
        self.sure, self.left = sure, left

    def predict(self, x: Tensor) -> Tensor:
        high = x[:, :1] > 0
        if self.left:  # hangs on the side, as no network should
            high = high & (torch.arange(x.shape[-1]) < x.shape[-1] // 2)
        return torch.cat([torch.zeros_like(x[:, :1]), torch.where(high, self.sure, -self.sure)], dim=1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Half dark, half bright: rows of 24 pixels, 8 of them bright."""
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:, 8:16] = 255
    for i in range(2):
        saved(tmp_path / "target" / "images" / f"{i}.png", picture)
    return tmp_path / "target"


def numbers(images: Path, *models: nn.Module) -> list[dict[str, float]]:
    loaded = [(model, SPEC) for model in models]
    return compare.look(loaded, Folders(images).unlabeled(), 2, torch.device("cpu"))  # type: ignore[arg-type]


def test_measures_of_networks_whose_answers_are_known(images: Path) -> None:
    whole, unsure, left = numbers(images, Bright(), Bright(0.5), Bright(left=True))
    assert (whole["agreement"], whole["flip"], whole["sure"]) == (1, 1, 1)
    assert whole["classes"] == pytest.approx([2 / 3, 1 / 3])
    assert (unsure["agreement"], unsure["sure"]) == (1, 0)
    # it sees columns 8 to 11 of 8 to 15, and of the mirror image columns 12 to 15
    assert left["classes"] == pytest.approx([5 / 6, 1 / 6])
    assert left["agreement"] == pytest.approx((16 / 20 + 4 / 8) / 2)
    assert left["flip"] == pytest.approx((16 / 24 + 0) / 2)
    assert 0 < whole["blur"] <= 1


def test_a_table_with_the_labels_that_were_counted(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        RunFolder(tmp_path / name, SPEC).finish(SPEC.build(), None)
    rows = [{"0": 3, "255": 9}, {"1": 1}]
    (tmp_path / "first" / "label_counts.json").write_text(json.dumps({"fingerprint": "", "counts": rows}))
    runs = tmp_path / "first", tmp_path / "second"
    assert main("compare.py", images, *runs, "--json", tmp_path / "found.json", "--device", "cpu") == 0
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line]
    assert table[0] == ["%", "first", "second", "labels"]
    assert [row[0] for row in table[2:]] == ["agreement", "flip", "blur", "sure", "low", "high"]
    assert [row[-1] for row in table[-2:]] == ["75.00", "25.00"]
    assert table[2][1] == "100.0"
    found = json.loads((tmp_path / "found.json").read_text())
    assert sum(found[str(runs[1])]["classes"]) == pytest.approx(1)


def test_runs_with_other_classes_are_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, classes in (("first", ("a", "b")), ("second", ("a", "c"))):
        spec = NetworkSpec(classes, (32, 32))
        (tmp_path / name).mkdir()
        RunFolder(tmp_path / name, spec).finish(spec.build(), None)
    assert main("compare.py", images, tmp_path / "first", tmp_path / "second", "--device", "cpu") == 2
    assert "second: its classes are not those of" in capsys.readouterr().err
