"""What a run leaves behind: read again as it was written, never half-written, and refused where it is not ours."""

import json
import pickle
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from scripts import metrics
from torch import nn

import hrda_lib
from support.ending import Stopped
from support.networks import NetworkSpec
from support.run_folder import RunFolder, load, load_weights, read_metrics
from support.training import NotFinite, check_finite

SPEC = NetworkSpec(("sky", "road", "box"), (16, 16), attention=0.5)
SETTINGS = {"lr": 0.1, "crop": (32, 32), "steps": 2, "arms": ("hrda",)}


def network(seed: int = 0, spec: NetworkSpec = SPEC) -> Any:
    torch.manual_seed(seed)
    return spec.build()


def same(first: nn.Module, second: nn.Module) -> bool:
    others = second.state_dict()
    return all(torch.equal(x, others[name]) for name, x in first.state_dict().items())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of two steps, complete."""
    folder = RunFolder(tmp_path / "run", SPEC)
    folder.start(SETTINGS)
    folder.made(0)
    folder.log(loss=torch.tensor(0.5), confidence=1)
    folder.made(1)
    folder.log(loss=0.25)
    folder.finish(network(1), network(2))
    folder.keep_result({"settings": SETTINGS, "classes": {"fused": {"sky": 0.5}}, "steps": 2, "seconds": 1.5})
    return folder


def test_files(run: RunFolder) -> None:
    assert {file.name for file in run.path.iterdir()} == {"config.json", "metrics.jsonl", "last.pt", "result.json"}
    config = json.loads((run.path / "config.json").read_text())
    assert config.items() >= {"lr": 0.1, "crop": [32, 32], "steps": 2}.items()
    assert config["network"]["classes"] == ["sky", "road", "box"]
    assert config["network"]["detail_size"] == [16, 16]
    versions = config["versions"]
    assert (versions["torch"], versions["python"]) == (torch.__version__, platform.python_version())
    assert versions["hrda_lib"] == hrda_lib.__version__
    kept = torch.load(run.path / "last.pt", weights_only=True)
    assert kept.keys() == {"model", "teacher", "network", "step"}
    assert kept["step"] == 2


def test_metrics_are_numbers_and_count_their_steps(run: RunFolder) -> None:
    assert metrics(run.path) == [{"step": 0, "loss": 0.5, "confidence": 1.0}, {"step": 1, "loss": 0.25}]
    assert all(line["seconds"] >= 0 and line["memory"] > 0 for line in read_metrics(run.path))
    assert run.steps == 2


def test_a_new_start_forgets_the_result_and_the_metrics(run: RunFolder) -> None:
    run.start({"lr": Path("a path is text")})
    assert not (run.path / "result.json").exists()
    assert read_metrics(run.path) == []
    assert json.loads((run.path / "config.json").read_text())["lr"] == "a path is text"


def test_weights_are_read_as_they_were_written(run: RunFolder) -> None:
    for seed, weights in ((1, "student"), (2, "teacher")):
        model, spec = load(run.path, weights)  # type: ignore[arg-type]
        assert spec == SPEC
        assert same(model, network(seed))
        assert not model.training
    student = network(3)
    load_weights(student, run.path / "last.pt")
    assert same(student, network(1))


def test_a_run_without_a_target_has_no_teacher(run: RunFolder) -> None:
    run.finish(network(1), None)
    load(run.path)
    text = r"last\.pt: holds no teacher, which a run keeps only if it adapts to a target; take the student$"
    with pytest.raises(ValueError, match=text):
        load(run.path, "teacher")


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (RuntimeError("unexpected pos 64 vs 0\nmore"), Stopped, r"/run/last.pt cannot be written \(unexpected pos"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_weights_are_never_half_written(
    error: BaseException, raised: type[BaseException], text: str | None, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Any, file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    before = (run.path / "last.pt").read_bytes(), {file.name for file in run.path.iterdir()}
    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(raised, match=text):
        run.finish(network(4), None)
    assert ((run.path / "last.pt").read_bytes(), {file.name for file in run.path.iterdir()}) == before


def test_a_result_that_is_no_number_is_not_kept(run: RunFolder) -> None:
    run.start(SETTINGS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.keep_result({"classes": float("nan")})
    assert not list(run.path.glob("result*"))


def test_a_kept_result_is_that_of_the_same_settings(run: RunFolder) -> None:
    kept = run.kept_result(SETTINGS, overwrite=False)
    assert kept is not None
    assert (kept["steps"], kept["seconds"]) == (2, 1.5)
    assert run.kept_result(SETTINGS, overwrite=True) == kept
    other = {**SETTINGS, "lr": 0.2}
    text = r"/run: holds a run of other settings or data; choose another --out, or --overwrite$"
    with pytest.raises(ValueError, match=text):
        run.kept_result(other, overwrite=False)
    assert run.kept_result(other, overwrite=True) is None
    with pytest.raises(ValueError, match=text):
        run.kept_result({**SETTINGS, "new": 1}, overwrite=False)
    assert RunFolder(run.path.parent / "new", SPEC).kept_result(SETTINGS, overwrite=False) is None


def rewrite(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        result = json.loads((path / "result.json").read_text()) | changes
        (path / "result.json").write_text(json.dumps(result))

    return change


def poison(path: Path) -> None:
    kept = torch.load(path / "last.pt", weights_only=True)
    next(iter(kept["model"].values())).fill_(torch.inf)
    torch.save(kept, path / "last.pt")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no result": lambda path: (path / "result.json").unlink(),
    "no JSON": lambda path: (path / "result.json").write_text("{"),
    "a list": lambda path: (path / "result.json").write_text("[1]"),
    "no steps": rewrite(steps=0),
    "no classes": rewrite(classes={}),
    "no metrics": lambda path: (path / "metrics.jsonl").unlink(),
    "cut metrics": lambda path: (path / "metrics.jsonl").write_text('{"step": 0, "lo'),
    "no weights": lambda path: (path / "last.pt").unlink(),
    "cut weights": lambda path: (path / "last.pt").write_bytes((path / "last.pt").read_bytes()[:1000]),
    "weights that are not finite": poison,
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_run_is_not_kept(case: str, run: RunFolder) -> None:
    DAMAGE[case](run.path)
    assert run.kept_result(SETTINGS, overwrite=False) is None


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('run')",)


def stored(**changes: Any) -> Callable[[Path], None]:
    """The checkpoint with other entries; None takes one away."""

    def change(file: Path) -> None:
        kept = torch.load(file, weights_only=True)
        network = {**kept["network"], **changes.pop("network", {})}
        entries = {**kept, "network": network, **changes}
        torch.save({name: x for name, x in entries.items() if x is not None}, file)

    return change


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda file: file.unlink(), "no such file; a run folder of own_data.py, or an arm of gta2cityscapes"),
    "empty": (lambda file: file.write_bytes(b""), r"cannot be loaded \(EOFError: "),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:1000]), "cannot be loaded"),
    "text": (lambda file: file.write_text("weights"), "holds more than weights, or is none of torch.save"),
    "code": (lambda file: file.write_bytes(pickle.dumps({"model": Code()}, 2)), "cannot be loaded, for it holds more"),
    "code by torch": (lambda file: torch.save({"model": Code()}, file), "cannot be loaded, for it holds more"),
    "a state dict": (
        lambda file: torch.save(network().state_dict(), file),
        r"cannot be loaded \(KeyError: 'network'\)",
    ),
    "no model": (stored(model=None), "cannot be loaded .KeyError: 'model'"),
    "another network": (stored(network={"classes": ("a",)}), "size mismatch"),
    "another model": (stored(network={"model": "unet"}), "model must be one of small, hrda"),
    "more of a network": (stored(network={"depth": 3}), "unexpected keyword argument 'depth'"),
    "a hub's encoder": (stored(network={"encoder": "hf-hub:someone/code"}), "a file must not ask a hub"),
    "not finite": (lambda file: poison(file.parent), "holds weights that are not finite"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_checkpoint_of_another_kind_is_refused(case: str, run: RunFolder) -> None:
    change, text = FOREIGN[case]
    file = run.path / "last.pt"
    change(file)
    with pytest.raises(ValueError, match=text) as refused:
        load(run.path)
    assert str(refused.value).startswith(f"{file}: ")
    assert "\n" not in str(refused.value)
    assert "weights_only" not in str(refused.value)  # torch's advice to run what is in the file


@pytest.mark.parametrize("case", ["empty", "code", "a state dict", "nothing"])
def test_a_start_from_a_file_of_another_kind_is_refused(case: str, run: RunFolder) -> None:
    file = run.path / "last.pt"
    FOREIGN[case][0](file)
    with pytest.raises(ValueError, match=r"/last\.pt: cannot be loaded"):
        load_weights(network(), file)


def test_a_start_from_another_network_is_refused(run: RunFolder) -> None:
    learned = network(0, NetworkSpec(SPEC.classes, SPEC.detail_size))
    with pytest.raises(ValueError, match=r"/last\.pt: cannot be loaded \(RuntimeError: .*Missing key"):
        load_weights(learned, run.path / "last.pt")


def test_a_start_that_has_more_than_the_network_is_refused(tmp_path: Path) -> None:
    learned = RunFolder(tmp_path, NetworkSpec(SPEC.classes, SPEC.detail_size))
    learned.finish(network(0, learned.spec), None)
    with pytest.raises(ValueError, match=r"/last\.pt: cannot be loaded \(RuntimeError: .*Unexpected key"):
        load_weights(network(), tmp_path / "last.pt")


def test_numbers_that_are_not_finite_are_refused_by_name() -> None:
    norm = nn.BatchNorm2d(2)
    check_finite({"loss": 1.0, "gradient": 2.0}, norm, scaled=False)
    check_finite({"loss": 1.0, "gradient": float("inf")}, norm, scaled=True)  # the scaler leaves the step out
    for values, name in (({"loss": float("nan")}, "loss"), ({"loss": 1.0, "gradient": float("inf")}, "gradient")):
        with pytest.raises(NotFinite, match=f"^{name} is not finite; choose a smaller --lr, or look at the images"):
            check_finite(values, norm, scaled=False)
    norm.running_var[0] = torch.nan
    with pytest.raises(NotFinite, match=r"^running statistics are not finite; look at the images"):
        check_finite({"loss": 1.0}, norm, scaled=True)
