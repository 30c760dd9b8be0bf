"""Tables of classes, and of results: one seed as it is, several as mean ± standard deviation."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hrda_lib import ConfusionMatrix
from support.networks import HEADS

Result = Mapping[str, Any]
Results = Mapping[str, Sequence[Result]]  # arm -> a result a seed


def share_table(names: Sequence[str], counts: Tensor, probabilities: Tensor | None) -> str:
    """A row a class: its share of the pixels, the images that show it, and how often rare-class sampling draws it.

    Args:
        names: of the C classes.
        counts: (N, C) pixels of each class in each image.
        probabilities: (C,) of ``RareClasses``; None: there is no such sampling.
    """
    pixels = counts.sum(dim=0)
    drawn = ["-"] * len(names) if probabilities is None else [f"{100 * p:.1f}" for p in probabilities.tolist()]
    columns = (pixels / pixels.sum()).tolist(), (counts > 0).sum(dim=0).tolist(), drawn
    rows = [["class", "pixels, %", "images", "drawn, %"]]
    for name, share, images, probability in zip(names, *columns, strict=True):
        rows.append([name, f"{100 * share:.2f}", str(images), probability])
    return markdown(rows)


def unseen(names: Sequence[str], counts: Tensor) -> list[str]:
    """The classes that no label shows; ``counts`` (N, C) as for :func:`share_table`."""
    return [name for name, pixels in zip(names, counts.sum(dim=0).tolist(), strict=True) if not pixels]


def class_numbers(
    confusion: Mapping[str, ConfusionMatrix], attention: Tensor, names: Sequence[str], measured: Sequence[int]
) -> dict[str, dict[str, float | None]]:
    """IoU of each class by every head, and the mean attention on it; None where it is not measured or not there."""
    numbers = {head: matrix.iou() for head, matrix in confusion.items()} | {"attention": attention}
    there = set(measured) & set(confusion["fused"].matrix.sum(dim=1).nonzero().flatten().tolist())
    return {
        key: {name: values[i].item() if i in there else None for i, name in enumerate(names)}
        for key, values in numbers.items()
    }


def class_table(results: Results) -> str:
    """IoU of each class and their mean, a column an arm, and what hrda adds to the control."""
    columns = {
        arm: {name: class_values(runs, "fused", name) for name in shown(results)} for arm, runs in results.items()
    }
    for arm, runs in results.items():
        columns[arm]["mean"] = mean_values(runs, "fused")
    for arm in ("hrda", "uda"):
        if {"control", arm} <= results.keys():
            columns[f"{arm} - control"] = {
                name: [a - b for a, b in zip(columns[arm][name], columns["control"][name], strict=True)]
                for name in columns[arm]
            }
    rows = [["IoU, %", *columns]]
    rows += [
        [name, *(spread(column[name], signed=" - " in arm) for arm, column in columns.items())]
        for name in [*shown(results), "mean"]
    ]
    return markdown(rows)


def arm_table(results: Results, titles: Mapping[str, str]) -> str:
    """A row an arm: mean IoU of the prediction and of both scales alone, steps and minutes."""
    rows = [["mean IoU, %", "", "prediction", "its context", "its detail", "their average", "steps", "minutes"]]
    for arm, runs in results.items():
        heads = [spread(mean_values(runs, head)) if head in runs[0]["classes"] else "" for head in HEADS]
        minutes = statistics.mean(run["seconds"] for run in runs) / 60
        rows.append([arm, titles[arm], *heads, str(runs[0]["steps"]), f"{minutes:.1f}"])
    return markdown(rows)


def shown(results: Results) -> list[str]:
    """The classes that validation images of any seed show."""
    everything = [run["classes"]["fused"] for runs in results.values() for run in runs]
    return [name for name in everything[0] if any(values[name] is not None for values in everything)]


def class_values(runs: Sequence[Mapping[str, Any]], key: str, name: str) -> list[float]:
    """In %, a number a seed."""
    return [100 * run["classes"][key][name] for run in runs if run["classes"][key][name] is not None]


def mean_values(runs: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Mean over the classes in %, a number a seed."""
    return [100 * statistics.mean(x for x in run["classes"][key].values() if x is not None) for run in runs]


def spread(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean, and the standard deviation where there are several."""
    text = f"{statistics.mean(values):{'+' if signed else ''}.1f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.1f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head; columns are aligned, so that it reads well in a terminal too."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    head, *body = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ruler, *body]) + "\n"
