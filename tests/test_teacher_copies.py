"""The teacher's copy answers with weights of its own, or is refused by name."""

import copy
import functools
import re
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from hrda_lib import EMATeacher, FeatureDistance

IMAGES = torch.ones(1, 3, 4, 4)
WAY_OUT = "or pass EMATeacher(student, module=a copy of yours)"
HEAD = nn.Conv2d(3, 2, 1)


class Calls(nn.Module):
    """Calls what it was given, which may be no module."""

    def __init__(self, function: Any = None, **attributes: Any) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)
        self.function = function
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.function(x) if self.function else x


class Holder:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __deepcopy__(self, memo: dict) -> "Holder":
        return self  # as singletons do


def with_(student: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        object.__setattr__(student, name, value)
    return student


def closure(head: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: head(x)


def default(head: nn.Module) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor, head: nn.Module = head) -> Tensor:
        return head(x)

    return function


def attribute(head: nn.Module) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        return x

    function.head = head
    return function


def patched_forward() -> nn.Module:
    student = nn.Sequential(nn.Conv2d(3, 2, 1))
    original = student.forward
    student.forward = lambda x: original(x)
    return student


def local_class() -> nn.Module:
    head = nn.Conv2d(3, 2, 1)

    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return head(x)

    return Local()


def in_a_cycle(hold: Callable[[nn.Module], Any]) -> nn.Module:
    student = Calls()
    return with_(student, kept=hold(student.body))


def on_the_inside(x: Tensor) -> Tensor:
    return torch.cat([HEAD(part) for part in x])


REACHING = {
    "a closure": (lambda: Calls(closure(nn.Conv2d(3, 2, 1))), "a Conv2d that is not its own, by function -> head;"),
    "a default": (lambda: Calls(default(nn.Conv2d(3, 2, 1))), "Conv2d that is not its own, by function -> default[0];"),
    "a function's attribute": (lambda: Calls(attribute(nn.Conv2d(3, 2, 1))), "by function['head'];"),
    "a global": (lambda: Calls(lambda x: HEAD(x)), "a Conv2d that is not its own, by function -> HEAD;"),
    "a global in a comprehension": (lambda: Calls(on_the_inside), "by function -> HEAD;"),
    "a partial of a closure": (lambda: Calls(functools.partial(closure(HEAD))), "by function -> head;"),
    "a parameter": (lambda: Calls(lambda x: x * HEAD.weight.sum()), "by function -> HEAD;"),
    "a class's forward": (local_class, "by forward -> head;"),
    "a patched forward": (patched_forward, "a Sequential that is not its own, by forward -> original;"),
    "a list": (lambda: Calls(kept=[nn.Conv2d(3, 2, 1)]), "a Conv2d that is not its own, by kept[0];"),
    "a dictionary": (lambda: Calls(kept={"a": {3: HEAD.weight}}), "a Parameter that is not its own, by kept['a'][3];"),
    "an object": (lambda: in_a_cycle(Holder), "a Conv2d that is not its own, by kept.held;"),
    "a weak reference": (lambda: in_a_cycle(weakref.ref), "a Conv2d that is not its own, by kept;"),
    "the student's own": (lambda: in_a_cycle(closure), "a Conv2d that is not its own, by kept -> head;"),
    "frozen, of the student": (lambda: in_a_cycle(closure).requires_grad_(False), "by kept -> head;"),
    "a cached function": (lambda: Calls(functools.cache(closure(HEAD))), "by function.__wrapped__ -> head;"),
}


@pytest.mark.parametrize("name", REACHING)
def test_a_copy_that_reaches_weights_which_are_not_its_own_is_refused(name: str) -> None:
    build, message = REACHING[name]
    student = build()
    with pytest.raises(ValueError, match=r"^student cannot be copied: the copy reaches ") as caught:
        EMATeacher(student)
    assert message in str(caught.value)
    assert str(caught.value).endswith(WAY_OUT)


def test_a_part_that_refuses_to_be_copied_is_refused() -> None:
    class Single(nn.Conv2d):
        def __deepcopy__(self, memo: dict) -> "Single":
            return self

    student = nn.Sequential(nn.Conv2d(3, 3, 1), Single(3, 2, 1).requires_grad_(False))
    with pytest.raises(ValueError, match="the copy reaches a Single that is not its own, by 1;"):
        EMATeacher(student)


class Bound(nn.Module):
    """Holds its own parts in many ways that a copy follows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)
        self.method = self.scaled
        self.part = functools.partial(self.scaled, factor=2)
        self.table = {"method": [self.method], self.body: "key"}
        self.act = functools.partial(torch.clamp, min=0)
        self.plain = lambda x: x + 1
        self.frozen = [nn.Conv2d(3, 3, 1).requires_grad_(False)]
        self.empty = [nn.ReLU()]
        self.itself = {"me": self}

    def scaled(self, x: Tensor, factor: float = 1) -> Tensor:
        return self.body(x) * factor

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(x) + self.method(x) + self.table["method"][0](x)
        return self.empty[0](self.frozen[0](self.plain(self.act(x)))) + self.itself["me"].body(x)


def test_methods_and_frozen_parts_are_copied_with_their_module() -> None:
    student = Bound()
    teacher = EMATeacher(student)
    before = teacher(IMAGES)
    assert torch.equal(before, student(IMAGES))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(7.0)
    assert torch.equal(teacher(IMAGES), before)


@pytest.mark.parametrize("compiled", [True, False])
def test_recurrent_and_compiled_parts_reach_only_themselves(compiled: bool) -> None:
    student = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3))
    student[0] = torch.compile(student[0], backend="eager") if compiled else student[0]
    student(torch.ones(2, 1, 3))
    teacher = EMATeacher(student)
    before = teacher(torch.ones(2, 1, 3))[0]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(7.0)
    assert torch.equal(teacher(torch.ones(2, 1, 3))[0], before)


# hooks


class Recorder:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, *arguments: Any) -> None:
        self.seen.append(arguments)

    def method(self, *arguments: Any) -> None:
        self.seen.append(arguments)


def hooks_of_others(seen: list) -> list[Callable[..., None]]:
    recorder = Recorder()
    recorder.seen = seen
    return [
        lambda *arguments: seen.append(arguments),
        functools.partial(lambda *arguments: seen.append(arguments)),
        recorder,
        recorder.method,
        functools.partial(recorder.method, 1),
    ]


@pytest.mark.parametrize("which", range(5))
def test_hooks_of_others_stay_with_the_student(which: int) -> None:
    student, seen = nn.Sequential(nn.Conv2d(3, 4, 1)), []
    hook = hooks_of_others(seen)[which]
    student[0].register_forward_hook(hook)
    student[0].register_forward_pre_hook(hook)
    student[0].register_full_backward_hook(hook)
    teacher = EMATeacher(student)
    teacher(IMAGES)
    assert not seen
    assert not teacher.module[0]._forward_hooks
    student(IMAGES)
    assert len(seen) == 2  # the student keeps its own


def test_an_object_that_cannot_be_copied_does_not_matter_as_a_hook() -> None:
    student, recorder = nn.Conv2d(3, 4, 1), Recorder()
    recorder.lock = threading.Lock()
    student.register_forward_hook(recorder.method)
    assert not EMATeacher(student).module._forward_hooks


class Hooked(nn.Module):
    """Its head reads what hooks on its body have kept: a method, and an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.kept, self.own = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), {}, Recorder()
        self.handle = self.body.register_forward_hook(self.keep)
        self.body.register_forward_hook(functools.partial(self.own.method))
        self.body.register_forward_pre_hook(self.shift)

    def keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.kept["x"] = output

    def shift(self, module: nn.Module, inputs: tuple) -> tuple:
        return (inputs[0] + 1,)

    def forward(self, x: Tensor) -> Tensor:
        self.own.seen.clear()
        self.body(x)
        return self.head(self.kept["x"] + self.own.seen[0][-1])


