"""HRDA from GTA to Cityscapes, or between other street data sets; without arguments on toy data, drawn on the spot.

    python examples/gta2cityscapes.py                                    the demo: source, control, hrda
    python examples/gta2cityscapes.py --gta DIR --cityscapes DIR --encoder-weights mit_b5.pth        the paper
    ... --recipe NAME                                                    settings of examples/recipes/NAME.toml

Each arm is kept in OUT/seedN/ARM; with the same settings it is not trained again. Target training images are read
without labels, except by the arm "oracle". ablation.py has further arms, and runs several seeds.
"""

from support.ending import Stopped, reason, run_main  # first: it catches Ctrl-C from here on

# isort: split
import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from evaluate import MEASURED, label_quality, measure
from hrda_lib import EMATeacher, FeatureDistance, SelfTraining, StrongAugment, data
from hrda_lib.optim import parameter_groups, warmup_poly
from support.command_line import (
    RECIPES,
    Running,
    add_running,
    add_settings,
    read_running,
    read_settings,
    setting,
)
from support.domains import KINDS, NAMES, Domains, count_classes, fitted, open_domains
from support.networks import MODELS, Network, NetworkSpec, jitter_and_blur
from support.plots import draw_arms, draw_classes, draw_curves
from support.run_folder import RunFolder, load, load_weights, locked, read_metrics
from support.tables import Result, arm_table, class_numbers, class_table, share_table, unseen

Batches = Iterator[tuple[Tensor, Tensor]]
THINGS = [NAMES.index(name) for name in ("traffic light", "traffic sign", *NAMES[NAMES.index("person") :])]


@dataclass(frozen=True)
class Settings:
    """Everything that one may want to change: defaults are the demo's, a recipe and the command line override them."""

    # fmt: off
    arms: tuple[str, ...] = setting(("source", "control", "hrda"), "what to run")
    seed: int = setting(1, "of toy images, weights and samples; 0 was for tuning")
    warmup: int = setting(1500, "steps on the source before adaptation", lowest=-1)
    steps: int = setting(1000, "steps of adaptation, and of its control", lowest=1)
    batch_size: int = setting(2, "images of each domain")
    crop: tuple[int, int] = setting((192, 384), "context crop (h, w); the detail crop is half as high and wide")
    source: str = setting("gta", "where labels come from", KINDS[:3])
    target: str = setting("cityscapes", "what is adapted to", KINDS[2:])
    source_size: tuple[int, int] = setting((0, 0), "fit source images into (h, w); 0 0: leave them")
    target_size: tuple[int, int] = setting((0, 0), "the same of target images; results are measured at their own size")
    margins: tuple[int, int, int, int] = setting((0, 0, 0, 0), "top, bottom, left, right of the target: no label there")
    classes: int = setting(19, "classes that the mean is over; 16 and 13 are SYNTHIA's", tuple(MEASURED))
    model: str = setting("small", "two scales around any encoder, or a network of the papers", MODELS)
    encoder: str = setting("mini", "'mini', trained from scratch, or a timm name; mit_b0 to mit_b5; resnet101")
    encoder_weights: str = setting("", "file, or with hrda and daformer a name on the hub; empty: random weights")
    fixed_attention: float | None = setting(None, "mix of context (0) and detail (1) in place of a learned attention")
    objective: Literal["fused", "context", "detail", "separate"] = setting("fused", "which prediction learns")
    detail_weight: float = setting(0.1, "share of the detail loss")
    feature_distance: float = setting(0.0, "its weight, on things, from the encoder's weights")
    lr: float = setting(3e-3, "of AdamW; it decays to 0 in the warm-up, and again afterwards")
    lr_warmup: int = setting(50, "steps in which it rises at the beginning of each, at most half of them")
    lr_power: float = setting(0.9, "of its decay")
    head_factor: float = setting(1.0, "times the learning rate outside the encoder")
    weight_decay: float = setting(0.01, "of AdamW")
    clip: float = setting(5.0, "largest gradient norm; 0: no limit")
    ema_decay: float = setting(0.99, "of the teacher")
    threshold: float = setting(0.9, "probability from which the teacher is trusted")
    per: Literal["batch", "image", "pixel"] = setting("pixel", "what a confidence weight is for; the paper: batch")
    rare_classes: int = setting(1, "1: source images of rare classes are drawn more often; 0: all alike", (0, 1))
    temperature: float = setting(0.05, "of rare-class sampling; larger is more even")
    min_pixels: int = setting(150, "of a class that an image must show to be drawn for it")
    min_crop_pixels: int = setting(75, "that the crop must show of it, in ten tries; -1: half of min_pixels", lowest=-1)
    balance: float = setting(0.0, "class weights are the share of pixels to the power of -balance; 0: none")
    augment_source: int = setting(1, "1: colours of source images change too; 0: those of mixed images only", (0, 1))
    # fmt: on


