"""Several data sets as one."""

from pathlib import Path

import pytest
import torch
from trees import write

from hrda_lib.data import Concatenated, Folders, count_labels


def test_concatenated(tmp_path: Path) -> None:
    first, second = Folders(write(tmp_path / "a", 2)), Folders(write(tmp_path / "b", 3))
    both = Concatenated([first, second])
    assert len(both) == 5
    assert torch.equal(both[4].image, second[2].image)
    assert torch.equal(both[4].label, second[2].label)
    assert torch.equal(both.label(4), second[2].label)
    assert both.fingerprint() not in (first.fingerprint(), Concatenated([second, first]).fingerprint())
    assert both.label_file(2) == tmp_path / "b" / "labels" / "0.png"
    assert torch.equal(count_labels(both), torch.cat([count_labels(first), count_labels(second)]))


def test_no_data_set() -> None:
    with pytest.raises(ValueError, match=r"^datasets must hold at least one data set, got none$"):
        Concatenated([])
