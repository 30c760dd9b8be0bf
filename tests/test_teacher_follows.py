"""In the same mode, a converged student and its teacher answer alike, and a fresh copy answers like its student."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import FrozenBatchNorm2d

from hrda_lib import EMATeacher

timm = pytest.importorskip("timm")


class Centre(nn.Module):
    """An average of what came, kept out of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * x.mean(dim=(0, 2, 3))
        return x - self.centre[:, None, None]


class Queue(nn.Module):
    """A memory that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.keys = torch.cat([self.keys, x.mean(dim=(2, 3))])
        return torch.einsum("bchw,kc->bkhw", x, self.keys).mean(dim=1, keepdim=True)


class Counts(nn.Module):
    """Integer buffers: a counter, and an order of the channels that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("order", torch.arange(3, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
            self.order.copy_(self.order.roll(1))
        return x[:, self.order] / (1 + self.count)


class Quantile(nn.Module):
    """A running quantile, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.tensor(0.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.level.lerp_(x.double().quantile(0.9), 0.1)
        return x.clamp(max=self.level.float())


class Late(nn.Module):
    """One buffer is None and one is missing until the first batch comes; a third is None from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)
        self.register_buffer("fallback", torch.ones(()))
        self.spread = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.mean is None:
            self.mean, self.fallback = x.mean(), None
            del self.spread
            self.register_buffer("spread", x.std(), persistent=False)
        return x + self.fallback if self.mean is None else (x - self.mean) / self.spread


class Expanded(nn.Module):
    """A buffer whose elements are one number in memory, and the same buffer under a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1, 1, 1).expand(3, 1, 1))
        self.register_buffer("again", self.scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale = self.again = (self.scale + x.std()).contiguous()
        return x * self.scale + self.again


class FrozenParts(nn.Module):
    """Batch norm that stays as it was pretrained, whatever train() says, beside one that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained, self.learnt = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.pretrained.running_mean += 1

    def train(self, mode: bool = True) -> "FrozenParts":
        super().train(mode)
        self.pretrained.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.learnt(self.pretrained(x) + x)


def new_statistics(student: nn.Module) -> None:
    for name, buffer in student.named_buffers():
        if "running" in name:
            buffer += 0.5


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    size: tuple[int, ...] = (4, 3, 8, 8)
    also: Callable[[nn.Module], None] | None = None
    constant: bool = False
    """Its buffers never change, so that a teacher which kept its own would answer alike too."""


def head(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), *layers, nn.Dropout(0.5), nn.Conv2d(3, 2, 1))


def small_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_classes=3)


def small_swin() -> nn.Module:
    sizes = {"embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 3}
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, **sizes)


CASES = {
    "BatchNorm1d": Case(lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), (8, 3)),
    "BatchNorm2d": Case(lambda: head(nn.BatchNorm2d(3))),
    "BatchNorm3d": Case(lambda: nn.Sequential(nn.Conv3d(3, 3, 1), nn.BatchNorm3d(3)), (2, 3, 4, 4, 4)),
    "SyncBatchNorm": Case(lambda: head(nn.SyncBatchNorm(3))),
    "BatchNorm without statistics": Case(lambda: head(nn.BatchNorm2d(3, track_running_stats=False)), constant=True),
    "frozen BatchNorm": Case(lambda: head(FrozenParts()), also=new_statistics),
    "InstanceNorm": Case(lambda: head(nn.InstanceNorm2d(3, affine=True, track_running_stats=True))),
    "spectral norm, hook": Case(lambda: head(nn.utils.spectral_norm(nn.Conv2d(3, 3, 3)))),
    "spectral norm": Case(lambda: head(parametrizations.spectral_norm(nn.Conv2d(3, 3, 3)))),
    "weight norm": Case(lambda: head(parametrizations.weight_norm(nn.Conv2d(3, 3, 3))), constant=True),
    "LSTM": Case(lambda: nn.Sequential(nn.LSTM(3, 3)), (5, 2, 3), constant=True),
    "non-persistent": Case(lambda: head(Centre())),
    "another shape": Case(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Queue())),
    "integers": Case(lambda: head(Counts())),
    "quantile": Case(lambda: head(Quantile())),
    "late": Case(lambda: head(Late())),
    "expanded": Case(lambda: head(Expanded())),
    "torchvision FrozenBatchNorm2d": Case(lambda: head(FrozenBatchNorm2d(3)), also=new_statistics),
    "torchvision swin": Case(
        lambda: SwinTransformer([4, 4], 12, [2, 2], [1, 2], [4, 4], num_classes=3), (2, 3, 32, 32), constant=True
    ),
    "timm convnext": Case(
        lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=3),
        (2, 3, 32, 32),
        constant=True,
    ),
    "timm swin": Case(small_swin, (2, 3, 32, 32), constant=True),
    "timm vit": Case(small_vit, (2, 3, 32, 32), constant=True),
    "timm BatchNormAct2d": Case(lambda: head(timm.layers.BatchNormAct2d(3))),
    "timm GroupNormAct": Case(lambda: head(timm.layers.GroupNormAct(3, 3)), constant=True),
    "timm EvoNorm": Case(lambda: head(timm.layers.EvoNorm2dB0(3))),
    "timm resnet": Case(lambda: timm.create_model("resnet10t", num_classes=3), (2, 3, 32, 32)),
    "timm features by hooks": Case(
        lambda: timm.create_model("mobilenetv3_small_050", features_only=True, feature_cls="hook"), (2, 3, 64, 64)
    ),
}


