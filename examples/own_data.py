"""Adapt a segmentation network from labelled to unlabelled images of your own; out comes a run folder.

    python examples/own_data.py --source DIR --target DIR --out RUN [--classes names.txt]
    python examples/own_data.py --data FILE.py --out RUN

--source: DIR/images and DIR/labels (single-channel PNGs of class ids, 255 ignored); several may be given, for example a
few labelled images of the target domain. --target: DIR/images; whatever else lies there is never opened. names.txt has
a class name a line, the first for id 0; 'void' marks ids to ignore. For everything else (colours, other ids, lists,
more channels, other formats) FILE.py defines ``source``, ``target`` and ``names`` by the data sets of hrda_lib.data.
Settings that are not given are those of recipes/own_data.toml: four times the steps of adaptation as warm-up (-1), and
crops of four fifths of the first source image (0 0).

Methods, all with the same network, the same number of steps and rare-class sampling:
    source      labelled images only, without colour augmentation
    source-aug  the control: with colour augmentation, no target image
    hrda        source-aug for the warm-up, then self-training on the target images as well
"""

from support.ending import Stopped, printable, reason, run_main  # first: it catches Ctrl-C from here on

# isort: split
import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from math import lcm
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gta2cityscapes import Settings, assemble, train
from hrda_lib import ConfidenceWeightedCE, MultiResSegmenter, data
from support.arms import placed, try_out
from support.batches import Batches, rare_classes
from support.command_line import (
    Running,
    add_running,
    add_settings,
    one_of,
    options_of,
    read_running,
    read_settings,
)
from support.data_file import DataFile, add_own_data, open_own_data, unclear
from support.domains import compare_sizes, read_labels
from support.looking import log_to_tensorboard, looked
from support.networks import CELL, NetworkSpec, side_multiple
from support.plots import draw_curves, draw_panel
from support.run_folder import RunFolder, complete, load_weights, locked, read_metrics
from support.tables import share_table, unseen

# not for data of one's own
FIXED = ("arms", "source", "target", "source_size", "target_size", "classes", "model", "feature_distance")


def count_classes(
    found: DataFile, cache: Path, *, file: Path | None, running: Running
) -> tuple[Tensor, list[str], float]:
    """(N, C) pixels of each class in each image, the names of the classes, and the share that is ignored."""
    if file and not running.rank:
        cache.unlink(missing_ok=True)  # the code that reads labels may have changed
    counts = read_labels(found.source, cache, running.on_error, running.group)
    compare_sizes(found.source, running.on_error)
    if not counts[:, :255].any():
        where = found.source.label_file(0)
        raise ValueError(f"{where}: this and all other labels hold nothing but 255, the ignored id")
    names = list(found.names) or [str(i) for i in range(int(counts[:, :255].sum(dim=0).nonzero().max()) + 1)]
    data.check_classes(found.source, counts, len(names))
    return counts[:, : len(names)], names, (counts[:, 255].sum() / counts.sum()).item()


def class_weights(counts: Tensor, balance: float) -> Tensor:
    """(C,) share of the pixels to the power of -balance; 1 for a pixel on average, and for what no label shows."""
    pixels = counts.sum(dim=0).clamp(min=1).float()
    weights = (pixels / pixels.sum()) ** -balance
    weights /= (weights * pixels).sum() / pixels.sum()
    weights[counts.sum(dim=0) == 0] = 1
    if not weights.isfinite().all() or balance < 0:
        raise ValueError(f"balance must be a small number from 0 on, got {balance}: class weights are not finite")
    return weights


