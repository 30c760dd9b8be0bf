"""Self-training around a foundation model, any plain ViT of timm; without arguments on toy data, drawn on the spot.

    python examples/vfm_uda.py                                                 the toy run: source, control, recipe
    python examples/vfm_uda.py --cost --recipe hrda_vfm_lora                   FLOPs and bytes, before any download
    ... --recipe hrda_vfm_lora --gta DIR --cityscapes DIR --weights FILE       context, detail and adapters
    ... --recipe vfm_uda --gta DIR --cityscapes DIR --weights FILE             one pass, all weights (VFM-UDA)
    torchrun --nproc-per-node 4 examples/vfm_uda.py ... [--resume]             on four GPUs, on from a checkpoint

FILE: timm's weights; --pretrained downloads them. The recipes take a DINOv2 (Apache-2.0); DINOv3 has its own licence.
"""

from support.ending import run_main  # first: it catches Ctrl-C from here on

# isort: split
import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hrda_lib import ConfidenceWeightedCE, EMATeacher, SelfTraining, patch_mask
from hrda_lib.checkpointing import seed_step
from hrda_lib.distributed import all_reduce_gradients, average_buffers, mean
from hrda_lib.optim import parameter_groups, warmup_poly
from support.arms import Arm, add_data, lacking, run_arms
from support.batches import Batch, Batches
from support.command_line import FOUNDATION, add_running, add_settings, read_running, read_settings, setting
from support.cost import report, same_flops
from support.domains import KINDS
from support.foundation import adapt_by_lora, add_vit, merge, mirrored, vit_spec
from support.measuring import MEASURED
from support.networks import Network
from support.run_folder import RunFolder
from support.training import augmentation, check_finite, clip, largest, warn, whole_step


@dataclass(frozen=True)
class Settings:
    """What one may want to change: defaults are the toy run's, a recipe and the command line override them."""

    # fmt: off
    arms: tuple[str, ...] = setting(("source", "control", "recipe"), "arms to train and measure", group="training")
    seed: int = setting(1, "seed of toy images, weights and samples; 0 was used for tuning")
    warmup: int = setting(600, "steps on the source, of all weights, before the others; 0: from --weights")
    steps: int = setting(150, "steps of adaptation, and of its control", lowest=1)
    batch_size: int = setting(2, "images of each domain in a step")
    source: tuple[str, ...] = setting(("gta",), "data sets that labels come from", KINDS[:3], group="data")
    target: str = setting("cityscapes", "data set to adapt to", KINDS[2:])
    labelled_target: int = setting(0, "training images of the target whose labels are used like the source's")
    source_size: tuple[int, int] = setting((0, 0), "fit source images into this size; 0 0: leave them as they are")
    target_size: tuple[int, int] = setting((0, 0), "the same of target images; results are measured at their own size")
    margins: tuple[int, int, int, int] = setting((0, 0, 0, 0), "rows and columns of the target without pseudo labels")
    crop: tuple[int, int] = setting((192, 384), "size of the crop; with two scales, a detail is half as high and wide")
    classes: int = setting(19, "classes that the mean is over: 19, or the 16 or 13 of SYNTHIA", tuple(MEASURED))
    encoder: str = setting("vit_tiny_patch16_224", "a plain ViT of timm, by its name", group="network")
    encoder_weights: str = setting("", "of the encoder")
    patch: int = setting(0, "side of its patches in pixels; 0: its own")
    depth: int = setting(4, "blocks of it; 0: its own number")
    pos_embed: Literal["own", "dinov2"] = setting("own", "its position embedding at other sizes", ("own", "dinov2"))
    head: int = setting(64, "width of the decoder")
    scales: int = setting(2, "2: context and detail; 1: one pass over the crop", (1, 2))
    inside: float = setting(1.0, "with one pass: how much larger the encoder sees the crop, then whole patches")
    rank: int = setting(32, "rank of LoRA in the encoder, which is frozen; 0: all its weights are trained")
    recompute: int = setting(0, "1: the encoder computes activations anew in backward: less memory", (0, 1))
    mask_ratio: float = setting(0.7, "share of patches hidden in masked target images; 0: none", group="self-training")
    mask_block: int = setting(32, "side of a patch in pixels", lowest=1)
    mirror: int = setting(0, "1: labels from the mean of an image's and its mirror image's softmax", (0, 1))
    by_valid: int = setting(0, "1: the source loss is divided by labelled pixels, 0: by all", (0, 1))
    lr: float = setting(1e-3, "learning rate of encoder or adapters; it rises, then falls to 0", group="training")
    lr_warmup: int = setting(50, "steps in which it rises, at most half of them")
    head_factor: float = setting(1.0, "factor of the learning rate outside the encoder")
    layer_decay: float = setting(1.0, "factor of the learning rate, a block further from the head")
    weight_decay: float = setting(0.01, "weight decay of AdamW")
    clip: float = setting(5.0, "largest gradient norm; 0: no limit")
    precision: str = setting("fp32", "numbers in forward and backward passes, by autocast", ("fp32", "bf16"))
    ema_decay: float = setting(0.99, "decay of the averaged weights, the teacher's", group="self-training")
    threshold: float = setting(0.9, "probability from which the teacher is trusted")
    per: Literal["batch", "image", "pixel"] = setting("pixel", "what has one confidence weight: batch, image or pixel")
    rare_classes: int = setting(1, "1: images of rare classes are drawn more often; 0: all alike", (0, 1), group="data")
    temperature: float = setting(0.05, "temperature of rare-class sampling; a larger one is more even")
    min_pixels: int = setting(150, "pixels of a class that an image must show to be drawn for it")
    min_crop_pixels: int = setting(75, "pixels of it that the crop must show, in ten tries; -1: half", lowest=-1)
    jitter: float = setting(0.2, "largest change of brightness, contrast and saturation of augmented images")
    hue: float = setting(0.2, "largest change of their hue, in turns")
    blur: float = setting(0.5, "probability that they are blurred")
    augment_source: int = setting(1, "1: source images are augmented too; 0: mixed images alone", (0, 1))
    # fmt: on
    model, attention, feature_distance, fixed_attention = "vit", None, 0.0, None  # of the other scripts' networks


