"""Students of fully_shard (FSDP2), in two processes, against the average computed on one."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hrda_lib import EMATeacher

fsdp = pytest.importorskip("torch.distributed.fsdp")
pytestmark = pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="this torch has no public fully_shard (FSDP2)")
WORLD = 2


def make() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 5, 1)  # five channels: shards of two sizes
    return nn.Sequential(first, nn.BatchNorm2d(5), nn.Sequential(nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)))


def shard(network: nn.Module) -> nn.Module:
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (WORLD,))
    for part in (network[2], network):
        fsdp.fully_shard(part, mesh=mesh)
    return network


def whole(network: nn.Module) -> list[Tensor]:
    parameters = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in network.parameters()]
    return [p.detach().clone() for p in parameters]


def follow(teacher: EMATeacher, student: nn.Module, rank: int) -> None:
    """Three updates are the average of what the student was, whatever passes lie between."""
    expected, images = whole(student), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(rank))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for k in range(3):
        teacher(images)
        student(images).pow(3).sum().backward()
        optimizer.step()
        with torch.no_grad():
            student(images)  # a validation leaves the root gathered
        teacher.update(student)
        expected = [old.lerp(new, 1 / (k + 2)) for old, new in zip(expected, whole(student), strict=True)]
    for mine, average, now in zip(whole(teacher.module), expected, whole(student), strict=True):
        torch.testing.assert_close(mine, average)
        assert mine.numel() < 8 or not torch.equal(mine, now)
    student.eval()
    teacher.eval().update(student)
    assert torch.equal(teacher.module[1].running_mean, student[1].running_mean)


def built_before() -> None:
    student = make()
    teacher = EMATeacher(student)
    follow(teacher, shard(student), dist.get_rank())
    assert type(teacher.module[0].weight) is nn.Parameter


def built_after() -> None:
    student = shard(make())
    message = "student cannot be copied: fully_shard has sharded it; copy it before fully_shard, or pass EMATeacher("
    with pytest.raises(ValueError, match=re.escape(message)):
        EMATeacher(student)


def whole_copy() -> None:
    student = shard(make())
    with torch.no_grad():
        student[0].weight.add_(1.0)
    teacher = EMATeacher(student, module=make())
    assert torch.equal(whole(teacher.module)[0], whole(student)[0])
    follow(teacher, student, dist.get_rank())


def sharded_copy() -> None:
    student = shard(make())
    with torch.no_grad():
        student[0].weight.add_(1.0)
    teacher = EMATeacher(student, module=shard(make()))
    assert torch.equal(whole(teacher.module)[0], whole(student)[0])
    follow(teacher, student, dist.get_rank())
    assert teacher.module[0].weight.to_local().shape[0] == (3, 2)[dist.get_rank()]


def sharded_copy_of_a_whole_student() -> None:
    student = make()
    teacher = EMATeacher(student, module=shard(make()))
    follow(teacher, student, rank=0)
    with pytest.raises(ValueError, match=r"module reaches a .* that is not its own, by itself"):
        EMATeacher(teacher.module, module=teacher.module)


def another_layout() -> None:
    """Sharded over the other dimension: what arrives is the student's own shard, gathered on the way."""
    tensor = torch.distributed.tensor
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (WORLD,))
    student, module = nn.Linear(4, 6), nn.Linear(4, 6)
    student.weight = nn.Parameter(tensor.distribute_tensor(student.weight.data, mesh, [tensor.Shard(0)]))
    module.weight = nn.Parameter(tensor.distribute_tensor(module.weight.data, mesh, [tensor.Shard(1)]))
    teacher = EMATeacher(student, module=module)
    assert torch.equal(whole(teacher.module)[0], whole(student)[0])
    with torch.no_grad():
        student.weight.add_(1.0)
    teacher.update(student)
    assert teacher.module.weight.placements == (tensor.Shard(1),)
    torch.testing.assert_close(whole(teacher.module)[0], whole(student)[0] - 0.5)


CASES = [built_before, built_after, whole_copy, sharded_copy, sharded_copy_of_a_whole_student, another_layout]


def work(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    for case in CASES:
        case()
    dist.destroy_process_group()


def test_sharded_students(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path / "store"),), nprocs=WORLD)
