import copy
import gc
import io
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hrda_lib import EMATeacher


class DropPath(nn.Module):
    """Drops whole samples, as the DropPath of a transformer does: a module that only knows ``self.training``."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.randint(0, 2, (len(x), 1, 1, 1)) * 2 if self.training else x


def make_student(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout2d(0.5), DropPath(), nn.Conv2d(4, 2, 1))


def images(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(seed))


def move(student: nn.Module, seed: int) -> None:
    """A stand-in for an optimiser step, and for what a forward pass does to the buffers."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in student.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator).to(tensor))
        else:
            tensor.add_(seed + 1)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.7, 0.999])
def test_update_is_the_moving_average(decay: float, warmup: bool) -> None:
    student = make_student().double()
    teacher = EMATeacher(student, decay=decay, warmup=warmup)
    expected = {name: p.flatten().tolist() for name, p in student.named_parameters()}
    for k in range(1, 9):
        move(student, seed=k)
        before = snapshot(student)
        teacher.update(student)
        assert_same(snapshot(student), before)

        alpha = min(1 - 1 / (k + 1), decay) if warmup else decay
        for name, p in student.named_parameters():
            new = p.flatten().tolist()
            expected[name] = [alpha * e + (1 - alpha) * n for e, n in zip(expected[name], new, strict=True)]
        for name, p in teacher.module.named_parameters():
            assert p.flatten().tolist() == pytest.approx(expected[name], rel=1e-12, abs=1e-12), (k, name)
    assert teacher.step == 8


def test_construction_copies_and_shares_nothing() -> None:
    student = make_student()
    teacher = EMATeacher(student)
    assert_same(snapshot(teacher.module), snapshot(student))
    before = snapshot(teacher.module)
    move(student, seed=1)
    assert_same(snapshot(teacher.module), before)
    assert student.training
    assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("policy", ["keep", "follow", "average"])
def test_buffers(policy: str) -> None:
    student = make_student()
    teacher = EMATeacher(student, buffers=policy, batch_norm="eval")
    old = {name: buffer.double() for name, buffer in snapshot(teacher.module).items()}
    for k in range(1, 4):
        move(student, seed=k)
        teacher.update(student)
        new = snapshot(student)
        alpha = 1 - 1 / (k + 1)
        for name, buffer in teacher.module.named_buffers():
            average = new[name] if name.endswith("num_batches_tracked") else alpha * old[name] + (1 - alpha) * new[name]
            old[name] = {"keep": old[name], "follow": new[name], "average": average}[policy].double()
            torch.testing.assert_close(buffer.double(), old[name], rtol=1e-6, atol=1e-6)
            assert buffer.dtype == new[name].dtype
    assert teacher.module[1].num_batches_tracked == (0 if policy == "keep" else 2 + 3 + 4)


@pytest.mark.parametrize("stale", [float("-inf"), float("nan"), 0.0])
def test_buffers_that_follow_are_the_students_to_the_bit(stale: float) -> None:
    student = nn.Linear(2, 2)
    student.register_buffer("mask", torch.tensor([stale, 1.0]))
    teacher = EMATeacher(student)
    student.mask.copy_(torch.tensor([float("-inf"), 0.1]))
    teacher.update(student)
    assert torch.equal(teacher.module.mask, student.mask)


def test_averaged_buffers_keep_an_infinite_mask() -> None:
    student = nn.Linear(2, 2)
    student.register_buffer("mask", torch.tensor([float("-inf"), 1.0]))
    teacher = EMATeacher(student, buffers="average")
    teacher.update(student)
    assert torch.equal(teacher.module.mask, student.mask)


def run(teacher: EMATeacher, student: nn.Module, steps: range) -> Iterator[Tensor]:
    for step in steps:
        move(student, seed=step)
        teacher.update(student)
        yield teacher(images(step))


@pytest.mark.parametrize("batch_norm", ["train", "eval"])
@pytest.mark.parametrize("policy", ["follow", "keep", "average"])
def test_resume_equals_an_uninterrupted_run(policy: str, batch_norm: str) -> None:
    settings = {"decay": 0.75, "buffers": policy, "batch_norm": batch_norm}
    student = make_student()
    whole = EMATeacher(student, **settings)
    for _ in run(whole, student, range(2)):
        pass
    file = io.BytesIO()
    torch.save({"teacher": whole.state_dict(), "student": student.state_dict()}, file)
    whole_outputs = list(run(whole, student, range(2, 6)))  # the warm-up ends in there

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    student = make_student(seed=5)
    resumed = EMATeacher(student, **settings)
    student.load_state_dict(saved["student"])
    resumed.load_state_dict(saved["teacher"])
    assert resumed.step == 2
    resumed_outputs = list(run(resumed, student, range(2, 6)))

    assert resumed.step == whole.step == 6
    assert_same(snapshot(resumed), snapshot(whole))
    assert all(torch.equal(one, two) for one, two in zip(whole_outputs, resumed_outputs, strict=True))


