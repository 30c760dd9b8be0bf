"""What a script changes in the process of a test is put back."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import support.arms
from hrda_lib.data import CITYSCAPES
from support.networks import NetworkSpec
from support.run_folder import RunFolder


@pytest.fixture(autouse=True)
def as_before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """main() takes a signal over; a file of data is a module, found by its folder."""
    handler, path, modules = signal.getsignal(signal.SIGTERM), list(sys.path), set(sys.modules)
    yield
    signal.signal(signal.SIGTERM, handler)
    sys.path[:] = path
    base = tmp_path_factory.getbasetemp()
    for name in sys.modules.keys() - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(base):
            del sys.modules[name]


@pytest.fixture(scope="session", params=["small", "daformer"])
def street_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose network has two scales, or one, and says all kinds of things about streets."""
    torch.manual_seed(0)
    encoder = "mini" if request.param == "small" else "mit_b0"
    spec = NetworkSpec(tuple(entry.name for entry in CITYSCAPES), (32, 32), request.param, encoder)
    model = spec.build()
    torch.nn.init.normal_(model.decoder.classifier.weight)
    folder = tmp_path_factory.mktemp(request.param)
    RunFolder(folder, spec).finish(model, None)
    return folder


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """gta2cityscapes.py draws nothing, which takes longer than all else on small data."""
    for name in ("draw_arms", "draw_classes", "draw_curves"):
        monkeypatch.setattr(support.arms, name, lambda *_: None)
