"""The table of docs/replace_your_ema.md: our settings against the averages of others."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from documents import DOCS, python_blocks
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hrda_lib import EMATeacher

PAGE = DOCS / "replace_your_ema.md"
Average = tuple[nn.Module, Callable[[nn.Module], Any]]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def change(net: nn.Module, step: int) -> None:
    """One step of training, as far as weights and buffers go."""
    net.train()(torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))


def timm(**settings: Any) -> Average:
    average = pytest.importorskip("timm.utils", reason="needs the extra timm").ModelEmaV3(network(), **settings)
    return average.module, average.update


def torchs(**settings: Any) -> Average:
    average = AveragedModel(network(), multi_avg_fn=get_ema_multi_avg_fn(0.999), **settings)
    average.update_parameters(network())  # the first is a copy
    return average.module, average.update_parameters


def lightly() -> Average:
    average = network()

    @torch.no_grad()
    def update(net: nn.Module) -> None:
        for mine, new in zip(average.parameters(), net.parameters(), strict=True):
            mine.copy_(0.999 * mine + (1 - 0.999) * new)

    return average, update


def unimatch() -> Average:
    average, steps = network(), [1]  # the first is a copy

    @torch.no_grad()
    def update(net: nn.Module) -> None:
        steps[0] += 1
        ratio = min(1 - 1 / steps[0], 0.996)
        for mine, new in zip(average.parameters(), net.parameters(), strict=True):
            mine.copy_(mine * ratio + new * (1 - ratio))
        for mine, new in zip(average.buffers(), net.buffers(), strict=True):
            mine.copy_(mine * ratio + new * (1 - ratio) if mine.is_floating_point() else new)

    return average, update


THEIRS: dict[str, Callable[[], Average]] = {
    "like_timm": timm,
    "like_timm_without_buffers": lambda: timm(exclude_buffers=True),
    "like_averaged_model": torchs,
    "like_averaged_model_with_buffers": lambda: torchs(use_buffers=True),
    "like_lightly": lightly,
    "like_unimatch": unimatch,
}


def built(name: str) -> EMATeacher:
    names = {"__name__": "docs"}
    exec(compile(python_blocks(PAGE), str(PAGE), "exec"), names)
    teacher: Any = names[name]
    same = EMATeacher(
        network(),
        decay=teacher.decay,
        warmup=teacher.warmup,
        buffers=teacher.buffer_policy,
        batch_norm=teacher.batch_norm,
    )
    return same.train(teacher.training)


@pytest.mark.parametrize("name", THEIRS)
def test_weights_and_buffers_are_those_of(name: str) -> None:
    (average, update), teacher, net = THEIRS[name](), built(name), network()
    start = copy.deepcopy(average.state_dict())
    for step in range(5):
        change(net, step)
        update(net)
        teacher.update(net)
    theirs: dict[str, Tensor] = average.state_dict()
    ours = teacher.module.state_dict()
    for key in ours.keys() - {"1.num_batches_tracked"}:  # a counter that torch's average rounds to 0
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=1e-7)
    assert not torch.equal(theirs["0.weight"], start["0.weight"])


@pytest.mark.parametrize("name", ["like_timm", "like_averaged_model"])
def test_an_old_average_that_was_moved_goes_on(name: str) -> None:
    (average, update), net = THEIRS[name](), network()
    for step in range(3):
        change(net, step)
        update(net)
    teachers = [
        EMATeacher(net, decay=0.9999 if name == "like_timm" else 0.999, warmup=warmup) for warmup in (False, True, True)
    ]
    for teacher in teachers:
        teacher.module.load_state_dict(average.state_dict())
    teachers[1].step = 20_000
    for step in range(3, 6):
        change(net, step)
        update(net)
        for teacher in teachers:
            teacher.update(net)
    theirs = dict(average.named_parameters())
    for teacher in teachers[:2]:
        for key, parameter in teacher.module.named_parameters():
            torch.testing.assert_close(parameter, theirs[key], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(teachers[2].module[0].weight, theirs["0.weight"], atol=0.01)  # type: ignore[index]


def test_the_page_moves_one_of_torch() -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile(python_blocks(PAGE), str(PAGE), "exec"), names)
    assert names["teacher"].step == 3
    assert torch.equal(names["teacher"].module[0].weight, names["old"].module[0].weight)


def test_modes_are_as_the_table_says() -> None:
    assert not timm()[0].training
    assert AveragedModel(network().train()).module.training
    assert not AveragedModel(network().eval()).module.training
    teacher = EMATeacher(network())
    assert [part.training for part in teacher.module] == [False, True, False, False]


def test_a_step_makes_timm_s_first_update_a_copy() -> None:
    average = pytest.importorskip("timm.utils", reason="needs the extra timm").ModelEmaV3(network())
    net = network()
    change(net, 0)
    average.update(net, step=1)
    torch.testing.assert_close(average.module.state_dict(), net.state_dict())
    assert average.get_decay(2) == 0.9999


def test_timm_s_warmup_of_power_one_is_ours_a_step_on() -> None:
    average, teacher, net = (
        timm(decay=0.7, use_warmup=True, warmup_power=1),
        EMATeacher(network(), decay=0.7),
        network(),
    )
    for k in range(1, 6):
        change(net, k)
        average[1](net, step=k + 1)
        teacher.update(net)
    torch.testing.assert_close(list(teacher.module.parameters()), list(average[0].parameters()))


def test_theirs_record_gradients_and_ours_do_not() -> None:
    for average in (timm()[0], torchs()[0]):
        assert average(torch.randn(2, 3, 6, 6)).requires_grad
    assert not EMATeacher(network())(torch.randn(2, 3, 6, 6)).requires_grad
