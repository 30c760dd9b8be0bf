"""The pages of docs/integrations, run, their lines of glue counted, and what the library makes of them checked."""

import copy
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

import torch
import written_out
from documents import DOCS, python_blocks
from torch import Tensor, nn
from written_out import Batch, Network, Parts, Size

from hrda_lib import CropBox, EMATeacher, MultiResSegmenter, SelfTraining, SlidingWindowInferer

PAGES = DOCS / "integrations"
THRESHOLD = 0.3  # what networks of random weights are sure of
Terms = Callable[[nn.Module, nn.Module, Batch], Iterator[Tensor]]


def run_page(name: str, **given: Any) -> dict[str, Any]:
    """The names that the blocks of a page leave behind."""
    page = PAGES / f"{name}.md"
    torch.manual_seed(0)
    names = {"__name__": "docs", **given}
    exec(compile(python_blocks(page), str(page), "exec"), names)
    return names


def glue(name: str) -> dict[str, int]:
    """Lines that a page adds to somebody's code, by label; one that is folded counts once.

    Imports, comments, class names, the call of a base class and what stood there before do not count.
    """
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    marked = re.findall(r"^<!-- (before|glue: [^>]+) -->\n```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    before = {line for mark, block in marked if mark == "before" for line in _unfolded(block)}
    return {
        mark.removeprefix("glue: "): len([line for line in _unfolded(block) if _is_added(line, before)])
        for mark, block in marked
        if mark != "before"
    }


def _unfolded(block: str) -> list[str]:
    """The lines of code, as they were without a limit of columns."""
    lines, words = [], []
    for token in tokenize.generate_tokens(io.StringIO(block).readline):
        if token.type == tokenize.NEWLINE:
            lines.append(" ".join(words))
            words = []
        elif token.type not in (tokenize.NL, tokenize.COMMENT) and token.string.strip():
            words.append(token.string)
    return lines


def _is_added(line: str, before: set[str]) -> bool:
    return bool(line) and not line.startswith(("import ", "from ", "class ", "super (")) and line not in before


# page -> labels of its blocks: one scale, two scales; whether odd sizes are predicted; what else its tests run
MATRIX: dict[str, tuple[str, list[str], list[str], str, str]] = {
    "torchvision": (
        "torchvision",
        ["one scale", "auxiliary head"],
        ["two scales"],
        "yes",
        "auxiliary head trained, compiled",
    ),
    "transformers": ("transformers", ["one scale"], ["two scales", "DINOv2"], "yes", "their loss, compiled"),
    "segmentation_models": (
        "segmentation-models-pytorch",
        ["one scale"],
        ["two scales", "two scales of a U-Net"],
        "yes",
        "compiled",
    ),
    "timm": ("timm", ["one scale"], ["CNN", "Swin", "ViT"], "yes", "CNN, Swin, ViT with patches of 14, compiled"),
    "monai": (
        "MONAI",
        ["one scale"],
        ["two scales"],
        "yes",
        "1 and 4 channels, metadata, deep supervision, its windows, compiled",
    ),
    "lightning": ("Lightning", ["automatic", "manual"], ["automatic", "manual"], "yes", "resume, validation"),
    "fabric_accelerate": ("Fabric, Accelerate", ["loop"], ["loop"], "yes", "resume"),
    "ddp": ("DistributedDataParallel", ["loop"], ["loop"], "yes", "two processes equal one"),
    "semi_supervised": (
        "a loop like UniMatch's",
        ["EMA", "loss", "windows"],
        ["two scales"],
        "yes",
        "labels, average and loss of its own",
    ),
}


def matrix() -> list[str]:
    """docs/tables/integrations.md."""
    lines = ["| code base | one scale | two scales | odd sizes | also |", "| --- | --- | --- | --- | --- |"]
    for page, (name, one, two, odd, also) in MATRIX.items():
        count = glue(page)
        assert count.keys() == {*one, *two}, page
        cells = (" + ".join(str(count[label]) for label in labels) for labels in (one, two))
        lines.append(f"| [{name}](../integrations/{page}.md) | {' | '.join(cells)} | {odd} | {also} |")
    return lines


def train(student: nn.Module, steps: list[Batch], *, rate: float = 0.01, **settings: Any) -> list[float]:
    """The steps of ``written_out.train`` by :class:`SelfTraining`."""
    teacher = EMATeacher(student)
    training = SelfTraining(student, teacher, threshold=THRESHOLD, **settings)
    optimizer = torch.optim.SGD(student.parameters(), lr=rate)
    losses = []
    for step, batch in enumerate(steps):
        torch.manual_seed(step)
        if step > 0:
            teacher.update(student)
        boxes = {"source_box": CropBox(*batch.source_box), "mixed_box": CropBox(*batch.mixed_box)}
        at = boxes if isinstance(getattr(student, "_orig_mod", student), MultiResSegmenter) else {}
        for _, loss in training.losses(batch.source, batch.labels, batch.target, mixed_classes=batch.classes, **at):
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def check_plain(student: nn.Module, network: Callable[[nn.Module], Network], steps: list[Batch]) -> None:
    """Two steps of self-training, and windows, against the same written out around ``network``."""

    def terms(trained: nn.Module, teacher: nn.Module, batch: Batch) -> Iterator[Tensor]:
        return written_out.plain_terms(network(trained), network(teacher), batch, THRESHOLD)

    _check_training(student, terms, steps)


def check_hrda(student: MultiResSegmenter, parts: Callable[[Any], Parts], steps: list[Batch]) -> None:
    """The same of both scales around ``parts``."""

    def terms(trained: nn.Module, teacher: nn.Module, batch: Batch) -> Iterator[Tensor]:
        return written_out.hrda_terms(parts(trained), parts(teacher), batch, THRESHOLD)

    _check_training(student, terms, steps)


def _check_training(student: nn.Module, terms: Terms, steps: list[Batch]) -> None:
    student.double().train().zero_grad()  # the page has trained it
    twin = copy.deepcopy(student)
    expected = written_out.train(twin, terms, steps)
    assert len(set(expected)) == len(expected) > 2
    torch.testing.assert_close(train(student, steps), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close([*student.parameters()], [*twin.parameters()], rtol=1e-6, atol=1e-8)


def check_compiled(student: nn.Module, steps: list[Batch]) -> None:
    """Two steps of the compiled student are those of the student."""
    student.double().train().zero_grad()
    expected = train(copy.deepcopy(student), steps)
    torch.compiler.reset()
    compiled = torch.compile(student, backend="eager")
    torch.testing.assert_close(train(compiled, steps), expected, rtol=1e-6, atol=0)


@torch.no_grad()
def check_windows(student: nn.Module, network: Network, image: Tensor, window: int, size: Size) -> None:
    """An image of any size, padded to ``size``."""
    student.double().eval()
    got = SlidingWindowInferer(window, pad=True)(image.double(), student)
    step = (window + 1) // 2
    expected = written_out.padded(
        lambda x: written_out.slide(network, x, (window, window), (step, step)), image.double(), size
    )
    assert got.shape[-2:] == image.shape[-2:]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


@torch.no_grad()
def check_predict(student: MultiResSegmenter, parts: Parts, image: Tensor, window: int, size: Size) -> None:
    """The same of both scales."""
    student.double().eval()
    got = student.predict(image.double())
    cut = min(window, size[0]), min(window, size[1])
    step = window // 2, window // 2
    expected = written_out.padded(
        lambda x: written_out.slide(lambda part: written_out.everywhere(parts, part), x, cut, step),
        image.double(),
        size,
    )
    assert got.shape[-2:] == image.shape[-2:]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
