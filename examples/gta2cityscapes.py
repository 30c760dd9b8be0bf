"""HRDA from GTA to Cityscapes, or between other street data sets; without arguments on toy data, drawn on the spot.

    python examples/gta2cityscapes.py                                    the demo: source, control, hrda
    python examples/gta2cityscapes.py --gta DIR --cityscapes DIR --encoder-weights mit_b5.pth        the paper
    ... --recipe NAME                                                    settings of examples/recipes/NAME.toml
    ... --resume                                                         goes on where a run was stopped or killed
    torchrun --nproc-per-node 4 examples/gta2cityscapes.py ...           the same on four GPUs

Each arm is kept in OUT/seedN/ARM; with the same settings it is not trained again. Target training images are read
without labels, except by the arm "oracle". ablation.py has further arms, and runs several seeds.
"""

from support.ending import run_main  # first: it catches Ctrl-C from here on

# isort: split
import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hrda_lib import EMATeacher, FeatureDistance, SelfTraining, patch_mask
from hrda_lib.checkpointing import seed_step
from hrda_lib.distributed import all_reduce_gradients, average_buffers, mean
from hrda_lib.optim import parameter_groups, warmup_poly
from support.arms import Arm, add_data, contradiction, run_arms
from support.batches import Batch, Batches
from support.command_line import Running, add_running, add_settings, read_running, read_settings, setting
from support.domains import KINDS
from support.measuring import MEASURED
from support.networks import MODELS, PRECISIONS, Network
from support.run_folder import RunFolder
from support.training import augmentation, boxes, check_finite, clip, largest, parts_of, to_mask, warn, whole_step

MASKED, MIXES = ("target", "separate"), ("classes", "boxes")
Look = Callable[[SelfTraining, EMATeacher, Batch], Mapping[str, float]]  # at what is learned, for numbers to be logged


@dataclass(frozen=True)
class Settings:
    """Everything that one may want to change: defaults are the demo's, a recipe and the command line override them."""

    # fmt: off
    source: str = setting("gta", "data set that labels come from", KINDS[:3], group="data")
    target: str = setting("cityscapes", "data set to adapt to", KINDS[2:])
    source_size: tuple[int, int] = setting((0, 0), "fit source images into this size; 0 0: leave them as they are")
    target_size: tuple[int, int] = setting((0, 0), "the same of target images; results are measured at their own size")
    margins: tuple[int, int, int, int] = setting((0, 0, 0, 0), "rows and columns of the target without pseudo labels")
    crop: tuple[int, int] = setting((192, 384), "size of the context crop; the detail crop is half as high and wide")
    classes: int = setting(19, "classes that the mean is over: 19, or the 16 or 13 of SYNTHIA", tuple(MEASURED))
    rare_classes: int = setting(1, "1: source images of rare classes are drawn more often; 0: all alike", (0, 1))
    temperature: float = setting(0.05, "temperature of rare-class sampling; a larger one is more even")
    min_pixels: int = setting(150, "pixels of a class that an image must show to be drawn for it")
    min_crop_pixels: int = setting(75, "pixels of it that the crop must show, in ten tries; -1: half", lowest=-1)
    jitter: float = setting(0.2, "largest change of brightness, contrast and saturation of augmented images")
    hue: float = setting(0.2, "largest change of their hue, in turns")
    blur: float = setting(0.5, "probability that they are blurred")
    augment_source: int = setting(1, "1: source images are augmented too; 0: mixed images alone", (0, 1))
    model: str = setting("small", "two scales around any encoder, or a network of the papers", MODELS, group="network")
    encoder: str = setting("mini", "mini, trained from scratch; mit_b0 to mit_b5; resnet101; a name of timm")
    encoder_weights: str = setting("", "file of weights; hrda and daformer also know names on the hub", metavar="FILE")
    fixed_attention: float | None = setting(None, "mix of context (0) and detail (1) in place of a learned attention")
    recompute: int = setting(0, "1: hrda and daformer compute activations anew in backward, for less memory", (0, 1))
    arms: tuple[str, ...] = setting(("source", "control", "hrda"), "arms to train and measure", group="training")
    seed: int = setting(1, "seed of toy images, weights and samples; 0 was used for tuning")
    warmup: int = setting(1500, "steps on the source alone, before adaptation", lowest=-1)
    steps: int = setting(1000, "steps of adaptation, and of its control", lowest=1)
    batch_size: int = setting(2, "images of each domain in a step")
    micro_batch: int = setting(0, "how many of them are in memory together; 0: all")
    balance: float = setting(0.0, "class weights are the share of pixels to the power of -balance; 0: all are 1")
    optimizer: str = setting("adamw", "optimiser of torch", ("adamw", "sgd"))
    momentum: float = setting(0.9, "momentum of sgd")
    lr: float = setting(3e-3, "learning rate; it decays to 0 in the warm-up, and again afterwards")
    lr_warmup: int = setting(50, "steps in which it rises at the beginning of each, at most half of them")
    lr_power: float = setting(0.9, "power of its decay")
    head_factor: float = setting(1.0, "factor of the learning rate outside the encoder")
    weight_decay: float = setting(0.01, "weight decay of the optimiser")
    clip: float = setting(5.0, "largest gradient norm; 0: no limit")
    precision: str = setting("fp32", "numbers in forward and backward passes, by autocast", tuple(PRECISIONS))
    ema_decay: float = setting(0.99, "decay of the averaged weights, the teacher's", group="self-training")
    threshold: float = setting(0.9, "probability from which the teacher is trusted")
    per: Literal["batch", "image", "pixel"] = setting("pixel", "what has one confidence weight: batch, image or pixel")
    objective: Literal["fused", "context", "detail", "separate"] = setting(
        "fused", "prediction that learns: fused, context, detail, or separate, both scales without fusion"
    )
    detail_weight: float = setting(0.1, "share of the detail loss")
    mix: str = setting("classes", "what is pasted: half of a source image's classes, or a box of half of it", MIXES)
    mask_ratio: float = setting(0.0, "share of patches that is hidden in MIC's masked images; 0: no masked term")
    mask_block: int = setting(64, "side of a patch in pixels", lowest=1)
    mask_on: str = setting("target", "images to mask; separate: half of each domain, as they are", MASKED)
    feature_distance: float = setting(0.0, "weight of the distance to the encoder's first features, on things; 0: none")
    # fmt: on


