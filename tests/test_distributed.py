"""Two processes against one with the images of both: losses, gradients, steps, and what goes wrong."""

import copy
import os
import re
import time
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
    pseudo_labels,
    sample_box_mask,
    sample_class_mask,
)
from hrda_lib.checkpointing import seed_step
from hrda_lib.distributed import all_reduce_gradients, average_buffers, broadcast, check_equal, mean, start, stop

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


def wrong(rank: int) -> list[str]:
    """What is said, on each process, about processes that do not fit each other."""
    group, said = dist.group.WORLD, list[str]()

    def refused(work: Callable[[], object]) -> None:
        try:
            work()
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))

    other = nn.Linear(2, 3 + rank)
    refused(lambda: broadcast(other))
    refused(lambda: check_equal(other))
    refused(lambda: average_buffers(nn.Sequential(*(nn.BatchNorm2d(2) for _ in range(1 + rank)))))
    other(torch.ones(1, 2)).sum().backward()
    refused(lambda: all_reduce_gradients(other.parameters()))
    refused(lambda: mean({f"loss{rank}": 1.0}))
    student = network()
    training = training_of(student, EMATeacher(student), "all", group)
    source, labels, _ = (x[:2] for x in batch(0))
    assert training.generator is not None
    training.generator.manual_seed(rank)
    refused(lambda: training.source(source, labels))
    training.generator.manual_seed(1)
    count = 2 - rank
    refused(lambda: training.source(source[:count], labels[:count]))
    many = torch.arange(32 * 32).reshape(1, 32, 32)
    refused(lambda: sample_class_mask(many, torch.Generator(), group=group))
    with torch.no_grad():
        student.decoder.weight[0, 0, 0, 0] += 1e-7 * rank
    refused(lambda: check_equal(student))
    return said


def test_processes_that_do_not_fit_are_told_on_each(tmp_path: Path) -> None:
    texts = [
        r"module must be of the same names, shapes and types on all processes, got 2 here and others elsewhere; build",
        r"module must be of the same names",
        r"module must be of the same names",
        r"parameters must be of the same names",
        r"value must be of the same names",
        r"generator must have one state on all processes of group, .* seed it alike, without the rank: seed_step",
        r"images must be of one shape on all processes of group, got \([12], 3, 32, 32\) here and another elsewhere",
        r"labels must have at most 256 ids where processes share a batch, got 1024",
        r"module must be the same on all processes, but decoder.weight differs; broadcast\(module\) at the start",
    ]
    for said in spawn(wrong, tmp_path):
        for text, pattern in zip(said, texts, strict=True):
            assert re.match(pattern, text), text


def right(rank: int) -> Found:
    """What each function makes of different values, and the parts of a batch beside the whole."""
    group, found = dist.group.WORLD, Found()
    assert start() == (rank, WORLD)  # joined already
    found["mean"] = mean(float(rank)), mean({"a": rank, "b": 1.0}), mean(torch.tensor([rank, 2.0]))
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    broadcast(model)
    check_equal(model)
    model(torch.full((2, 2, 2, 2), float(rank))).sum().backward()
    norm = model[1]
    norm.running_mean.fill_(rank)  # type: ignore[union-attr,operator]
    norm.num_batches_tracked.fill_(rank + 5)  # type: ignore[union-attr,operator]
    average_buffers(model)
    found["buffers"] = [norm.running_mean.tolist(), int(norm.num_batches_tracked)]  # type: ignore[union-attr,operator]
    used, unused, nowhere, frozen = (nn.Parameter(torch.ones(2, dtype=d)) for d in (torch.float32, torch.float64) * 2)
    frozen.requires_grad_(False)
    used.grad = torch.full((2,), float(rank))
    if rank:
        unused.grad = torch.full((2,), 4.0, dtype=torch.float64)
    all_reduce_gradients([used, unused, nowhere, frozen])
    found["gradients"] = [None if p.grad is None else p.grad.tolist() for p in (used, unused, nowhere, frozen)]
    images, labels, _ = batch(0)
    mine = slice(2 * rank, 2 * rank + 2)
    augment = StrongAugment(mean=(0, 0, 0), std=(1, 1, 1), jitter=1.0, blur=1.0)
    found["augmented"] = augment(images[mine], torch.Generator().manual_seed(0), group=group)
    found["classes"] = sample_class_mask(labels[mine], torch.Generator().manual_seed(0), group=group)
    found["boxes"] = sample_box_mask(SIDE, torch.Generator().manual_seed(0), batch=2, group=group)
    found["weight"] = pseudo_labels(images[mine] * 3, threshold=0.5, group=group)[1]
    own = SelfTraining(network(), nn.Identity(), group=group)  # no generator: one is shared
    own.mix(images[mine], labels[mine], images[mine], labels[mine], torch.ones(2, SIDE, SIDE))
    assert own.generator is not None
    found["shared"] = own.generator.initial_seed()
    return found


