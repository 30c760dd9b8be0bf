"""HRDA from GTA to Cityscapes, or between other street data sets; without arguments on toy data, drawn on the spot.

    python examples/gta2cityscapes.py                                    the demo: source, control, hrda
    python examples/gta2cityscapes.py --seeds 3 --ablation               every arm, mean and spread
    python examples/gta2cityscapes.py --gta DIR --cityscapes DIR         the real ones, in their official layout
    ... --model hrda --encoder-weights mit_b5.pth                        the paper's network and training
    ... --recipe NAME [--print]                                          settings of examples/recipes/NAME.toml

Every arm is a row of ``ARMS``: the same network, data, rare-class sampling and colour augmentation, and what it does
differently. An arm starts from the weights of another and is kept in OUT/seedN/ARM; with the same settings it is not
trained again. Target training images are read without labels, except by the arm "oracle".
"""

import argparse
import json
import os
import signal
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from tqdm import tqdm

from hrda_lib import (
    ConfusionMatrix,
    EMATeacher,
    FeatureDistance,
    MultiResSegmenter,
    SelfTraining,
    StrongAugment,
)
from hrda_lib.data import (
    CITYSCAPES,
    SYNTHIA_CLASSES,
    SYNTHIA_CLASSES_13,
    Acdc,
    Cityscapes,
    DarkZurich,
    LabeledFiles,
    RareClasses,
    Resized,
    ResizedImages,
    SourceCrops,
    StepBatches,
    TargetCrops,
    UnlabeledImages,
    check_classes,
    count_labels,
    read_published_counts,
)
from hrda_lib.data.layout import state_of
from hrda_lib.data.samples import LabeledImages
from hrda_lib.data.skipping import OnError
from hrda_lib.models import EncoderDecoder
from hrda_lib.optim import parameter_groups, warmup_poly
from hrda_lib.pseudo_labeling import Per
from hrda_lib.self_training import Objective
from support.datasets import open_split
from support.heads import head_logits, whole_cells
from support.mini_scenes import write_mini_data
from support.networks import MODELS, build
from support.plots import draw_classes, draw_grid, draw_runs, street_colours
from support.ranges import complaint
from support.report import HEADS, arm_table, class_table, share_table, unseen
from support.run_files import (
    MEAN,
    STD,
    load,
    load_weights,
    normalize,
    read_metrics,
    reason,
    save,
    start_run,
    write_metrics,
)

Network = MultiResSegmenter | EncoderDecoder
FOLDERS = ("gta", "synthia", "cityscapes", "acdc", "dark_zurich")
NAMES = [entry.name for entry in CITYSCAPES]
MEASURED = {19: range(19), 16: SYNTHIA_CLASSES, 13: SYNTHIA_CLASSES_13}
THINGS = [NAMES.index(name) for name in ("traffic light", "traffic sign")] + list(
    range(NAMES.index("person"), len(NAMES))
)


