"""The demo, shortened: a few images of the toy benchmark, a few steps."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import FAST_STREETS, main, metrics, run, write_streets
from torch import Tensor
from trees import One, saved

import gta2cityscapes
import support.arms
import support.batches
import support.domains
from hrda_lib import EMATeacher, SelfTraining, StrongAugment, data
from hrda_lib.checkpointing import seed_step
from hrda_lib.models import daformer, to_reference_state_dict
from hrda_lib.optim import parameter_groups, warmup_poly
from support.batches import Batch, Batches
from support.command_line import Running
from support.ending import Stopped
from support.networks import NetworkSpec
from support.run_folder import DRAWN, RunFolder, load, read_metrics
from toy.data import write_toy_data

Size = tuple[int, int]
ARMS = ("source", "control", "hrda")


def few(root: Path, *, seed: int) -> dict[str, str | int]:
    """The toy data with three images of each part."""
    return write_toy_data(root, seed=seed, train=3, val=3)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_streets(tmp_path_factory.mktemp("toy") / "data")


def call(root: Path, out: Path, *arguments: Any) -> list[Any]:
    return ["--gta", root / "gta", "--cityscapes", root / "cityscapes", "--out", out, *FAST_STREETS, *arguments]


def start(root: Path, out: Path, *arguments: Any) -> int:
    return main("gta2cityscapes.py", *call(root, out, *arguments))


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def finished(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out, printed = tmp_path_factory.mktemp("runs") / "demo", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert start(toy, out) == 0
    return out, printed.getvalue()


def test_run_files_and_table(finished: tuple[Path, str]) -> None:
    out, printed = finished
    assert {file.name for file in out.iterdir()} == {
        *("table.md", "classes.png", "classes.pdf", "seed1", "gta_counts.json")
    }
    assert {file.name for file in (out / "seed1").iterdir()} == {*ARMS, *DRAWN}
    for arm in ARMS:
        files = {file.name for file in (out / "seed1" / arm).iterdir()}
        assert files == {"config.json", "metrics.jsonl", "last.pt", "result.json"}
    assert (out / "table.md").read_text() in printed
    shares, results = printed.split("\n\n", 1)
    assert re.sub(r"\s+", " ", shares.splitlines()[0]) == "| class | pixels, % | images | drawn, % |"
    head, ruler, road, *_ = results[results.index("| IoU, %") :].splitlines()
    assert re.sub(r"\s+", " ", head) == "| IoU, % | source | control | hrda | hrda - control |"
    assert re.fullmatch(r"\| -+ \|( -+: \|){4}", ruler)
    assert road.startswith("| road ")


def test_the_arms_differ_in_what_their_row_says(finished: tuple[Path, str]) -> None:
    seed = finished[0] / "seed1"
    results = {arm: json.loads((seed / arm / "result.json").read_text()) for arm in ARMS}
    assert [results[arm]["steps"] for arm in ARMS] == [2, 4, 4]
    lines = {arm: read_metrics(seed / arm) for arm in ARMS}
    assert [[line["step"] for line in metrics] for metrics in lines.values()] == [[0, 1]] * 3
    assert ["loss_mixed" in metrics[0] for metrics in lines.values()] == [False, False, True]
    assert "label_accuracy" in lines["hrda"][-1]
    kept = {arm: torch.load(seed / arm / "last.pt", weights_only=True) for arm in ARMS}
    assert ["teacher" in entries for entries in kept.values()] == [False, False, True]
    teacher, student, begin = kept["hrda"]["teacher"], kept["hrda"]["model"], kept["source"]["model"]
    parameters = [name for name, _ in load(seed / "hrda")[0].named_parameters()]
    moved = {name: [float((x[name] - begin[name]).norm()) for x in (teacher, student)] for name in parameters}
    assert all(by_teacher < by_student for by_teacher, by_student in moved.values())  # it follows
    # the control and hrda draw the same source images in the same order and augment the first alike
    assert lines["control"][0]["loss_source"] == lines["hrda"][0]["loss_source"]


@pytest.mark.usefixtures("no_pictures")
def test_an_arm_is_kept_and_other_settings_are_refused(
    toy: Path, finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, printed = finished
    file = out / "seed1" / "hrda" / "last.pt"
    before = file.stat().st_mtime_ns
    assert start(toy, out) == 0
    lines = [
        [line for line in text.splitlines() if "minutes" not in line] for text in (capsys.readouterr().out, printed)
    ]
    assert lines[0] == lines[1]
    assert file.stat().st_mtime_ns == before
    kept = torch.load(file, weights_only=True)  # without a teacher, as it was before there was one
    torch.save({name: value for name, value in kept.items() if name != "teacher"}, file)
    before = file.stat().st_mtime_ns
    assert start(toy, out) == 0
    assert file.stat().st_mtime_ns == before
    torch.save(kept, file)
    capsys.readouterr()
    assert start(toy, out, "--lr", 0.1) == 2
    assert last_line(capsys) == (
        f"gta2cityscapes.py: {out}/seed1/source: holds a run of other settings or data; choose another --out, "
        "or --overwrite"
    )


@pytest.mark.parametrize("damage", ["result.json", "last.pt", "metrics.jsonl"])
@pytest.mark.usefixtures("no_pictures")
def test_a_damaged_arm_is_trained_again(
    damage: str, toy: Path, finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished[0], tmp_path / "out")
    file = tmp_path / "out" / "seed1" / "hrda" / damage
    others = [file.parent.parent / arm / "last.pt" for arm in ("source", "control")]
    before = [other.stat().st_mtime_ns for other in others]
    file.write_bytes(file.read_bytes()[:20])
    assert start(toy, tmp_path / "out") == 0
    tables = [text.partition("| mean IoU")[0] for text in (capsys.readouterr().out, finished[1])]
    assert tables[0] == tables[1]
    assert file.stat().st_size > 20
    assert [other.stat().st_mtime_ns for other in others] == before


@pytest.mark.usefixtures("no_pictures")
def test_other_labels_are_other_data(
    toy: Path, finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy, tmp_path / "data")
    file = next((tmp_path / "data" / "cityscapes" / "gtFine" / "val").glob("*/*.png"))
    with Image.open(file) as image:
        Image.fromarray(np.where(np.array(image) == 7, 8, np.array(image)).astype(np.uint8)).save(file)
    assert start(tmp_path / "data", finished[0], "--arms", "source") == 2
    assert "holds a run of other settings or data" in last_line(capsys)


@pytest.mark.usefixtures("no_pictures")
def test_workers_change_nothing(toy: Path, finished: tuple[Path, str], tmp_path: Path) -> None:
    assert start(toy, tmp_path, "--workers", 2, "--arms", "hrda") == 0
    for name in ("source", "hrda"):
        assert metrics(tmp_path / "seed1" / name) == metrics(finished[0] / "seed1" / name)


@pytest.mark.usefixtures("no_pictures")
def test_later_steps_see_other_crops_and_colours(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, asked = support.arms.Batches, dict[tuple[str, ...], tuple[int, int]]()

    def recorded(*arguments: Any, **options: Any) -> Any:
        settings = arguments[3]
        asked[settings.arms] = (settings.seed, settings.steps)
        return batches(*arguments, **options)

    monkeypatch.setattr(support.arms, "Batches", recorded)
    assert start(toy, tmp_path, "--arms", "control", "--warmup", 1, "--seed", 3) == 0
    assert asked == {("source",): (6, 1), ("control",): (7, 2)}  # a number of their own for every seed


# The loop

SPEC = NetworkSpec(("sky", "road", "box"), (16, 16))


def tiny(**changes: Any) -> gta2cityscapes.Settings:
    return gta2cityscapes.Settings(**{"steps": 3, "crop": (32, 32), "seed": 5, **changes})


def drawn(second: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures, with their labels or with the pixels that may have one."""
    for k in range(3):
        generator = torch.Generator().manual_seed(k + 10 * (second == "valid"))
        images = torch.randint(256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
        labels = torch.randint(3, (2, 32, 32), generator=generator)
        yield images, (labels if second == "labels" else labels > 0)


class Drawn:
    """Such batches, as a loop asks for them."""

    def __init__(self, steps: int = 3, *, adapts: bool = False) -> None:
        self.steps, self.adapts = steps, adapts

    def since(self, start: int) -> Iterator[Batch]:
        for step, pair in enumerate(zip(drawn("labels"), drawn("valid"), strict=True)):
            if start <= step < self.steps:
                yield Batch(step, pair[0], pair[1] if self.adapts else None)

    def names(self, step: int) -> str:
        return f"image {step}"


def train(model: Any, batches: Any, settings: Any, folder: Path) -> tuple[EMATeacher, RunFolder]:
    run_folder = RunFolder(folder, SPEC)
    run_folder.start({})
    return gta2cityscapes.train(model, batches, settings, run_folder), run_folder


def student() -> Any:
    torch.manual_seed(1)
    return SPEC.build().train()


@pytest.mark.parametrize("adapts", [False, True])
def test_the_loop_against_its_steps_by_hand(adapts: bool, tmp_path: Path) -> None:
    settings = tiny(clip=0.01, threshold=0.3, lr_warmup=1, detail_weight=0.3)
    teacher, run_folder = train(student(), Drawn(adapts=adapts), settings, tmp_path / "run")

    model = student()
    averaged = EMATeacher(model, decay=0.99)
    generator = torch.Generator()
    augment = StrongAugment(mean=SPEC.mean, std=SPEC.std)
    training = SelfTraining(
        model, averaged, detail_weight=0.3, threshold=0.3, per="pixel", augment=augment, generator=generator
    )
    groups = parameter_groups(model, lr=3e-3, head_factor=1.0, weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups)
    schedule = warmup_poly(optimizer, total=3, warmup=1, power=0.9)
    losses = []
    for step, ((images, labels), (target_images, valid)) in enumerate(
        zip(drawn("labels"), drawn("valid"), strict=True)
    ):
        seed_step(5, step, generator=generator)
        if adapts and step > 0:
            averaged.update(model)
        images, target_images = SPEC.feed(images), SPEC.feed(target_images)
        loss, _ = training.source(augment(images, generator), labels)
        loss.backward()
        losses.append({"step": step, "loss_source": loss.item()})
        if adapts:
            pseudo_labels, weight = training.pseudo_label(target_images, valid=valid)
            loss, _ = training.mixed(images, labels, target_images, pseudo_labels, weight)
            loss.backward()
            share = pseudo_labels.flatten().bincount().max().item() / pseudo_labels.numel()
            losses[-1] |= {"loss_mixed": loss.item(), "confidence": weight.mean().item(), "largest_class": share}
        losses[-1]["gradient"] = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01).item()
        losses[-1]["lr"] = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    assert metrics(run_folder.path) == losses
    kept = torch.load(run_folder.path / "last.pt", weights_only=True)
    assert kept["step"] == run_folder.steps == 3
    for name, x in model.state_dict().items():
        assert torch.equal(kept["model"][name], x), name
    if adapts:
        assert all(torch.equal(kept["teacher"][name], x) for name, x in averaged.state_dict().items())
    else:  # nobody asks it
        begin = student().state_dict()
        assert "teacher" not in kept
        assert all(torch.equal(begin[name], x) for name, x in teacher.module.state_dict().items())