def test_hooks_that_are_methods_of_the_copy_work_in_it() -> None:
    student = Hooked()
    teacher = EMATeacher(student)
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(teacher(x), student(x))
    assert teacher.module.kept["x"] is not student.kept["x"]
    student.kept.clear()
    teacher(x)
    assert not student.kept
    teacher.module.handle.remove()
    assert len(teacher.module.body._forward_hooks) == 1
    assert len(student.body._forward_hooks) == 2


class Trainer:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.features = model, {}

    def keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.features["x"] = output


def hooked(hook: Callable[[nn.Module], Any]) -> nn.Module:
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    student[0].register_forward_hook(hook(student))
    return student


@pytest.mark.parametrize(
    "hook",
    [
        lambda student: lambda *_: student[1](IMAGES),
        lambda student: functools.partial(lambda part, *_: None, student[1]),
        lambda student: Trainer(student).keep,
        lambda student: lambda *_, weight=student[0].weight: None,
    ],
)
def test_a_hook_that_reaches_modules_of_the_student_is_refused(hook: Callable[[nn.Module], Any]) -> None:
    message = (
        r"^student cannot be copied: the hook .* of its Conv2d reaches modules of the student, .* make it a method"
    )
    with pytest.raises(ValueError, match=message) as caught:
        EMATeacher(hooked(hook))
    assert str(caught.value).endswith(WAY_OUT)


