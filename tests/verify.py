"""The long proofs: ours against float64 truth at real sizes, and against the authors' numbers. Fails past a bound.

Writes docs/tables/verified.md: each proof returns what it compared, our largest error, and the bound, which is the
error of the plain float32 computation, or a number that the row names. Writes docs/tables/parity.md from parity.py and
docs/tables/runtimes.md and operators.md from runtimes.py, and docs/tables/killed.md from killed.py, in a quarter of an
hour.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path

import killed
import numpy as np
import parity
import runtimes
import timm_table
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from hrda_lib import (
    ConfusionMatrix,
    CropBox,
    EMATeacher,
    MultiResCropSampler,
    MultiResSegmenter,
    SelfTraining,
    SlidingWindowInferer,
    confidence_weighted_ce,
    fuse_scales,
)
from hrda_lib.optim import warmup_poly

TABLES = Path(__file__).parents[1] / "docs" / "tables"
Row = tuple[str, str, float, float, str]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(got: Tensor, truth: Tensor) -> float:
    return (got.double() - truth).abs().max().item()


def up(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size=size, mode="bilinear", align_corners=False)


def fusion() -> Row:
    box = CropBox(64, 32, 128, 128)
    context, detail, attention = (
        random(2, 19, 128, 128),
        random(2, 19, 128, 128, seed=1),
        random(2, 19, 128, 128, seed=2),
    )

    def naive(c: Tensor, d: Tensor, a: Tensor) -> Tensor:
        mask = torch.zeros(128, 128, dtype=a.dtype)
        mask[32:96, 16:80] = 1
        placed = torch.zeros(2, 19, 256, 256, dtype=d.dtype)
        placed[..., 64:192, 32:160] = d
        a = torch.sigmoid(a) * mask
        return up((1 - a) * c, (256, 256)) + up(a, (256, 256)) * placed

    truth = naive(context, detail, attention)
    small = [x.float() for x in (context, detail, attention)]
    ours = fuse_scales(small[0], small[1], small[2].sigmoid(), box=box)
    return (
        "`fuse_scales`",
        "19 classes, 128² and 256² cells",
        error(ours, truth),
        error(naive(*small), truth),
        "plain float32",
    )


def windows() -> Row:
    image, kernel = random(1, 3, 700, 1100), random(19, 3, 4, 4, seed=1)

    def average(x: Tensor, k: Tensor) -> Tensor:
        total, count = torch.zeros(1, 19, 700, 1100, dtype=x.dtype), torch.zeros(700, 1100, dtype=x.dtype)
        for top in (*range(0, 188, 256), 188):
            for left in (0, 256, 512, 588):
                part = torch.conv2d(x[..., top : top + 512, left : left + 512], k, stride=4)
                total[..., top : top + 512, left : left + 512] += up(part, (512, 512))
                count[top : top + 512, left : left + 512] += 1
        return total / count

    truth = average(image, kernel)
    ours = SlidingWindowInferer((512, 512))(image.float(), lambda x: torch.conv2d(x, kernel.float(), stride=4))
    naive = error(average(image.float(), kernel.float()), truth)
    return "`SlidingWindowInferer`", "700x1100, windows 512, 19 classes", error(ours, truth), naive, "plain float32"


def loss() -> Row:
    logits, weight = 3 * random(2, 19, 128, 128), random(2, 512, 512, seed=1).sigmoid()
    target = torch.randint(20, (2, 512, 512), generator=torch.Generator().manual_seed(2))
    target[target == 19] = 255

    def naive(x: Tensor, q: Tensor) -> Tensor:
        ce = cross_entropy(up(x, (512, 512)), target, ignore_index=255, reduction="none")
        return (ce * q).sum() / target.numel()

    truth = naive(logits, weight)
    bound = max(error(naive(logits.float(), weight.float()), truth), 1e-7)
    ours = confidence_weighted_ce(logits.float(), target, weight.float())
    return "`confidence_weighted_ce`", "2x512², 19 classes", error(ours, truth), bound, "plain float32, at least 1e-7"


def teacher() -> Row:
    student = nn.Linear(64, 64)
    average = EMATeacher(student)
    truth = student.weight.detach().double()
    for k in range(1, 5001):
        with torch.no_grad():
            student.weight.copy_(random(64, 64, seed=k))
        average.update(student)
        alpha = min(1 - 1 / (k + 1), 0.999)
        truth = alpha * truth + (1 - alpha) * student.weight.double()
    return "`EMATeacher`", "5000 updates", error(average.module.weight.detach(), truth.detach()), 1e-6, "1e-6"


def offsets() -> Row:
    sampler, generator, draws = MultiResCropSampler((512, 512)), torch.Generator().manual_seed(0), 100_000
    counts = torch.zeros(65, 65)
    for _ in range(draws):
        box = sampler.sample((1024, 1024), generator)[1]
        counts[box.top // 8, box.left // 8] += 1
    expected = draws / 65**2
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    z = (chi2 - (65**2 - 1)) / (2 * (65**2 - 1)) ** 0.5
    return (
        "`MultiResCropSampler`",
        f"{draws} draws over 65² offsets: deviation of χ², in standard deviations",
        abs(z),
        3.0,
        "3",
    )


def schedule() -> Row:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = warmup_poly(optimizer).lr_lambdas[0]
    worst = 0.0
    for t in range(40_000):
        ramp = 1 - (1 - Fraction(t, 1500)) * (1 - Fraction(1, 10**6)) if t < 1500 else Fraction(1)
        exact = (1 - Fraction(t, 40_000)) * ramp
        worst = max(worst, abs(float(Fraction(factor(t)) / exact - 1)))
    return "`warmup_poly`", "all 40,000 steps, relative to exact fractions", worst, 1e-12, "1e-12"


def confusion() -> Row:
    from torchmetrics.classification import MulticlassConfusionMatrix

    generator = torch.Generator().manual_seed(0)
    target = torch.randint(20, (4, 512, 1024), generator=generator)
    target[target == 19] = 255
    prediction = torch.randint(19, target.shape, generator=generator)
    ours, theirs = ConfusionMatrix(19), MulticlassConfusionMatrix(19, ignore_index=255)
    ours.update(prediction, target)
    theirs.update(prediction, target)
    return (
        "`ConfusionMatrix`",
        "4x512x1024, against torchmetrics",
        error(ours.matrix, theirs.compute().double()),
        0.0,
        "exact",
    )


def step() -> Row:
    """Gradients of the whole step by central differences, in float64."""
    torch.manual_seed(0)
    encoder, decoder = nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 4, 1)
    student = MultiResSegmenter(encoder, decoder, nn.Conv2d(6, 4, 1), detail_size=(16, 16)).double()
    training = SelfTraining(student, EMATeacher(student), threshold=0.3)
    source, target, labels = random(2, 3, 32, 32), random(2, 3, 32, 32, seed=1), torch.randint(4, (2, 32, 32))
    box, classes = CropBox(8, 16, 16, 16), [[0, 1], [2, 3]]

    def total() -> Tensor:
        settings = {"source_box": box, "mixed_box": box, "mixed_classes": classes}
        return sum(loss for _, loss in training.losses(source, labels, target, **settings))

    total().backward()
    worst = 0.0
    for parameter in student.parameters():
        index = int(parameter.grad.abs().argmax())
        with torch.no_grad():
            flat, values = parameter.view(-1), []
            for shift in (1e-5, -2e-5):
                flat[index] += shift
                values.append(total().item())
            flat[index] += 1e-5
        numeric = (values[0] - values[1]) / 2e-5
        worst = max(worst, abs(numeric / parameter.grad.view(-1)[index].item() - 1))
    return "`SelfTraining` on `MultiResSegmenter`", "gradients against central differences", worst, 1e-6, "1e-6"


def huge_file() -> Row:
    """30,000 x 30,000 pixels of a mapped file, by bands: what the process grows by."""
    side, row = 30_000, 64
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "huge.npy"
        np.lib.format.open_memmap(file, "w+", np.uint8, (side, side)).flush()  # sparse: zeros that take no room
        with file.open("r+b") as stream:
            stream.seek(-side * row, os.SEEK_END)
            stream.write(b"\xff" * side * row)

        def read(box: CropBox) -> Tensor:
            part = np.load(file, mmap_mode="r")[box.top : box.top + box.height, box.left : box.left + box.width]
            return torch.from_numpy(np.array(part))[None, None]

        def threshold(x: Tensor) -> Tensor:
            held.append(resident())
            cells = x[:, :, ::4, ::4].float()
            return torch.cat([127 - cells, cells - 127], dim=1)

        infer = SlidingWindowInferer(2048, resize="once", batch_size=1, label_dtype=torch.uint8)
        rows, wrong, held = 0, 0, [resident()]
        with torch.inference_mode():
            for top, labels in infer.stream(side, read, threshold):
                rows += labels.shape[1]
                expected = (torch.arange(top, rows) >= side - row).byte()
                sure = (torch.arange(top, rows) - (side - row)).abs() > 4  # upsampling blurs the border
                wrong += int((labels[0, sure] != expected[sure, None]).sum())
    assert (rows, wrong) == (side, 0)
    return (
        "`SlidingWindowInferer.stream`",
        f"{side}² pixels of a mapped file: growth of the process, GB",
        (max(held) - held[0]) / 2**30,
        0.5,
        "0.5 GB",
    )


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


PROOFS: list[Callable[[], Row]] = [fusion, windows, loss, teacher, offsets, schedule, confusion, step, huge_file]


def write_proofs() -> int:
    """How many missed their bound."""
    lines = ["| what | on | our largest error | bound | the bound is |", "| --- | --- | --- | --- | --- |"]
    missed = 0
    for proof in PROOFS:
        start = time.monotonic()
        name, what, ours, bound, meaning = proof()
        held = ours <= bound * (1 + 1e-6) + np.finfo(np.float32).tiny
        missed += not held
        lines.append(f"| {name} | {what} | {ours:.2g} | {bound:.2g} | {meaning} |")
        print(f"{'ok' if held else 'MISSED':7s}{time.monotonic() - start:6.1f} s  {lines[-1]}", flush=True)
    write("verified.md", lines)
    return missed


def write_parity() -> int:
    """How many rows of the authors' numbers missed their tolerance."""
    lines = ["| part | what | numbers | largest relative error | tolerance |", "| --- | --- | --- | --- | --- |"]
    missed = 0
    for part in parity.PARTS:
        start = time.monotonic()
        rows, title = part.rows(), part.title
        print(f"{time.monotonic() - start:13.1f} s  {title}", flush=True)
        for pattern, meaning in parity.MEANING.items():
            found = [row for name, row in rows.items() if fnmatchcase(name, pattern)]
            if not found:
                continue
            worst, tolerance = max(error for error, _ in found), min(limit for _, limit in found)
            missed += not worst <= tolerance
            ours, limit = f"{worst:.1e}" if worst else "0", f"{tolerance:.0e}" if tolerance else "exact"
            lines.append(f"| {title} | {meaning} | `{pattern}` | {ours} | {limit} |")
            print(f"{'ok' if worst <= tolerance else 'MISSED':17s}{lines[-1]}", flush=True)
            title = ""
    write("parity.md", lines)
    return missed