def test_source_images_keep_their_colours_where_that_is_asked_for(tmp_path: Path) -> None:
    losses = {}
    for augment in (0, 1):
        train(student(), Drawn(1), tiny(steps=1, augment_source=augment), tmp_path / str(augment))
        losses[augment] = read_metrics(tmp_path / str(augment))[0]["loss_source"]
    model = student()
    images, labels = next(drawn("labels"))
    generator = torch.Generator()
    seed_step(5, 0, generator=generator)
    training = SelfTraining(model, EMATeacher(model), threshold=0.9, per="pixel", generator=generator)
    assert losses[0] == training.source(SPEC.feed(images), labels)[0].item()
    assert losses[0] != losses[1]


def test_batches_are_what_the_settings_say(tmp_path: Path) -> None:
    labeled, counts = One((40, 60)), torch.tensor([[50, 7, 30]])
    for i in range(3):
        saved(tmp_path / f"{i}.png", np.random.default_rng(i).integers(256, size=(30, 40, 3)).astype(np.uint8))
    images = data.UnlabeledImages(sorted(tmp_path.glob("*.png")))
    changes = {"batch_size": 2, "crop": (16, 16), "source_size": (32, 48), "target_size": (20, 30)}
    changes |= {"margins": (3, 0, 0, 2), "temperature": 0.5, "min_pixels": 10, "min_crop_pixels": 18}
    settings, running = tiny(steps=2, **changes), Running(tmp_path, False, "cpu", 0, "raise")
    batches = Batches(labeled, counts, images, settings, running, adapts=True)
    rare = data.RareClasses(counts, temperature=0.5, min_pixels=10)
    small = data.Resized(labeled, (32, 48))
    first = data.SourceCrops(small, (16, 16), seed=5, rare_classes=rare, min_crop_pixels=18)
    fitted = data.ResizedImages(images, (20, 30))
    second = data.TargetCrops(fitted, (16, 16), seed=5, margins=(3, 0, 0, 2))
    for start in (0, 1):
        found = list(batches.since(start))
        assert [batch.step for batch in found] == [0, 1][start:]
        for step, *pairs in found:
            for pair, expected in zip(pairs, (first, second), strict=True):
                for i, x in enumerate(pair):
                    assert torch.equal(x, torch.stack([expected[2 * step + k][i] for k in range(2)]))
    assert not next(iter(second))[1].all()  # the margins
    names = [[stream.name(k) for k in (2, 3)] for stream in (first, second)]
    assert batches.names(1) == "; ".join(map(", ".join, names))
    halves = [
        Batches(labeled, counts, images, settings, running._replace(rank=r, world=2), adapts=True) for r in (0, 1)
    ]
    for whole, *parts in zip(batches.since(0), *(half.since(0) for half in halves), strict=True):
        assert torch.equal(whole.source[0], torch.cat([part.source[0] for part in parts]))
        assert torch.equal(whole.target[1], torch.cat([part.target[1] for part in parts]))
    with pytest.raises(ValueError, match="--batch-size must be a multiple of the 3 processes that share it, got 2"):
        Batches(labeled, counts, images, settings, running._replace(world=3), adapts=True)
    plain = tiny(steps=2, **changes, rare_classes=0)
    alone = next(Batches(labeled, counts, images, plain, running, adapts=False).since(0))
    assert alone.target is None
    assert torch.equal(alone.source[0][0], data.SourceCrops(small, (16, 16), seed=5)[0].image)


