"""A semi-supervised loop like UniMatch's: our average, loss and windows in the place of its own, numbers compared."""

import copy
from typing import Any

import pytest
import torch
from integration_pages import check_hrda, check_predict, run_page
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from written_out import Parts, batches, slide

PAGE = "semi_supervised"


@pytest.fixture
def page() -> dict[str, Any]:
    return run_page(PAGE)


def theirs(net: nn.Module, average: nn.Module, weak: Tensor, strong: Tensor, box: Tensor, ignore: Tensor) -> Tensor:
    """Between the loader and ``backward``, written out."""
    with torch.no_grad():
        confidence, label = average(weak).softmax(dim=1).max(dim=1)
    image, label, confidence, ignored = strong.clone(), label.clone(), confidence.clone(), ignore.clone()
    everywhere = box[:, None].expand(image.shape)
    image[everywhere] = strong.flip(0)[everywhere]
    for x in (label, confidence, ignored):
        x[box] = x.flip(0)[box]
    counted = ignored != 255
    loss = cross_entropy(net(image), label, reduction="none") * ((confidence >= 0.3) & counted)
    return loss.sum() / counted.sum()


def test_losses_and_averages_are_those_written_out(page: dict[str, Any]) -> None:
    net, teacher, optimizer = page["net"], page["teacher"], page["optimizer"]
    optimizer.zero_grad()
    average = copy.deepcopy(teacher.module).eval()
    generator = torch.Generator().manual_seed(0)
    box, ignore = torch.zeros(2, 32, 32, dtype=torch.bool), torch.zeros(2, 32, 32, dtype=torch.int64)
    box[0, 3:20, 5:30] = box[1, :9, 20:] = True
    ignore[:, -5:] = 255
    for step in range(4):
        weak, strong = torch.randn(2, 2, 3, 32, 32, generator=generator)
        expected = theirs(copy.deepcopy(net), average, weak, strong, box, ignore)
        loss = page["unlabeled_loss"](weak, strong, box, ignore)
        torch.testing.assert_close(loss, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update(net)
        decay = min(1 - 1 / (step + 3), 0.996)  # the page made one update
        ours = zip(average.state_dict().values(), net.state_dict().values(), strict=True)
        with torch.no_grad():
            for mine, new in ours:
                mine.copy_(mine * decay + new * (1 - decay) if mine.is_floating_point() else new)
        torch.testing.assert_close(teacher.module.state_dict(), average.state_dict())


def test_windows_average_probabilities(page: dict[str, Any]) -> None:
    net, image = page["net"].eval(), torch.randn(1, 3, 50, 131)
    with torch.no_grad():
        expected = slide(lambda x: net(x).softmax(dim=1), image, (32, 32), (21, 21)).argmax(dim=1)
        assert torch.equal(page["predict"](image), expected)


def parts(student: Any) -> Parts:
    return Parts(student.encoder, student.decoder, lambda f: student.attention(f).sigmoid(), stride=1)


def test_hrda_is_that_written_out(page: dict[str, Any]) -> None:
    check_hrda(page["hrda"], parts, batches(2, classes=4, cell=2))


def test_hrda_predicts_at_an_odd_size(page: dict[str, Any]) -> None:
    check_predict(page["hrda"], parts(page["hrda"]), torch.randn(1, 3, 50, 131), 64, (50, 132))
