"""Faults of the machine: disks that are full, keys that are pressed, runs that meet in one folder."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import EXAMPLES, FAST, main, picture, write

import gta2cityscapes
import own_data
import predict
from support import command_line, ending, run_folder
from support.arms import try_out
from support.ending import Stopped, held
from support.networks import MiniEncoder, NetworkSpec
from support.plots import palette
from support.run_folder import RunFolder, load, locked, read_metrics
from support.training import warn

SPEC = NetworkSpec(("a", "b", "c"), (32, 32))
HOST = platform.node()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    root = tmp_path_factory.mktemp("data")
    return ["--source", write(root / "source"), "--target", write(root / "target", labels=False), *FAST]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("draw_curves", "draw_panel"):
        monkeypatch.setattr(own_data, name, lambda *_, **__: None)


@pytest.fixture(autouse=True)
def keys_interrupt() -> Iterator[None]:
    """A shell may start the tests with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def started(folder: Path) -> RunFolder:
    run = RunFolder(folder, SPEC)
    run.start({"seed": 1})
    return run


# Weights are kept


def full_disk(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Whatever is saved into these folders ends in the middle."""
    save = torch.save

    def fails(kept: Any, file: Any) -> None:
        if Path(file.name).parent in folders:
            file.write(b"PK")
            raise OSError(28, "No space left on device")
        save(kept, file)

    monkeypatch.setattr(torch, "save", fails)


@pytest.mark.parametrize("case", ["deleted", "full", "a file"])
def test_weights_are_saved_beside_a_folder_that_takes_none(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = started(tmp_path / "run"), SPEC.build()
    if case == "full":
        full_disk(monkeypatch, tmp_path / "run")
    else:
        shutil.rmtree(tmp_path / "run")
        if case == "a file":
            (tmp_path / "run").write_text("")
    with pytest.raises(Stopped, match=r"^stopped at step 0: .*run/last.pt cannot be written") as stopped:
        run.finish(model, model)
    (file,) = tmp_path.glob("*.last.pt")
    assert f"; the weights are in {file}, which predict.py takes as RUN" in str(stopped.value)
    assert not list(tmp_path.rglob("*.part"))
    found, spec = load(file, "teacher")
    assert spec == SPEC
    assert all(torch.equal(x, found.state_dict()[name]) for name, x in model.state_dict().items())


def test_weights_are_saved_in_the_temporary_folder_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    run = started(tmp_path / "runs" / "run")
    full_disk(monkeypatch, tmp_path / "runs" / "run", tmp_path / "runs")
    with pytest.raises(Stopped, match=r"No space left on device.*; the weights are in .*/tmp/run"):
        run.finish(SPEC.build(), None)
    (file,) = (tmp_path / "tmp").iterdir()
    load(file)
    full_disk(monkeypatch, tmp_path / "runs" / "run", tmp_path / "runs", tmp_path / "tmp")
    with pytest.raises(Stopped, match="the weights are lost"):
        run.finish(SPEC.build(), None)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_says_where_its_weights_are(
    interrupted: bool,
    folders: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = RunFolder.log

    def pressed(run: RunFolder, **values: Any) -> dict[str, float]:
        numbers = log(run, **values)
        if interrupted and run.steps == 1:
            signal.raise_signal(signal.SIGINT)
        return numbers

    monkeypatch.setattr(RunFolder, "log", pressed)
    full_disk(monkeypatch, tmp_path / "run")
    assert main("own_data.py", *folders, "--out", tmp_path / "run", "--warmup", 0) == 1
    printed = capsys.readouterr()
    (file,) = tmp_path.glob("*.last.pt")
    steps = 1 if interrupted else 2
    assert printed.err.splitlines()[-1].startswith(
        f"own_data.py: stopped at step {steps}: {tmp_path}/run/last.pt cannot"
    )
    assert f"the weights are in {file}" in printed.err
    assert "last.pt, metrics.jsonl" not in printed.out
    assert torch.load(file, weights_only=True)["step"] == steps


# Keys


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("before", [False, True])
def test_a_key_pressed_while_weights_are_saved_waits(
    number: int, before: bool, folders: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, log = torch.save, RunFolder.log

    def slow(kept: Any, file: Any) -> None:
        for _ in range(3):
            signal.raise_signal(number)
        monkeypatch.setattr(ending.time, "monotonic", lambda: 1e9)  # an hour later
        signal.raise_signal(number)
        save(kept, file)

    def pressed(run: RunFolder, **values: Any) -> dict[str, float]:
        numbers = log(run, **values)
        if before:
            signal.raise_signal(number)
        return numbers

    monkeypatch.setattr(torch, "save", slow)
    monkeypatch.setattr(RunFolder, "log", pressed)
    assert main("own_data.py", *folders, "--out", tmp_path / "run", "--warmup", 0) == 130
    load(tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == (1 if before else 2)
    assert not (tmp_path / "run" / "run.lock").exists()


def test_held_signals_come_at_the_end() -> None:
    done = []

    def work(*, fails: bool) -> None:
        with held():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
            with held():
                signal.raise_signal(signal.SIGINT)
            done.append(2)
            if fails:
                raise ValueError("what matters")

    with pytest.raises(KeyboardInterrupt):
        work(fails=False)
    with pytest.raises(ValueError, match="what matters"):
        work(fails=True)
    assert done == [1, 2, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_key_pressed_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first may still be handled; one that follows later is another."""
    now, seen = [5.0], list[str]()

    @ending.run_main
    def work() -> int:
        for pause, name in ((0.0, "first"), (0.9, "same"), (0.2, "second")):
            now[0] += pause
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                seen.append(name)
        return 0

    monkeypatch.setattr(ending.time, "monotonic", lambda: now[0])
    assert work() == 0
    assert seen == ["first", "second"]


def wait_for_the_script(pid: int) -> None:
    """Until it has begun: it is Python that answers a signal before."""
    caught = 0
    while not caught >> (signal.SIGTERM - 1) & 1:
        time.sleep(0.005)
        text = Path(f"/proc/{pid}/status").read_text()
        caught = int(text.partition("SigCgt:")[2].split()[0], 16)


MOMENTS = [("own_data.py", x) for x in (0.0, 0.6, 2.5, 4.0)] + [("gta2cityscapes.py", 4.0), ("predict.py", 1.3)]


@pytest.mark.parametrize(("script", "moment"), MOMENTS)
def test_ctrl_c_at_any_moment_is_one_line(script: str, moment: float, folders: list[Any], tmp_path: Path) -> None:
    arguments = {
        "own_data.py": [*folders, "--out", tmp_path / "run", "--steps", 20],
        "gta2cityscapes.py": ["--out", tmp_path / "run"],
        "predict.py": [run_of(tmp_path / "model"), folders[3] / "images", "--out", tmp_path / "out"],
    }[script]
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        wait_for_the_script(process.pid)
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    assert "Traceback" not in errors
    assert process.returncode in (130, 0)
    if process.returncode:
        assert errors.splitlines()[-1].startswith(f"{script}: ")
        assert errors.rstrip().removesuffix("; --resume goes on").endswith("interrupted")
    assert not (tmp_path / "run" / "run.lock").exists()


def run_of(folder: Path) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    model = SPEC.build()
    torch.nn.init.normal_(model.decoder.classifier.weight)
    RunFolder(folder, SPEC).finish(model, None)
    return folder


# One run a folder


@pytest.mark.usefixtures("no_pictures")
def test_a_folder_that_another_run_writes_into_is_refused(
    folders: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    lock = out / "run.lock"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for content, words in {
        f"{os.getppid()} {HOST}\n": f"{out}: another run writes into it (process {os.getppid()} on {HOST});",
        f"{dead.pid} elsewhere\n": f"(process {dead.pid} on elsewhere); choose another --out, or, if there is no such ",
        "": f"remove {lock}",
        "\x1b[2Jx": "(process \\x1b[2Jx on )",
    }.items():
        lock.write_text(content)
        assert main("own_data.py", *folders, "--out", out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"own_data.py: {out}: another run")
        assert words in line
        assert [file.name for file in out.iterdir()] == ["run.lock"]
        assert lock.read_text() == content
    lock.write_text(f"{os.getppid()} {HOST}\n")
    assert main("gta2cityscapes.py", "--out", out) == 2
    assert "another run writes into it" in capsys.readouterr().err.splitlines()[-1]
    for pid in (dead.pid, os.getpid(), 10**30):
        lock.write_text(f"{pid} {HOST}\n")
        assert main("own_data.py", *folders, "--out", out, "--overwrite") == 0
        assert not list(out.glob("run.lock*"))


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def fail() -> None:
        with locked(folder):
            assert (folder / "run.lock").read_text() == f"{os.getpid()} {HOST}\n"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not folder.exists()  # what was refused leaves nothing
    with locked(folder):
        (folder / "kept").write_text("")
        (folder / "run.lock").write_text("another's")
    assert (folder / "run.lock").read_text() == "another's"
    (folder / "run.lock").unlink()
    (folder / "run.lock.new").write_text("")
    with locked(folder):
        pass
    (folder / "run.lock").write_text(f"{2**22 - 1} {HOST}")
    with pytest.raises(ValueError, match=r"another run begins in it; .*remove .*run.lock.new"), locked(folder):
        pass


RACE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from support.run_folder import locked
print("ready", flush=True)
sys.stdin.read()
try:
    with locked(Path(sys.argv[2])):
        print("mine", flush=True)
        time.sleep(1)
except ValueError:
    print("refused")
"""


@pytest.mark.parametrize("stale", [False, True])
def test_of_several_that_want_a_folder_one_gets_it(stale: bool, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    if stale:
        (tmp_path / "run" / "run.lock").write_text(f"{2**22 - 1} {HOST}")
    command = [sys.executable, "-c", RACE, str(EXAMPLES), str(tmp_path / "run")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.close()
    answers = [process.stdout.read().strip() for process in processes]
    for process in processes:
        process.stdout.close()
        assert process.wait() == 0
    assert sorted(answers) == ["mine", *["refused"] * 3]


def test_what_lies_in_a_folder_is_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(tmp_path)
    run.log(loss=1.0)
    run.finish(SPEC.build(), None)
    run.keep_result({"steps": 1})
    (tmp_path / "panel.png").write_text("")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            RunFolder(tmp_path, SPEC).start({"seed": 2})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    replace, seen = Path.replace, list[set[str]]()

    def look(self: Path, target: Path) -> Path:
        seen.append({file.name for file in tmp_path.iterdir()} - {self.name})
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look)
    RunFolder(tmp_path, SPEC).start({"seed": 2})
    assert seen == [set()]  # when the new settings come, all of the older run is gone
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "metrics.jsonl"}
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 2
    assert read_metrics(tmp_path) == []


# What is believed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lrr = 0.1", "few.toml: there is no setting 'lrr'; did you mean lr"),
        ("steps = 'many'", "few.toml: steps must be like 1000, got 'many'"),
        ("steps = true", "few.toml: steps must be like 1000, got True"),
        ("steps = 1.5", "few.toml: steps must be like 1000, got 1.5"),
        ("crop = [64]", "few.toml: crop must be like [192, 384], got [64]"),
        ("crop = [64, '1']", "few.toml: crop must be like [192, 384], got [64, '1']"),
        ("arms = []", 'few.toml: arms must be like ["source", "control", "hrda"], got []'),
        ("fixed_attention = [1]", "few.toml: fixed_attention must be like 0.5, got [1]"),
        ("model = 'unet'", "few.toml: model must be one of small, hrda, daformer, deeplab_v2, got 'unet'"),
        ("classes = 17", "few.toml: classes must be one of 19, 16, 13, got 17"),
        ("lr = ", "few.toml: cannot be read as settings"),
        ("[lr]\nx = 1", "few.toml: lr must be like 0.003, got {'x': 1}"),
        ("lr = -1", "--lr must be finite and at least 0, got -1"),
        ("\udcff", "few.toml: cannot be read as settings"),
    ],
)
def test_a_recipe_is_checked(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.toml").write_text(content, errors="surrogateescape")
    monkeypatch.setitem(command_line.RECIPES, "demo", tmp_path / "few.toml")
    assert main("gta2cityscapes.py", "--recipe", "demo", "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"step": "x"}', '{"loss": 1}', "1\n", "[" * 100_000, "\x00", '{"step": true}']
)
def test_metrics_are_checked(content: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": NaN}\n' + content)
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is none of a step and numbers"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": []},
        {"classes": {"fused": {"a": "x"}}},
        {"classes": {"fused": {"a": None}}},
        {"classes": {"fused": {"a": 0.5}, "context": {"b": 0.5}}},
        {"classes": {"fused": 1}},
        {"seconds": "1"},
        {"steps": [1]},
    ],
)
def test_a_result_is_checked(changes: dict[str, Any], tmp_path: Path) -> None:
    run = started(tmp_path)
    run.finish(SPEC.build(), None)
    result = {"settings": {"x": 1}, "steps": 1, "seconds": 1.0, "classes": {"fused": {"a": 0.5, "b": None}}}
    run.keep_result(result)
    assert run.kept_result({"x": 1}, overwrite=False) == result
    run.keep_result({**result, **changes})
    assert run.kept_result({"x": 1}, overwrite=False) is None
    (tmp_path / "result.json").write_text("[" * 100_000)
    assert run.kept_result({"x": 1}, overwrite=False) is None


def test_what_a_checkpoint_says_of_its_network_is_checked(tmp_path: Path) -> None:
    model = SPEC.build()
    for changes, message in {
        "classes": ({"classes": ("a", "\x1b[2J", "c")}, "class names must be text"),
        "ids": ({"classes": (1, 2, 3)}, "class names must be text"),
        "mean": ({"mean": (0.5,)}, "mean and std must be 3 numbers"),
    }.values():
        RunFolder(tmp_path, replace(SPEC, **changes)).finish(model, None)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*TorchScript:UserWarning")
def test_torch_s_advice_to_run_code_is_not_passed_on(
    folders: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "script.pt")
    torch.save({"x": Path("code")}, tmp_path / "code.pt")
    for file in (tmp_path / "script.pt", tmp_path / "code.pt"):
        for option in ("--encoder-weights", "--init"):
            assert main("own_data.py", *folders, "--out", tmp_path / "run", option, file) == 2
            line = capsys.readouterr().err.splitlines()[-1]
            assert "weights_only" not in line
            assert "holds more than weights, or is none of torch.save" in line
        shutil.copy(file, tmp_path / "last.pt")
        assert main("predict.py", tmp_path, tmp_path, "--out", tmp_path / "out") == 2
        assert "weights_only" not in capsys.readouterr().err


def test_names_do_not_reach_the_terminal_as_they_are(
    folders: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("predict.py", tmp_path / "a\x1b[2J", tmp_path, "--out", tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert "\x1b" not in line
    assert "a\\x1b[2J/last.pt: no such file" in line
    bad = tmp_path / "images" / "x\x1b]0;y\x07.png"
    bad.parent.mkdir()
    bad.write_bytes(b"")
    assert main("predict.py", run_of(tmp_path / "run"), bad.parent, "--out", tmp_path / "out") == 1
    assert "\x07" not in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("a\x1b[1m\nb\nc\n")
    arguments = [*folders, "--classes", tmp_path / "names.txt", "--out", tmp_path / "x"]
    assert main("own_data.py", *arguments, "--method", "source") == 0
    assert "\x1b" not in capsys.readouterr().out


# Encoders


def test_an_encoder_is_tried_before_a_label_is_read(
    folders: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    source = write(tmp_path / "source")
    for file in (source / "labels").iterdir():
        file.write_bytes(b"")
    arguments = ["--source", source, *folders[2:], "--out", tmp_path / "run", "--encoder"]
    for name, words in {
        "resnet10": "Unknown model (resnet10); did you mean resnet10t or ",
        "minni": "; did you mean mini?",
        "vgg11": "detail_size must be a multiple of 32 (",
    }.items():
        assert main("own_data.py", *arguments, name) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
        assert "labels" not in line
    assert main("own_data.py", *arguments, "resnet10t", "--crop", 64, 64) == 2
    said = capsys.readouterr().err
    assert "encoder resnet10t: random weights; --encoder-weights takes a file" in said
    assert "cannot be read as an image" in said


def test_an_encoder_that_takes_no_crop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, images: torch.Tensor) -> None:
        raise AssertionError(f"Input height {images.shape[2]} doesn't match model (224)")

    spec, settings = replace(SPEC, encoder="mini"), gta2cityscapes.Settings(crop=(64, 64))
    real = MiniEncoder.forward

    def needs_memory(self: Any, images: torch.Tensor) -> Any:
        if images.is_meta:
            raise NotImplementedError("no meta kernel")
        return real(self, images)

    monkeypatch.setattr(MiniEncoder, "forward", needs_memory)
    try_out(spec, settings, gta2cityscapes.assemble)
    monkeypatch.setattr(MiniEncoder, "forward", refuse)
    message = r"--encoder mini, context and detail crops of 32 x 32: .*Input height 32 .*choose another --crop"
    with pytest.raises(ValueError, match=message):
        try_out(spec, settings, gta2cityscapes.assemble)


def test_a_teacher_that_trusts_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for confidence in (0.009, 0.011):
        run = started(tmp_path / str(confidence))
        for step in range(150):
            run.made(step)
            values = {"confidence": confidence, "largest_class": 0.5}
            warn(run, gta2cityscapes.Settings(), values)
            run.log(**values)
    run = started(tmp_path / "collapsed")
    for step in range(200):
        run.made(step)
        values = {"confidence": 0.9, "largest_class": 0.96 if step < 100 else 0.94}
        warn(run, gta2cityscapes.Settings(), values)
        run.log(**values)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    text = "0.009: 100 steps of adaptation: only 0.90 % of the target's pixels are trusted enough to teach; a longer"
    assert lines[0].startswith(text)
    text = (
        "collapsed: 100 steps of adaptation: 96.0 % of an image's pseudo labels are of one class: the teacher collapses"
    )
    assert lines[1].startswith(text)


# Large images, and what is written of others


def test_an_image_too_large_for_the_memory_does_not_end_the_others(
    folders: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = iter([MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")])
    predict_one = predict.predict

    def first_two(*arguments: Any, **settings: Any) -> torch.Tensor:
        if error := next(faults, None):
            raise error
        return predict_one(*arguments, **settings)

    monkeypatch.setattr(predict, "predict", first_two)
    assert main("predict.py", run_of(tmp_path / "run"), folders[3] / "images", "--out", tmp_path / "out") == 1
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"2.png", "2_overlay.png", "legend.png"}
    text = "0.png: too large for the memory; make it smaller, or cut it"
    assert text in capsys.readouterr().err


def test_palette_alpha_and_contours(folders: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, image = run_of(tmp_path / "run"), folders[3] / "images" / "0.png"
    model, spec = load(run)
    pixels = picture(image)
    labels = model.predict(spec.feed(torch.from_numpy(pixels).permute(2, 0, 1)[None]), output="labels")[0].numpy()
    labels_file, overlay_file = tmp_path / "out" / "0.png", tmp_path / "out" / "0_overlay.png"
    assert main("predict.py", run, image, "--out", tmp_path / "out", "--alpha", 0) == 0
    with Image.open(labels_file) as found:
        assert found.mode == "P"
        assert np.array_equal(np.array(found), labels)
        assert np.array_equal(np.array(found.convert("RGB")), palette(spec.classes)[labels])
    assert np.array_equal(picture(overlay_file), pixels)
    assert main("predict.py", run, image, "--out", tmp_path / "out", "--alpha", 1, "--contours") == 0
    framed = np.pad(labels, 1, mode="edge")
    shifted = [framed[1 + i : 49 + i, 1 + j : 65 + j] for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0))]
    border = np.any([labels != other for other in shifted], axis=0)
    assert 0 < border.sum() < labels.size
    expected = np.where(border[..., None], 255, palette(spec.classes)[labels])
    assert np.array_equal(picture(overlay_file), expected)
    for alpha in (-0.1, 1.1, "nan"):
        assert main("predict.py", run, image, "--out", tmp_path / "out", f"--alpha={alpha}") == 2
        assert "--alpha must be in [0, 1]" in capsys.readouterr().err