def fault(case: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Something goes wrong after one step; returns what is said."""
    if case == "a broken file":
        draw = support.batches.DataLoader

        def broken(*_: Any, **__: Any) -> Iterator[Any]:
            yield next(iter(draw(*_, **__)))
            raise ValueError("a.png: cannot be read as an image")

        monkeypatch.setattr(support.batches, "DataLoader", broken)
        return "a.png: cannot be read as an image"
    if case == "an interrupt":
        log = RunFolder.log

        def interrupted(self: RunFolder, **values: float) -> None:
            log(self, **values)
            raise KeyboardInterrupt

        monkeypatch.setattr(RunFolder, "log", interrupted)
        return "interrupted"
    if case == "gradients":
        norm, count = torch.nn.utils.clip_grad_norm_, iter(range(9))
        monkeypatch.setattr(
            torch.nn.utils,
            "clip_grad_norm_",
            lambda *a: norm(*a) * (torch.nan if next(count) else 1),
        )
        return "gradient is not finite; choose a smaller --lr, or look at the images: check_data.py; --skip N goes on"
    raise AssertionError(case)


@pytest.mark.parametrize(("case", "status"), [("a broken file", 1), ("gradients", 1), ("an interrupt", 130)])
@pytest.mark.usefixtures("no_pictures")
def test_a_fault_while_training_keeps_the_weights_but_no_result(
    case: str,
    status: int,
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        text = fault(case, patch)
        assert start(toy, tmp_path, "--arms", "source") == status
    last = last_line(capsys)
    assert last.startswith(f"gta2cityscapes.py: stopped at step 1: {text}")
    assert last.endswith("; --resume goes on")
    arm = tmp_path / "seed1" / "source"
    batch = {"bad_batch.pt"} if case == "gradients" else set()
    assert {file.name for file in arm.iterdir()} == {"config.json", "metrics.jsonl", "last.pt"} | batch
    if batch:
        assert re.search(r"; its images: 0000\d, 0000\d; the batch is in .*bad_batch.pt; --resume", last)
        assert len(torch.load(arm / "bad_batch.pt", weights_only=True)) == 3
    assert torch.load(arm / "last.pt", weights_only=True)["step"] == len(read_metrics(arm)) == 1
    load(arm)
    assert start(toy, tmp_path, "--arms", "source") == 2
    text = "holds a run that stopped at step 1; --resume goes on with it, --overwrite replaces it"
    assert last_line(capsys) == f"gta2cityscapes.py: {arm}: {text}"
    assert start(toy, tmp_path, "--arms", "source", "--resume", "--lr", 0.1) == 2
    assert (
        last_line(capsys)
        == f"gta2cityscapes.py: {arm}: --resume needs the settings that it began with, lr 0.003, not 0.1"
    )
    assert start(toy, tmp_path, "--arms", "source", "--resume") == 0
    assert json.loads((arm / "result.json").read_text())["steps"] == len(read_metrics(arm)) == 2


@pytest.mark.usefixtures("no_pictures")
def test_weights_that_are_not_finite_are_no_result(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["params"][0].data.fill_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", diverge)
    assert start(toy, tmp_path, "--arms", "source", "--warmup", 1) == 1
    expected = "gta2cityscapes.py: stopped at step 1: weights are not finite; choose a smaller --lr"
    assert last_line(capsys).startswith(expected)
    assert not (tmp_path / "seed1" / "source" / "result.json").exists()
    assert not (tmp_path / "table.md").exists()


def test_what_stops_a_run_is_its_cause(tmp_path: Path) -> None:
    batches = Drawn(4)
    batches.names = batches.since = lambda step: (_ for _ in (1 / 0,))  # type: ignore[method-assign]
    with pytest.raises(Stopped, match=r"^stopped at step 0: division by zero$") as stopped:
        train(student(), batches, tiny(steps=4), tmp_path / "run")
    assert isinstance(stopped.value.__cause__, ZeroDivisionError)


# Data


@pytest.mark.usefixtures("no_pictures")
def test_images_of_any_size(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "data")
    for file in (tmp_path / "data" / "cityscapes").glob("*/val/*/*.png"):
        with Image.open(file) as image:
            image.crop((0, 0, 125, 61)).save(file)
    assert start(tmp_path / "data", tmp_path / "out", "--arms", "hrda", "--warmup", 0, "--steps", 1) == 0


def test_without_arguments_it_draws_the_toy_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support.domains, "write_toy_data", few)
    arguments = ["--arms", "source", "--warmup", 1, "--out", tmp_path]
    assert main("gta2cityscapes.py", *arguments) == 0
    assert (tmp_path / "data" / "seed1" / "cityscapes" / "gtFine").is_dir()
    assert (tmp_path / "seed1" / "panel.png").exists()
    before = (tmp_path / "seed1" / "source" / "last.pt").stat().st_mtime_ns
    monkeypatch.setattr(support.arms, "draw_arms", lambda *_: None)
    assert main("gta2cityscapes.py", *arguments, "--recipe", "demo") == 0  # the same settings
    assert (tmp_path / "seed1" / "source" / "last.pt").stat().st_mtime_ns == before


@pytest.mark.usefixtures("no_pictures")
def test_labels_of_the_target_are_poison_to_all_but_the_oracle(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(toy, root)
    for file in (root / "cityscapes" / "gtFine" / "train").glob("*/*.png"):
        file.write_bytes(b"poison")
    assert start(root, tmp_path / "a", "--arms", "hrda") == 0
    assert start(root, tmp_path / "a", "--arms", "oracle") == 2
    assert "cannot be read as an image" in last_line(capsys)


@pytest.mark.usefixtures("no_pictures")
def test_broken_training_files_are_left_out_on_request(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(toy, root)
    broken = [
        root / "gta" / "labels" / "00001.png",
        root / "gta" / "images" / "00002.png",
        sorted((root / "cityscapes" / "leftImg8bit" / "train").glob("*/*.png"))[0],
    ]
    for file in broken:
        file.write_bytes(b"")
    arguments = ["--arms", "hrda", "--warmup", 0, "--steps", 6, "--workers", 1]
    done = run("gta2cityscapes.py", *call(root, tmp_path / "out", *arguments, "--on-error", "skip"))
    assert done.returncode == 0, done.stderr
    assert all(f"left out: {file}: cannot be read as an image" in done.stderr for file in broken)
    assert "1 of 4 labels cannot be read and are left out" in done.stderr
    assert start(root, tmp_path / "out", *arguments, "--overwrite") == 2  # at the start
    assert last_line(capsys).startswith(f"gta2cityscapes.py: {broken[0]}: cannot be read as an image")
    shutil.copy(toy / "gta" / "labels" / "00001.png", broken[0])
    assert start(root, tmp_path / "out", *arguments, "--overwrite") == 1  # at the step, in another process
    last = last_line(capsys)
    assert re.match(r"gta2cityscapes.py: stopped at step \d: .*png: cannot be read as an image", last)
    assert any(str(file) in last for file in broken[1:])


def break_data(case: str, root: Path) -> str:
    """Damage the tree; returns what the message must say."""
    gta, fine = root / "gta", root / "cityscapes" / "gtFine"
    if case == "no gta":
        shutil.rmtree(gta)
        return f"{gta}: no such folder"
    if case == "no gtFine":
        shutil.rmtree(fine)
        return f"{fine}: no such folder"
    if case == "no label":
        (gta / "labels" / "00002.png").unlink()
        return f"{gta}/labels/00002.png: no such file"
    if case == "no val label":
        file = next((fine / "val").glob("*/*.png"))
        file.unlink()
        return f"{file}: no such file"
    if case == "train ids":  # with the palette that draws them: the usual mistake
        file = gta / "labels" / "00001.png"
        with Image.open(file) as image:
            ids = np.zeros((image.height, image.width), np.uint8)
        picture = Image.fromarray(ids).convert("P")
        picture.putdata(ids.ravel().tolist())
        picture.putpalette([128, 64, 128] + [0] * 765)
        picture.save(file)
        return f"{file}: palette index 0 has the colour of road"
    if case == "grey train ids":  # _labelTrainIds under the name of _labelIds
        files = sorted((fine / "val").glob("*/*.png"))
        for file in files:
            with Image.open(file) as image:
                ids = np.array(image)
            Image.fromarray(np.where(ids < 13, ids - 7, 255).astype(np.uint8)).save(file)
        return f"{files[0]}: neither this nor another of the 3 labels has a class after pole; are these train ids?"
    if case == "truncated val image":
        file = next((root / "cityscapes" / "leftImg8bit" / "val").glob("*/*.png"))
        file.write_bytes(file.read_bytes()[:-500])
        return f"{file}: cannot be read as an image"
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    ["no gta", "no gtFine", "no label", "no val label", "train ids", "grey train ids", "truncated val image"],
)
def test_damaged_data_is_one_line_and_exit_2(
    case: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(toy, root)
    expected = break_data(case, root)
    assert start(root, tmp_path / "out") == 2
    assert last_line(capsys).startswith(f"gta2cityscapes.py: {expected}")
    assert not list((tmp_path / "out").glob("seed*"))  # found before anything is trained


# Settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gta", "somewhere"], "--cityscapes is missing: the data go from gta to cityscapes"),
        (["--synthia", "x", "--cityscapes", "y"], "--gta is missing: the data go from gta to cityscapes"),
        (["--source", "synthia"], "the toy data are --source gta --target cityscapes"),
        (["--recipe", "hrda"], "--recipe needs data: --gta DIR --cityscapes DIR"),
        (["--recipe", "cityscapes2darkzurich"], "--recipe needs data: --cityscapes DIR --dark-zurich DIR"),
        (["--recipe", "nothing"], "invalid choice: 'nothing'"),
        (["--arms", "nothing"], "invalid choice: 'nothing'"),
        (["--arms", "source", "--warmup", "0"], "--arms source is the warm-up, which takes --warmup 0 steps"),
        (["--model", "daformer", "--arms", "hrda"], "--arms hrda needs two scales, which --model daformer has not"),
        (["--balance", "0.5"], "unrecognized arguments: --balance 0.5"),
        (["--seed", "-1"], "--seed must be finite and at least 0, got -1"),
        (["--warmup", "-1"], "--warmup must not be negative, got -1"),
        (["--steps", "0"], "--steps must be finite and at least 1, got 0"),
        (["--batch-size", "0"], "batch_size must be positive, got 0"),
        (["--lr", "-1"], "--lr must be finite and at least 0, got -1.0"),
        (["--lr", "inf"], "--lr must be finite and at least 0, got inf"),
        (["--lr", "nan"], "--lr must be finite and at least 0, got nan"),
        (["--clip", "-1"], "--clip must be finite and at least 0, got -1.0"),
        (["--min-crop-pixels", "-2"], "--min-crop-pixels must be finite and at least -1, got -2"),
        (
            ["--crop", "100", "384"],
            "detail_size must be a multiple of 8 (by scale, output_stride and multiple_of), got",
        ),
        (["--per", "patch"], "per must be one of ('batch', 'image', 'pixel'), got 'patch'"),
        (["--ema-decay", "1"], "decay must be in [0, 1), got 1.0"),
        (["--threshold", "1.5"], "threshold must be in [0, 1], got 1.5"),
        (["--workers", "-1"], "--workers must be at least 0, got -1"),
        (["--source-size", "100", "0"], "--source-size must be two sides, or 0 0, got (100, 0)"),
        (["--target-size", "0", "5"], "--target-size must be two sides, or 0 0, got (0, 5)"),
        (["--margins", "-1", "0", "0", "0"], "--margins must be finite and at least 0, got [-1, 0, 0, 0]"),
        (["--device", "foo"], "Expected one of cpu, cuda"),
        (["--model", "hrda", "--encoder", "mit_b9"], "the encoder's size must be one of mit_b0"),
        (["--model", "hrda", "--encoder", "mit_b0", "--encoder-weights", "x.pth"], "x.pth: no such file"),
        (["--encoder", "mit_b0"], "encoder 'mit_b0': gta2cityscapes.py takes it with --model hrda"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_drawn(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("gta2cityscapes.py", "--out", tmp_path / "out", *arguments) == 2
    last = last_line(capsys)
    assert ": " in last
    assert message in last
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_drawn_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(support.domains, "write_toy_data", few)
    monkeypatch.setattr(Image.Image, "save", full)
    assert main("gta2cityscapes.py", "--out", tmp_path) == 2
    expected = f"{tmp_path}/data/seed1: the toy data cannot be written (No space left on device)"
    assert last_line(capsys) == f"gta2cityscapes.py: {expected}"
    assert not list((tmp_path / "data").iterdir())


# The paper


def official_trees(root: Path, *, source: Size, target: Size, val: Size) -> list[Any]:
    """Two source images, one of the target and one of validation; the arguments that name them."""
    rng = np.random.default_rng(0)

    def write(file: Path, size: Size, *, label: bool = False) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        ids = np.full(size, 23, np.uint8)
        ids[size[0] // 2 :] = 7
        ids[size[0] // 3 :, : size[1] // 3] = 11
        noise = rng.integers(0, 60, (*size, 3))
        picture = Image.fromarray(ids if label else (3 * ids[..., None] + noise).astype(np.uint8))
        picture.save(file, compress_level=1)

    for i in (1, 2):
        write(root / "gta" / "images" / f"{i:05}.png", source)
        write(root / "gta" / "labels" / f"{i:05}.png", source, label=True)
    for split, size in {"train": target, "val": val}.items():
        stem = f"{split}/ulm/ulm_000000_000019"
        write(root / "cityscapes" / "leftImg8bit" / f"{stem}_leftImg8bit.png", size)
        write(root / "cityscapes" / "gtFine" / f"{stem}_gtFine_labelIds.png", size, label=True)
    return ["--gta", root / "gta", "--cityscapes", root / "cityscapes", "--out", root / "out"]


@pytest.mark.usefixtures("no_pictures")
def test_the_paper_s_network_and_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    entries = to_reference_state_dict(daformer("mit_b0"))
    published = {name.removeprefix("backbone."): x for name, x in entries.items() if name.startswith("backbone.")}
    torch.save(published, tmp_path / "mit_b0.pth")
    data = official_trees(tmp_path, source=(128, 192), target=(128, 192), val=(64, 128))
    small = ["--crop", 64, 128, "--source-size", 0, 0, "--margins", 0, 0, 0, 0, "--steps", 2, "--min-pixels", 150]
    paper = ["--arms", "control", "hrda", "--encoder", "mit_b0", "--encoder-weights", tmp_path / "mit_b0.pth"]
    assert main("gta2cityscapes.py", *data, *small, *paper) == 0
    said = capsys.readouterr().err
    assert "real data and no --recipe: the settings are those of recipes/hrda.toml\n" in said
    assert "without --encoder-weights" not in said
    folder = tmp_path / "out" / "seed1"
    assert {file.name for file in folder.iterdir() if file.is_dir()} == {"control", "hrda"}
    config = json.loads((folder / "hrda" / "config.json").read_text())
    settings = {"lr": 6e-5, "lr_warmup": 1500, "lr_power": 1.0, "head_factor": 10.0, "weight_decay": 0.01, "clip": 0.0}
    settings |= {"warmup": 0, "ema_decay": 0.999, "threshold": 0.968, "per": "batch", "temperature": 0.01}
    settings |= {"min_crop_pixels": 6000, "feature_distance": 0.005, "augment_source": 0, "batch_size": 2}
    assert {name: config[name] for name in settings} == settings
    distances = [line["feature_distance"] for line in read_metrics(folder / "hrda")]
    assert len(distances) == 2
    assert "feature_distance" not in read_metrics(folder / "control")[0]
    network, spec = load(folder / "hrda")
    assert (spec.model, spec.detail_size) == ("hrda", (32, 64))
    for name, x in published.items():
        change = (to_reference_state_dict(network)[f"backbone.{name}"] - x).abs().max()
        assert change < 1e-3  # two steps of the warm-up from the file's weights


def test_real_data_take_the_paper_s_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("gta2cityscapes.py", "--encoder", "mit_b0", "--gta", tmp_path, "--cityscapes", "b", "--steps", 9) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "real data and no --recipe: the settings are those of recipes/hrda.toml\n"
        "without --encoder-weights: random weights, and no feature distance\n"
    )
    assert f"\ngta2cityscapes.py: {tmp_path}/images: no such folder" in said
    assert main("gta2cityscapes.py", "--recipe", "demo", "--gta", tmp_path, "--cityscapes", "b") == 2
    assert "no --recipe" not in capsys.readouterr().err
    assert [support.domains.NAMES[i] for i in support.arms.THINGS] == [
        *("traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    ]


@pytest.mark.usefixtures("no_pictures")
def test_official_sizes(tmp_path: Path) -> None:
    """The official layout and, but for validation, image sizes: source images are resized, target images are not."""
    # windows over a whole validation image take long
    data = official_trees(tmp_path, source=(1052, 1914), target=(1024, 2048), val=(256, 512))
    small = ["--model", "small", "--encoder", "mini", "--crop", 512, 512, "--warmup", 0, "--steps", 1]
    assert main("gta2cityscapes.py", *data, *small, "--arms", "hrda") == 0
    kept = torch.load(tmp_path / "out" / "seed1" / "hrda" / "last.pt", weights_only=True)
    assert kept["network"]["detail_size"] == (256, 256)
    config = json.loads((tmp_path / "out" / "seed1" / "hrda" / "config.json").read_text())
    assert config["source_size"] == [1440, 2560]
    assert config["margins"] == [30, 240, 30, 30]


@pytest.mark.parametrize(
    "changes",
    [{}, {"mix": "boxes"}, {"mask_ratio": 0.5, "mask_block": 8}, {"mask_ratio": 0.5, "mask_on": "separate"}],
)
def test_parts_of_a_batch_are_the_batch(changes: dict[str, Any], tmp_path: Path) -> None:
    """Where nothing normalises over the batch: the attention head would."""
    spec = NetworkSpec(SPEC.classes, SPEC.detail_size, attention=0.5)
    found = []
    for size in (0, 1):
        torch.manual_seed(1)
        run_folder = RunFolder(tmp_path / str(size), spec)
        run_folder.start({})
        model, settings = spec.build().train(), tiny(micro_batch=size, threshold=0.3, fixed_attention=0.5, **changes)
        gta2cityscapes.train(model, Drawn(adapts=True), settings, run_folder)
        found.append((metrics(run_folder.path), model.state_dict()))
    (whole, weights), (parts, others) = found
    assert ("loss_masked" in whole[0]) == ("mask_ratio" in changes)
    for line, other in zip(whole, parts, strict=True):
        assert other == pytest.approx(line, rel=1e-4)
    for name, x in weights.items():
        torch.testing.assert_close(others[name], x, rtol=1e-3, atol=1e-4)
