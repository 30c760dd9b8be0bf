"""A data set under other class ids."""

import re
from pathlib import Path

import pytest
import torch
from trees import write

from hrda_lib.data import Folders, Relabeled, count_labels


def test_other_class_ids(tmp_path: Path) -> None:
    data = Folders(write(tmp_path, 4))
    common = Relabeled(data, {0: 3, 2: 3, 1: 0})
    expected = torch.tensor([3, 0, 3, 255], dtype=torch.uint8)
    for i in range(4):
        label = torch.where(data.label(i) == 0, expected[0], expected[i])
        assert torch.equal(common.label(i), label)
        assert torch.equal(common[i].label, label)
        assert torch.equal(common[i].image, data[i].image)
        assert common[i].name == data[i].name
    assert len(common) == 4
    assert common.label_file(1) == data.label_file(1)
    assert common.fingerprint() != Relabeled(data, {0: 3}).fingerprint()
    assert sorted(count_labels(common).sum(0).nonzero().flatten().tolist()) == [0, 3, 255]
    for ids in ({}, {256: 0}, {0: -1}):
        with pytest.raises(
            ValueError, match=re.escape(f"ids must map label ids in [0, 255] to others, at least one, got {ids}")
        ):
            Relabeled(data, ids)
