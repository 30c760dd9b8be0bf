"""Two gloo processes of half a batch are one process of the whole, written out, at one scale and at two."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import written_out
from integration_pages import run_page
from torch import Tensor, nn
from written_out import Batch, Parts

from hrda_lib import ConfusionMatrix, CropBox
from hrda_lib.models import EncoderDecoder

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


def half(step: int, rank: int, scales: int) -> dict[str, Any]:
    part, batch = slice(2 * rank, 2 * rank + 2), whole(step)
    tensors = {"source_images": batch.source, "source_labels": batch.labels, "target_images": batch.target}
    boxes = {"source_box": CropBox(*batch.source_box), "mixed_box": CropBox(*batch.mixed_box)}
    given = {name: x[part] for name, x in tensors.items()} | {"mixed_classes": CLASSES[part]}
    return given if scales == 1 else given | boxes


def validation(rank: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(9 + rank)
    return torch.randn(1, 3, 50, 131, generator=g).double(), torch.randint(4, (1, 50, 131), generator=g)


def one_scale() -> EncoderDecoder:
    torch.manual_seed(0)
    return EncoderDecoder(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 4, 1))


def network_of(page: dict[str, Any], scales: int) -> Any:
    return one_scale if scales == 1 else page["network"]


def work(rank: int, where: str) -> None:
    torch.set_num_threads(1)
    page = run_page(PAGE)
    start, found = dist.init_process_group, []
    for scales in (1, 2):
        page["network"] = network_of(run_page(PAGE), scales)
        page["dist"].init_process_group = lambda backend, scales=scales: start(
            backend, init_method=f"file://{where}/rendezvous{scales}", rank=rank, world_size=WORLD
        )
        training, confusion = page["main"]([half(step, rank, scales) for step in range(STEPS)], [validation(rank)])
        weights = [*training.student.module.parameters()], [*training.teacher.parameters()]
        found.append(([[x.detach() for x in part] for part in weights], confusion.matrix))
    torch.save(found, f"{where}/result{rank}")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each process ended with, by rank."""
    where = str(tmp_path_factory.mktemp("ddp"))
    torch.multiprocessing.spawn(work, (where,), WORLD)
    return [torch.load(f"{where}/result{rank}") for rank in range(WORLD)]


def parts(student: Any) -> Parts:
    return Parts(student.encoder, student.decoder, lambda f: student.attention(f).sigmoid())


@pytest.mark.parametrize("scales", [1, 2])
def test_two_processes_are_one_written_out(results: list[Any], scales: int) -> None:
    (weights, matrix), (others, same) = (result[scales - 1] for result in results)
    torch.testing.assert_close(weights, others, rtol=0, atol=0)
    assert torch.equal(matrix, same)

    student = network_of(run_page(PAGE), scales)().double()

    def terms(student: Any, teacher: Any, batch: Batch) -> Any:
        if scales == 1:
            return written_out.plain_terms(student, teacher, batch, 0.968, processes=WORLD)
        return written_out.hrda_terms(parts(student), parts(teacher), batch, 0.968, processes=WORLD)

    with torch.no_grad():
        said = student(whole(0).target) if scales == 1 else written_out.everywhere(parts(student), whole(0).target)
    shares = written_out.pseudo(said, (64, 64), 0.968, WORLD)[1]
    assert 0.05 < shares[0, 0, 0] != shares[-1, 0, 0] > 0.05
    written_out.train(student, terms, [whole(step) for step in range(STEPS)], rate=0.001)
    torch.testing.assert_close(weights[0], list(student.parameters()), rtol=1e-6, atol=1e-9)


def test_validation_at_an_odd_size_counts_both_processes(results: list[Any]) -> None:
    (weights, _), matrix = results[0][1]
    student = run_page(PAGE)["network"]().double().eval()
    confusion = ConfusionMatrix(4)
    with torch.no_grad():
        for mine, trained in zip(student.parameters(), weights, strict=True):
            mine.copy_(trained)
        for rank in range(WORLD):
            image, labels = validation(rank)
            slide = partial(written_out.slide, partial(written_out.everywhere, parts(student)))
            logits = written_out.padded(lambda x: slide(x, (56, 64), (32, 32)), image, (56, 136))  # noqa: B023
            confusion.update(logits.argmax(1), labels)
    assert torch.equal(matrix, confusion.matrix)