ARMS = {
    "source": Arm("source only"),
    "control": Arm("source only, as many steps as hrda", "source"),
    "hrda": Arm("HRDA: context, detail, learned attention", "source", adapts=True),
    "oracle": Arm("learns from target labels", "source", oracle=True),
    "uda": Arm("self-training at one scale", "source", adapts=True),
}


def train(
    student: Network,
    batches: Batches,
    settings: Settings,
    run: RunFolder,
    *,
    phase: int = 0,
    distance: FeatureDistance | None = None,
    criterion: nn.Module | None = None,
    look: Look | None = None,
) -> EMATeacher:
    """Learn from the source, and adapt to the target if there is one; begins where an earlier call was stopped."""
    augment = augmentation(settings, pictures=run.spec.takes_pictures)
    teacher, training, optimizer, schedule = assemble(student, settings, augment, distance, criterion, run.group)
    scaler = torch.amp.GradScaler(run.device.type, enabled=settings.precision == "fp16")
    state: dict[str, Any] = {"model": student, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    state |= {"teacher": teacher} if batches.adapts else {}
    with run.kept(state, phase) as progress:
        for batch in progress(batches):
            seed_step(settings.seed, batch.step, run.rank, generator=training.generator)
            values = dict[str, float]()
            with whole_step(run, batches, batch, student, teacher):
                for name, loss, said in terms(training, augment, batch, settings, run):
                    scaler.scale(loss).backward()
                    for key, value in {name: loss.item(), **said}.items():
                        values[key] = values.get(key, 0.0) + value
                all_reduce_gradients(student.parameters(), run.group)
                for network in (student, teacher):
                    average_buffers(network, run.group)
                scaler.unscale_(optimizer)
                values = mean(values, run.group) | {"gradient": clip(student, settings.clip)}
                check_finite(values, student, scaled=scaler.is_enabled())
                scaler.step(optimizer)
                scaler.update()
                values["lr"] = float(schedule.get_last_lr()[0])
                schedule.step()
                optimizer.zero_grad()
                if batches.adapts and batch.step + 1 < settings.steps:
                    teacher.update(student)
            warn(run, settings, values)
            run.log(**values, **(look(training, teacher, batch) if look else {}))
    return teacher


def terms(
    training: SelfTraining, augment: Callable[..., Tensor], batch: Batch, settings: Settings, run: RunFolder
) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
    """The losses of a step, one after another and by parts of the batch, and what is worth to be logged."""
    autocast = torch.autocast(run.device.type, PRECISIONS[settings.precision], enabled=settings.precision != "fp32")
    parts = partial(parts_of, settings.micro_batch, training.generator)
    micro = bool(settings.micro_batch)
    augment = partial(augment, generator=training.generator, group=run.group)
    images, labels = run.spec.feed(batch.source[0], run.device), batch.source[1].to(run.device)
    seen = augment(images) if settings.augment_source else images
    for x, y in parts(seen, labels):
        with autocast:
            loss, found = training.source(x, y, whole=labels if micro else None)
        yield "loss_source", loss, {name: found[name].item() for name in found if name == "feature_distance"}
    if batch.target is None:
        return
    target, valid = run.spec.feed(batch.target[0], run.device), batch.target[1].to(run.device)
    with autocast:
        pseudo_labels, weight = training.pseudo_label(target, valid=valid, micro_batch=settings.micro_batch or None)
    said = {"confidence": weight.mean().item(), "largest_class": largest(pseudo_labels)}
    pasted = boxes(settings.mix, training.generator, labels, run.group)
    mixed = training.mix(images, labels, target, pseudo_labels, weight, mask=pasted)
    for x, y, q in parts(*mixed):
        with autocast:
            loss, _ = training.supervised(x, y, q, whole=mixed.labels if micro else None)
        yield "loss_mixed", loss, said
        said = {}
    if settings.mask_ratio:
        masked, labels, weight = to_mask(
            settings, augment, training.generator, images, labels, target, pseudo_labels, weight, run
        )
        for x, y, q in parts(masked, labels, weight):
            with autocast:
                loss, _ = training.supervised(x, y, q, whole=labels if micro else None)
            yield "loss_masked", loss, {}


def assemble(
    student: Network,
    settings: Settings,
    augment: Callable[..., Tensor] | None = None,
    distance: FeatureDistance | None = None,
    criterion: nn.Module | None = None,
    group: Any = None,
) -> tuple[EMATeacher, SelfTraining, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Teacher, losses, optimiser and schedule of a student."""
    patch_mask((8, 8), ratio=settings.mask_ratio)  # what it cannot draw is refused before any work
    teacher = EMATeacher(student, decay=settings.ema_decay)
    training = SelfTraining(
        student,
        teacher,
        feature_distance=distance,
        detail_weight=settings.detail_weight,
        threshold=settings.threshold,
        per=settings.per,
        objective=settings.objective,
        augment=augment or augmentation(settings, pictures=True),
        criterion=criterion,
        generator=torch.Generator(),
        group=group,
    )
    groups = parameter_groups(
        student, lr=settings.lr, head_factor=settings.head_factor, weight_decay=settings.weight_decay
    )
    sgd = partial(torch.optim.SGD, momentum=settings.momentum)
    optimizer = (sgd if settings.optimizer == "sgd" else torch.optim.AdamW)(groups)
    rise = min(settings.lr_warmup, settings.steps // 2)
    return (
        teacher,
        training,
        optimizer,
        warmup_poly(optimizer, total=settings.steps, warmup=rise, power=settings.lr_power),
    )


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, arms: Mapping[str, Arm]
) -> tuple[Settings, Running, dict[str, Path], dict[str, Any]]:
    """Settings, what changes no result, the data sets' folders, and every other option."""
    add_data(parser)
    add_settings(parser, Settings, but=("balance",))  # own_data.py's
    add_running(parser, "runs/gta2cityscapes")
    options = vars(parser.parse_args(arguments))
    folders = {kind: options[kind] for kind in KINDS if options[kind]}
    if folders and not options["recipe"]:
        options["recipe"] = "hrda"
        print("real data and no --recipe: the settings are those of recipes/hrda.toml", file=sys.stderr)
    settings = read_settings(Settings, options["recipe"], options)
    if not settings.warmup and options["arms"] == parser.get_default("arms"):
        settings = replace(settings, arms=tuple(name for name in settings.arms if arms[name].start))
    if problem := contradiction(settings, folders, options["recipe"], arms):
        parser.error(problem)
    if not settings.encoder_weights and (settings.feature_distance or settings.encoder != "mini"):
        lacking = ", and no feature distance" if settings.feature_distance else ""
        print(f"without --encoder-weights: random weights{lacking}", file=sys.stderr)
    return settings, read_running(options), folders, options


@run_main
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings, running, folders, options = parse(parser, arguments, ARMS)
    return run_arms(train, assemble, ARMS, settings, running, folders, stats=options["class_stats"])


if __name__ == "__main__":
    sys.exit(main())
