"""Fabric and Accelerate: the wrapped student is trained as the network alone is; resume is exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from integration_pages import glue, run_page
from torch import Tensor

from hrda_lib import EMATeacher, SelfTraining

for package in ("lightning", "accelerate"):
    pytest.importorskip(package, reason="the extra integrations is not installed")

PAGE = "fabric_accelerate"
KINDS = ("fabric", "accelerate")


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return run_page(PAGE)


def batches(count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        source, target = torch.randn(2, 2, 3, 64, 64, generator=g)
        made.append((source, torch.randint(4, (2, 64, 64), generator=g), target))
    return made


def prepared(page: dict[str, Any], kind: str) -> tuple[Any, Any, Any, Any, Any]:
    torch.manual_seed(0)
    network = page["network"]()
    optimizer = torch.optim.AdamW(network.parameters())
    if kind == "plain":
        return None, network, network, optimizer, Tensor.backward
    tool = page["Fabric"](accelerator="cpu", devices=1) if kind == "fabric" else page["Accelerator"](cpu=True)
    setup = tool.setup if kind == "fabric" else tool.prepare
    return tool, network, *setup(network, optimizer), tool.backward


def test_lines_of_glue() -> None:
    assert glue(PAGE) == {"loop": 5}


@pytest.mark.parametrize("kind", KINDS)
def test_the_wrapped_student_trains_as_the_network_alone(page: dict[str, Any], kind: str) -> None:
    found = []
    for which in ("plain", kind):
        _, network, student, optimizer, backward = prepared(page, which)
        torch.manual_seed(7)
        teacher = page["train"](student, optimizer, backward, batches(3)).teacher
        assert type(teacher.module) is type(network)
        found.append([*network.parameters(), *teacher.module.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact(page: dict[str, Any], kind: str, tmp_path: Path) -> None:
    def start() -> tuple[Any, ...]:
        tool, network, student, optimizer, backward = prepared(page, kind)
        teacher, generator = EMATeacher(student), torch.Generator().manual_seed(3)
        training = SelfTraining(student, teacher, generator=generator)

        def run(part: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
            for batch in part:
                for _, loss in training.losses(*batch):
                    backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                teacher.update(student)
            return [*network.state_dict().values(), *teacher.state_dict().values()]

        return tool, {"student": student, "teacher": teacher, "optimizer": optimizer}, generator, run

    whole = start()[-1](batches(4))
    tool, state, generator, run = start()
    run(batches(4)[:2])
    _save(tool, state, tmp_path / "state")
    drawn = generator.get_state()
    tool, state, generator, run = start()
    _load(tool, state, tmp_path / "state")
    generator.set_state(drawn)
    for mine, theirs in zip(run(batches(4)[2:]), whole, strict=True):
        assert torch.equal(mine, theirs)


def _save(tool: Any, state: dict[str, Any], path: Path) -> None:
    if hasattr(tool, "save_state"):
        tool.register_for_checkpointing(state["teacher"])
        tool.save_state(str(path))
    else:
        tool.save(path, state)


def _load(tool: Any, state: dict[str, Any], path: Path) -> None:
    if hasattr(tool, "load_state"):
        tool.register_for_checkpointing(state["teacher"])
        tool.load_state(str(path))
    else:
        tool.load(path, state)
