"""Settings from a dataclass, a recipe and the command line, in this order."""

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import torch

from hrda_lib import distributed
from hrda_lib.data import OnError
from support.ending import similar

Settings = TypeVar("Settings")
RECIPES = {file.stem: file for file in sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))}
FOUNDATION = ("hrda_vfm_lora", "vfm_uda")  # vfm_uda.py's; own_data is own_data.py's, and all others gta2cityscapes.py's
STREETS = tuple(name for name in RECIPES if name not in ("own_data", *FOUNDATION))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Running(NamedTuple):
    """What changes no result."""

    out: Path
    overwrite: bool
    device: str
    workers: int
    on_error: OnError
    save_every: int = 1000
    keep: int = 1
    resume: bool = False
    skip: int = 0
    log: tuple[str, ...] = ()
    panel_every: int = 0
    val_every: int = 0
    deterministic: bool = False
    rank: int = 0
    world: int = 1

    @property
    def group(self) -> Any:
        """Of processes that train together; None: this one alone."""
        return torch.distributed.group.WORLD if self.world > 1 else None


ALONE = Running(Path(), overwrite=False, device="cpu", workers=0, on_error="raise")


def setting(default: Any, text: str, choices: Sequence[Any] | None = None, *, lowest: int = 0) -> Any:
    """A field of a dataclass of settings: its default, and what the command line says about it."""
    return field(default=default, metadata={"help": text, "choices": choices, "lowest": lowest})


def add_settings(
    parser: argparse.ArgumentParser, settings: type[Settings], *, but: Sequence[str] = (), recipe: str | None = None
) -> None:
    """An option for each field of a dataclass of :func:`setting`; the help shows what holds without it."""
    values = read_settings(settings, recipe, {})
    for entry in fields(settings):  # type: ignore[arg-type]
        default: Any = entry.default
        many = isinstance(default, tuple)
        shown = parser.get_default(entry.name) or getattr(values, entry.name)
        if entry.name not in but:
            parser.add_argument(
                f"--{entry.name.replace('_', '-')}",
                type=type(default[0] if many else 0.0 if default is None else default),
                nargs=None if not many else "+" if isinstance(default[0], str) else len(default),
                choices=entry.metadata["choices"],
                help=f"{entry.metadata['help']} (default: {shown})",
            )


def add_running(parser: argparse.ArgumentParser, out: str | None) -> None:
    """The options of :class:`Running`; without a default, ``--out`` must be given."""
    text = f"default: {out}" if out else "the run folder"
    parser.add_argument("--out", type=Path, default=out, required=out is None, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds of other settings")
    parser.add_argument("--device", default=DEVICE, help="of torch")
    parser.add_argument("--workers", type=int, default=0, help="processes that load each domain; results do not change")
    parser.add_argument("--on-error", choices=get_args(OnError), default="raise", help="of files that cannot be read")
    parser.add_argument(
        "--save-every", type=int, default=1000, metavar="N", help="steps (default: 1000; 0: at the end)"
    )
    parser.add_argument("--keep", type=int, default=1, metavar="K", help="checkpoints: last.pt, last.1.pt, ...")
    parser.add_argument("--resume", action="store_true", help="go on where --out stopped, with the same settings")
    parser.add_argument(
        "--skip", type=int, default=0, metavar="N", help="steps that may be left out for nan or infinity"
    )
    parser.add_argument("--log", nargs="+", choices=("tensorboard",), default=(), help="beside metrics.jsonl")
    parser.add_argument("--panel-every", type=int, default=0, metavar="N", help="steps, a picture of what is learned")
    parser.add_argument("--val-every", type=int, default=0, metavar="N", help="steps, mean IoU on images with labels")
    parser.add_argument("--deterministic", action="store_true", help="the same bits each time, at some cost")


def read_settings(settings: type[Settings], recipe: str | None, options: Mapping[str, Any]) -> Settings:
    """Defaults, over them a recipe, over it the options that were given."""
    values = read_recipe(settings, RECIPES[recipe]) if recipe else {}
    for entry in fields(settings):  # type: ignore[arg-type]
        name, lowest = entry.name, entry.metadata["lowest"]
        value = values.get(name, entry.default) if options.get(name) is None else options[name]
        values[name] = tuple(value) if isinstance(value, list) else value
        numbers = [x for x in (value if isinstance(value, Sequence) else (value,)) if isinstance(x, int | float)]
        if not all(lowest <= x < float("inf") for x in numbers):  # narrower ranges are checked where they matter
            raise ValueError(f"--{name.replace('_', '-')} must be finite and at least {lowest}, got {value}")
    return settings(**values)


def read_recipe(settings: type[Any], file: Path) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        ValueError: it cannot be read, or holds a setting that there is not, of another type or none of the choices.
    """
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read as settings ({error})") from None
    known = {entry.name: entry for entry in fields(settings)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{file}: there is no setting {name!r}{similar(name, known)}")
        default, choices = known[name].default, known[name].metadata["choices"]
        if not _alike(value, default):
            raise ValueError(f"{file}: {name} must be like {json.dumps(default or 0.5)}, got {value!r}")
        if choices and not all(x in choices for x in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{file}: {name} must be one of {', '.join(map(str, choices))}, got {value!r}")
    return values


def _alike(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default (None: of a number), and as many parts unless they are words."""
    if isinstance(default, tuple):
        long = isinstance(value, list) and (len(value) == len(default) or (bool(value) and isinstance(default[0], str)))
        return long and all(_alike(x, default[0]) for x in value)
    return type(value) in ((int, float) if default is None or isinstance(default, float) else (type(default),))


def read_running(options: Mapping[str, Any]) -> Running:
    """What :func:`add_running` asked for; of several processes, the first alone prints."""
    rank, world = distributed.start()
    chosen = {name: options[name] for name in Running._fields if name not in ("rank", "world")}
    running = Running(**{**chosen, "log": tuple(chosen["log"])}, rank=rank, world=world)
    for name, lowest in (
        ("workers", 0),
        ("save_every", 0),
        ("keep", 1),
        ("skip", 0),
        ("panel_every", 0),
        ("val_every", 0),
    ):
        if getattr(running, name) < lowest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {lowest}, got {getattr(running, name)}")
    if running.resume and running.overwrite:
        raise ValueError("--resume goes on with a run, which --overwrite replaces: give one of them")
    if running.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until this process ends
    torch.empty(0, device=running.device)  # where it cannot be, that is known now
    return running