def setting(default: Any, text: str) -> Any:
    """A default and what the command line says about it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Config:
    """Everything that one may want to change; each is an option of the command line."""

    warmup: int = setting(1500, "steps on the source before adaptation")
    steps: int = setting(1000, "steps of adaptation, and of its control")
    batch_size: int = setting(2, "images of each domain")
    crop: tuple[int, int] = setting((192, 384), "context crop (h, w); the detail crop is half as high and wide")
    source: str = setting("gta", "where labels come from")
    target: str = setting("cityscapes", "what is adapted to")
    source_size: tuple[int, int] = setting(
        (0, 0), "fit source images into (h, w); 0 0: leave them; real GTA: 1440 2560"
    )
    target_size: tuple[int, int] = setting((0, 0), "the same of target images; results are measured at their own size")
    margins: tuple[int, int, int, int] = setting(
        (0, 0, 0, 0), "of the target, not labelled; real Cityscapes: 30 240 30 30"
    )
    model: str = setting("small", "two scales and a small decoder around any encoder, or a network of the papers")
    encoder: str = setting("mini", "'mini', trained from scratch, or a timm name; mit_b0 to mit_b5; resnet101")
    encoder_weights: str = setting("", "file, or with --model hrda a name on the hub; empty: random weights")
    lr: float = setting(3e-3, "of AdamW; it decays to 0 in the warm-up, and again afterwards")
    lr_warmup: int = setting(50, "steps in which it rises at the beginning of each, at most half of them")
    lr_power: float = setting(0.9, "of its decay")
    head_factor: float = setting(1.0, "times the learning rate outside the encoder")
    weight_decay: float = setting(0.01, "of AdamW")
    clip: float = setting(5.0, "largest gradient norm; 0: no limit")
    ema_decay: float = setting(0.99, "of the teacher")
    threshold: float = setting(0.9, "probability from which the teacher is trusted")
    per: Literal["batch", "image", "pixel"] = setting("pixel", "what a confidence weight is for; the paper: batch")
    rare_classes: int = setting(1, "1: source images of rare classes are drawn more often; 0: all alike")
    temperature: float = setting(0.05, "of rare-class sampling; larger is more even")
    min_pixels: int = setting(150, "of a class that an image must show to be drawn for it")
    min_crop_pixels: int = setting(75, "of that class that the crop must show, in ten tries")
    augment_source: int = setting(1, "1: the colours of source images change too; 0: those of mixed images only")
    feature_distance: float = setting(0.0, "its weight, on things, from --encoder-weights")
    classes: int = setting(19, "classes that the mean is over; 16 and 13 are SYNTHIA's")


MINI = Config()
REAL = replace(
    MINI,
    crop=(1024, 1024),
    ema_decay=0.999,
    threshold=0.968,
    per="batch",
    temperature=0.01,
    min_pixels=3000,
    min_crop_pixels=6000,
)
# what real data of a source and a target add to it
SOURCE_SIZES = {"gta": (1440, 2560), "synthia": (1520, 2560), "cityscapes": (0, 0)}
MARGINS = {"cityscapes": Cityscapes.margins, "acdc": Acdc.margins, "dark_zurich": DarkZurich.margins}
# with a network of the papers, on toy or real data
PAPER: dict[str, Any] = {
    "encoder": "mit_b5",
    "warmup": 0,
    "steps": 40_000,
    "lr": 6e-5,
    "lr_warmup": 1500,
    "lr_power": 1.0,
    "head_factor": 10.0,
    "clip": 0.0,
    "augment_source": 0,
    "feature_distance": 0.005,
}


@dataclass(frozen=True)
class Arm:
    """What one row of the results does."""

    title: str
    start: str | None = None  # the arm whose weights it starts from; None: random weights, for the warm-up's steps
    adapts: bool = False  # whether it sees target images
    oracle: bool = False  # whether it learns from target labels instead of source labels
    length: float = 1.0  # steps, as a multiple of the setting
    objective: Objective = "fused"
    detail_weight: float = 0.1
    attention: float | None = None  # a fixed mix of context (0) and detail (1); None: learned

    def steps(self, config: Config) -> int:
        """How many steps it takes after its start."""
        return round(self.length * (config.steps if self.start else config.warmup))


HRDA = Arm("HRDA: context, detail, learned attention", "source", adapts=True)
ARMS = {
    "source": Arm("source only"),
    "control": Arm("source only, as many steps as hrda", "source"),
    "hrda": HRDA,
    "control-long": Arm("source only, as much time as hrda", "source", length=2.6),
    "oracle": Arm("learns from target labels", "source", oracle=True),
    "uda": Arm("self-training at one scale", "source", adapts=True),
}
for _name, _arm in {
    "context": replace(HRDA, title="context alone", objective="context", attention=0.0),
    "detail": replace(HRDA, title="detail alone", objective="detail", attention=1.0),
    "average": replace(HRDA, title="both, fixed average", attention=0.5),
    "separate": replace(HRDA, title="both, separate losses", objective="separate", detail_weight=0.5, attention=0.5),
}.items():
    ARMS[f"{_name}-source"] = replace(_arm, title=f"{_arm.title}, source only", start=None, adapts=False)
    ARMS[_name] = replace(_arm, start=f"{_name}-source")
RECIPES = Path(__file__).parent / "recipes"
DEMO = ("source", "control", "hrda")
ABLATION = ("context", "detail", "average", "separate", "hrda")


@dataclass(frozen=True)
class Data:
    """Labelled source, target whose labels only the oracle reads, and what the results are measured on."""

    source: LabeledFiles
    target: LabeledFiles
    val: LabeledFiles
    val_images: UnlabeledImages  # as the network sees them
    counts: Tensor  # of the source, (images, classes)
    cache: Path
    key: str  # changes when an image or a label does
    on_error: OnError  # what training images and labels do that cannot be read


def network(config: Config, attention: float | None) -> Network:
    """As it is before any training."""
    return build(
        config.encoder,
        len(NAMES),
        detail_size=(config.crop[0] // 2, config.crop[1] // 2),
        model=config.model,
        weights=config.encoder_weights or None,
        attention=attention,
    )


def train(
    config: Config,
    arm: Arm,
    data: Data,
    student: Network,
    feature_distance: FeatureDistance | None,
    run: Path,
    seed: int,
    workers: int,
) -> EMATeacher:
    """The loop; its metrics go to the run folder. Returns the teacher."""
    steps, device = arm.steps(config), next(student.parameters()).device
    seed = 2 * seed + (arm.start is not None)  # further steps see other crops and colours than the first ones
    generator = torch.Generator().manual_seed(seed)
    augment = StrongAugment(mean=MEAN, std=STD)
    teacher = EMATeacher(student, decay=config.ema_decay)
    training = SelfTraining(
        student,
        teacher,
        feature_distance=feature_distance,
        detail_weight=arm.detail_weight,
        threshold=config.threshold,
        per=config.per,
        objective=arm.objective,
        augment=augment,
        generator=generator,
    )
    groups = parameter_groups(student, lr=config.lr, head_factor=config.head_factor, weight_decay=config.weight_decay)
    optimizer = torch.optim.AdamW(groups)
    schedule = warmup_poly(optimizer, total=steps, warmup=min(config.lr_warmup, steps // 2), power=config.lr_power)
    source, target = streams(config, arm, data, seed)
    step_batches = StepBatches(config.batch_size, steps)
    source_batches, target_batches = (
        iter(DataLoader(crops, batch_sampler=step_batches, num_workers=processes))
        for crops, processes in ((source, workers), (target, workers if arm.adapts else 0))
    )

    for step in (progress := tqdm(range(steps), f"{run.name:16}")):
        images, labels = next(source_batches)
        images, labels = normalize(images.to(device)), labels.to(device)
        loss, parts = training.source(augment(images, generator) if config.augment_source else images, labels)
        loss.backward()
        values = {"step": step, "loss_source": loss.item()}
        if feature_distance is not None:
            values["feature_distance"] = parts["feature_distance"].item()

        if arm.adapts:
            if step > 0:
                teacher.update(student)
            target_images, valid = next(target_batches)
            target_images, valid = normalize(target_images.to(device)), valid.to(device)
            pseudo_labels, weight = training.pseudo_label(target_images, valid=valid)
            loss, _ = training.mixed(images, labels, target_images, pseudo_labels, weight)
            loss.backward()
            values |= {"loss_mixed": loss.item(), "confidence": weight.mean().item()}

        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), config.clip or float("inf"))
        if not norm.isfinite():
            raise ValueError(f"{run}: gradients are not finite at step {step}; choose a smaller --lr")
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        if arm.adapts and (step % 100 == 0 or step == steps - 1):
            values |= watch(training, teacher, data, device)
        progress.set_postfix(loss=f"{loss.item():.2f}")
        write_metrics(run, values)
    for crops, domain in ((source, "source"), (target, "target")):
        if crops.skipped:
            print(f"{run}: training left out {len(crops.skipped)} broken {domain} images", file=sys.stderr)
    if not all(parameter.isfinite().all() for parameter in student.parameters()):
        raise ValueError(f"{run}: weights are not finite after {steps} steps; choose a smaller --lr")
    return teacher


def streams(config: Config, arm: Arm, data: Data, seed: int) -> tuple[SourceCrops, TargetCrops]:
    """Labelled crops, those of rare classes more often; and target crops without labels."""
    labeled: LabeledImages = data.source
    counts, size, images = data.counts, config.source_size, data.target.unlabeled()
    if arm.oracle:
        labeled, counts, size = data.target, count_classes(data.target, data.cache, data.on_error), config.target_size
    if all(size):
        labeled = Resized(labeled, size)
    if all(config.target_size):
        images = ResizedImages(images, config.target_size)
    rare_classes = None
    if config.rare_classes:
        rare_classes = RareClasses(counts, temperature=config.temperature, min_pixels=config.min_pixels)
    source = SourceCrops(
        labeled,
        config.crop,
        seed=seed,
        rare_classes=rare_classes,
        min_crop_pixels=config.min_crop_pixels,
        on_error=data.on_error,
    )
    return source, TargetCrops(images, config.crop, seed=seed, margins=config.margins, on_error=data.on_error)


def count_classes(labeled: LabeledImages, cache: Path, on_error: OnError) -> Tensor:
    """Pixels of each class in each image, (N, 19); every label is read once, and refused if it holds no ids."""
    cache.mkdir(parents=True, exist_ok=True)  # where it cannot be, that is known now
    file = cache / f"{type(labeled).__name__.lower()}_counts.json"
    counts = count_labels(
        labeled, cache=file, progress=lambda indices: tqdm(indices, "reading labels"), on_error=on_error
    )
    check_classes(labeled, counts, len(NAMES))
    check_ids(labeled, counts.sum(dim=0))
    return counts[:, : len(NAMES)]


def check_ids(labeled: LabeledImages, counts: Tensor) -> None:
    """Refuse train ids that are stored in the place of ids: read as ids they are road to wall at best."""
    if not counts[6 : len(NAMES)].any():
        raise ValueError(
            f"{labeled.label_file(0)}: neither this nor another of the {len(labeled)} labels has a class after pole; "
            "are these train ids? The ids of GTA and Cityscapes are expected (*_labelIds.png)"
        )


def watch(training: SelfTraining, teacher: EMATeacher, data: Data, device: torch.device) -> dict[str, float]:
    """How right the teacher's labels are on a dozen validation images: drawn, and used for nothing."""
    right, trusted, both, pixels = 0, 0, 0, 0
    teacher.eval()
    for i in range(0, len(data.val), max(len(data.val) // 12, 1)):
        image, truth = data.val_images[i].image, data.val.label(i)
        labels, weight = training.pseudo_label(whole_cells(normalize(image[None])).to(device))
        # both at the size of the truth; the images may have been resized
        maps = torch.stack([labels[0].float(), weight[0]])[:, : image.shape[1], : image.shape[2]].cpu()
        labels, weight = interpolate(maps[None], size=truth.shape, mode="nearest")[0]
        known, hit, trust = truth != 255, labels == truth, weight > 0
        pixels, right = pixels + int(known.sum()), right + int((known & hit).sum())
        trusted, both = trusted + int((known & trust).sum()), both + int((known & hit & trust).sum())
    teacher.train()
    return {
        "label_accuracy": right / max(pixels, 1),
        "trusted": trusted / max(pixels, 1),
        "trusted_accuracy": both / max(trusted, 1),
    }


def predict(student: Network, image: Tensor, size: torch.Size) -> tuple[dict[str, Tensor], Tensor]:
    """Labels of ``size`` of one image by every head, and how much attention the predicted class pays to the detail."""
    maps = head_logits(student, normalize(image[None]).to(next(student.parameters()).device))
    if size != image.shape[1:]:
        maps = {name: interpolate(x, size=size, mode="bilinear", align_corners=False) for name, x in maps.items()}
    attention = maps.pop("attention", torch.zeros(1, 1, *size))
    return {head: logits[0].cpu().argmax(0) for head, logits in maps.items()}, attention[0, 0].cpu()


def evaluate(config: Config, student: Network, data: Data) -> dict[str, dict[str, float | None]]:
    """IoU of each class by every head, and the mean attention on it; None where it is not measured or not there."""
    confusion = {head: ConfusionMatrix(len(NAMES)) for head in HEADS}
    attention_sum, pixels = torch.zeros(256, dtype=torch.float64), torch.zeros(256)
    for i in tqdm(range(len(data.val)), "evaluating"):
        truth = data.val.label(i)
        labels, attention = predict(student, data.val_images[i].image, truth.shape)
        for head in labels:
            confusion[head].update(labels[head], truth.long())
        attention_sum += truth.flatten().bincount(attention.flatten().double(), minlength=256)
        pixels += truth.flatten().bincount(minlength=256)
    numbers = {head: matrix.iou() for head, matrix in confusion.items() if matrix.matrix.any()}
    numbers["attention"] = attention_sum / pixels
    measured = MEASURED[config.classes]
    return {
        key: {name: values[i].item() if pixels[i] and i in measured else None for i, name in enumerate(NAMES)}
        for key, values in numbers.items()
    }


def run(config: Config, name: str, data: Data, folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure an arm, and before it the arm that it starts from; or read what an earlier call kept."""
    arm, place = ARMS[name], folder / name
    start = arm.start if config.warmup else None
    earlier = run(config, start, data, folder, seed, options) if start else None
    chosen = {**asdict(config), **asdict(arm), "seed": seed, "on_error": data.on_error, "data": data.key}
    chosen["class_stats"] = str(options.class_stats or "")
    settings = json.loads(json.dumps(chosen))
    if kept := kept_result(place):
        if kept["settings"] == settings:
            return kept
        if not options.overwrite:
            raise ValueError(f"{place}: holds a run of other settings or data; choose another --out, or --overwrite")
    torch.manual_seed(seed)
    student = network(config, arm.attention)
    distance = None
    if arm.adapts and config.feature_distance and config.encoder_weights:
        # before load_weights: still the ImageNet weights
        distance = FeatureDistance(
            student.encoder, classes=THINGS, num_classes=len(NAMES), weight=config.feature_distance
        ).to(options.device)
    if start:
        load_weights(student, folder / start / "last.pt")
    student.to(options.device).to(memory_format=torch.channels_last).train()
    built = {
        "model": config.model,
        "encoder": config.encoder,
        "class_names": NAMES,
        "detail_size": (config.crop[0] // 2, config.crop[1] // 2),
        "attention": arm.attention,
        "ignore": [],
    }
    (place / "result.json").unlink(missing_ok=True)  # until it is there again, the arm is not complete
    start_run(place, {**settings, "network": built})
    began = time.monotonic()
    teacher = train(config, arm, data, student, distance, place, seed, options.workers)
    seconds = time.monotonic() - began
    save(place, student, built, arm.steps(config), teacher.module if arm.adapts else None)
    result = {
        "settings": settings,
        "classes": evaluate(config, student, data),
        "steps": arm.steps(config) + (earlier["steps"] if earlier else 0),
        "seconds": seconds + (earlier["seconds"] if earlier else 0),
    }
    part = place / f"result.json.{os.getpid()}.part"
    part.write_text(json.dumps(result, allow_nan=False) + "\n")
    part.replace(place / "result.json")
    return result


def kept_result(place: Path) -> dict[str, Any] | None:
    """The result of a complete arm; None where anything of it is missing or damaged, so that it is trained again."""
    try:
        kept: dict[str, Any] = json.loads((place / "result.json").read_text())
        whole = kept["settings"] and kept["steps"] and kept["seconds"] and kept["classes"]["fused"]
        read_metrics(place)
        load(place)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kept if whole else None


def prepare(config: Config, options: argparse.Namespace, seed: int) -> Data:
    """Find the data sets, or draw the toy ones; refuse what would fail after hours."""
    folders: dict[str, Path] = {kind: root for kind in FOLDERS if (root := getattr(options, kind))}
    cache, real = options.out, bool(folders)
    if not real:
        root, cache = options.out / "data" / f"seed{seed}", options.out / f"seed{seed}"
        folders["gta"], folders["cityscapes"] = write_mini_data(root, seed=seed)
        key = json.loads((root / "mini.json").read_text())["code"]
    source = open_split(config.source, folders[config.source], "train")
    target, val = (open_split(config.target, folders[config.target], split) for split in ("train", "val"))
    if options.class_stats:
        source_counts = read_published_counts(options.class_stats, source.names)[:, : len(NAMES)]
    else:
        source_counts = count_classes(source, cache, options.on_error)
    if options.on_error == "raise" and any(ARMS[name].oracle for name in options.arms):
        target.check_files()
    # images too: a broken one would be found after training
    counts = torch.zeros(256, dtype=torch.int64)
    for i in tqdm(range(len(val)), "checking val"):
        counts += val[i].label.flatten().bincount(minlength=256)
    check_ids(val, counts)
    if real:
        images = [file for data in (source, target, val) for file in data.unlabeled().files]
        key = f"{source.fingerprint()} {val.fingerprint()} {state_of(images)}"
        print(describe(config, source_counts))
    val_images = val.unlabeled()
    if all(config.target_size):
        val_images = ResizedImages(val_images, config.target_size)
    return Data(source, target, val, val_images, source_counts, cache, key, options.on_error)


def describe(config: Config, source: Tensor) -> str:
    """The classes of the source, how often they are drawn, and which it lacks."""
    text = ""
    if config.rare_classes:
        rare = RareClasses(source, temperature=config.temperature, min_pixels=config.min_pixels)
        text = share_table(NAMES, source, rare.probabilities)
    measured = list(MEASURED[config.classes])
    if missing := unseen([NAMES[i] for i in measured], source[:, measured]):
        text += f"no label of {config.source} shows {', '.join(missing)}: only the oracle can learn it\n"
    return text


def draw(config: Config, data: Data, folder: Path, arms: Sequence[str], device: str) -> None:
    """``panel.png`` (image, truth, every arm, and what the two scales of the last one say) and ``curves.png``."""
    students = [load(folder / name)[0].to(device) for name in arms]
    rows, shown = [], set[int]()
    # validation images come city by city: one from the middle of each third
    for i in sorted({i * len(data.val) // 6 for i in (1, 3, 5)}):
        image, truth = data.val_images[i].image, data.val.label(i)
        shown |= set(truth.unique().tolist())
        pictures = [image.permute(1, 2, 0).numpy(), street_colours(truth)]
        for student in students:
            labels, attention = predict(student, image, truth.shape)
            pictures.append(street_colours(labels["fused"]))
        titles = ["image", "truth", *arms]
        if "context" in labels:
            pictures += [street_colours(labels["context"]), street_colours(labels["detail"]), attention.numpy()]
            titles += ["its context", "its detail", "its attention"]
        rows.append(pictures)
    colours = {entry.name: entry.colour for entry in CITYSCAPES if entry.train_id in shown}
    draw_grid(folder / "panel.png", rows, titles, colours)
    draw_runs(folder / "curves.png", {name: read_metrics(folder / name) for name in arms})


def main(arguments: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    config, options = parse(arguments)
    if options.print:
        print(json.dumps({"arms": options.arms, **asdict(config)}, indent=2))
        return 0
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.arms}
    problem, status, began = "", 0, time.monotonic()
    if config.feature_distance and not config.encoder_weights:
        print("without --encoder-weights: random weights, and no feature distance", file=sys.stderr)
    try:
        network(config, None).to(options.device)  # bad names and files are found before any data is read
        for seed in range(options.seed, options.seed + options.seeds):
            folder, data = options.out / f"seed{seed}", prepare(config, options, seed)
            for name in options.arms:
                results[name].append(run(config, name, data, folder, seed, options))
            shown = [name for name in options.arms if name in DEMO] or options.arms
            draw(config, data, folder, shown, options.device)
        text = class_table({name: results[name] for name in shown})
        text += arm_table(results, {name: arm.title for name, arm in ARMS.items()})
        (options.out / "table.md").write_text(text, encoding="utf-8")
        draw_classes(options.out / "classes.png", {name: results[name] for name in shown})
    except (ValueError, OSError, RuntimeError, OverflowError, MemoryError) as error:
        problem, status = reason(error), 2
    except KeyboardInterrupt:
        problem, status = "interrupted; arms that are complete are kept", 130
    if status:  # only now are progress bars closed, so that this is the last line
        print(f"gta2cityscapes.py: {problem}", file=sys.stderr)
        return status
    print(text)
    minutes = (time.monotonic() - began) / 60
    print(f"{options.out}: table.md, classes.png; seed*/: panel.png, curves.png, and a folder for each arm")
    print(f"{minutes:.1f} minutes in all, with drawing and evaluation")
    return 0


CHOICES: dict[str, Sequence[Any]] = {
    "source": tuple(SOURCE_SIZES),
    "target": tuple(MARGINS),
    "model": MODELS,
    "per": get_args(Per),
    "augment_source": (0, 1),
    "rare_classes": (0, 1),
    "classes": tuple(MEASURED),
}


def parse(arguments: Sequence[str] | None) -> tuple[Config, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in FOLDERS:
        parser.add_argument(f"--{kind.replace('_', '-')}", type=Path, help=f"folder of {kind}, in its official layout")
    parser.add_argument(
        "--recipe",
        choices=sorted(x.stem for x in RECIPES.glob("*.toml")),
        help="settings of examples/recipes; options that are given win",
    )
    parser.add_argument(
        "--class-stats", type=Path, help="sample_class_stats.json of the released code: source labels are not counted"
    )
    parser.add_argument("--print", action="store_true", help="show the settings and stop")
    parser.add_argument("--out", type=Path, default=Path("runs/gta2cityscapes"), help="default: %(default)s")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="default: " + " ".join(DEMO))
    parser.add_argument("--ablation", action="store_true", help="add " + " ".join(ABLATION))
    parser.add_argument("--seed", type=int, default=1, help="of toy images, weights and samples; 0 was for tuning")
    parser.add_argument("--seeds", type=int, default=1, help="run so many, from --seed on")
    parser.add_argument("--overwrite", action="store_true", help="replace arms of other settings")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of torch")
    parser.add_argument("--workers", type=int, default=0, help="processes that load each domain; results do not change")
    parser.add_argument(
        "--on-error", choices=get_args(OnError), default="raise", help="of training files that cannot be read"
    )
    for entry in fields(Config):
        default = getattr(MINI, entry.name)
        count = len(default) if isinstance(default, tuple) else None
        cases = {"real data": getattr(REAL, entry.name), "the papers' models": PAPER.get(entry.name, default)}
        others = "".join(f"; {when}: {value}" for when, value in cases.items() if value != default)
        text = f"{entry.metadata['help']} (default: {default}{others})"
        number = type(default[0] if count else default)
        choices = CHOICES.get(entry.name)
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=number, nargs=count, choices=choices, help=text)
    options = parser.parse_args(arguments)
    recipe = tomllib.loads((RECIPES / f"{options.recipe}.toml").read_text()) if options.recipe else {}
    arms = recipe.pop("arms", None)
    options.arms = options.arms or arms
    chosen = recipe | {x.name: value for x in fields(Config) if (value := getattr(options, x.name)) is not None}
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    real = any(getattr(options, kind) for kind in FOLDERS)
    paper = PAPER if chosen.get("model", "small") != "small" else {}
    config = replace(MINI, **(paper | chosen))
    if real or options.recipe:
        sizes = {"source_size": SOURCE_SIZES[config.source], "margins": MARGINS[config.target]}
        config = replace(REAL, **(sizes | paper | chosen))
    for kind in (config.source, config.target):
        if real and not getattr(options, kind):
            parser.error(f"--{kind.replace('_', '-')} is missing: the data go from {config.source} to {config.target}")
    if options.recipe and not (real or options.print):
        parser.error(f"--recipe needs data: --{config.source} DIR --{config.target.replace('_', '-')} DIR")
    if not (real or options.print) and (config.source, config.target) != ("gta", "cityscapes"):
        parser.error("the toy data are --source gta --target cityscapes")
    arms = options.arms or [name for name in DEMO if ARMS[name].steps(config)]
    options.arms = list(dict.fromkeys([*arms, *(ABLATION if options.ablation else ())]))
    for name in options.arms:
        if not ARMS[name].steps(config):
            parser.error(f"--arms {name} is the warm-up, which takes --warmup 0 steps")
    if problem := complaint({**vars(options), **asdict(config)}):
        parser.error(problem)
    two_scales = config.model in ("small", "hrda")
    for name in options.arms:
        if not two_scales and (ARMS[name].attention is not None or name == "hrda"):
            parser.error(f"--arms {name} needs two scales, which --model {config.model} has not; self-training is uda")
    return config, options


if __name__ == "__main__":
    sys.exit(main())