class Arm(NamedTuple):
    """What one row of the results does."""

    title: str
    start: str | None = None  # the arm whose weights it starts from; None: random weights, for the warm-up's steps
    adapts: bool = False  # whether it sees target images
    oracle: bool = False  # whether it learns from target labels instead of source labels
    length: float = 1.0  # steps, as a multiple of the settings'
    changes: Mapping[str, Any] = {}  # of the settings


ARMS = {
    "source": Arm("source only"),
    "control": Arm("source only, as many steps as hrda", "source"),
    "hrda": Arm("HRDA: context, detail, learned attention", "source", adapts=True),
    "oracle": Arm("learns from target labels", "source", oracle=True),
    "uda": Arm("self-training at one scale", "source", adapts=True),
}


def train(
    student: Network,
    source: Batches,
    target: Batches | None,
    settings: Settings,
    run: RunFolder,
    *,
    feature_distance: FeatureDistance | None = None,
    criterion: nn.Module | None = None,
    watch: Callable[[SelfTraining, EMATeacher], dict[str, float]] | None = None,
) -> EMATeacher:
    """Learn from the source, and adapt to the target if there is one; metrics and weights go to the run folder."""
    spec, device = run.spec, next(student.parameters()).device
    augment = StrongAugment(mean=spec.mean, std=spec.std) if spec.takes_pictures else jitter_and_blur
    teacher, training, optimizer, schedule = assemble(student, settings, augment, feature_distance, criterion)
    training.generator = generator = torch.Generator().manual_seed(settings.seed)
    try:
        for step in tqdm(range(settings.steps), run.path.name):
            if target and step > 0:
                teacher.update(student)
            images, labels = next(source)
            images, labels = spec.feed(images, device), labels.to(device)
            loss, parts = training.source(augment(images, generator) if settings.augment_source else images, labels)
            loss.backward()
            values = {"loss_source": loss.item()}
            if feature_distance is not None:
                values["feature_distance"] = parts["feature_distance"].item()

            if target:
                target_images, valid = next(target)
                target_images = spec.feed(target_images, device)
                pseudo_labels, weight = training.pseudo_label(target_images, valid=valid.to(device))
                loss, _ = training.mixed(images, labels, target_images, pseudo_labels, weight)
                loss.backward()
                values |= {"loss_mixed": loss.item(), "confidence": weight.mean().item()}

            clip(student, settings.clip or float("inf"))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if target and watch and (step % 100 == 0 or step == settings.steps - 1):
                values |= watch(training, teacher)
            run.log(**values)
            if target and step == 99:
                remind(run, settings)
        if not all(parameter.isfinite().all() for parameter in student.parameters()):
            raise ValueError("weights are not finite; choose a smaller --lr")
    except (Exception, KeyboardInterrupt) as error:
        raise Stopped(f"stopped at step {run.steps}: {reason(error)}") from error
    finally:  # a second Ctrl-C waits
        run.save(student, teacher.module if target else None)
    return teacher


def clip(student: Network, limit: float) -> None:
    """Limit the norm of all gradients.

    Raises:
        ValueError: it is not finite.
    """
    if not torch.nn.utils.clip_grad_norm_(student.parameters(), limit).isfinite():
        raise ValueError("gradients are not finite; choose a smaller --lr, or look at the images: check_data.py")


