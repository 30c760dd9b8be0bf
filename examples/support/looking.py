"""What one sees of a run while it trains: mean IoU on images that are kept for it, a panel of a step, TensorBoard."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from hrda_lib import EMATeacher, SelfTraining
from hrda_lib.checkpointing import seed_step
from hrda_lib.data import LabeledImages, UnlabeledImages
from support.batches import Batch
from support.measuring import every_head, measure
from support.networks import Network
from support.plots import draw_step
from support.run_folder import RunFolder
from support.training import boxes

SHOWN = 20  # images that mean IoU over time is measured on, at most


def looked(
    run: RunFolder,
    student: Network,
    training: SelfTraining,
    teacher: EMATeacher,
    batch: Batch,
    *,
    val: LabeledImages | None,
    images: UnlabeledImages | None = None,
    mix: str = "classes",
) -> dict[str, float]:
    """Numbers for the log, and a picture, every ``--val-every`` and ``--panel-every`` steps; they change nothing.

    ``mix``: what is pasted in the picture, as in the step.
    """
    values, done = dict[str, float](), batch.step + 1
    if val is not None and run.running.val_every and done % run.running.val_every == 0:
        indices = range(0, len(val), max(len(val) // SHOWN, 1))[:SHOWN]
        student.eval()
        found, _ = measure(student, run.spec, val, say=every_head, images=images, indices=indices, running=run.running)
        student.train()
        values["val_iou"] = found["fused"].mean_iou()
    if run.running.panel_every and done % run.running.panel_every == 0 and not run.rank:
        file = run.path / "panels" / f"{run.steps:06d}.png"
        file.parent.mkdir(exist_ok=True)
        seed_step(0, batch.step, generator=training.generator)
        pasted = boxes(mix, training.generator, batch.source[1], None)
        draw_step(file, student, teacher, training, run.spec, batch, mask=pasted)
        for picture in run.pictures:
            picture(run.steps, file)
    return values


def log_to_tensorboard(run: RunFolder) -> None:
    """Everything that ``metrics.jsonl`` and ``panels`` get, to ``tensorboard`` in the run folder.

    Raises:
        ValueError: it is not installed.
    """
    if run.rank or "tensorboard" not in run.running.log:
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--log tensorboard needs the extra 'train': pip install '.[train]'") from None
    writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=run.steps or None)

    def numbers(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def picture(step: int, file: Path) -> None:
        writer.add_image("panel", np.asarray(Image.open(file).convert("RGB")), step, dataformats="HWC")
        writer.flush()

    run.loggers.append(numbers)
    run.pictures.append(picture)
