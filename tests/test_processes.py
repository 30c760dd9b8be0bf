"""Two processes of gloo are one process of the whole batch."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from trees import write

from hrda_lib import ConfusionMatrix, CropBox, EMATeacher, MultiResSegmenter, SelfTraining
from hrda_lib.data import Folders, count_labels

C, BOX = 4, CropBox(8, 16, 16, 16)


def train(student: nn.Module, part: slice) -> EMATeacher:
    teacher = EMATeacher(student)
    training = SelfTraining(student, teacher, per="image", threshold=0.3, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(7)
    for k in range(3):
        if k > 0:
            teacher.update(student)
        source, target = torch.randn(2, 4, 3, 32, 32, generator=generator)
        labels, classes = torch.randint(C, (4, 32, 32), generator=generator), [[0, 1], [2, 3], [0, 2], [1, 3]]
        batch = source[part], labels[part], target[part]
        for _, loss in training.losses(*batch, source_box=BOX, mixed_box=BOX, mixed_classes=classes[part]):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return teacher


def build() -> MultiResSegmenter:
    torch.manual_seed(0)
    return MultiResSegmenter(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, C, 1), nn.Conv2d(8, 1, 1), detail_size=16)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def a_student_of_ddp(rank: int) -> None:
    """Its wrapper is called, so that the gradients are those of both."""
    alone, plain = build(), build()
    expected = train(alone, slice(None))
    teacher = train(nn.parallel.DistributedDataParallel(plain), slice(2 * rank, 2 * rank + 2))
    torch.testing.assert_close(flat(plain), flat(alone))
    torch.testing.assert_close(flat(teacher), flat(expected))


def a_confusion_matrix(rank: int) -> None:
    prediction, target = torch.randint(5, (2, 2, 30, 40), generator=torch.Generator().manual_seed(0))
    confusion, alone, whole = (ConfusionMatrix(5) for _ in range(3))
    confusion.update(prediction[rank], target[rank])
    alone.update(prediction[rank], target[rank])
    whole.update(prediction, target)
    before = confusion.matrix
    confusion.all_reduce()
    assert torch.equal(confusion.matrix, whole.matrix)
    assert torch.equal(before, alone.matrix)  # the counts are summed elsewhere
    groups = [dist.new_group([rank]) for rank in range(2)]
    alone.all_reduce(groups[rank])
    assert torch.equal(alone.matrix, before)


def labels_of_a_folder(rank: int, root: Path) -> None:
    """Each opens its own; the first keeps the cache, which the other believes; an error of one is raised by both."""
    data, cache, opened = Folders(root / "data"), root / "counts.json", list[int]()

    def progress(indices: Iterable[int]) -> Iterable[int]:
        opened.extend(indices)
        return indices

    alone = count_labels(data)
    for on_error in ("raise", "skip"):
        assert torch.equal(count_labels(data, progress=progress, group=dist.group.WORLD, on_error=on_error), alone)
    assert opened == [rank, rank + 2][: 2 - rank] * 2
    assert torch.equal(count_labels(data, cache=cache, progress=progress, group=dist.group.WORLD), alone)
    opened.clear()
    dist.barrier()
    assert torch.equal(count_labels(data, cache=cache, progress=progress, group=dist.group.WORLD), alone)
    assert not opened
    assert cache.exists()
    broken = Folders(root / "broken")
    with pytest.raises(ValueError, match=r"1\.png"):  # which the second process opens
        count_labels(broken, group=dist.group.WORLD)
    alone[1] = 0
    assert torch.equal(count_labels(broken, group=dist.group.WORLD, on_error="skip"), alone)


def work(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for case in (a_student_of_ddp, a_confusion_matrix):
        case(rank)
    labels_of_a_folder(rank, Path(store).parent)
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    for name in ("data", "broken"):
        write(tmp_path / name)
    (tmp_path / "broken" / "labels" / "1.png").write_bytes(b"no picture")
    torch.multiprocessing.spawn(work, (str(tmp_path / "store"),), nprocs=2)
