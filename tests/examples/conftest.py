"""What a script changes in the process of a test is put back."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gta2cityscapes


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


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """gta2cityscapes.py draws nothing, which takes longer than all else on small data."""
    for name in ("draw_arms", "draw_classes", "draw_curves"):
        monkeypatch.setattr(gta2cityscapes, name, lambda *_: None)