ARMS = {
    "source": Arm("source only, all weights", changes={"rank": 0}),
    "control": Arm("source only, as many steps as the recipe", "source"),
    "recipe": Arm("the recipe", "source", adapts=True),
    "full": Arm("the recipe, all weights trained", "source", adapts=True, changes={"rank": 0}),
    "equal_flops": Arm("one scale for two, or two for one; steps of equal FLOPs", "source", adapts=True),
}


def train(
    student: Network, batches: Batches, settings: Settings, run: RunFolder, *, distance: Any = None, look: Any = None
) -> EMATeacher:
    """Learn from the source, and adapt to the target if there is one; begins where an earlier call was stopped."""
    teacher, training, optimizer, schedule = assemble(student, settings, run.group)
    state: dict[str, Any] = {"teacher": teacher} if batches.adapts else {}
    state |= {"model": student, "optimizer": optimizer, "schedule": schedule}
    with run.kept(state) as progress:
        for batch in progress(batches):
            seed_step(settings.seed, batch.step, run.rank, generator=training.generator)
            values = dict[str, float]()
            with whole_step(run, batches, batch, student, teacher):
                for name, loss, said in terms(training, batch, settings, run):
                    loss.backward()  # type: ignore[no-untyped-call]
                    values |= {name: loss.item(), **said}
                all_reduce_gradients(student.parameters(), run.group)
                for network in (student, teacher):
                    average_buffers(network, run.group)
                values = mean(values, run.group) | {"gradient": clip(student, settings.clip)}
                check_finite(values, student, scaled=False)
                optimizer.step()
                values["lr"] = float(schedule.get_last_lr()[0])
                schedule.step()
                optimizer.zero_grad()
                if batches.adapts and batch.step + 1 < settings.steps:
                    teacher.update(student)
            warn(run, settings, values)
            run.log(**values, **(look(training, teacher, batch) if look else {}))
    merge(student, teacher)  # what is kept is a plain network, at no further cost
    return teacher