def test_each_function_with_two_processes(tmp_path: Path) -> None:
    first, second = spawn(right, tmp_path)
    for found in (first, second):
        number, numbers, tensor = found["mean"]
        assert (number, numbers, tensor.tolist()) == (0.5, {"a": 0.5, "b": 1.0}, [0.5, 2.0])
        assert found["buffers"] == [[0.5, 0.5], 5]  # a mean, and the first one's count
        assert found["gradients"] == [[0.5, 0.5], [2.0, 2.0], None, None]
    assert first["shared"] == second["shared"]
    images, labels, _ = batch(0)
    augment = StrongAugment(mean=(0, 0, 0), std=(1, 1, 1), jitter=1.0, blur=1.0)
    joined = {name: torch.cat([first[name], second[name]]) for name in ("augmented", "boxes", "classes", "weight")}
    torch.testing.assert_close(joined["augmented"], augment(images, torch.Generator().manual_seed(0)))
    assert torch.equal(joined["boxes"], sample_box_mask(SIDE, torch.Generator().manual_seed(0), batch=4))
    assert torch.equal(joined["classes"], sample_class_mask(labels, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(joined["weight"], pseudo_labels(images * 3, threshold=0.5)[1])
    assert 0 < joined["weight"][0, 0, 0] < 1


def with_ddp(rank: int, together: bool) -> Found:
    """The published loop under DDP, with batch norm on batch statistics, in the student and in its teacher."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    student = nn.parallel.DistributedDataParallel(net)
    teacher = EMATeacher(student)
    training = SelfTraining(student, teacher, generator=torch.Generator())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for step in range(3):
        source, labels, target = (x[2 * rank : 2 * rank + 2] for x in batch(step))
        for _, loss in training.losses(source, labels % 4, target):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(student)
        if together:
            average_buffers(teacher)
    return {"teacher": teacher.eval()(torch.ones(1, 3, 4, 4))}


@pytest.mark.parametrize("together", [False, True])
def test_under_ddp_batch_norm_of_teachers_is_averaged_by_hand(together: bool, tmp_path: Path) -> None:
    """DDP sends the student's statistics; without average_buffers every process has another teacher."""
    first, second = (found["teacher"] for found in spawn(with_ddp, tmp_path, together))
    assert torch.equal(first, second) == together


def fails(rank: int) -> None:
    if rank == 1:
        raise RuntimeError("this one dies")
    mean(0.0)  # waits for the other


def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(mp.ProcessRaisedException, match="terminated with the following error"):
        spawn(fails, tmp_path)
    assert time.monotonic() - began < 60


def test_one_process_alone_needs_no_group() -> None:
    model = nn.BatchNorm1d(2)
    before = copy.deepcopy(model.state_dict())
    for work in (broadcast, average_buffers, check_equal):
        work(model)
    all_reduce_gradients(model.parameters())
    stop()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    with pytest.raises(ValueError, match="value must be a number, numbers by name or a tensor, got 'x'"):
        mean("x")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"value must be floating point to have a mean, got torch.int64; convert with"):
        mean(torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="module must be"):
        broadcast([])  # type: ignore[arg-type]
