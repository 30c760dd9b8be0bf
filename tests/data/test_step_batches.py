"""Streams by step: the same for any number of workers and ranks, and from any step on."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from trees import write

from hrda_lib.data import Folders, RareClasses, SourceCrops, StepBatches, TargetCrops, count_labels


def stream(root: Path, batches: StepBatches, workers: int, seed: int = 3) -> list[tuple[Tensor, ...]]:
    """Source and target batches of each step."""
    data = Folders(root)
    rare = RareClasses(count_labels(data)[:, :4], temperature=1.0, min_pixels=0)
    source = SourceCrops(data, (8, 16), seed=seed, rare_classes=rare)
    target = TargetCrops(data.unlabeled(), (8, 16), seed=seed)
    loaders = [DataLoader(crops, batch_sampler=batches, num_workers=workers) for crops in (source, target)]
    return [(*labeled, *unlabeled) for labeled, unlabeled in zip(*loaders, strict=True)]


def equal(a: list[tuple[Tensor, ...]], b: list[tuple[Tensor, ...]]) -> bool:
    first, second = (list(itertools.chain(*batches)) for batches in (a, b))
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # more than cores
def test_any_number_of_workers_and_any_start(tmp_path: Path) -> None:
    write(tmp_path, 4)
    whole = stream(tmp_path, StepBatches(2, 7), 0)
    assert [batch[0].shape for batch in whole] == [(2, 3, 8, 16)] * 7
    for workers in (1, 3):
        assert equal(stream(tmp_path, StepBatches(2, 7), workers), whole)
    for workers in (0, 3):
        assert equal(stream(tmp_path, StepBatches(2, 7, start=4), workers), whole[4:])
    assert not equal(stream(tmp_path, StepBatches(2, 7), 0, seed=4), whole)


def test_ranks_together_are_one_process(tmp_path: Path) -> None:
    write(tmp_path, 4)
    whole = stream(tmp_path, StepBatches(4, 3), 0)
    ranks = [stream(tmp_path, StepBatches(2, 3, rank=rank, world=2), 0) for rank in range(2)]
    together = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*ranks, strict=True)]
    assert equal(together, whole)


def test_source_and_target_draw_independently(tmp_path: Path) -> None:
    data = Folders(write(tmp_path, 4))
    source, target = SourceCrops(data, (8, 16), max_class_share=1), TargetCrops(data.unlabeled(), (8, 16))
    assert not all(torch.equal(source[k].image, target[k].image) for k in range(12))


def test_the_streams_have_no_end_but_their_sampler(tmp_path: Path) -> None:
    crops = TargetCrops(Folders(write(tmp_path, 4)).unlabeled(), 8)
    assert crops[10**9].image.shape == (3, 8, 8)
    assert len(StepBatches(2, 100_000, start=99_999)) == 1
    with pytest.raises(TypeError, match=r"^an endless stream has no length; give it one, or take its samples by StepB"):
        len(crops)
    with pytest.raises(IndexError, match=r"^sample -1 is outside 0\.\. of this stream$"):
        crops[-1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"batch_size": 0, "steps": 2}, "batch_size must be positive, got 0"),
        ({"batch_size": 1, "steps": 2, "start": 3}, "start must be in [0, steps], got start=3, steps=2"),
        ({"batch_size": 1, "steps": -1}, "start must be in [0, steps], got start=0, steps=-1"),
        ({"batch_size": 1, "steps": 2, "rank": 2, "world": 2}, "rank must be in [0, world), got rank=2, world=2"),
    ],
)
def test_mistakes(arguments: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        StepBatches(**arguments)
