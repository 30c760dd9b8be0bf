"""Students inside the wrappers of others: called through them, given box and generator, copied from what is inside."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hrda_lib import Adapted, CropBox, EMATeacher, MultiResSegmenter, SelfTraining
from hrda_lib._modules import unwrap

C, BOX = 4, CropBox(8, 16, 16, 16)
SOURCE, TARGET = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(C, (2, 32, 32), generator=torch.Generator().manual_seed(1))


def build(attention: nn.Module | float | None = None) -> MultiResSegmenter:
    torch.manual_seed(0)
    encoder, decoder = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8)), nn.Conv2d(8, C, 1)
    head = nn.Conv2d(8, 1, 1) if attention is None else attention
    return MultiResSegmenter(encoder, decoder, head, detail_size=16)


def compiled(net: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(net, backend="eager")
    return wrapped


def fabric(net: nn.Module) -> nn.Module:
    pytest.importorskip("lightning")
    from lightning.fabric import Fabric

    wrapped: Any = Fabric(accelerator="cpu", devices=1).setup(net)
    return wrapped


def fabric_around_compiled(net: nn.Module) -> nn.Module:
    return fabric(compiled(net))


def accelerate(net: nn.Module) -> nn.Module:
    wrapped: Any = pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(net)
    return wrapped


def peft(net: nn.Module) -> nn.Module:
    """Adapters that start as 0 beside the decoder, so that the answer is that of the network without them."""
    library = pytest.importorskip("peft")
    wrapped: nn.Module = library.get_peft_model(net, library.LoraConfig(target_modules=["decoder"], r=2))
    for parameter in wrapped.parameters():
        parameter.requires_grad_(True)
    return wrapped


def data_parallel(net: nn.Module) -> nn.Module:
    return nn.DataParallel(net)


@pytest.fixture
def one_process() -> Iterator[None]:
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    gc.collect()  # what is left of it holds threads: freed in a process forked later, it would hang or abort that one


@pytest.fixture
def one_state() -> Iterator[None]:
    """Accelerate's settings are those of the whole process."""
    state = pytest.importorskip("accelerate").state
    state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    state.AcceleratorState._reset_state(reset_partial_state=True)


def distributed(net: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net)


def sharded(net: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh

    fully_shard = pytest.importorskip("torch.distributed.fsdp").fully_shard
    mesh = init_device_mesh("cpu", (1,))
    for part in (net.encoder, net.decoder, net):
        fully_shard(part, mesh=mesh)
    return net


WRAPPERS = [compiled, fabric, fabric_around_compiled, accelerate, peft, data_parallel, distributed, sharded]
pytestmark = pytest.mark.filterwarnings("ignore")  # those of other libraries


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def step(student: nn.Module, teacher: EMATeacher, box: CropBox | None) -> list[float]:
    """Two steps; torch's own generator must not matter."""
    training = SelfTraining(student, teacher, threshold=0.3, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(2):
        for _, loss in training.losses(SOURCE, LABELS, TARGET, source_box=box):
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(student)
    return losses


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("box", [None, BOX], ids=["drawn", "given"])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_the_losses_are_those_of_the_bare_student(wrap: Callable[[nn.Module], nn.Module], box: CropBox | None) -> None:
    net, bare = build(), build()
    before = EMATeacher(net) if wrap is sharded else None  # a sharded student is copied before
    student = wrap(net)
    teacher, expected_teacher = before or EMATeacher(student), EMATeacher(bare)
    assert type(teacher.module) is MultiResSegmenter
    calls: list[int] = []
    student.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = step(bare, expected_teacher, box)
    torch.manual_seed(99)
    got = step(student, teacher, box)
    assert len(calls) == 4  # through the wrapper, whose work is in its forward
    if wrap is peft:  # its adapters learn too, so only the first step is the same
        assert got[:2] == pytest.approx(expected[:2], rel=1e-5)
        assert len(list(teacher.parameters())) == len(list(expected_teacher.parameters())) + 2
        return
    assert got == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(flat(teacher), flat(expected_teacher))


class Normalised(nn.Module):
    """Work of its own around the one module inside, and arguments that it passes on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*(x / 10 for x in args), **kwargs)


class DataParallel(Normalised):
    """Of the name of torch's, which it is not."""


class Masked(nn.DataParallel):
    """A wrapper with a weight of its own, which is not to be lost."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.scale = nn.Parameter(torch.ones(1))


def test_modules_that_do_work_around_another_are_not_unwrapped() -> None:
    net = nn.Conv2d(3, C, 1)
    for around in (Normalised(net), DataParallel(net), Adapted(net), Masked(net), nn.Sequential(net)):
        assert unwrap(around) is around
        assert type(EMATeacher(around).module) is type(around)
    teacher = EMATeacher(compiled(Normalised(net)))
    torch.testing.assert_close(teacher(SOURCE), net(SOURCE / 10).detach())


def test_prompts_of_peft_are_no_part_of_the_network_inside() -> None:
    """Weights beside the network: the teacher is a copy of all."""
    library = pytest.importorskip("peft")

    class Prompted(library.PeftModel):  # type: ignore[misc,name-defined]
        def __init__(self, model: nn.Module) -> None:
            nn.Module.__init__(self)
            self.base_model, self.prompt = nn.Module(), nn.Parameter(torch.zeros(1))
            self.base_model.model = model

    around = Prompted(nn.Conv2d(3, C, 1))
    assert unwrap(around) is around


@pytest.mark.usefixtures("one_state")
def test_accelerate_in_bfloat16_keeps_the_names_of_the_arguments() -> None:
    library = pytest.importorskip("accelerate")
    student, bare = library.Accelerator(cpu=True, mixed_precision="bf16").prepare(build()), build()
    expected = step(bare, EMATeacher(bare), BOX)
    got = step(student, EMATeacher(student), BOX)
    assert got == pytest.approx(expected, rel=0.05)
    assert got != expected


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("objective", ["context", "detail", "separate"])
def test_an_attention_without_gradient_under_ddp(objective: Any) -> None:
    """DDP would wait for it: refused with what to do, and each of these works."""
    net = build()
    with pytest.raises(ValueError, match=rf"objective '{objective}' gives the attention head no gradient, for which"):
        SelfTraining(distributed(net), EMATeacher(net), objective=objective)
    fixed = build()
    fixed.attention.requires_grad_(False)
    patient = nn.parallel.DistributedDataParallel(build(), find_unused_parameters=True)
    for student in (distributed(build(0.5)), distributed(fixed), patient, build()):
        losses = []
        training = SelfTraining(student, EMATeacher(student), objective=objective)
        for _ in range(2):
            for _, loss in training.losses(SOURCE, LABELS, TARGET, source_box=BOX, mixed_box=BOX):
                loss.backward()
                losses.append(loss.item())
        assert len(losses) == 4
