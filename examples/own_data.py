"""Adapt a segmentation network from labelled to unlabelled images: two folders or lists in, a run folder out.

    python examples/own_data.py --source DIR --target DIR --out RUN

--source: DIR/images and DIR/labels (single-channel PNGs of class ids, 255 ignored). --target: DIR/images; whatever else
lies there is never opened. Several source folders may be given, for example a few labelled images of the target domain.
Instead of a folder, a list: a text file of lines image<TAB>label, for a target of images alone.

--palette FILE.json: labels are stored as colours, {"name": [red, green, blue], ...} in the order of the ids.
--ids FILE.json: classes that source and target share, {"old id": new id, ...}; other ids are ignored.
--read FILE.py:NAME: images of other formats or more channels; NAME(Path) gives a (K, H, W) uint8 or float32 tensor.

Methods, all with the same network, the same number of steps and rare-class sampling:
    source      labelled images only, without colour augmentation
    source-aug  the control: with colour augmentation, no target image
    hrda        source-aug for the warm-up, then self-training on the target images as well
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from hrda_lib import EMATeacher, MultiResSegmenter, SelfTraining, StrongAugment
from hrda_lib.data import (
    Concatenated,
    RareClasses,
    Relabeled,
    SourceCrops,
    StepBatches,
    TargetCrops,
    UnlabeledImages,
    check_classes,
    count_labels,
)
from hrda_lib.data.skipping import OnError
from hrda_lib.optim import warmup_poly
from support.channels import RGB, Reader, jitter_and_blur, measure
from support.networks import build
from support.own_files import common_names, open_source, open_target, read_ids, read_names, read_palette, some
from support.plots import draw_curves, draw_panel
from support.report import id_table, share_table, unseen
from support.run_files import MEAN, STD, load_weights, normalize, read_metrics, reason, save, start_run, write_metrics


@dataclass(frozen=True)
class Config:
    """Everything that one may want to change; each is an option of the command line."""

    source: list[Path]
    target: Path
    out: Path
    method: str = "hrda"
    steps: int = 600
    warmup: int = -1
    seed: int = 0
    classes: Path | None = None
    palette: Path | None = None
    ids: Path | None = None
    read: str | None = None
    encoder: str = "mini"
    encoder_weights: Path | None = None
    init: Path | None = None
    batch_size: int = 2
    crop: tuple[int, int] = (0, 0)
    lr: float = 3e-3
    weight_decay: float = 0.01
    clip: float = 5.0
    ema_decay: float = 0.99
    threshold: float = 0.9
    per: Literal["batch", "image", "pixel"] = "pixel"
    temperature: float = 0.05
    min_pixels: int = 200
    balance: float = 0.5
    workers: int = 0
    on_error: OnError = "raise"
    overwrite: bool = False
    device: str = "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def start(self) -> int:
        """The first step of self-training."""
        return 4 * self.steps if self.warmup < 0 else self.warmup

    @property
    def total(self) -> int:
        """All steps."""
        return self.start + self.steps


HELP = {
    "steps": "after the warm-up",
    "warmup": "source steps before, in every method; -1: four times the steps",
    "seed": "of weights, samples and augmentation",
    "classes": "file with a class name a line, the first for id 0; 'void' marks ids to ignore; default: ids as found",
    "palette": "JSON file of class names and the colours that labels have; 'void' marks one to ignore",
    "ids": "JSON file of old and new ids; --classes then names the new ones",
    "encoder": "'mini', trained from scratch, or a timm name",
    "encoder_weights": "file that initialises the encoder; without it a timm encoder starts from random weights",
    "init": "last.pt of another run, for a warm start",
    "batch_size": "images of each domain",
    "crop": "context crop, multiples of 16; 0: four fifths of the first source image, at most 512",
    "lr": "of AdamW",
    "weight_decay": "of AdamW",
    "clip": "largest gradient norm",
    "ema_decay": "of the teacher",
    "threshold": "probability from which the teacher is trusted",
    "per": "what one confidence weight is for",
    "temperature": "of rare-class sampling; larger is more even",
    "min_pixels": "of a class that an image must show to be drawn for it",
    "balance": "class weights are the share of pixels to the power of -balance; 0: none",
    "workers": "processes that load each domain; results do not change",
    "on_error": "of images and source labels that cannot be read",
    "overwrite": "replace a run that --out holds",
    "device": "of torch",
}


@dataclass(frozen=True)
class Data:
    """What :func:`prepare` found."""

    source: Concatenated | Relabeled
    target: UnlabeledImages
    names: list[str]
    ignore: list[int]
    rare_classes: RareClasses
    class_weight: torch.Tensor
    crop: tuple[int, int]
    reader: Reader | None
    mean: list[float] | None  # of each channel; None: those of ImageNet, for images in [0, 255]
    std: list[float] | None


def prepare(config: Config) -> Data:
    """Read every source label once, and refuse what would fail later."""
    for name in ("steps", "batch_size", "lr", "clip"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    for name in ("seed", "balance", "weight_decay", "workers"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name} must not be negative, got {getattr(config, name)}")
    if (config.out / "last.pt").exists() and not config.overwrite:
        raise ValueError(
            f"{config.out}: already holds a run; choose another --out (--init starts from it), or --overwrite"
        )
    if config.palette and config.classes:
        raise ValueError("--palette names the classes; leave --classes out")
    names, ignore = read_names(config.classes) if config.classes else ([], [])
    colours, read_label = read_palette(config.palette) if config.palette else ([], None)
    ids = read_ids(config.ids) if config.ids else {}
    reader = Reader(config.read) if config.read else None

    stored = [] if ids else ignore
    parts = [open_source(path, ignore=stored, read_image=reader, read_label=read_label) for path in config.source]
    source: Concatenated | Relabeled = Concatenated(parts)
    target = open_target(config.target, read_image=reader)
    config.out.mkdir(parents=True, exist_ok=True)  # where it cannot be, that is known now
    cache, on_error = config.out / "label_counts.json", config.on_error
    counts = count_labels(source, cache=cache, progress=lambda r: tqdm(r, "reading labels"), on_error=on_error)
    if config.ids:
        names, source = common_names(config.ids, ids, old=colours, new=names), Relabeled(source, ids)
        print(id_table(names, ids, counts), end="")
        new_ids = torch.tensor([ids.get(old, 255) for old in range(256)])
        counts = torch.zeros_like(counts).index_add_(1, new_ids, counts)
    if not counts[:, :255].any():
        every = "255, the ignored id" if not ids else f"ids that {config.ids} ignores"
        raise ValueError(f"{source.label_file(0)}: this and all other labels hold nothing but {every}")
    names = names or colours or [str(i) for i in range(int(counts[:, :255].sum(dim=0).nonzero().max()) + 1)]
    check_classes(source, counts, len(names))
    ignored, counts = counts[:, 255].sum() / counts.sum(), counts[:, : len(names)]
    rare_classes = RareClasses(counts, temperature=config.temperature, min_pixels=config.min_pixels)
    print(share_table(names, counts, rare_classes.probabilities), end="")
    print(f"{100 * ignored:.2f} % of the source's pixels are ignored")
    if missing := unseen(names, counts):
        print(f"no label shows {', '.join(missing)}: nothing learns it")
    pixels = counts.sum(dim=0).clamp(min=1).float()
    class_weight = (pixels / pixels.sum()) ** -config.balance
    class_weight /= (class_weight * pixels).sum() / pixels.sum()  # a pixel has weight 1 on average
    class_weight[counts.sum(dim=0) == 0] = 1
    if not class_weight.isfinite().all():
        raise ValueError(f"balance must be smaller, got {config.balance}: class weights are not finite")

    shown = next(some(source, 10, on_error))  # its kind is that of every image
    mean, std = measure(some(source, 50, on_error)) if reader and reader.kind != RGB else (None, None)
    for _ in some(target, 50 if reader else 1, on_error):
        pass  # those of another kind are refused now
    height, width = (side or min(512, shown.shape[i + 1] * 4 // 5) // 16 * 16 for i, side in enumerate(config.crop))
    if height % 16 or width % 16 or min(height, width) < 16:
        raise ValueError(
            f"crop must be a positive multiple of 16 pixels, got {(height, width)}; choose one with --crop"
        )
    return Data(source, target, names, ignore, rare_classes, class_weight, (height, width), reader, mean, std)


def train(config: Config, data: Data, student: MultiResSegmenter) -> tuple[int, str, EMATeacher | None]:
    """The loop; returns the number of steps taken, why it ended early, and the teacher. The weights are always kept."""
    total, device = config.total, torch.device(config.device)
    generator = torch.Generator().manual_seed(config.seed)
    augment = StrongAugment(mean=MEAN, std=STD) if data.mean is None else jitter_and_blur
    student.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = warmup_poly(optimizer, total=total, warmup=min(50, total // 2), power=0.9)
    seed, on_error = config.seed, config.on_error
    source = SourceCrops(data.source, data.crop, seed=seed, rare_classes=data.rare_classes, on_error=on_error)
    target = TargetCrops(data.target, data.crop, seed=seed, on_error=on_error)
    source_batches, target_batches = (
        iter(DataLoader(crops, batch_sampler=StepBatches(config.batch_size, steps), num_workers=workers))
        for crops, steps, workers in (
            (source, total, config.workers),
            (target, config.steps, config.workers if config.method == "hrda" else 0),
        )
    )
    training = SelfTraining(
        student,
        student,  # until there is a teacher
        threshold=config.threshold,
        per=config.per,
        augment=augment,
        generator=generator,
        class_weight=data.class_weight.to(device),
    )
    teacher: EMATeacher | None = None
    step, began, progress = 0, time.monotonic(), tqdm(range(total), config.method)
    try:
        for step in progress:
            adapting = config.method == "hrda" and step >= config.start
            if adapting and teacher is None:
                training.teacher = teacher = EMATeacher(student, decay=config.ema_decay)
            elif teacher is not None:
                teacher.update(student)

            images, labels = next(source_batches)
            images, labels = normalize(images.to(device), data.mean, data.std), labels.to(device)
            seen = images if config.method == "source" else augment(images, generator)
            loss, _ = training.source(seen, labels)
            loss.backward()
            values = {"loss_source": loss.item()}

            if adapting:
                target_images, valid = next(target_batches)
                target_images = normalize(target_images.to(device), data.mean, data.std)
                pseudo_labels, weight = training.pseudo_label(target_images, valid=valid.to(device))
                loss, _ = training.mixed(images, labels, target_images, pseudo_labels, weight)
                loss.backward()
                values |= {"loss_mixed": loss.item(), "confidence": weight.mean().item()}

            torch.nn.utils.clip_grad_norm_(student.parameters(), config.clip, error_if_nonfinite=True)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.set_postfix(values)
            write_metrics(config.out, {"step": step, **values, "seconds": time.monotonic() - began})
    except (KeyboardInterrupt, ValueError, OSError, RuntimeError) as error:
        progress.close()
        return step, "interrupted" if isinstance(error, KeyboardInterrupt) else reason(error), teacher
    for crops, domain in ((source, "source"), (target, "target")):
        if crops.skipped:
            print(f"training left out {len(crops.skipped)} broken {domain} images", file=sys.stderr)
    return total, "", teacher


def main(arguments: Sequence[str] | None = None) -> int:
    config = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    try:
        data = prepare(config)
        torch.manual_seed(config.seed)
        detail_size = (data.crop[0] // 2, data.crop[1] // 2)
        channels = data.reader.kind[0] if data.reader and data.reader.kind else 3
        student = build(
            config.encoder,
            len(data.names),
            detail_size=detail_size,
            weights=config.encoder_weights,
            channels=channels,
        )
        assert isinstance(student, MultiResSegmenter)
        if config.init:
            load_weights(student, config.init)
        student.to(config.device)
        EMATeacher(student, decay=config.ema_decay)  # the settings of later are checked now
        SelfTraining(student, student, threshold=config.threshold)
        network: dict[str, Any] = {
            "encoder": config.encoder,
            "class_names": data.names,
            "detail_size": detail_size,
            "ignore": data.ignore,
        }
        if config.ids or config.palette:
            network["labels"] = "ids" if config.ids else "palette"
        if data.reader:
            network |= data.reader.settings()
        if data.mean is not None:
            network |= {"mean": data.mean, "std": data.std}
        start_run(config.out, {**asdict(config), "crop": data.crop, "network": network})
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        print(f"own_data.py: {reason(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("own_data.py: interrupted before training", file=sys.stderr)
        return 130

    steps, stopped, teacher = train(config, data, student)
    save(config.out, student.cpu(), network, steps, teacher.module.cpu() if teacher else None)
    try:
        draw_curves(config.out / "curves.png", read_metrics(config.out))
        images = list(some(data.target, 4, config.on_error))
        panel = config.out / "panel.png"
        draw_panel(panel, student, images, data.names, threshold=config.threshold, mean=data.mean, std=data.std)
    except (ValueError, OSError) as error:
        stopped = stopped or reason(error)
    print(f"{config.out}: last.pt, metrics.jsonl, config.json, curves.png, panel.png after {steps} steps")
    if stopped:
        print(f"own_data.py: stopped at step {steps}: {stopped}", file=sys.stderr)
    return 0 if not stopped else 130 if stopped == "interrupted" else 1  # 130: as a shell says it after Ctrl-C


def parse(arguments: Sequence[str] | None) -> Config:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, nargs="+", required=True, help="folders or lists, see above")
    parser.add_argument("--target", type=Path, required=True, help="folder or list, see above")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--method", choices=("hrda", "source", "source-aug"), default="hrda")
    parser.add_argument("--per", choices=("batch", "image", "pixel"), default=Config.per, help=HELP["per"])
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), default=Config.crop, help=HELP["crop"])
    parser.add_argument("--on-error", choices=get_args(OnError), default="raise", help=HELP["on_error"])
    parser.add_argument("--overwrite", action="store_true", help=HELP["overwrite"])
    parser.add_argument("--read", metavar="FILE.py:NAME", help="function that reads an image")
    for name in ("classes", "palette", "ids", "encoder_weights", "init"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help=HELP[name])
    for field in fields(Config):
        if field.type in (int, float, str) and field.name not in ("method", "per"):
            text = f"{HELP[field.name]} (default: {field.default})"
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default, help=text)
    options = parser.parse_args(arguments)
    return Config(**{**vars(options), "crop": tuple(options.crop)})


if __name__ == "__main__":
    sys.exit(main())
