"""A semi-supervised code base like UniMatch V2: its EMA, loss and windows replaced, number for number."""

import copy
from typing import Any

import pytest
import torch
import written_out
from documents import python_blocks
from integration_pages import PAGES, check_hrda, check_predict, run_page
from torch import Tensor
from written_out import Parts, batches

from hrda_lib import EMATeacher, SlidingWindowInferer

PAGE = "semi_supervised"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return run_page(PAGE)


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """The page up to where our code begins."""
    names: dict[str, Any] = {"__name__": "docs"}
    exec(
        python_blocks(PAGES / f"{PAGE}.md").split("    labels, weight = pseudo_labels")[0].rsplit("def step", 1)[0],
        names,
    )
    return names


def batch(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    labelled, weak, view = torch.randn(3, 2, 3, 56, 56, generator=g, dtype=torch.float64)
    truth = torch.randint(5, (2, 56, 56), generator=g)
    truth[:, :3] = 255
    ignore, box = torch.zeros(2, 56, 56, dtype=torch.int64), torch.zeros(2, 56, 56, dtype=torch.bool)
    ignore[0, -5:] = 255
    box[0, 10:40, 10 + step :] = box[1, 5:20, 4:30] = True
    return labelled, truth, weak, view, ignore, box


def follow(ema: Any, net: Any, iteration: int) -> None:
    ratio = min(1 - 1 / (iteration + 1), 0.996)
    with torch.no_grad():
        for old, new in zip((*ema.parameters(), *ema.buffers()), (*net.parameters(), *net.buffers()), strict=True):
            old.copy_(old * ratio + new * (1 - ratio))


def test_losses_and_teacher_are_theirs(page: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert theirs["step"].__code__ != page["step"].__code__
    net = page["Network"]().double()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    ema, teacher = copy.deepcopy(net).eval(), EMATeacher(net).eval()
    for iteration in range(4):
        loss = page["step"](net, teacher, *batch(iteration), threshold=0.3)
        expected = theirs["step"](net, ema, *batch(iteration), threshold=0.3)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow(ema, net, iteration)
        if iteration == 0:  # the trap of the page
            teacher = EMATeacher(net, decay=0.996, buffers="average").eval()
        else:
            teacher.update(net)
        floats = [(x, y) for x, y in zip(teacher.module.state_dict().values(), ema.state_dict().values(), strict=True)]
        for mine, their in floats:
            if mine.is_floating_point():
                torch.testing.assert_close(mine, their, rtol=1e-9, atol=1e-12)


def test_windows_average_probabilities(page: dict[str, Any]) -> None:
    net, image = page["net"].double().eval(), torch.randn(1, 3, 98, 131, dtype=torch.float64)
    predictor = lambda x: net(x).softmax(1)  # noqa: E731
    with torch.no_grad():
        got = page["infer"](image, predictor)
        torch.testing.assert_close(got, written_out.slide(predictor, image, (70, 70), (46, 46)), rtol=1e-6, atol=1e-9)
        of_logits = SlidingWindowInferer(70, stride=46, output="probs")(image, net)
    assert (got - of_logits).abs().max() > 1e-5


def parts(student: Any) -> Parts:
    return Parts(
        student.encoder, student.decoder, lambda f: student.attention(f).sigmoid(), stride=14, detail=28, step=14
    )


def test_hrda_is_that_written_out(page: dict[str, Any]) -> None:
    check_hrda(page["hrda"], parts, batches(2, classes=5, side=112, box=28, cell=28))


def test_hrda_predicts_at_an_odd_size(page: dict[str, Any]) -> None:
    check_predict(page["hrda"], parts(page["hrda"]), torch.randn(1, 3, 50, 131), 56, (56, 140))
