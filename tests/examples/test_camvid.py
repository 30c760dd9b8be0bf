"""Rare-class sampling on real street scenes: CamVid, which is not part of the repository."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from chi_square import surprise
from PIL import Image
from scripts import EXAMPLES, main

from hrda_lib.data import Folders, RareClasses, SourceCrops, TargetCrops, check_classes, count_labels

CAMVID = Path(__file__).parents[3] / "shared" / "camvid"
NAMES = (EXAMPLES / "support" / "camvid_classes.txt").read_text().split()
VOID = NAMES.index("void")
pytestmark = pytest.mark.skipif(not CAMVID.is_dir(), reason=f"needs CamVid as plain folders in {CAMVID}")


def test_statistics(tmp_path: Path) -> None:
    data = Folders(CAMVID / "day", ignore=[VOID])
    counts = count_labels(data, cache=tmp_path / "counts.json")
    assert torch.equal(count_labels(data, cache=tmp_path / "counts.json"), counts)
    check_classes(data, counts, VOID)
    for i in range(0, len(data), 25):
        with Image.open(data.label_file(i)) as image:
            ids = np.array(image)
        expected = {VOID if label == 255 else label: int(counts[i, label]) for label in counts[i].nonzero().flatten()}
        assert dict(zip(*np.unique(ids, return_counts=True), strict=True)) == {int(k): v for k, v in expected.items()}


def test_rare_classes_are_drawn_with_their_probability() -> None:
    data = Folders(CAMVID / "day", ignore=[VOID])
    counts = count_labels(data)[:, :VOID]
    rare = RareClasses(counts, temperature=0.05, min_pixels=200)
    generator = torch.Generator().manual_seed(0)
    drawn = [rare.draw(generator) for _ in range(5000)]
    assert surprise([label for _, label in drawn], rare.probabilities.tolist()) < 3.5
    assert all(counts[index, label] > 200 for index, label in drawn)
    shares = counts.sum(dim=0) / counts.sum()
    assert rare.probabilities.argsort().tolist() == shares.argsort(descending=True).tolist()
    # what the network gets to see of the rarest class, with and without
    rarest = int(shares.argmin())
    seen = []
    for sampling in (rare, None):
        crops = SourceCrops(data, (192, 256), rare_classes=sampling, seed=1)
        seen.append(sum(int((crops[k].label == rarest).sum()) for k in range(150)))
    assert seen[0] > seen[1]  # not by much: most of these images show every class


def test_one_adaptation_that_uses_them(tmp_path: Path) -> None:
    target = Folders(CAMVID / "dusk").unlabeled()
    assert TargetCrops(target, (192, 256))[0].image.shape == (3, 192, 256)
    arguments = ["--source", CAMVID / "day", "--target", CAMVID / "dusk", "--out", tmp_path / "run"]
    arguments += ["--classes", EXAMPLES / "support" / "camvid_classes.txt", "--crop", 192, 256]
    arguments += ["--steps", 2, "--warmup", 2]
    assert main("own_data.py", *arguments) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["network"]["classes"] == NAMES[:VOID]
    assert config["network"]["ignore"] == [VOID]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
