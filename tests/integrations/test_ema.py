"""The averaged copies of others, and ours that does the same."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from integration_pages import glue, run_page
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hrda_lib import EMATeacher

UPDATES = 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 1)).double()


def move(model: nn.Module, step: int) -> None:
    """An optimiser's step, and batch norm's statistics."""
    torch.manual_seed(step)
    model(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def check(theirs: nn.Module, ours: EMATeacher, *, integers: bool = True) -> None:
    for (name, mine), other in zip(ours.module.state_dict().items(), theirs.state_dict().values(), strict=True):
        if integers or mine.is_floating_point():
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12, msg=name)


def test_lines_of_glue() -> None:
    assert glue("ema") == {"each": 5}


def test_constructors_of_the_page_are_those_tested_here() -> None:
    page = run_page("ema")
    settings = [
        (teacher.decay, teacher.warmup, teacher.buffer_policy, teacher.training)
        for teacher in (page[f"like_{name}"] for name in ("timm", "lightly", "averaged_model", "unimatch"))
    ]
    assert settings == [
        (0.9999, False, "average", False),
        (0.999, False, "keep", True),
        (0.999, False, "follow", False),
        (0.996, True, "average", False),
    ]


def test_timm() -> None:
    utils = pytest.importorskip("timm.utils", reason="the extra integrations is not installed")
    model = network()
    theirs, ours = utils.ModelEmaV3(model), EMATeacher(model, decay=0.9999, warmup=False, buffers="average").eval()
    assert not any(part.training for part in theirs.module.modules())
    assert all(parameter.requires_grad for parameter in theirs.module.parameters())
    for step in range(UPDATES):
        move(model, step)
        theirs.update(model)
        ours.update(model)
        check(theirs.module, ours)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images))
    assert theirs(images).requires_grad
    assert not ours(images).requires_grad


def test_warmup_of_timm() -> None:
    utils = pytest.importorskip("timm.utils", reason="the extra integrations is not installed")
    model = network()
    theirs = utils.ModelEmaV3(model, decay=0.7, use_warmup=True, warmup_power=1)
    ours = EMATeacher(model, decay=0.7, buffers="average").eval()
    for k in range(1, 1 + UPDATES):
        move(model, k)
        theirs.update(model, step=k + 1)
        ours.update(model)
        check(theirs.module, ours)


def test_lightly() -> None:
    """Its ``update_momentum`` multiplies by m and adds 1 - m times the model, parameters alone."""
    model = network()
    theirs, ours = copy.deepcopy(model), EMATeacher(model, decay=0.999, warmup=False, buffers="keep")
    assert theirs.training
    for step in range(UPDATES):
        move(model, step)
        with torch.no_grad():
            for old, new in zip(theirs.parameters(), model.parameters(), strict=True):
                old.mul_(0.999).add_(new, alpha=1 - 0.999)
        ours.update(model)
        check(theirs, ours)


def test_averaged_model() -> None:
    model = network()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    assert theirs.module[2].training, "dropout is on"
    assert all(parameter.requires_grad for parameter in theirs.module.parameters())
    ours = None
    for step in range(UPDATES):
        move(model, step)
        theirs.update_parameters(model)
        if ours is None:
            ours = EMATeacher(model, decay=0.999, warmup=False).eval()
        else:
            ours.update(model)
        check(theirs.module, ours)
    assert "n_averaged" in theirs.state_dict()


def test_unimatch() -> None:
    model = network()
    theirs, ours = copy.deepcopy(model).eval(), None
    for k in range(1, 1 + UPDATES):
        move(model, k)
        ratio = min(1 - 1 / k, 0.996)
        with torch.no_grad():
            for old, new in zip(everything(theirs), everything(model), strict=True):
                old.copy_(old * ratio + new * (1 - ratio))
        if ours is None:
            ours = EMATeacher(model, decay=0.996, buffers="average").eval()
        else:
            ours.update(model)
        check(theirs, ours, integers=False)
    assert theirs[1].num_batches_tracked < model[1].num_batches_tracked, "cut back to integers"


def everything(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@pytest.mark.parametrize("build", [copy.deepcopy, AveragedModel], ids=["deepcopy", "AveragedModel"])
def test_a_copy_of_a_training_model_drops_out_and_ours_does_not(build: Callable[[nn.Module], Any]) -> None:
    model, images = network(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    theirs, ours = build(model), EMATeacher(model)
    assert not torch.equal(theirs(images), theirs(images))
    assert torch.equal(ours(images), ours(images))
