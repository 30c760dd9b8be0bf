"""The smallest loop, as a user runs it."""

from scripts import EXAMPLES, run


def test_minimal_loop() -> None:
    done = run("minimal_loop.py")
    assert done.returncode == 0, done.stderr
    lines = [f"step {step} {name} " for step in range(2) for name in ("source", "mixed")]
    assert [line[: len(start)] for line, start in zip(done.stdout.splitlines(), lines, strict=False)] == lines
    assert done.stdout.splitlines()[-1] == "torch.Size([1, 200, 300])"
    assert len((EXAMPLES / "minimal_loop.py").read_text().splitlines()) <= 60
