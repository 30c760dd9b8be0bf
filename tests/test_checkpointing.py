"""A checkpoint is whole or not there, gives back what was saved, and a resumed run ends in the same bits."""

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hrda_lib import EMATeacher, MultiResSegmenter, SelfTraining, StrongAugment, patch_mask
from hrda_lib.checkpointing import load_checkpoint, save_checkpoint, seed_step
from hrda_lib.data.streams import Stream
from hrda_lib.optim import warmup_poly

STEPS = 5


class Run:
    """Everything that has a state or draws: dropout, batch norm, crops, classes, masks, colours."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Dropout2d(0.3))
        self.student = MultiResSegmenter(encoder, nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1), detail_size=16)
        self.teacher = EMATeacher(self.student)
        augment = StrongAugment(mean=(0, 0, 0), std=(1, 1, 1))
        drawn = {"masking": patch_mask, "augment": augment, "generator": torch.Generator()}
        self.training = SelfTraining(self.student, self.teacher, threshold=0.3, **drawn)  # type: ignore[arg-type]
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=0.01)
        self.schedule = warmup_poly(self.optimizer, total=STEPS, warmup=2)
        self.scaler = torch.amp.GradScaler("cpu", enabled=True)
        self.state = {name: getattr(self, name) for name in ("student", "teacher", "optimizer", "schedule", "scaler")}

    def step(self, step: int) -> None:
        seed_step(7, step, generator=self.training.generator)
        generator = torch.Generator().manual_seed(step)
        source, target = torch.rand(2, 2, 3, 32, 32, generator=generator)
        labels = torch.randint(4, (2, 32, 32), generator=generator)
        for _, loss in self.training.losses(source, labels, target):
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.teacher.update(self.student)


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [x for inside in value.values() for x in flat(inside)]
    return [x for inside in value for x in flat(inside)] if isinstance(value, list | tuple) else [value]


def same(first: Run, second: Run) -> bool:
    ours, theirs = ([x for name in run.state for x in flat(run.state[name].state_dict())] for run in (first, second))
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def whole() -> Run:
    run = Run()
    for step in range(STEPS):
        run.step(step)
    return run


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_a_resumed_run_ends_in_the_same_bits(stop: int, whole: Run, tmp_path: Path) -> None:
    killed = Run()
    for step in range(stop):
        killed.step(step)
    save_checkpoint(tmp_path / "last.pt", {**killed.state, "step": stop})
    torch.manual_seed(99)  # another process
    resumed = Run()
    assert not same(resumed, killed)
    assert load_checkpoint(tmp_path / "last.pt", resumed.state) == {"step": stop}
    assert same(resumed, killed)
    for step in range(stop, STEPS):
        resumed.step(step)
    assert same(resumed, whole)


def test_plain_values_come_back(tmp_path: Path) -> None:
    state = {"step": 3, "x": 0.5, "names": ["a", ("b", None)], "t": torch.ones(2), "deep": {"k": {1: True}}, "z": 1j}
    save_checkpoint(tmp_path / "last", state)
    found = load_checkpoint(str(tmp_path / "last"), {"step": 0})
    assert torch.equal(found.pop("t"), torch.ones(2))
    assert found == {name: x for name, x in state.items() if name != "t"}


def test_former_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save_checkpoint(tmp_path / "last.pt", {"step": step}, keep=3)
    names = {"last.pt": 4, "last.1.pt": 3, "last.2.pt": 2}
    assert {file.name: load_checkpoint(file, {})["step"] for file in tmp_path.iterdir()} == names


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuses)
    test_former_checkpoints_are_kept(tmp_path)


STAGES: dict[str, tuple[Any, str]] = {
    "writing": (torch, "save"),
    "bringing to the disk": (os, "fsync"),
    "keeping the former": (os, "link"),
    "renaming": (Path, "replace"),
}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "key"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_at_any_stage_leaves_a_whole_checkpoint(
    stage: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "last.pt"
    for step in (1, 2):
        save_checkpoint(file, {"step": step}, keep=2)

    def fails(*arguments: Any) -> None:
        if stage == "writing":
            arguments[1].write(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*STAGES[stage], fails)
        if stage == "keeping the former" and isinstance(error, OSError):  # copied then
            save_checkpoint(file, {"step": 3}, keep=2)
        else:
            with pytest.raises(type(error)):
                save_checkpoint(file, {"step": 3}, keep=2)
    assert load_checkpoint(file, {})["step"] == (3 if stage.startswith("keep") and isinstance(error, OSError) else 2)
    assert not list(tmp_path.glob("*.part"))
    save_checkpoint(file, {"step": 4}, keep=2)
    assert load_checkpoint(file, {})["step"] == 4


def test_torch_s_own_error_of_a_full_disk_is_an_oserror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match=r"last\.pt: cannot be written \(unexpected pos 64 vs 0\)"):
        save_checkpoint(tmp_path / "last.pt", {})


UNSAFE: dict[str, Any] = {
    "a path": Path("x"),
    "a function": len,
    "a number of numpy": np.float64(1),
    "an array": np.zeros(2),
    "deep": {"a": [0, {"b": Path("x")}]},
    "a module's class": nn.Linear,
}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_could_not_be_read_safely_is_refused(case: str, tmp_path: Path) -> None:
    place = r"'x'\['a'\]\[1\]\['b'\] of type" if case == "deep" else "of type"
    with pytest.raises(
        ValueError, match=f"state must hold objects with state_dict.*{place.replace(chr(39) + 'x' + chr(39), 'x')}"
    ):
        save_checkpoint(tmp_path / "last.pt", {"x": UNSAFE[case]})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="state must have texts as names, got 3"):
        save_checkpoint(tmp_path / "last.pt", {3: 1})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="keep must be a positive int, got 0"):
        save_checkpoint(tmp_path / "last.pt", {}, keep=0)


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('run')",)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda file: None, "no such file; a checkpoint of save_checkpoint is expected"),
    "empty": (lambda file: file.write_bytes(b""), "cannot be loaded"),
    "cut": (lambda file: file.write_bytes(b"PK\x03\x04abc"), "cannot be loaded"),
    "code": (lambda file: torch.save({"model": Code()}, file), "it holds more than data"),
    "a pickle": (lambda file: file.write_bytes(pickle.dumps({"a": Code()}, 2)), "it holds more than data"),
    "a list": (lambda file: torch.save([1], file), "must hold a dictionary, as save_checkpoint writes it, got list"),
    "no student": (lambda file: torch.save({"step": 1}, file), "has no 'student' for state; it holds 'step'"),
    "no state": (lambda file: torch.save({"student": 1}, file), "'student' must be a state dict, got 1"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_another_kind_is_refused(case: str, tmp_path: Path) -> None:
    write, text = FILES[case]
    write(tmp_path / "last.pt")
    with pytest.raises(ValueError, match=text) as refused:
        load_checkpoint(tmp_path / "last.pt", {"student": nn.Linear(1, 1)})
    assert str(refused.value).startswith(f"{tmp_path / 'last.pt'}: ")
    assert "weights_only" not in str(refused.value)


def test_arguments_in_another_order_or_without_a_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    for function in (save_checkpoint, load_checkpoint):
        with pytest.raises(
            ValueError, match=r"path must be a file, got a dictionary; path comes first, and then state"
        ):
            function({"step": 1}, file)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r'objects by name, got Linear; give it a name, {"student": module}'):
            function(file, nn.Linear(1, 1))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"state must be a dictionary of objects by name, got list$"):
            function(file, [1])  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_state_dict_by_itself_is_named_as_one(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "net.pt")
    text = (
        "has no 'student' for state; it holds 'weight', 'bias', tensors, as the state dict of one network: "
        r"student.load_state_dict\(torch.load\(path, weights_only=True\)\)"
    )
    with pytest.raises(ValueError, match=text):
        load_checkpoint(tmp_path / "net.pt", {"student": nn.Linear(1, 1)})


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (nn.Linear(2, 3), r"'b' is of another network: weight is \(3, 2\), not \(3, 4\)"),
        (nn.Linear(4, 3, bias=False), r"'b' is of another network: it has no bias \(1 missing\)"),
        (nn.Sequential(nn.Linear(4, 3)), r"'b' is of another network: it has no weight \(2 missing\)"),
    ],
)
def test_another_network_is_refused_before_anything_is_loaded(other: nn.Module, text: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", {"a": nn.Linear(4, 3), "b": other})
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    before = first.weight.clone()
    with pytest.raises(ValueError, match=text):
        load_checkpoint(tmp_path / "last.pt", {"a": first, "b": second})
    assert torch.equal(first.weight, before)
    with_more = {"a": first, "b": nn.Linear(4, 3, bias=False)}
    save_checkpoint(tmp_path / "last.pt", {"a": first, "b": second})
    with pytest.raises(ValueError, match=r"it has bias \(1 unexpected\)"):
        load_checkpoint(tmp_path / "last.pt", with_more)


def test_another_optimiser_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    save_checkpoint(tmp_path / "last.pt", {"optimizer": torch.optim.SGD(model.parameters(), lr=1)})
    other = torch.optim.SGD([{"params": model.weight}, {"params": model.bias}], lr=1)
    with pytest.raises(ValueError, match=r"'optimizer' does not fit that of state \(ValueError: loaded state dict has"):
        load_checkpoint(tmp_path / "last.pt", {"optimizer": other})


MODEL = nn.Linear(4, 3)
OPTIMISERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: torch.optim.SGD(MODEL.parameters(), lr=1, momentum=0.9),
    "Adam": lambda: torch.optim.Adam(MODEL.parameters()),
    "AdamW": lambda: torch.optim.AdamW(MODEL.parameters()),
    "NAdam": lambda: torch.optim.NAdam(MODEL.parameters()),
    "RAdam": lambda: torch.optim.RAdam(MODEL.parameters()),
    "RMSprop": lambda: torch.optim.RMSprop(MODEL.parameters()),
}
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "warmup_poly": lambda optimizer: warmup_poly(optimizer, total=5),
    "StepLR": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
    "ExponentialLR": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    "CosineAnnealingLR": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5),
    "PolynomialLR": lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, 5),
    "ReduceLROnPlateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
    "ChainedScheduler": lambda optimizer: torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.ConstantLR(optimizer)]
    ),
}


@pytest.mark.parametrize("saved", OPTIMISERS)
@pytest.mark.parametrize("built", OPTIMISERS)
def test_the_state_of_another_class_of_optimiser_is_refused(saved: str, built: str, tmp_path: Path) -> None:
    optimizer, other, plain = OPTIMISERS[saved](), OPTIMISERS[built](), nn.Linear(4, 3)
    MODEL(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    before = plain.weight.clone()
    warmup_poly(optimizer, total=3)  # which writes into the groups too
    save_checkpoint(tmp_path / "last.pt", {"optimizer": optimizer, "student": nn.Linear(4, 3)})
    if saved == built:
        load_checkpoint(tmp_path / "last.pt", {"optimizer": other})
        assert other.state_dict().keys() == optimizer.state_dict().keys()
        return
    text = (
        rf"last.pt: 'optimizer' is of another optimiser than {built}: they differ in [a-z_, ]+; build the optimiser "
        "that was saved, or leave it out of state to begin with a new one"
    )
    settings = other.state_dict()["param_groups"]
    with pytest.raises(ValueError, match=text):
        load_checkpoint(tmp_path / "last.pt", {"student": plain, "optimizer": other})
    assert other.state_dict()["param_groups"] == settings
    assert torch.equal(plain.weight, before)


@pytest.mark.parametrize("saved", SCHEDULES)
@pytest.mark.parametrize("built", SCHEDULES)
def test_the_state_of_another_class_of_schedule_is_refused(saved: str, built: str, tmp_path: Path) -> None:
    optimizers = OPTIMISERS["SGD"](), OPTIMISERS["SGD"]()
    schedule, other = SCHEDULES[saved](optimizers[0]), SCHEDULES[built](optimizers[1])
    save_checkpoint(tmp_path / "last.pt", {"schedule": schedule})
    if saved == built:
        load_checkpoint(tmp_path / "last.pt", {"schedule": other})
        return
    text = r"'schedule' is of another schedule than \w+: they differ in [A-Za-z_, ]+; build the schedule that was saved"
    with pytest.raises(ValueError, match=text):
        load_checkpoint(tmp_path / "last.pt", {"schedule": other})


def test_files_of_other_versions_of_torch_and_settings_of_one_s_own_load(tmp_path: Path) -> None:
    """Not every torch has each setting; what schedules, or oneself, put into groups says nothing of the class."""
    optimizer, optimizers = OPTIMISERS["AdamW"](), OPTIMISERS["AdamW"]()
    for name in ("fused", "foreach", "maximize", "capturable", "differentiable", "decoupled_weight_decay"):
        for group in optimizer.param_groups:
            del group[name]
    optimizer.param_groups[0].update(name="head", lr_factor=2.0)
    save_checkpoint(tmp_path / "last.pt", {"optimizer": optimizer})
    load_checkpoint(tmp_path / "last.pt", {"optimizer": optimizers})
    schedule, other = (SCHEDULES["StepLR"](OPTIMISERS["SGD"]()) for _ in range(2))
    schedule.verbose, schedule.own = False, 1
    save_checkpoint(tmp_path / "last.pt", {"schedule": schedule})
    load_checkpoint(tmp_path / "last.pt", {"schedule": other})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("optimizer", "'optimizer' must be the state of an optimiser, got a dictionary with 'weight', 'bias'"),
        (
            "schedule",
            "'schedule' is of another schedule than LambdaLR: they differ in base_lrs, last_epoch, lr_lambdas",
        ),
    ],
)
def test_states_under_other_names_are_refused(name: str, text: str, tmp_path: Path) -> None:
    optimizer = OPTIMISERS["SGD"]()
    objects = {"optimizer": optimizer, "schedule": warmup_poly(optimizer, total=5)}
    save_checkpoint(tmp_path / "last.pt", {name: nn.Linear(4, 3)})
    with pytest.raises(ValueError, match=text):
        load_checkpoint(tmp_path / "last.pt", {name: objects[name]})
    save_checkpoint(tmp_path / "last.pt", {name: 1})
    with pytest.raises(ValueError, match=r"must be the state of an? \w+, got 1"):
        load_checkpoint(tmp_path / "last.pt", {name: objects[name]})


def drawn(seed: int, step: int, rank: int = 0) -> tuple[float, float]:
    generator = torch.Generator()
    seed_step(seed, step, rank, generator=generator)
    return torch.rand(()).item(), torch.rand((), generator=generator).item()


places = st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 1000))


@given(places, places)
def test_what_is_drawn_depends_on_the_place_alone(first: tuple[int, int, int], second: tuple[int, int, int]) -> None:
    one, other = drawn(*first), drawn(*second)
    assert drawn(*first) == one
    assert (one[0] == other[0]) == (first == second)  # dropout: of (seed, step, rank)
    assert (one[1] == other[1]) == (first[:2] == second[:2])  # classes, boxes: alike on all processes
    assert one[0] != one[1]


def test_steps_draw_nothing_that_samples_draw() -> None:
    samples = {Stream(0, None, number).generator(k).initial_seed() for number in (0, 1) for k in range(50)}
    generator = torch.Generator()
    for step in range(50):
        seed_step(0, step, generator=generator)
        assert not {torch.initial_seed(), generator.initial_seed()} & samples


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("step", 1.5), ("rank", True)])
def test_places_are_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number from 0 on, got {value}"):
        seed_step(**{"seed": 0, "step": 0, name: value})


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_state_dicts_are_for_torch_s_distributed_checkpoints_too(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    saved, loaded = Run(), Run()
    saved.step(0)
    parts = {name: saved.state[name].state_dict() for name in ("student", "teacher")}
    dcp.save(parts, checkpoint_id=str(tmp_path))
    found = {name: loaded.state[name].state_dict() for name in parts}
    dcp.load(found, checkpoint_id=str(tmp_path))
    for name, state in found.items():
        loaded.state[name].load_state_dict(state)
    for name in parts:
        ours, theirs = (flat(run.state[name].state_dict()) for run in (saved, loaded))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_generator_of_python_is_left_alone() -> None:
    before = random.getstate()
    seed_step(0, 0)
    assert before == random.getstate()