def write_runtimes() -> int:
    """How many networks differ from eager mode by more than 1e-5 when compiled, exported or traced."""
    lines = [f"| network | {' | '.join(runtimes.WAYS)} |", f"| --- |{' --- |' * len(runtimes.WAYS)}"]
    missed = 0
    for network in runtimes.NETWORKS:
        errors = [runtimes.error(network, way) if runtimes.applies(network, way) else None for way in runtimes.WAYS]
        missed += sum(error is not None and not error <= 1e-5 for error in errors)
        lines.append(
            f"| {network} | {' | '.join('refused' if e is None else f'{e:.1e}' if e else '0' for e in errors)} |"
        )
        print(lines[-1], flush=True)
    write("runtimes.md", lines)
    heads = ["| network | opset | operators |", "| --- | --- | --- |"]
    write("operators.md", [*heads, *(runtimes.operators(network) for network in runtimes.NETWORKS)])
    return missed


def write_killed() -> int:
    """How many runs that were killed and resumed lost more than they may, or ended in other bits."""
    lines = ["| processes | killed runs | made twice, at most | ended in the same bits |", "| --- | --- | --- | --- |"]
    missed = 0
    for processes, count in ((1, 20), (2, 10)):
        runs = killed.runs(count, processes=processes)
        most, same = max(run.lost for run in runs), sum(run.same for run in runs)
        missed += sum(not run.same or run.lost > killed.SAVE_EVERY for run in runs)
        lines.append(f"| {processes} | {count} | {most} of {killed.SAVE_EVERY} steps | {same} of {count} |")
        print(lines[-1], flush=True)
    write("killed.md", lines)
    return missed


def write(name: str, lines: list[str]) -> None:
    TABLES.mkdir(exist_ok=True)
    (TABLES / name).write_text("\n".join(lines) + "\n")


def main() -> int:
    write("timm.md", timm_table.table())
    return 1 if write_killed() + write_proofs() + write_parity() + write_runtimes() else 0


if __name__ == "__main__":
    sys.exit(main())