def terms(
    training: SelfTraining, batch: Batch, settings: Settings, run: RunFolder
) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
    """The losses of a step, one after another, and what is worth to be logged."""
    autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    augment = partial(augmentation(settings, pictures=True), generator=training.generator, group=run.group)
    images, labels = run.spec.feed(batch.source[0], run.device), batch.source[1].to(run.device)
    with autocast:
        loss, _ = training.source(augment(images) if settings.augment_source else images, labels)
    yield "loss_source", loss, {}
    if batch.target is None:
        return
    target, valid = run.spec.feed(batch.target[0], run.device), batch.target[1].to(run.device)
    with autocast:
        said = training.pseudo_label(target, valid=valid)
        loss, _ = training.mixed(images, labels, target, *said)
    yield "loss_mixed", loss, {"confidence": said[1].mean().item(), "largest_class": largest(said[0])}
    if settings.mask_ratio:
        with autocast:
            loss, _ = training.masked(augment(target), *said)
        yield "loss_masked", loss, {}


def assemble(
    student: Network, settings: Settings, group: Any = None
) -> tuple[EMATeacher, SelfTraining, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adapters, teacher, losses, optimiser and schedule of a student."""
    adapt_by_lora(student, settings.rank)
    teacher = EMATeacher(student, decay=settings.ema_decay, share_frozen=True)
    by_all, by_valid = ConfidenceWeightedCE(), ConfidenceWeightedCE(normalize="valid")

    def criterion(logits: Tensor, labels: Tensor, weight: Tensor | None, group: Any = None) -> Any:
        return (by_valid if settings.by_valid and weight is None else by_all)(logits, labels, weight, group=group)

    training = SelfTraining(
        student,
        partial(mirrored, teacher) if settings.mirror else teacher,
        criterion=criterion,
        threshold=settings.threshold,
        per=settings.per,
        augment=augmentation(settings, pictures=True),
        masking=partial(patch_mask, ratio=settings.mask_ratio, block=settings.mask_block),
        generator=torch.Generator(),
        group=group,
    )
    rates = {"lr": settings.lr, "head_factor": settings.head_factor, "layer_decay": settings.layer_decay}
    optimizer = torch.optim.AdamW(parameter_groups(student, weight_decay=settings.weight_decay, **rates))
    schedule = warmup_poly(optimizer, total=settings.steps, warmup=min(settings.lr_warmup, settings.steps // 2))
    return teacher, training, optimizer, schedule


def parse(arguments: Sequence[str] | None) -> tuple[Settings, dict[str, Path], dict[str, Any]]:
    """Settings, the data sets' folders, and every option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser, FOUNDATION, real="hrda_vfm_lora")
    add_settings(parser, Settings, but=("encoder_weights",))
    add_vit(parser)
    add_running(parser, "runs/vfm_uda")
    options = vars(parser.parse_args(arguments))
    folders = {kind: options[kind] for kind in KINDS if options[kind]}
    options["recipe"] = options["recipe"] or ("hrda_vfm_lora" if folders else None)
    settings = read_settings(Settings, options["recipe"], options)
    if problem := "" if options["cost"] else lacking(settings, folders, options["recipe"], ARMS):
        parser.error(problem)
    return settings, folders, options


@run_main
def main(arguments: Sequence[str] | None = None) -> int:
    settings, folders, options = parse(arguments)
    if options["cost"]:
        print(report(vit_spec(settings), settings), end="")
        return 0
    arms, running = dict(ARMS), read_running(options)
    if not settings.encoder_weights and not settings.warmup:
        print("neither --weights nor --warmup: the encoder starts from random weights", file=sys.stderr)
    if "equal_flops" in settings.arms:
        changes, length = same_flops(vit_spec(settings), settings)
        arms["equal_flops"] = arms["equal_flops"]._replace(changes=changes, length=length)
    return run_arms(train, assemble, arms, settings, running, folders, stats=options["class_stats"], network=vit_spec)


if __name__ == "__main__":
    sys.exit(main())