def answers(network: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        answer = network(x)
    return [a for a in (answer if isinstance(answer, list | tuple) else [answer]) if isinstance(a, Tensor)]


def in_the_mode_of(teacher: EMATeacher, student: nn.Module) -> nn.Module:
    """A copy of the student with each of its layers in the mode of the teacher's."""
    with torch.no_grad():
        same = copy.deepcopy(student)
    for mine, layer in zip(teacher.module.modules(), same.modules(), strict=True):
        layer.training = mine.training
    return same


def difference(teacher: EMATeacher, student: nn.Module, x: Tensor) -> float:
    ours, theirs = answers(copy.deepcopy(teacher), x), answers(in_the_mode_of(teacher, student), x)
    assert all(torch.isfinite(a).all() for a in theirs)
    return max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(ours, theirs, strict=True))


def train(student: nn.Module, case: Case) -> None:
    """New parameters, as an optimiser would leave them, and training passes with them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * parameter.std(correction=0)
    student.train()
    for _ in range(3):
        answers(student, 1 + 2 * torch.randn(case.size, generator=generator))
    if case.also:
        case.also(student)


def images(case: Case) -> Tensor:
    return torch.randn(case.size, generator=torch.Generator().manual_seed(2))


def student_of(case: Case) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return case.build()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_fresh_copy_answers_like_its_student(name: str, training: bool) -> None:
    case = CASES[name]
    student = student_of(case)
    train(student, case)
    for mode in (True, False):
        teacher = EMATeacher(student.train(mode)).train(training)
        assert difference(teacher, student.train(), images(case)) == 0


@pytest.mark.parametrize("mode", ["train", "eval", "batch_norm"])
@pytest.mark.parametrize("name", CASES)
def test_a_converged_student_and_its_teacher_answer_alike(name: str, mode: str) -> None:
    case = CASES[name]
    student = student_of(case)
    teacher, keeps = (
        EMATeacher(student, decay=0.5, buffers=buffers, batch_norm="eval" if mode == "batch_norm" else "train")
        for buffers in ("follow", "keep")
    )
    for average in (teacher, keeps):
        average.train(mode != "eval")
    train(student, case)
    for step in range(80):
        student.train(step % 3 > 0)  # a validation now and then
        teacher.update(student)
        keeps.update(student)
    x = images(case)
    assert difference(teacher, student, x) < 1e-4
    own = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training for layer in teacher.modules())
    if not case.constant and not own:  # what follows is what makes them agree
        assert difference(keeps, student, x) > 1e-3


def test_statistics_are_the_teachers_own_exactly_while_they_run_on_batches() -> None:
    """Each layer by its mode at the update, whoever set it."""
    student = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    teacher = EMATeacher(student)
    teacher.module[1].eval()
    student(torch.randn(8, 2) + 5)
    teacher.update(student)
    assert torch.equal(teacher.module[0].running_mean, torch.zeros(2))
    assert teacher.module[0].num_batches_tracked == 0
    assert torch.equal(teacher.module[1].running_mean, student[1].running_mean)
    assert teacher.module[1].num_batches_tracked == 1
    teacher.eval().update(student)
    assert torch.equal(teacher.module[0].running_mean, student[0].running_mean)


def test_other_buffers_of_a_batch_norm_follow() -> None:
    student = nn.BatchNorm1d(2)
    student.register_buffer("limit", torch.zeros(1))
    teacher = EMATeacher(student)
    student.limit += 3
    student.running_mean += 3
    teacher.update(student)
    assert teacher.module.limit == 3
    assert teacher.module.running_mean.tolist() == [0, 0]


def test_frozen_layers_are_read_at_construction_and_at_each_update() -> None:
    student = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    student[0].eval()
    teacher = EMATeacher(torch.compile(student, backend="eager"))
    on_batches = [layer.training for layer in teacher.module]
    assert on_batches == [False, True]
    assert [layer.training for layer in teacher.eval().train().module] == on_batches

    teacher.update(student.eval())  # a validation says nothing
    assert [layer.training for layer in teacher.module] == on_batches

    student.train()[1].eval()
    teacher.eval().update(student)
    assert [layer.training for layer in teacher.module] == [False, False]
    assert [layer.training for layer in teacher.train().module] == [True, False]


def test_a_layer_frozen_at_an_update_takes_the_students_statistics_from_then_on() -> None:
    student = nn.Sequential(nn.BatchNorm1d(2))
    teacher = EMATeacher(student)
    student(torch.randn(8, 2) + 5)
    teacher.update(student)
    assert not torch.equal(teacher.module[0].running_mean, student[0].running_mean)
    student[0].eval()
    teacher.update(student)
    teacher(torch.randn(8, 2))
    assert torch.equal(teacher.module[0].running_mean, student[0].running_mean)


def test_a_student_in_eval_mode_freezes_nothing() -> None:
    assert EMATeacher(nn.Sequential(nn.BatchNorm1d(2)).eval()).module[0].training


def test_buffers_of_another_kind_or_place_are_replaced_and_share_nothing() -> None:
    student = nn.Linear(2, 2)
    for name in ("mask", "twin", "sparse"):
        student.register_buffer(name, torch.zeros(2, dtype=torch.int64), persistent=name != "twin")
    teacher = EMATeacher(student)
    student.mask = student.twin = torch.tensor([0.5, 1.5])
    student.sparse = torch.eye(2).to_sparse()
    teacher.update(student)
    assert teacher.module.mask.tolist() == [0.5, 1.5]
    assert teacher.module.twin is teacher.module.mask
    assert teacher.module.mask is not student.mask
    assert torch.equal(teacher.module.sparse.to_dense(), torch.eye(2))
    assert {"module.mask", "module.twin"} & teacher.state_dict().keys() == {"module.mask"}
    student.mask += 1
    assert teacher.module.mask.tolist() == [0.5, 1.5]
    kept = teacher.module.mask
    teacher.update(student)
    assert teacher.module.mask is kept  # written in place where it fits
    assert kept.tolist() == [1.5, 2.5]


def test_new_buffers_come_in_the_teachers_precision() -> None:
    student = nn.Sequential(nn.Linear(2, 2), Late())
    student.bfloat16()
    teacher = EMATeacher(student, module=copy.deepcopy(student).float())
    student(torch.randn(3, 2, dtype=torch.bfloat16))
    teacher.update(student)
    assert teacher.module[1].mean.dtype == torch.float32
    assert teacher(torch.randn(3, 2)).dtype == torch.float32


def test_a_buffer_made_under_inference_mode_is_replaced() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.last = x.mean()
            return x

    student = Last()
    teacher = EMATeacher(student)
    for k in range(2):
        with torch.inference_mode():
            student(torch.full((2,), k + 1.0))
            teacher(torch.zeros(2))
        teacher.update(student)
        assert teacher.module.last == k + 1


def test_a_buffer_that_the_student_has_lost_or_whose_owner_is_new_is_refused() -> None:
    student = head(Centre())
    teacher = EMATeacher(student)
    del student[1].centre
    with pytest.raises(ValueError, match=r"teacher's buffers: missing \['1.centre'\], unexpected \[\]"):
        teacher.update(student)
    student[1] = nn.Sequential(Centre())
    with pytest.raises(ValueError, match=r"missing \['1.centre'\], unexpected \['1.0.centre'\]"):
        teacher.update(student)
    assert teacher.step == 0