def test_torchs_own_hooks_are_kept() -> None:
    class Half(prune.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
            return default_mask * (torch.arange(t.numel()).reshape(t.shape) % 2)

    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)))
    with torch.no_grad():  # the weight that pruning computes has no graph then, and can be copied
        prune.random_unstructured(student[0], "weight", amount=0.5)
        Half.apply(student[1], "weight")
        teacher = EMATeacher(student)
        assert [len(layer._forward_pre_hooks) for layer in teacher.module] == [1, 1, 1]
        before = teacher(IMAGES)
        assert torch.equal(before, student.eval()(IMAGES))
        for parameter in teacher.module.parameters():
            parameter.mul_(2.0)
        assert not torch.equal(teacher(IMAGES), before)  # computed anew, by the copy's hooks
        assert torch.equal(student(IMAGES), before)


def test_functions_that_a_library_installs_are_part_of_its_network() -> None:
    def double(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return 2 * output

    double.__module__ = "transformers.utils.output_capturing"
    student = nn.Conv2d(3, 4, 1)
    student.register_forward_hook(double)
    with torch.no_grad():
        assert torch.equal(EMATeacher(student)(IMAGES), student(IMAGES))


# what deepcopy cannot copy


class Keeps(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


def keeping() -> nn.Module:
    student = nn.Sequential(Keeps(3, 2, 1))
    student(IMAGES)
    return student


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 2, 1)))


GRAPH = "it holds a tensor with a graph, such as a kept activation or old weight_norm; drop it, or use"
UNCOPYABLE = {
    "a lock": (
        lambda: nn.Sequential(with_(nn.Conv2d(3, 2, 1), logger={"lock": threading.Lock()})),
        "its 0.logger raises TypeError cannot pickle '_thread.lock' object; drop it before",
    ),
    "a generator": (
        lambda: with_(nn.Conv2d(3, 2, 1), batches=iter(x for x in [1])),
        "its batches raises TypeError cannot pickle 'generator' object; drop it before",
    ),
    "a lazy layer": (lambda: nn.Sequential(nn.LazyConv2d(4, 1)), "it has lazy layers, 0.weight has no shape yet; run"),
    "a lazy buffer": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.LazyBatchNorm2d(affine=False)),
        "it has lazy layers, 1.running_mean has no shape yet;",
    ),
    "a kept activation": (
        keeping,
        GRAPH,
    ),
    "old weight norm": (
        old_weight_norm,
        GRAPH,
    ),
}


@pytest.mark.parametrize("name", UNCOPYABLE)
def test_what_cannot_be_copied_is_said_with_the_way_out(name: str) -> None:
    build, reason = UNCOPYABLE[name]
    encoder = build()
    with pytest.raises(ValueError, match=re.escape(f"student cannot be copied: {reason}")) as caught:
        EMATeacher(encoder)
    assert str(caught.value).endswith(WAY_OUT)
    with pytest.raises(ValueError, match=re.escape(f"reference_encoder cannot be copied: {reason}")):
        FeatureDistance(encoder, classes=None, num_classes=2)


