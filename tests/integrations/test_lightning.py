"""Lightning: manual and automatic optimisation are a plain loop, resume is exact, validation goes by windows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from integration_pages import run_page
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hrda_lib import ConfusionMatrix, EMATeacher, MultiResSegmenter, SelfTraining

lightning = pytest.importorskip("lightning", reason="the extra integrations is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '[a-z_]*dataloader[a-z_]*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found [0-9]+ module.* in eval mode at the start of training"),  # the teacher's
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]
PAGE = "lightning"
C = 4


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return run_page(PAGE)


def data() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    source, target = torch.randn(2, 8, 3, 64, 96, generator=g)
    return source, torch.randint(C, (8, 64, 96), generator=g), target


def validation_data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, 50, 131, generator=g), torch.randint(C, (2, 50, 131), generator=g)


def one_scale() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Conv2d(8, C, 1))


def two_scales() -> MultiResSegmenter:
    return MultiResSegmenter(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, C, 1), 0.5, detail_size=32)


def fit(kind: Any, network: Any, epochs: int, where: Path, resume: Path | None = None) -> Any:
    torch.manual_seed(0)
    model = kind(network())
    model.terms.generator.manual_seed(3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=where, enable_checkpointing=False, **quiet
    )
    source, labels, target = data()
    train = [DataLoader(TensorDataset(source, labels), 2), DataLoader(TensorDataset(target), 2)]
    has_validation = "validation_step" in vars(kind)
    valid = DataLoader(TensorDataset(*validation_data())) if has_validation else None
    trainer.fit(model, train, valid, ckpt_path=resume)
    trainer.save_checkpoint(where / "last.ckpt")
    return model, trainer


def state(module: Any) -> list[Tensor]:
    return [*module.student.state_dict().values(), *module.teacher.state_dict().values()]


@pytest.mark.parametrize("kind", ["Automatic", "Manual"])
@pytest.mark.parametrize("scales", [1, 2])
def test_both_optimisations_are_a_plain_loop(page: dict[str, Any], kind: str, scales: int, tmp_path: Path) -> None:
    network = one_scale if scales == 1 else two_scales
    got, _ = fit(page[kind], network, 2, tmp_path)

    torch.manual_seed(0)
    student = network()
    teacher = EMATeacher(student)
    training = SelfTraining(student, teacher, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for _ in range(2):
        for batch in zip(*(x.split(2) for x in data()), strict=True):
            for _, loss in training.losses(*batch):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            teacher.update(student)
    torch.testing.assert_close(list(got.student.parameters()), list(student.parameters()))
    torch.testing.assert_close(list(got.teacher.parameters()), list(teacher.parameters()))
    assert got.teacher.step == 8


def test_resume_is_exact(page: dict[str, Any], tmp_path: Path) -> None:
    whole, _ = fit(page["Whole"], two_scales, 2, tmp_path)
    fit(page["Whole"], two_scales, 1, tmp_path)
    resumed, _ = fit(page["Whole"], two_scales, 2, tmp_path, tmp_path / "last.ckpt")
    for mine, theirs in zip(state(resumed), state(whole), strict=True):
        assert torch.equal(mine, theirs)
    assert resumed.teacher.step == 8


def test_validation_counts_the_windows_at_an_odd_size(page: dict[str, Any], tmp_path: Path) -> None:
    model, trainer = fit(page["Whole"], two_scales, 1, tmp_path)
    images, labels = validation_data()
    confusion = ConfusionMatrix(C)
    confusion.update(model.student.predict(images, output="labels"), labels)
    assert trainer.callback_metrics["miou"].item() == pytest.approx(confusion.mean_iou())
    assert model.confusion.matrix.sum() == labels.numel()
    assert model.student.training
    assert model.teacher.training