def some(images: Any, count: int, on_error: data.OnError) -> Iterator[Tensor]:
    """At most ``count`` evenly spaced images; those that cannot be read are left out where that is asked for."""
    count, found, problem = min(len(images), count), 0, ""
    for i in range(count):
        try:
            image = images[i * len(images) // count].image
        except ValueError as error:
            if on_error == "raise":
                raise
            print(printable(f"left out: {error}"), file=sys.stderr)
            problem = str(error)
        else:
            found += 1
            yield image
    if not found:
        raise ValueError(f"none of {count} images can be read; the last: {problem}")


def crop_of(image: Tensor, settings: Settings) -> tuple[int, int]:
    """The crop that is asked for, or four fifths of an image; a half of it fits the network, whole cells included."""
    asked, (height, width) = settings.crop, image.shape[1:]
    unit = 2 * lcm(CELL, side_multiple(settings.encoder, len(image)))
    rows, columns = (min(512, side * 4 // 5) // unit * unit for side in (height, width))
    return asked[0] or rows, asked[1] or columns


def try_encoder(found: DataFile, settings: Settings, init: Path | None, on_error: data.OnError) -> None:
    """Before a label is read, refuse an encoder that there is not, or that takes no crops; two classes will do."""
    image = next(some(found.target, 10, on_error))
    height, width = (max(side, 16) for side in crop_of(image, settings))
    spec = NetworkSpec(("a", "b"), (height // 2, width // 2), encoder=settings.encoder, channels=len(image))
    try_out(spec, replace(settings, crop=(height, width)), assemble)
    if settings.encoder != "mini" and not (settings.encoder_weights or init):
        print(f"encoder {settings.encoder}: random weights; --encoder-weights takes a file", file=sys.stderr)


def look(
    found: DataFile, names: Sequence[str], ignore: tuple[int, ...], settings: Settings, on_error: data.OnError
) -> tuple[Settings, NetworkSpec]:
    """The network for images as they are: a crop of theirs, their channels, and what normalises them."""
    shown = [next(some(found.source, 10, on_error))]
    kind = len(shown[0]), shown[0].dtype
    count = 1 if kind == (3, torch.uint8) else 50
    if count > 1:
        shown = list(some(found.source, count, on_error))
    for image in (*shown, *some(found.target, count, on_error)):  # those of another kind are refused now
        if (len(image), image.dtype) != kind:
            wanted, got = (f"{channels} channels of {dtype}" for channels, dtype in (kind, (len(image), image.dtype)))
            raise ValueError(f"images of source and target must have {wanted}, as the first has, got {got}")
    height, width = crop_of(shown[0], settings)
    settings = replace(settings, crop=(height, width))
    spec = NetworkSpec(tuple(names), (height // 2, width // 2), encoder=settings.encoder, ignore=ignore)
    if count > 1:
        mean, std = data.channel_statistics(shown)
        spec = replace(spec, channels=len(shown[0]), mean=tuple(mean), std=tuple(std))
    try_out(spec, settings, assemble)
    return settings, spec


def fresh(spec: NetworkSpec, settings: Settings, init: Path | None, running: Running) -> MultiResSegmenter:
    """The network at its start: random weights, those of its encoder, or another run's."""
    torch.manual_seed(settings.seed)
    student = spec.build(settings.encoder_weights)
    assert isinstance(student, MultiResSegmenter)
    if init:
        load_weights(student, init)
    return placed(student, running)


def adapt(
    student: MultiResSegmenter,
    found: DataFile,
    counts: Tensor,
    settings: Settings,
    run: RunFolder,
    running: Running,
    *,
    method: str,
    criterion: nn.Module,
) -> None:
    """The warm-up on the source, then the adaptation or as many further steps on the source."""
    for phase, steps in enumerate((settings.warmup, settings.steps)):
        if not steps or phase < run.phase:
            continue
        now = replace(settings, steps=steps, seed=2 * settings.seed + phase)
        adapts = phase == 1 and method == "hrda"
        batches = Batches(found.source, counts, found.target, now, running, adapts=adapts)
        run.later = settings.steps if phase == 0 else 0
        look = partial(looked, run, student, val=found.validation, mix=now.mix)
        teacher = train(student, batches, now, run, phase=phase, criterion=criterion, look=look)
    run.finish(student, teacher.module if method == "hrda" else None)


@run_main
def main(arguments: Sequence[str] | None = None) -> int:
    settings, running, options = parse(arguments)
    with locked(running.out, running.rank):
        run_on(settings, running, options, over=complete(running))
    return 0


def key_of(found: DataFile, settings: Settings, options: Mapping[str, Any], running: Running) -> dict[str, Any]:
    """What results depend on, beside the network."""
    given = {name: options[name] for name in ("source", "target", "data", "classes", "init", "method")}
    parts = {name: x for name, x in found._asdict().items() if name != "names" and x}
    defined = {name: f"{type(x).__name__}, {len(x)} images" for name, x in parts.items()}
    return {**asdict(settings), **given, "defined": defined, "on_error": running.on_error}


def run_on(settings: Settings, running: Running, options: Mapping[str, Any], *, over: bool) -> None:
    """Look through the data, train, and draw how it went; of a run that is over, compare the settings."""
    found, ignore = open_own_data(options)
    out, method = running.out, options["method"]
    try_encoder(found, settings, options["init"], running.on_error)
    cache, file = out / "label_counts.json", options["data"]
    counts, names, ignored = count_classes(found, cache, file=file, running=running)
    rare = rare_classes(settings, counts)
    print(share_table(names, counts, rare.probabilities if rare else None), end="")
    print(f"{100 * ignored:.2f} % of the source's pixels are ignored")
    if missing := unseen(names, counts):
        print(f"no label shows {', '.join(missing)}: nothing learns it")
    criterion = ConfidenceWeightedCE(class_weight=class_weights(counts, settings.balance)).to(running.device)
    settings, spec = look(found, names, ignore, settings, running.on_error)
    told, run = key_of(found, settings, options, running), RunFolder(out, spec, running)
    if over:
        run.check_complete(told)
        print(f"{out}: this run is complete")
        return
    student = fresh(spec, settings, options["init"], running)
    run.start({**told, **running._asdict()}, told)
    log_to_tensorboard(run)
    stopped = None
    try:
        adapt(student, found, counts, settings, run, running, method=method, criterion=criterion)
    except Stopped as stop:
        stopped = stop
    if running.rank:
        return
    try:
        draw_curves(out / "curves.png", {"": read_metrics(out)})
        images = some(found.target, 4, running.on_error)
        draw_panel(out / "panel.png", student, spec, images, threshold=settings.threshold)
    except (ValueError, OSError) as error:  # perhaps of the image that stopped the training
        stopped = stopped or Stopped(reason(error))
    if (out / "last.pt").exists():
        print(f"{out}: last.pt, metrics.jsonl, config.json, curves.png, panel.png after {run.steps} steps")
        again = "the same command with --resume" if stopped else f"python examples/predict.py {out} IMAGES --out DIR"
        print(f"next: {again}")
    if stopped:
        raise stopped


def parse(arguments: Sequence[str] | None) -> tuple[Settings, Running, dict[str, Any]]:
    """Settings, what changes no result, and every option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_own_data(parser)
    add, methods = options_of(parser, "training").add_argument, ("hrda", "source", "source-aug")
    text = f"what is learned from ({one_of(methods)}; default: %(default)s)"
    add("--method", choices=methods, metavar="NAME", default="hrda", help=text)
    text = "last.pt of another run, whose weights are the start (default: none)"
    add("--init", type=Path, metavar="FILE", help=text)
    said = {"warmup": "-1, 4 times --steps", "crop": "0 0, four fifths", "min_crop_pixels": "-1, half of --min-pixels"}
    add_settings(parser, Settings, but=FIXED, recipe="own_data", said=said)
    add_running(parser, None)
    options = vars(parser.parse_args(arguments))
    if problem := unclear(options):
        parser.error(problem)
    settings = read_settings(Settings, "own_data", {**options, "source": None, "target": None, "classes": None})
    if settings.warmup < 0:
        settings = replace(settings, warmup=4 * settings.steps)
    if options["method"] == "source":
        settings = replace(settings, augment_source=0)
    return settings, read_running(options), options


if __name__ == "__main__":
    sys.exit(main())