# a copy of one's own


def make(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_a_copy_of_ones_own_answers_like_the_student() -> None:
    student, module = make(), make(seed=1).double()
    student(torch.randn(2, 3, 4, 4))
    teacher = EMATeacher(student, module=module)
    assert teacher.module is module
    assert not any(parameter.requires_grad for parameter in module.parameters())
    for one, other in zip(teacher.module.state_dict().values(), student.state_dict().values(), strict=True):
        assert torch.equal(one, other.to(one))
    assert module[0].weight.dtype == torch.float64
    student[1].eval()
    assert not EMATeacher(student, module=make()).module[1].training


def test_students_that_cannot_be_copied_take_a_copy_of_ones_own() -> None:
    student = old_weight_norm()
    teacher = EMATeacher(student, module=old_weight_norm())
    with torch.no_grad():
        assert torch.equal(teacher(IMAGES), student(IMAGES))
        student[0].weight_g += 1
        teacher.update(student)
    assert torch.equal(teacher.module[0].weight_g, student[0].weight_g - 0.5)


def shares_one(share: str) -> nn.Module:
    module = make()
    if share == "parameter":
        module[0].weight = STUDENT[0].weight
    if share == "storage":
        module[0].weight.data = STUDENT[0].weight.data.view(4, 3, 1, 1)
    if share == "buffer":
        module[1].running_mean = STUDENT[1].running_mean
    return module


STUDENT = make()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: make, "module must be a torch.nn.Module, a copy of the student, got function"),
        (lambda: STUDENT, "module reaches a Sequential that is not its own, by itself; make it a submodule"),
        (lambda: copy.copy(STUDENT), "module reaches a Conv2d that is not its own, by 0; make it a submodule"),
        (lambda: shares_one("parameter"), "module reaches a Parameter that is not its own, by 0.weight;"),
        (
            lambda: with_(make(), first=[STUDENT[0]]),
            "module reaches a Conv2d that is not its own, by first[0]; make it",
        ),
        (lambda: shares_one("storage"), "module must share no tensor with the student, but 0.weight does"),
        (lambda: shares_one("buffer"), "module must share no tensor with the student, but 1.running_mean does"),
        (
            lambda: make()[:2],
            "student must have the teacher's parameters: missing [], unexpected ['2.bias', '2.weight']",
        ),
        (
            lambda: nn.Sequential(*make()[:2], nn.Conv2d(4, 3, 1)),
            "student's 2.weight must have the teacher's shape (3,",
        ),
        (
            lambda: nn.Sequential(nn.LazyConv2d(4, 1)),
            "module has lazy layers, 0.weight has no shape yet; run one batch",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_a_module_that_is_no_copy_is_refused(module: Callable[[], Any], message: str) -> None:
    before = copy.deepcopy(STUDENT.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        EMATeacher(STUDENT, module=module())
    assert all(
        torch.equal(one, other) for one, other in zip(before.values(), STUDENT.state_dict().values(), strict=True)
    )
    assert all(parameter.requires_grad for parameter in STUDENT.parameters())


def test_a_copy_of_ones_own_may_share_what_is_frozen() -> None:
    student = make()
    student[0].requires_grad_(False)
    module = make()
    module[0].weight = student[0].weight
    with pytest.raises(ValueError, match=r"reaches a Parameter that is not its own, by 0\.weight"):
        EMATeacher(student, module=module)
    assert EMATeacher(student, module=module, share_frozen=True).module[0].weight is student[0].weight


def test_a_wrapper_with_work_of_its_own_is_copied_whole() -> None:
    class Tripled(nn.DataParallel):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * self.module(x)

    network, images = nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(EMATeacher(Tripled(network))(images), 3 * network(images))
    torch.testing.assert_close(EMATeacher(nn.DataParallel(network))(images), network(images))
