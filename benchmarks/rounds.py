"""What the cases of this folder measure with: alternating rounds, peaks of fresh processes, bytes for backward."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

OURS = "hrda_lib"


class Row(NamedTuple):
    """One comparison: every way's numbers, a round each, and how much of a peer's ours may be."""

    title: str
    unit: str
    values: dict[str, list[float]]
    targets: Mapping[str, float] = MappingProxyType({})
    note: str = ""  # what limits a target that is missed


def alternate(
    title: str,
    ways: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    targets: Mapping[str, float] | None = None,
    note: str = "",
) -> Row:
    """Milliseconds: every way once a round, the first of them in turn; a round before them is not counted."""
    values: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            ways[name]()
            values[name] += [1e3 * (time.perf_counter() - start)] * (turn > 0)
    return Row(title, "ms", values, targets or {}, note)


def peak_memory(
    title: str,
    prepare: Callable[..., Callable[[], object]],
    ways: Mapping[str, tuple[Any, ...]],
    *,
    targets: Mapping[str, float] | None = None,
    note: str = "",
) -> Row:
    """MB by which the peak of a fresh process rises in what ``prepare(*arguments)`` returned, for each way."""
    values = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, arguments in ways.items():
            values[name] = [pool.apply(_rise, (prepare, arguments, torch.get_num_threads()))]
    return Row(title, "MB", values, targets or {}, note)


def _rise(prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...], threads: int) -> float:
    torch.set_num_threads(threads)
    run = prepare(*arguments)
    before = _peak()
    kept = run()
    rise = _peak() - before
    del kept
    return rise / 1024


def _peak() -> float:
    """KB; not by ``getrusage``, whose peak is that of the parent process where that one was larger."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return float(line.split()[1])
    raise OSError("peak memory is measured on Linux alone")


def saved_megabytes(forward: Callable[[], object], modules: Iterable[nn.Module]) -> float:
    """What autograd keeps for backward: each storage once, without parameters and buffers."""
    own = {x.untyped_storage().data_ptr() for module in modules for x in (*module.parameters(), *module.buffers())}
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = forward()  # alive until all are counted, so that no address is used twice
    del kept
    return sum(sizes.values()) / 1e6


def ratios(row: Row, peer: str) -> tuple[float, float, float]:
    """Ours over the peer's: median, lower and upper quartile of the rounds."""
    each = [mine / theirs for mine, theirs in zip(row.values[OURS], row.values[peer], strict=True)]
    return quartiles(each)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median, lower, upper."""
    if len(values) == 1:
        return (values[0],) * 3
    low, _, high = statistics.quantiles(values, n=4)
    return statistics.median(values), low, high