def remind(run: RunFolder, settings: Settings) -> None:
    """Say so where the teacher trusted hardly any pixel of the target: nothing was learnt from it."""
    trusted = sum(line["confidence"] for line in read_metrics(run.path)[-100:]) / 100
    if trusted < 0.01:
        text = f"100 steps of adaptation: only {100 * trusted:.2f} % of the target's pixels are trusted enough to teach"
        tqdm.write(f"{text}; a longer --warmup or a lower --threshold than {settings.threshold} helps", file=sys.stderr)


def assemble(
    student: Network,
    settings: Settings,
    augment: Callable[[Tensor, torch.Generator | None], Tensor] | None = None,
    feature_distance: FeatureDistance | None = None,
    criterion: nn.Module | None = None,
) -> tuple[EMATeacher, SelfTraining, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Teacher, losses, optimiser and schedule of a student."""
    teacher = EMATeacher(student, decay=settings.ema_decay)
    training = SelfTraining(
        student,
        teacher,
        feature_distance=feature_distance,
        detail_weight=settings.detail_weight,
        threshold=settings.threshold,
        per=settings.per,
        objective=settings.objective,
        augment=augment,
        criterion=criterion,
    )
    lr, factor, decay = settings.lr, settings.head_factor, settings.weight_decay
    optimizer = torch.optim.AdamW(parameter_groups(student, lr=lr, head_factor=factor, weight_decay=decay))
    steps, rise = settings.steps, min(settings.lr_warmup, settings.steps // 2)
    return teacher, training, optimizer, warmup_poly(optimizer, total=steps, warmup=rise, power=settings.lr_power)


def batches(
    labeled: data.LabeledImages,
    counts: Tensor,
    images: data.UnlabeledImages,
    settings: Settings,
    running: Running,
    *,
    adapts: bool,
) -> tuple[Batches, Batches | None]:
    """A batch a step of labelled crops, those of rare classes more often, and one of crops without labels."""
    labeled = data.Resized(labeled, settings.source_size) if all(settings.source_size) else labeled
    images, size, rare = fitted(images, settings.target_size), settings.crop, rare_classes(settings, counts)
    enough, how = (settings.min_crop_pixels if settings.min_crop_pixels >= 0 else None), running.on_error
    seed, steps = settings.seed, data.StepBatches(settings.batch_size, settings.steps)
    source = data.SourceCrops(labeled, size, seed=seed, rare_classes=rare, min_crop_pixels=enough, on_error=how)
    target = data.TargetCrops(images, size, seed=seed, margins=settings.margins, on_error=how)
    first = iter(DataLoader(source, batch_sampler=steps, num_workers=running.workers))
    second = iter(DataLoader(target, batch_sampler=steps, num_workers=running.workers if adapts else 0))
    return first, second if adapts else None


def rare_classes(settings: Settings, counts: Tensor) -> data.RareClasses | None:
    if not settings.rare_classes:
        return None
    return data.RareClasses(counts, temperature=settings.temperature, min_pixels=settings.min_pixels)


def network(settings: Settings) -> NetworkSpec:
    """What is trained."""
    height, width = settings.crop
    attention = settings.fixed_attention
    return NetworkSpec(NAMES, (height // 2, width // 2), settings.model, settings.encoder, attention)


def try_out(spec: NetworkSpec, settings: Settings) -> None:
    """Put everything together, and run it once on tensors without memory: bad settings are refused before any work."""
    student = spec.build(settings.encoder_weights).to("meta")
    assemble(student, settings)
    data.StepBatches(settings.batch_size, settings.steps)
    shape = settings.batch_size, spec.channels, *settings.crop
    try:
        student(torch.empty(shape, device="meta"))
    except Exception:  # not every encoder of timm can be run so
        run_once(spec, torch.zeros(shape))


def run_once(spec: NetworkSpec, images: Tensor) -> None:
    """With memory.

    Raises:
        ValueError: the encoder does not take images of the size of either crop.
    """
    try:
        with torch.no_grad():
            spec.build()(images)
    except Exception as error:
        height, width = spec.detail_size
        raise ValueError(
            f"--encoder {spec.encoder}, context and detail crops of {height} x {width}: {reason(error)}; "
            "choose another --crop or --encoder"
        ) from None


def run_arm(
    arms: Mapping[str, Arm], name: str, settings: Settings, domains: Domains, folder: Path, running: Running
) -> Result:
    """Train and measure an arm, and before it the arm that it starts from; or read what an earlier call kept."""
    arm, place = arms[name], folder / name
    start = arm.start if settings.warmup else None
    earlier = run_arm(arms, start, settings, domains, folder, running) if start else {"steps": 0, "seconds": 0}
    settings = replace(settings, arms=(name,), **arm.changes)
    run = RunFolder(place, network(settings))
    chosen = {**asdict(settings), **arm._asdict(), "on_error": running.on_error, "data": domains.key}
    with locked(place):
        if kept := run.kept_result(chosen, overwrite=running.overwrite):
            return kept
        student, distance = build(arm, run.spec, settings)
        if start:
            load_weights(student, folder / start / "last.pt")
        for file in ("panel.png", "curves.png", "../table.md", "../classes.png"):  # they show another run of this arm
            (folder / file).unlink(missing_ok=True)
        run.start(chosen)
        began = time.monotonic()
        steps = train_arm(arm, student, distance, settings, domains, folder, run, running)
        seconds = time.monotonic() - began
        images = fitted(domains.val.unlabeled(), settings.target_size)
        confusion, attention = measure(student, run.spec, domains.val, images=images)
        result = {
            "settings": chosen,
            "classes": class_numbers(confusion, attention, NAMES, MEASURED[settings.classes]),
            "steps": steps + earlier["steps"],
            "seconds": seconds + earlier["seconds"],
        }
        run.keep_result(result)
    return result


def build(arm: Arm, spec: NetworkSpec, settings: Settings) -> tuple[Network, FeatureDistance | None]:
    """The network at its start, and what keeps its features near those that its encoder starts with."""
    torch.manual_seed(settings.seed)
    student, weight = spec.build(settings.encoder_weights), settings.feature_distance
    if not (arm.adapts and weight and settings.encoder_weights):
        return student, None
    return student, FeatureDistance(student.encoder, classes=THINGS, num_classes=len(NAMES), weight=weight)


def train_arm(
    arm: Arm,
    student: Network,
    distance: FeatureDistance | None,
    settings: Settings,
    domains: Domains,
    folder: Path,
    run: RunFolder,
    running: Running,
) -> int:
    """How many steps it took."""
    student.to(running.device).to(memory_format=torch.channels_last).train()
    if distance is not None:
        distance.to(running.device)
    steps = round(arm.length * (settings.steps if arm.start else settings.warmup))
    seed = 2 * settings.seed + (arm.start is not None)  # further steps see other crops and colours than the first ones
    counts, labeled = domains.counts, domains.source
    if arm.oracle:
        labeled = domains.target
        counts = count_classes(labeled, folder.parent / f"{settings.target}_counts.json", running.on_error)
        settings = replace(settings, source_size=settings.target_size)
    settings = replace(settings, steps=steps, seed=seed)
    images = domains.target.unlabeled()
    source, target = batches(labeled, counts, images, settings, running, adapts=arm.adapts)
    val_images = fitted(domains.val.unlabeled(), settings.target_size)
    look = partial(label_quality, spec=run.spec, dataset=domains.val, images=val_images)
    train(student, source, target, settings, run, feature_distance=distance, watch=look)
    return steps


def run(
    arms: Mapping[str, Arm],
    settings: Settings,
    running: Running,
    folders: Mapping[str, Path],
    stats: Path | None,
    seeds: int,
) -> int:
    """Every arm on every seed; then tables and pictures of them."""
    began, out = time.monotonic(), running.out
    try_out(network(settings), settings)
    shown = [name for name in settings.arms if name in Settings.arms] or list(settings.arms)
    with locked(out):
        results = [
            run_seed(arms, replace(settings, seed=seed), running, folders, stats, shown)
            for seed in range(settings.seed, settings.seed + seeds)
        ]
        together = {name: [of_seed[name] for of_seed in results] for name in settings.arms}
        chosen = {name: together[name] for name in shown}
        text = class_table(chosen) + arm_table(together, {name: arm.title for name, arm in arms.items()})
        (out / "table.md").write_text(text, encoding="utf-8")
        draw_classes(out / "classes.png", chosen)
    print(text)
    print(f"{out}: table.md, classes.png; seed*/: panel.png, curves.png, and a folder for each arm")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes in all, with drawing and evaluation")
    return 0


def run_seed(
    arms: Mapping[str, Arm],
    settings: Settings,
    running: Running,
    folders: Mapping[str, Path],
    stats: Path | None,
    shown: Sequence[str],
) -> dict[str, Result]:
    """Every arm on one seed, and pictures of those that are shown."""
    out, folder = running.out, running.out / f"seed{settings.seed}"
    kinds = settings.source, settings.target
    domains = open_domains(*kinds, folders, out, seed=settings.seed, stats=stats, on_error=running.on_error)
    if running.on_error == "raise" and "oracle" in settings.arms:
        domains.target.check_files()
    if folders:
        rare, measured = rare_classes(settings, domains.counts), MEASURED[settings.classes]
        print(share_table(NAMES, domains.counts, rare.probabilities if rare else None))
        if missing := unseen([NAMES[i] for i in measured], domains.counts[:, measured]):
            print(f"no label of {settings.source} shows {', '.join(missing)}: only the oracle can learn it")
    results = {name: run_arm(arms, name, settings, domains, folder, running) for name in settings.arms}
    images = fitted(domains.val.unlabeled(), settings.target_size)
    draw_arms(folder / "panel.png", {name: load(folder / name) for name in shown}, domains.val, images)
    draw_curves(folder / "curves.png", {name: read_metrics(folder / name) for name in shown})
    return results


def contradiction(settings: Settings, folders: Mapping[str, Path], recipe: str | None, arms: Mapping[str, Arm]) -> str:
    """What is wrong about arms and data; empty if nothing is."""
    source, target = wanted = settings.source, settings.target
    if missing := [kind for kind in wanted if folders and kind not in folders]:
        return f"--{missing[0].replace('_', '-')} is missing: the data go from {source} to {target}"
    if not folders and recipe not in (None, "demo"):
        return "--recipe needs data: " + " ".join(f"--{kind.replace('_', '-')} DIR" for kind in wanted)
    if not folders and wanted != ("gta", "cityscapes"):
        return "the toy data are --source gta --target cityscapes"
    if settings.warmup < 0:
        return f"--warmup must not be negative, got {settings.warmup}"
    for name, size in (("source", settings.source_size), ("target", settings.target_size)):
        if any(size) != all(size):
            return f"--{name}-size must be two sides, or 0 0, got {size}"
    for name in settings.arms:
        if name not in arms:
            return f"argument --arms: invalid choice: {name!r} (choose from {', '.join(arms)})"
        if not settings.warmup and arms[name].start is None:
            return f"--arms {name} is the warm-up, which takes --warmup 0 steps"
        if settings.model not in ("small", "hrda") and (name == "hrda" or "fixed_attention" in arms[name].changes):
            return f"--arms {name} needs two scales, which --model {settings.model} has not; self-training is uda"
    return ""


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, arms: Mapping[str, Arm]
) -> tuple[Settings, Running, dict[str, Path], dict[str, Any]]:
    """Settings, what changes no result, the data sets' folders, and every other option."""
    for kind in KINDS:
        parser.add_argument(f"--{kind.replace('_', '-')}", type=Path, help=f"folder of {kind}, in its official layout")
    text = "complete settings, examples/recipes/NAME.toml; options that are given win (real data: hrda, else demo)"
    parser.add_argument("--recipe", choices=[name for name in RECIPES if name != "own_data"], help=text)
    text = "sample_class_stats.json of the released code: source labels are not counted"
    parser.add_argument("--class-stats", type=Path, help=text)
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
    return run(ARMS, settings, running, folders, options["class_stats"], seeds=1)


if __name__ == "__main__":
    sys.exit(main())
