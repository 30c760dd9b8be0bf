"""The smallest loop, from top to bottom."""

import pytest
from scripts import EXAMPLES

import minimal_loop


def test_minimal_loop(capsys: pytest.CaptureFixture[str]) -> None:
    minimal_loop.main()
    lines = capsys.readouterr().out.splitlines()
    steps = [f"step {step} {name}" for step in range(2) for name in ("source", "mixed")]
    assert [line.rsplit(" ", 1)[0] for line in lines[:-1]] == steps
    assert lines[-1] == "torch.Size([1, 200, 300])"
    assert len((EXAMPLES / "minimal_loop.py").read_text().splitlines()) <= 60
