"""Two processes against one with the images of both: losses, gradients, steps, and what goes wrong."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from hrda_lib import (
    ConfidenceWeightedCE,
    EMATeacher,
    FeatureDistance,
    MultiResSegmenter,
    ScaleAttentionHead,
    SelfTraining,
    StrongAugment,
    patch_mask,
)
from hrda_lib.checkpointing import seed_step
from hrda_lib.distributed import (
    all_reduce_gradients,
    broadcast,
    check_equal,
    mean,
)

C, SIDE = 5, 32
WORLD = 2
Found = dict[str, Any]


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Four images a domain in blocks, with labels; two of them are each process's."""
    generator = torch.Generator().manual_seed(step)
    source, target = torch.rand(2, 4, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(C, (4, 4, 4), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[0, :20] = 255  # so that processes have other numbers of valid pixels
    return source, labels, target


class Norm(nn.BatchNorm2d):
    """Frozen: processes with batch statistics of their own are another network."""

    def train(self, mode: bool = True) -> "Norm":
        return super().train(False)


def network() -> MultiResSegmenter:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), Norm(8), nn.ReLU())

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = ScaleAttentionHead([8], C, embed_dims=8, dropout=0.0)
            self.head.fuse[1] = nn.GroupNorm(2, 8)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head([x])
            return out

    return MultiResSegmenter(encoder, nn.Conv2d(8, C, 1), Attention(), detail_size=16).train()


def training_of(student: nn.Module, teacher: nn.Module, normalize: Any, group: Any) -> SelfTraining:
    return SelfTraining(
        student,
        teacher,
        criterion=ConfidenceWeightedCE(normalize=normalize),
        feature_distance=FeatureDistance(student.encoder, classes=[0, 1, 2], num_classes=C, weight=1.0),
        threshold=0.25,
        augment=StrongAugment(mean=(0, 0, 0), std=(1, 1, 1), jitter=1.0, blur=1.0),
        masking=patch_mask,
        generator=torch.Generator(),
        group=group,
    )


def steps(count: int, part: slice, normalize: Any = "all", group: Any = None) -> tuple[list[Found], Any, Any]:
    """So many steps on a part of each batch: losses and gradients of each, student and teacher at last."""
    student = network()
    broadcast(student, group)
    teacher = EMATeacher(student, decay=0.9)
    with torch.no_grad():
        for p in student.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    training = training_of(student, teacher, normalize, group)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    found = []
    for step in range(count):
        seed_step(3, step, rank=part.start // 2 if part.start else 0, generator=training.generator)
        source, labels, target = (x[part] for x in batch(step))
        losses = {}
        for name, loss in training.losses(source, labels, target):
            loss.backward()
            losses[name] = loss.item()
        all_reduce_gradients(student.parameters(), group)
        grads = [p.grad.clone() for p in student.parameters() if p.grad is not None]
        found.append({"losses": mean(losses, group), "gradients": grads})
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(student)
    return found, student, teacher


def spawn(work: Callable[..., None], folder: Path, *arguments: Any, world: int = WORLD) -> list[Any]:
    """Run it in processes; what each of them put into its file."""
    mp.spawn(_process, args=(work, world, folder, arguments), nprocs=world, join=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _process(rank: int, work: Callable[..., Any], world: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.pop("RANK", None)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        torch.save(work(rank, *arguments), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def as_one_process(rank: int) -> Found:
    """Everything that is compared, in one start of the processes: it takes seconds."""
    part, group = slice(2 * rank, 2 * rank + 2), dist.group.WORLD
    found = {name: steps(1, part, name, group)[0] for name in ("all", "valid", "weight")}
    _, student, teacher = steps(20, part, "all", group)
    check_equal(student, group)
    check_equal(teacher, group)
    found["student"], found["teacher"] = student.state_dict(), teacher.state_dict()
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return spawn(as_one_process, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("normalize", ["all", "valid", "weight"])
def test_a_step_of_two_processes_is_that_of_one(normalize: str, two: list[Found]) -> None:
    ((one,), _, _), found = steps(1, slice(0, 4), normalize), two[0][normalize][0]
    assert found["losses"].keys() == one["losses"].keys() == {"source", "mixed", "masked"}
    for name, loss in one["losses"].items():
        assert found["losses"][name] == pytest.approx(loss, rel=1e-6, abs=1e-6)
    for got, expected in zip(found["gradients"], one["gradients"], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert sum(x.abs().sum() for x in one["gradients"]) > 0.1


def test_processes_stay_equal_to_the_bit_and_to_one(two: list[Found]) -> None:
    _, student, teacher = steps(20, slice(0, 4))
    for kind, module in (("student", student), ("teacher", teacher)):
        first, second = (found[kind] for found in two)
        assert all(torch.equal(x, second[name]) for name, x in first.items())
        for name, x in module.state_dict().items():
            torch.testing.assert_close(first[name], x, rtol=1e-4, atol=1e-5)
