"""Two gloo processes of half a batch are one process of the whole, written out."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import written_out
from integration_pages import glue, run_page
from written_out import Batch, Parts

from hrda_lib import CropBox

PAGE = "ddp"
WORLD, STEPS = 2, 3
CLASSES = [[0, 1], [2, 3], [0, 2], [1, 3]]


def whole(step: int) -> Batch:
    g = torch.Generator().manual_seed(step)
    source, target = torch.randn(2, 4, 3, 64, 64, generator=g, dtype=torch.float64)
    source, target = 20 * source, 80 * target * torch.rand(4, 1, 1, 1, generator=g)  # of some, the teacher is sure
    labels = torch.randint(4, (4, 64, 64), generator=g)
    labels[:, :5] = 255
    return Batch(source, labels, target, CLASSES, (8, 16, 32, 32), (24, 0, 32, 32))


def half(step: int, rank: int) -> dict[str, Any]:
    part, batch = slice(2 * rank, 2 * rank + 2), whole(step)
    boxes = {"source_box": CropBox(*batch.source_box), "mixed_box": CropBox(*batch.mixed_box)}
    tensors = {"source_images": batch.source, "source_labels": batch.labels, "target_images": batch.target}
    return {name: x[part] for name, x in tensors.items()} | {"mixed_classes": CLASSES[part]} | boxes


def work(rank: int, rendezvous: str, results: str) -> None:
    torch.set_num_threads(1)
    page = run_page(PAGE)
    start = dist.init_process_group
    page["dist"].init_process_group = lambda backend: start(
        backend, init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD
    )
    validation = [(whole(9).source[rank : rank + 1], whole(9).labels[rank : rank + 1])]
    training, confusion = page["main"]([half(step, rank) for step in range(STEPS)], validation)
    found = [*training.student.module.parameters(), *training.teacher.parameters()]
    torch.save(([x.detach() for x in found], confusion.matrix), f"{results}.{rank}")


def parts(student: Any) -> Parts:
    return Parts(student.encoder, student.decoder, lambda f: student.attention(f).sigmoid())


def test_lines_of_glue() -> None:
    assert glue(PAGE) == {"loop": 5}


def test_two_processes_are_one_written_out(tmp_path: Path) -> None:
    files = str(tmp_path / "rendezvous"), str(tmp_path / "results")
    torch.multiprocessing.spawn(work, files, WORLD)
    (first, matrix), (second, same) = (torch.load(f"{files[1]}.{rank}") for rank in range(WORLD))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert torch.equal(matrix, same)

    student = run_page(PAGE)["network"]().double()

    def terms(student: Any, teacher: Any, batch: Batch) -> Any:
        return written_out.hrda_terms(parts(student), parts(teacher), batch, 0.968, processes=WORLD)

    target = whole(0).target
    shares = written_out.pseudo(written_out.everywhere(parts(student), target), target.shape[-2:], 0.968, WORLD)[1]
    assert 0.05 < shares[0, 0, 0] != shares[-1, 0, 0] > 0.05
    written_out.train(student, terms, [whole(step) for step in range(STEPS)], rate=0.001)
    students = list(student.parameters())
    torch.testing.assert_close(first[: len(students)], students, rtol=1e-6, atol=1e-9)