def test_state_is_tensors_alone_and_goes_through_safetensors(tmp_path: Path) -> None:
    teacher = EMATeacher(make_student())
    for _ in run(teacher, make_student(seed=1), range(3)):
        pass
    state = teacher.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    step = state["_extra_state"]
    assert (step.dtype, step.device, step.item()) == (torch.int64, torch.device("cpu"), 3)

    save_file(state, tmp_path / "teacher.safetensors")
    resumed = EMATeacher(make_student(seed=2))
    resumed.load_state_dict(load_file(tmp_path / "teacher.safetensors"))
    assert resumed.step == 3
    assert_same(snapshot(resumed), snapshot(teacher))


def test_settings_and_mode_are_the_constructors_after_loading() -> None:
    teacher = EMATeacher(make_student(), decay=0.5, batch_norm="eval").eval()
    teacher.load_state_dict(EMATeacher(make_student()).state_dict())
    assert (teacher.decay, teacher.batch_norm) == (0.5, "eval")
    assert not any(layer.training for layer in teacher.train().module.modules())


class NoWaiting(TorchDispatchMode):
    """Fails where a tensor becomes a number of Python's, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert function.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.equal)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", ["keep", "follow", "average"])
def test_update_never_waits_for_a_device(policy: str) -> None:
    student = make_student()
    teacher = EMATeacher(student, buffers=policy, share_frozen=True)
    student.register_buffer("new", torch.ones(2))
    with NoWaiting():
        with pytest.raises(AssertionError):
            bool(torch.ones(1))
        teacher.update(student)
        teacher.update(student)


def test_parameters_are_frozen_and_calls_have_no_gradient() -> None:
    student = make_student()
    teacher = EMATeacher(student)
    inputs = images().requires_grad_()
    output = teacher(inputs)
    assert not output.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())

    (student(images()).sum() + output.sum()).backward()
    teacher.update(student)
    assert inputs.grad is None
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())


def test_calls_pass_arguments_and_answers_through() -> None:
    class Student(nn.Module):
        def forward(self, x: Tensor, *, factor: int) -> dict[str, Tensor]:
            return {"logits": x * factor, "input": x}

    x = torch.ones(2)
    answer = EMATeacher(Student())(x, factor=3)
    assert answer.keys() == {"logits", "input"}
    assert answer["input"] is x
    assert answer["logits"].tolist() == [3, 3]


def by_hand(module: nn.Sequential, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """The student without Dropout and DropPath, normalised by the given statistics."""
    first, norm, *_, last = module
    hidden = torch.einsum("ec,bchw->behw", first.weight[:, :, 0, 0], x) + first.bias[:, None, None]
    normal = (hidden - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    normal = normal * norm.weight[:, None, None] + norm.bias[:, None, None]
    return torch.einsum("ec,bchw->behw", last.weight[:, :, 0, 0], normal) + last.bias[:, None, None]


def batch_statistics(module: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    first = module[0]
    hidden = torch.einsum("ec,bchw->behw", first.weight[:, :, 0, 0], x) + first.bias[:, None, None]
    return hidden.mean(dim=(0, 2, 3)), hidden.var(dim=(0, 2, 3), unbiased=False)


def test_in_training_batch_norm_uses_the_batch_and_its_own_buffers() -> None:
    student = make_student().double()
    move(student, seed=1)
    before = snapshot(student)
    teacher = EMATeacher(student)
    x = images().double()
    mean, variance = batch_statistics(teacher.module, x)

    torch.testing.assert_close(teacher(x), by_hand(teacher.module, x, mean, variance))
    norm, count = teacher.module[1], x.numel() // 3
    torch.testing.assert_close(norm.running_mean, 0.9 * before["1.running_mean"] + 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 * before["1.running_var"] + 0.1 * variance * count / (count - 1))
    assert norm.num_batches_tracked == before["1.num_batches_tracked"] + 1
    assert_same(snapshot(student), before)

    kept = snapshot(teacher.module)
    teacher.update(student)
    assert torch.equal(norm.running_mean, kept["1.running_mean"])


@pytest.mark.parametrize("batch_norm", ["train", "eval"])
def test_eval_uses_running_statistics_and_leaves_all_buffers_alone(batch_norm: str) -> None:
    student = make_student().double()
    move(student, seed=1)
    teacher = EMATeacher(student, batch_norm=batch_norm).eval()
    if batch_norm == "eval":
        teacher.train()  # running statistics there too
    before = snapshot(teacher)
    x, norm = images().double(), teacher.module[1]
    torch.testing.assert_close(teacher(x), by_hand(teacher.module, x, norm.running_mean, norm.running_var))
    assert_same(snapshot(teacher), before)


def test_train_and_eval_round_trips_inside_another_module() -> None:
    teacher = EMATeacher(make_student())
    trainer = nn.ModuleDict({"teacher": teacher})
    assert teacher.training  # as built
    for training in (False, True, True, False, True):
        trainer.train(training)
        assert teacher.training == training
        on = [type(layer).__name__ for layer in teacher.module.modules() if layer.training]
        assert on == (["BatchNorm2d"] if training else [])
    trainer.eval()
    before = snapshot(teacher)
    teacher(images())
    assert_same(snapshot(teacher), before)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2)], ids=lambda x: type(x).__name__
)
def test_every_kind_of_batch_norm_counts(layer: nn.Module) -> None:
    teacher = EMATeacher(nn.Sequential(layer, nn.InstanceNorm2d(2, track_running_stats=True)))
    assert teacher.module[0].training
    assert not teacher.module[1].training


@pytest.mark.parametrize("mode", ["built", "train", "eval", "student in eval"])
def test_dropout_and_drop_path_are_always_off(mode: str) -> None:
    student = make_student()
    torch.manual_seed(0)  # two passes of the student may drop the same
    if mode == "student in eval":
        student.eval()
    teacher = EMATeacher(student)
    if mode in ("train", "eval"):
        teacher.train(mode == "train")
    assert not torch.equal(student.train()(images()), student(images()))
    first = teacher(images())
    if mode == "eval":
        norm = teacher.module[1]
        statistics = (norm.running_mean, norm.running_var)
    else:
        statistics = batch_statistics(teacher.module, images())
    torch.testing.assert_close(first, by_hand(teacher.module, images(), *statistics), rtol=1e-4, atol=1e-5)
    assert torch.equal(teacher(images()), first)


def check_follows(teacher: EMATeacher, wrapped: nn.Module, student: nn.Module) -> None:
    """One update with the wrapped student is the mean of what teacher and student were."""
    old = [p.clone() for p in teacher.module.parameters()]
    move(student, seed=3)
    teacher.update(wrapped)
    for mine, before, theirs in zip(teacher.module.parameters(), old, student.parameters(), strict=True):
        torch.testing.assert_close(mine, (before + theirs) / 2)


@pytest.mark.parametrize("built_from_wrapped", [True, False])
def test_compiled_student(built_from_wrapped: bool) -> None:
    student = make_student()
    compiled = torch.compile(student, backend="eager")
    compiled(images())
    teacher = EMATeacher(compiled if built_from_wrapped else student)
    assert_same(snapshot(teacher), snapshot(EMATeacher(student)))
    check_follows(teacher, compiled, student)
    mean, variance = batch_statistics(teacher.module, images())
    torch.testing.assert_close(
        teacher(images()), by_hand(teacher.module, images(), mean, variance), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_compiled_part_of_a_student(when: str) -> None:
    student = nn.ModuleDict({"encoder": make_student(), "head": nn.Linear(2, 2)})
    plain = EMATeacher(student)
    compiled = nn.ModuleDict({"encoder": torch.compile(student["encoder"], backend="eager"), "head": student["head"]})
    teacher = EMATeacher(compiled, buffers="average") if when == "before" else plain
    check_follows(teacher, compiled, student)
    if when == "before":
        encoder, own = teacher.module["encoder"], teacher.module["encoder"]._orig_mod
        expected = by_hand(own, images(), *batch_statistics(own, images()))  # its own weights, Dropout and DropPath off
        torch.testing.assert_close(encoder(images()), expected, rtol=1e-4, atol=1e-5)
        assert [type(layer).__name__ for layer in teacher.modules() if layer.training] == ["EMATeacher", "BatchNorm2d"]


@pytest.fixture
def gloo(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize("compiled", [False, True])
def test_distributed_student(compiled: bool) -> None:
    student = make_student()
    wrapped = nn.parallel.DistributedDataParallel(torch.compile(student, backend="eager") if compiled else student)
    teacher = EMATeacher(wrapped)
    assert_same(snapshot(teacher), snapshot(EMATeacher(student)))
    wrapped(images()).sum().backward()
    check_follows(teacher, wrapped, student)
    check_follows(EMATeacher(student), wrapped, student)


def test_data_parallel_student() -> None:
    student = make_student()
    wrapped = nn.DataParallel(student)
    check_follows(EMATeacher(wrapped), wrapped, student)
    check_follows(EMATeacher(student), wrapped, student)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float32_teacher_of_a_student_in_another_dtype(dtype: torch.dtype) -> None:
    student = make_student().to(dtype)
    teacher = EMATeacher(student, warmup=False, module=copy.deepcopy(student).float())
    expected = [p.detach().double().clone() for p in student.parameters()]
    for k in range(3):
        move(student, seed=k)
        teacher.update(student)
        expected = [
            0.999 * e + 0.001 * p.detach().double() for e, p in zip(expected, student.parameters(), strict=True)
        ]
    for p, e in zip(teacher.module.parameters(), expected, strict=True):
        assert p.dtype == torch.float32
        assert not p.requires_grad
        torch.testing.assert_close(p.double(), e, rtol=1e-6, atol=1e-6)
    assert teacher(images()).dtype == torch.float32


HALF = "the teacher's parameters must be float32 or wider where the student trains, got "


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_a_half_precision_teacher_is_refused(dtype: torch.dtype, decay: float) -> None:
    student = make_student().to(dtype)
    for settings in ({}, {"module": copy.deepcopy(student)}):
        with pytest.raises(ValueError, match=re.escape(f"{HALF}{dtype}")):
            EMATeacher(student, decay=decay, **settings)


def test_a_teacher_made_half_precision_later_is_refused_and_stays() -> None:
    student = make_student()
    teacher = EMATeacher(student).half()
    before = snapshot(teacher)
    move(student, seed=1)
    with pytest.raises(ValueError, match=re.escape(f"{HALF}torch.float16")):
        teacher.update(student)
    assert_same(snapshot(teacher), before)


def test_frozen_parameters_may_be_in_half_precision() -> None:
    student = nn.Sequential(nn.Linear(2, 2).bfloat16().requires_grad_(False), nn.Linear(2, 2))
    teacher = EMATeacher(student, share_frozen=True)
    teacher.update(student)
    student[0].requires_grad_(True)
    with pytest.raises(ValueError, match=re.escape(f"{HALF}torch.bfloat16")):
        teacher.update(student)


def test_shared_frozen_parameters_are_the_students_own() -> None:
    student = make_student()
    student[0].requires_grad_(False)
    teacher, plain = EMATeacher(student, share_frozen=True), EMATeacher(student)
    assert teacher.module[0].weight is student[0].weight
    assert plain.module[0].weight is not student[0].weight
    assert teacher.module[4].weight is not student[4].weight
    kept = student[0].weight.clone()
    with torch.no_grad():
        student[4].weight += 1
    for average in (teacher, plain):
        average.update(student)
    assert torch.equal(student[0].weight, kept)
    assert_same(snapshot(teacher), snapshot(plain))
    assert teacher.state_dict().keys() == plain.state_dict().keys()


def test_a_shared_parameter_that_is_unfrozen_gets_a_copy() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
            self.two.weight = self.one.weight

    student = Tied().requires_grad_(False)
    teacher = EMATeacher(student, share_frozen=True)
    student.one.weight.requires_grad_(True)
    teacher.update(student)
    assert teacher.module.one.weight is not student.one.weight
    assert teacher.module.two.weight is teacher.module.one.weight
    assert not teacher.module.one.weight.requires_grad
    assert teacher.module.one.bias is student.one.bias
    old = student.one.weight.clone()
    with torch.no_grad():
        student.one.weight += 1
    teacher.update(student)
    torch.testing.assert_close(teacher.module.one.weight, old + 1 / 3)


def altered(change: str) -> nn.Module:
    student = make_student()
    if change == "name":
        return nn.Sequential(*student[:4], nn.Identity(), student[4])
    if change == "parameter shape":
        student[4] = nn.Conv2d(4, 3, 1)
    if change == "missing parameter":
        student[0] = nn.Conv2d(3, 4, 1, bias=False)
    if change == "new parameter":
        student.register_parameter("scale", nn.Parameter(torch.ones(1)))
    if change == "missing buffer":
        del student[1].running_mean
    return student


@pytest.mark.parametrize("policy", ["follow", "average"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("name", "the teacher's parameters: missing ['4.bias', '4.weight'], unexpected ['5.bias', '5.weight']"),
        ("missing parameter", "student must have the teacher's parameters: missing ['0.bias'], unexpected []"),
        ("new parameter", "student must have the teacher's parameters: missing [], unexpected ['scale']"),
        ("parameter shape", "student's 4.weight must have the teacher's shape (2, 4, 1, 1), got (3, 4, 1, 1)"),
        ("missing buffer", "teacher's buffers: missing ['1.running_mean']"),
    ],
)
def test_another_student_is_refused_and_changes_nothing(change: str, message: str, policy: str) -> None:
    teacher = EMATeacher(make_student(), buffers=policy)
    before = copy.deepcopy(teacher)
    with pytest.raises(ValueError, match=re.escape(message)):
        teacher.update(altered(change))
    assert_same(snapshot(teacher), snapshot(before))
    assert teacher.step == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, "decay must be in [0, 1), got 1.0"),
        ({"decay": -0.1}, "decay must be in [0, 1), got -0.1"),
        ({"decay": float("nan")}, "decay must be in [0, 1), got nan"),
        ({"decay": "0.9"}, "decay must be in [0, 1), got '0.9'"),
        ({"decay": None}, "decay must be in [0, 1), got None"),
        ({"warmup": "no"}, "warmup must be one of (True, False), got 'no'"),
        ({"share_frozen": "no"}, "share_frozen must be one of (True, False), got 'no'"),
        ({"buffers": "mean"}, "buffers must be one of ('follow', 'keep', 'average'), got 'mean'"),
        ({"buffers": "copy"}, "buffers must be one of ('follow', 'keep', 'average'), got 'copy'"),
        ({"batch_norm": True}, "batch_norm must be one of ('train', 'eval'), got True"),
    ],
    ids=str,
)
def test_teacher_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        EMATeacher(make_student(), **settings)


def tied(student: nn.Sequential) -> None:
    student[0].bias = student[1].bias


def assigned(student: nn.Sequential) -> None:
    student.load_state_dict({name: 2 * tensor for name, tensor in student.state_dict().items()}, assign=True)


def renamed(student: nn.Sequential) -> None:
    student[4], student[0].weight = nn.Conv2d(4, 2, 1), nn.Parameter(torch.ones(4, 3, 1, 1))


def swapped(student: nn.Sequential) -> None:
    """Other layers are one, as many as before."""
    first = student[0]
    student.insert(5, first)
    student[6] = nn.ReLU()


def shared_twice(student: nn.Sequential) -> None:
    student.append(student[0])
    student.append(nn.Sequential(student[1], student[0]))


def unshared(student: nn.Sequential) -> None:
    student[5] = copy.deepcopy(student[5])


def wider(student: nn.Sequential) -> None:
    student.double()
    student[4].to(torch.bfloat16)


def without(student: nn.Sequential) -> None:
    student[0].bias, student[4].bias = student[4].bias, None


@pytest.mark.parametrize("before", [None, tied, shared_twice], ids=["plain", "tied", "shared"])
@pytest.mark.parametrize("after", [assigned, renamed, swapped, unshared, wider, without, tied, shared_twice])
def test_update_side_by_side_equals_matching_by_names(before: Any, after: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both are built alike no names are put together; what comes of it is the same."""
    student = make_student()
    if before:
        before(student)
    student.append(nn.Identity())
    by_names, teacher = EMATeacher(student), EMATeacher(student)
    move(student, 1)
    outcomes = []
    for change in (None, after):
        if change:
            change(student)
        for each in (teacher, by_names):
            with monkeypatch.context() as patch:
                if each is by_names:
                    patch.setattr("hrda_lib.teacher._side_by_side", lambda module, student: None)
                try:
                    each.update(student)
                    outcomes.append("updated")
                except ValueError as error:
                    outcomes.append(str(error))
        assert outcomes[-1] == outcomes[-2]
        assert_same(snapshot(teacher), snapshot(by_names))
    assert outcomes[0] == "updated"


def test_update_keeps_no_student_alive_and_allocates_nothing_that_lasts() -> None:
    student = make_student()
    teacher = EMATeacher(student)
    teacher.update(student)
    kept = [weakref.ref(parameter) for parameter in student.parameters()]
    pointers = [parameter.data_ptr() for parameter in teacher.module.parameters()]
    teacher.update(student)
    assert [parameter.data_ptr() for parameter in teacher.module.parameters()] == pointers
    del student
    gc.collect()
    assert all(reference() is None for reference in kept)
