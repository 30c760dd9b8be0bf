"""The arms of an experiment: each trained, measured and kept, then tables and pictures of them."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hrda_lib import EMATeacher, FeatureDistance, SelfTraining, data
from hrda_lib.distributed import broadcast
from support.batches import Batch, Batches, rare_classes
from support.command_line import STREETS, Running, one_of, options_of
from support.domains import KINDS, NAMES, Domains, count_classes, fitted, open_domains
from support.ending import reason
from support.looking import log_to_tensorboard, looked
from support.measuring import MEASURED, label_quality, measure
from support.networks import Network, NetworkSpec
from support.plots import draw_arms, draw_classes, draw_curves
from support.processes import agreed
from support.run_folder import DRAWN, RunFolder, load, load_weights, locked, read_metrics
from support.tables import Result, arm_table, class_numbers, class_table, share_table, unseen

THINGS = [NAMES.index(name) for name in ("traffic light", "traffic sign", *NAMES[NAMES.index("person") :])]
N = TypeVar("N", bound=nn.Module)
TOY = ("gta", "cityscapes")  # what is drawn where no folders are given
NOT_TOY = "the toy data are --source {} --target {}".format(*TOY)
SHOWN = ("source", "control", "hrda")  # the arms that pictures and the table of classes show


class Arm(NamedTuple):
    """What one row of the results does."""

    title: str
    start: str | None = None  # the arm whose weights it starts from; None: random weights, for the warm-up's steps
    adapts: bool = False  # whether it sees target images
    oracle: bool = False  # whether it learns from target labels instead of source labels
    length: float = 1.0  # steps, as a multiple of the settings'
    changes: Mapping[str, Any] = {}  # of the settings


def network_spec(settings: Any) -> NetworkSpec:
    """The network that gta2cityscapes.py's settings ask for."""
    height, width = settings.crop
    names = {"model": settings.model, "encoder": settings.encoder, "recompute": bool(settings.recompute)}
    return NetworkSpec(NAMES, (height // 2, width // 2), attention=settings.fixed_attention, **names)


def try_out(spec: NetworkSpec, settings: Any, assemble: Callable[..., Any]) -> None:
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


class Experiment(NamedTuple):
    """What all arms of one seed share."""

    train: Callable[..., EMATeacher]
    arms: Mapping[str, Arm]
    settings: Any
    domains: Domains
    folder: Path
    running: Running
    network: Callable[[Any], NetworkSpec]

    def run(self, name: str) -> Result:
        """Train and measure an arm, and before it the arm that it starts from; or read what an earlier call kept."""
        arm, running, place = self.arms[name], self.running, self.folder / name
        start = arm.start if self.settings.warmup else None
        earlier = self.run(start) if start else {"steps": 0, "seconds": 0}
        settings = replace(self.settings, arms=(name,), **arm.changes)
        run = RunFolder(place, self.network(settings), running, self.title(name))
        chosen = {**asdict(settings), **arm._asdict(), "on_error": running.on_error, "data": self.domains.key}
        with locked(place, running.rank):
            if kept := agreed(run.kept_result(chosen, overwrite=running.overwrite), running.group):
                return kept
            run.start(chosen, chosen)
            log_to_tensorboard(run)
            # they show another run of this arm
            for file in (*DRAWN, "../table.md", "../classes.png", "../classes.pdf"):
                (self.folder / file).unlink(missing_ok=True)
            student, teacher, steps = self.learn(arm, run, settings, self.folder / start / "last.pt" if start else None)
            images = fitted(self.domains.val.unlabeled(), settings.target_size)
            confusion, attention = measure(student, run.spec, self.domains.val, images=images, running=running)
            result = {
                "settings": chosen,
                "classes": class_numbers(confusion, attention, NAMES, MEASURED[settings.classes]),
                "steps": steps + earlier["steps"],
                "seconds": sum(line["seconds"] for line in read_metrics(place)) + earlier["seconds"],
            }
            run.keep_result(result)
            run.finish(student, teacher.module if teacher else None)
        return result

    def learn(
        self, arm: Arm, run: RunFolder, settings: Any, start: Path | None
    ) -> tuple[Network, EMATeacher | None, int]:
        """What an arm learns, and in how many steps."""
        student, distance = build(arm, run.spec, settings, self.running)
        if start:
            load_weights(student, start)
        steps, names = self.steps(arm), list(self.settings.arms)
        here = names.index(run.path.name) + 1 if run.path.name in names else 0
        run.later = sum(self.steps(self.arms[name]) for name in names[here:])
        # further steps see other crops and colours than the first ones
        settings = replace(settings, steps=steps, seed=2 * settings.seed + (arm.start is not None))
        counts, labeled = self.domains.counts, self.domains.source
        if arm.oracle:
            labeled, cache = self.domains.target, self.folder.parent / f"{settings.target}_counts.json"
            counts = count_classes(labeled, cache, self.running.on_error, self.running.group)
            settings = replace(settings, source_size=settings.target_size)
        batches = Batches(labeled, counts, self.domains.target.unlabeled(), settings, self.running, adapts=arm.adapts)
        look = partial(self.look, run, settings, student)
        teacher = self.train(student, batches, settings, run, distance=distance, look=look)
        return student, teacher if arm.adapts else None, steps

    def steps(self, arm: Arm) -> int:
        """How many an arm takes, beside those of the arm that it starts from."""
        steps: int = self.settings.steps if arm.start else self.settings.warmup
        return round(arm.length * steps)

    def look(
        self,
        run: RunFolder,
        settings: Any,
        student: Network,
        training: SelfTraining,
        teacher: EMATeacher,
        batch: Batch,
    ) -> dict[str, float]:
        """At what is learned, now and then; what labels of target images say is drawn and used for nothing."""
        images, val = fitted(self.domains.val.unlabeled(), settings.target_size), self.domains.val
        last, values = batch.step == settings.steps - 1, dict[str, float]()
        if batch.target and (batch.step % 100 == 0 or last):
            values |= label_quality(training, teacher, run.spec, val, images)
        mix = getattr(settings, "mix", "classes")
        return values | looked(run, student, training, teacher, batch, val=val, images=images, mix=mix)

    def title(self, name: str) -> str:
        """An arm's name, and which of how many it is."""
        names = list(self.settings.arms)
        return f"{name}, arm {names.index(name) + 1} of {len(names)}" if name in names and len(names) > 1 else name


def build(arm: Arm, spec: NetworkSpec, settings: Any, running: Running) -> tuple[Network, FeatureDistance | None]:
    """The network at its start, and what keeps its features near those that its encoder starts with."""
    torch.manual_seed(settings.seed)
    student, weight, distance = spec.build(settings.encoder_weights), settings.feature_distance, None
    if arm.adapts and weight and settings.encoder_weights:
        distance = FeatureDistance(student.encoder, classes=THINGS, num_classes=len(NAMES), weight=weight)
        distance.to(running.device)
    return placed(student, running), distance


def placed(student: N, running: Running) -> N:
    """Where it is trained; of several processes, with the first one's weights and one batch norm."""
    student.to(running.device).to(memory_format=torch.channels_last).train()
    if running.group and running.device.startswith("cuda"):  # before the teacher copies it; there is none on CPUs
        student = nn.SyncBatchNorm.convert_sync_batchnorm(student)  # type: ignore[no-untyped-call]
    broadcast(student, running.group)
    return student


def run_arms(
    train: Callable[..., EMATeacher],
    assemble: Callable[..., Any],
    arms: Mapping[str, Arm],
    settings: Any,
    running: Running,
    folders: Mapping[str, Path],
    *,
    stats: Path | None,
    seeds: int = 1,
    network: Callable[[Any], NetworkSpec] = network_spec,
) -> int:
    """Every arm on every seed; then tables and pictures of them. ``network`` says what settings ask for."""
    began, out = time.monotonic(), running.out
    try_out(network(settings), settings, assemble)
    shown = [name for name in settings.arms if name in SHOWN] or list(settings.arms)
    with locked(out, running.rank):
        results = [
            run_seed(train, arms, replace(settings, seed=seed), running, folders, stats, shown, network)
            for seed in range(settings.seed, settings.seed + seeds)
        ]
        together = {name: [of_seed[name] for of_seed in results] for name in settings.arms}
        chosen = {name: together[name] for name in shown}
        text = class_table(chosen) + arm_table(together, {name: arm.title for name, arm in arms.items()})
        if not running.rank:
            (out / "table.md").write_text(text, encoding="utf-8")
            draw_classes(out / "classes.png", chosen)
    print(text)
    print(f"{out}: table.md, classes.png; seed*/: panel.png, curves.png, and a folder for each arm")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes in all, with drawing and evaluation")
    last = out / f"seed{settings.seed + seeds - 1}" / shown[-1]
    print(f"next: python examples/predict.py {last} IMAGES --out DIR; python examples/evaluate.py {last} ROOT")
    return 0


def run_seed(
    train: Callable[..., EMATeacher],
    arms: Mapping[str, Arm],
    settings: Any,
    running: Running,
    folders: Mapping[str, Path],
    stats: Path | None,
    shown: Sequence[str],
    network: Callable[[Any], NetworkSpec],
) -> dict[str, Result]:
    """Every arm on one seed, and pictures of those that are shown."""
    out, folder = running.out, running.out / f"seed{settings.seed}"
    kinds = settings.source, settings.target
    few = getattr(settings, "labelled_target", 0)
    more = {"seed": settings.seed, "stats": stats, "on_error": running.on_error, "labelled_target": few}
    domains = open_domains(*kinds, folders, out, **more, group=running.group)
    if running.on_error == "raise" and "oracle" in settings.arms:
        domains.target.check_files()
    if folders:
        rare, measured = rare_classes(settings, domains.counts), MEASURED[settings.classes]
        print(share_table(NAMES, domains.counts, rare.probabilities if rare else None))
        if missing := unseen([NAMES[i] for i in measured], domains.counts[:, measured]):
            print(f"no label of {settings.source} shows {', '.join(missing)}: only the oracle can learn it")
    experiment = Experiment(train, arms, settings, domains, folder, running, network)
    results = {name: experiment.run(name) for name in settings.arms}
    if running.rank:
        return results
    images = fitted(domains.val.unlabeled(), settings.target_size)
    draw_arms(folder / "panel.png", {name: load(folder / name) for name in shown}, domains.val, images)
    draw_curves(folder / "curves.png", {name: read_metrics(folder / name) for name in shown})
    return results


def contradiction(settings: Any, folders: Mapping[str, Path], recipe: str | None, arms: Mapping[str, Arm]) -> str:
    """What is wrong about arms and data; empty if nothing is."""
    source, target = wanted = settings.source, settings.target
    if missing := [kind for kind in wanted if folders and kind not in folders]:
        return f"--{missing[0].replace('_', '-')} is missing: the data go from {source} to {target}"
    if not folders and recipe not in (None, "demo"):
        return "--recipe needs data: " + " ".join(f"--{kind.replace('_', '-')} DIR" for kind in wanted)
    if not folders and wanted != TOY:
        return NOT_TOY
    if settings.warmup < 0:
        return f"--warmup must not be negative, got {settings.warmup}"
    for name, size in (("source", settings.source_size), ("target", settings.target_size)):
        if any(size) != all(size):
            return f"--{name}-size must be two sides, or 0 0, got {size}"
    for name in settings.arms:
        if problem := cannot_begin(name, settings, arms):
            return problem
        if settings.mask_ratio and settings.mask_on == "separate" and settings.batch_size < 2:
            return "--mask-on separate masks one image of each domain: it needs --batch-size 2, or more"
        if settings.model not in ("small", "hrda") and (name == "hrda" or "fixed_attention" in arms[name].changes):
            return f"--arms {name} needs two scales, which --model {settings.model} has not; self-training is uda"
    return ""


def lacking(settings: Any, folders: Mapping[str, Path], recipe: str | None, arms: Mapping[str, Arm]) -> str:
    """Which folder or warm-up the arms need; empty if they have all."""
    missing = [kind for kind in (*settings.source, settings.target) if kind not in folders]
    if missing and (folders or recipe):
        return f"--{missing[0].replace('_', '-')} DIR is missing: the recipe needs real data"
    for name in settings.arms:
        if problem := cannot_begin(name, settings, arms):
            return problem
    if not folders and (*settings.source, settings.target) != TOY:
        return NOT_TOY
    return ""


def cannot_begin(name: str, settings: Any, arms: Mapping[str, Arm]) -> str:
    """Why there is no such arm, or nothing that it starts from; empty if there is."""
    if name not in arms:
        return f"argument --arms: invalid choice: {name!r} (choose from {', '.join(arms)})"
    if not settings.warmup and arms[name].start is None:
        return f"--arms {name} is the warm-up, which takes --warmup 0 steps"
    return ""


def add_data(parser: argparse.ArgumentParser, recipes: Sequence[str] = STREETS, real: str = "hrda") -> None:
    """The options that say which images, and the recipes for them; ``real`` is the one for real data."""
    add = options_of(parser, "data").add_argument
    for kind in KINDS:
        text = f"folder of {kind}, in its official layout (default: {'toy images' if kind in TOY else 'none'})"
        add(f"--{kind.replace('_', '-')}", type=Path, metavar="DIR", help=text)
    text = "complete settings, examples/recipes/NAME.toml; options that are given win"
    text = f"{text} ({one_of(recipes)}; default: demo, for real data {real})"
    add("--recipe", choices=recipes, metavar="NAME", help=text)
    text = "sample_class_stats.json of the released code, in place of counting source labels (default: none)"
    add("--class-stats", type=Path, metavar="FILE", help=text)
