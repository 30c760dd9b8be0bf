"""Settings from a dataclass, a recipe and the command line, in this order."""

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Collection, Mapping, Sequence
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
GROUPS = ("data", "network", "training", "self-training", "output")  # of a script's options, in the order of its help
LETTERS = {int: "N", float: "X", str: "NAME"}
SIDES = {2: ("H", "W"), 4: ("TOP", "BOTTOM", "LEFT", "RIGHT")}


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


def setting(
    default: Any,
    text: str,
    choices: Sequence[Any] | None = None,
    *,
    lowest: int = 0,
    metavar: str | None = None,
    group: str | None = None,
) -> Any:
    """A field of a dataclass of settings: its default, and what the command line says about it.

    Args:
        default: what holds where nothing is given.
        text: a phrase; it says what numbers among the ``choices`` mean, words are listed behind it.
        choices: the values that there are; None: any.
        lowest: the least that a number may be.
        metavar: what stands for the value; None: by the type, such as N for a whole number.
        group: one of ``GROUPS``, for this field and those that follow; None: that of the field before.
    """
    said = {"help": text, "choices": choices, "lowest": lowest, "metavar": metavar, "group": group}
    return field(default=default, metadata=said)


def options_of(parser: argparse.ArgumentParser, group: str) -> Any:
    """A group of a parser's help, to add options to; all of ``GROUPS`` are made at the first call, in their order.

    The usage, if there is none, then lists no options: the groups do.
    """
    known = {entry.title: entry for entry in parser._action_groups}
    if group not in known:
        parser.usage = parser.usage or "%(prog)s [option ...]"
        known = {title: parser.add_argument_group(title) for title in GROUPS}
    return known[group]


def add_settings(
    parser: argparse.ArgumentParser,
    settings: type[Settings],
    *,
    but: Collection[str] = (),
    recipe: str | None = None,
    said: Mapping[str, str] | None = None,
) -> None:
    """An option for each field of a dataclass of :func:`setting`; the help shows what holds without it.

    Args:
        parser: gets them, by their groups.
        settings: the dataclass.
        but: fields without an option.
        recipe: whose values are the defaults; None: the fields'.
        said: words for defaults that are numbers with a meaning, by field.
    """
    values, group = read_settings(settings, recipe, {}), "training"
    for entry in fields(settings):  # type: ignore[arg-type]
        default: Any = entry.default
        told = entry.metadata
        group = told["group"] or group
        shown = parser.get_default(entry.name) or getattr(values, entry.name)
        if entry.name not in but:
            many = isinstance(default, tuple)
            kind = type(default[0] if many else 0.0 if default is None else default)
            choices = f"{one_of(told['choices'])}; " if told["choices"] and kind is str else ""
            value = (said or {}).get(entry.name) or typed(shown)
            options_of(parser, group).add_argument(
                f"--{entry.name.replace('_', '-')}",
                type=kind,
                nargs=None if not many else "+" if kind is str else len(default),
                choices=told["choices"],
                metavar=told["metavar"] or (SIDES[len(default)] if many and kind is int else LETTERS[kind]),
                help=f"{told['help']} ({choices}default: {value})",
            )


def one_of(choices: Sequence[Any]) -> str:
    """``a, b or c``."""
    *first, last = map(str, choices)
    return f"{', '.join(first)} or {last}" if first else last


def typed(value: Any) -> str:
    """A value as it is typed after its option."""
    text = " ".join(map(str, value)) if isinstance(value, tuple | list) else str("" if value is None else value)
    return (text or "none").replace("%", "%%")


def add_running(parser: argparse.ArgumentParser, out: str | None) -> None:
    """The options of :class:`Running`; without a default, ``--out`` must be given."""
    add, text = options_of(parser, "training").add_argument, "processes that load each domain; results do not change"
    add("--device", metavar="NAME", default=DEVICE, help="where it trains, a device of torch (default: cuda, else cpu)")
    add("--workers", type=int, default=0, metavar="N", help=f"{text} (default: 0, the one that trains)")
    text = "steps that may be left out because a number is nan or infinite"
    add("--skip", type=int, default=0, metavar="N", help=f"{text} (default: 0)")
    text = "give the same bits each time, at some cost in speed"
    add("--deterministic", action="store_true", help=f"{text} (default: off)")
    text = f"what to do about a file that cannot be read ({one_of(get_args(OnError))}; default: raise)"
    options_of(parser, "data").add_argument(
        "--on-error", choices=get_args(OnError), metavar="WHAT", default="raise", help=text
    )
    add_kept(parser, out)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where a script that does not train runs."""
    text = "where it runs, a device of torch (default: cuda, else cpu)"
    options_of(parser, "network").add_argument("--device", metavar="NAME", default=DEVICE, help=text)


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """The limit against bombs of compressed pixels."""
    text = "let in pictures of so many pixels (default: what Pillow lets in)"
    options_of(parser, "data").add_argument("--max-pixels", type=int, metavar="N", help=text)


def add_kept(parser: argparse.ArgumentParser, out: str | None) -> None:
    """Those of them that say what is kept of a run, and looked at."""
    add, text = options_of(parser, "output").add_argument, "folder of the run"
    said = f"default: {out}" if out else "no default, it must be given"
    add("--out", type=Path, metavar="DIR", default=out, required=out is None, help=f"{text} ({said})")
    add("--resume", action="store_true", help="go on where --out stopped, with the same settings (default: off)")
    add("--overwrite", action="store_true", help="replace what --out holds of other settings (default: off)")
    text = "steps between checkpoints; 0: one at the end"
    add("--save-every", type=int, default=1000, metavar="N", help=f"{text} (default: 1000)")
    text = "checkpoints to keep: last.pt, last.1.pt, ..."
    add("--keep", type=int, default=1, metavar="N", help=f"{text} (default: 1)")
    text = "loggers beside metrics.jsonl (tensorboard; default: none)"
    add("--log", nargs="+", choices=("tensorboard",), metavar="NAME", default=(), help=text)
    text = "steps between pictures of what is learned; 0: none"
    add("--panel-every", type=int, default=0, metavar="N", help=f"{text} (default: 0)")
    text = "steps between measurements of the mean IoU on images with labels; 0: none"
    add("--val-every", type=int, default=0, metavar="N", help=f"{text} (default: 0)")


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
