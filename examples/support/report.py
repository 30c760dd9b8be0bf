"""Tables of results: one seed as it is, several as mean ± standard deviation."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # arm -> one result a seed


def class_table(results: Results, names: Sequence[str]) -> str:
    """IoU of each class and their mean, a column an arm, and what hrda adds to the control."""
    arms = list(results)
    both = {"control", "hrda"} <= results.keys()
    rows = [["IoU, %", *arms, *(["hrda - control"] if both else [])]]
    for i, name in [*enumerate(names), (None, "mean")]:
        columns = [[_iou(result, "fused", i) for result in results[arm]] for arm in arms]
        if all(value is None for column in columns for value in column):
            continue  # no image shows the class
        if both:
            columns.append(difference(results, i))
        rows.append([name, *(spread(column, signed=both and k == len(arms)) for k, column in enumerate(columns))])
    return markdown(rows) if arms else ""


def arm_table(results: Results, titles: Mapping[str, str]) -> str:
    """A row an arm: mean IoU of the prediction and of both scales alone, steps and minutes."""
    rows = [["mean IoU, %", "", "prediction", "its context", "its detail", "their average", "steps", "minutes"]]
    for arm, runs in results.items():
        heads = [[_iou(result, head) for result in runs] for head in ("fused", "context", "detail", "average")]
        minutes = [result["seconds"] / 60 for result in runs]
        rows.append([arm, titles[arm], *map(spread, heads), str(runs[0]["steps"]), f"{statistics.mean(minutes):.1f}"])
    return markdown(rows)


def difference(results: Results, index: int | None = None) -> list[float | None]:
    """hrda minus control, a number a seed."""
    pairs = [
        (_iou(hrda, "fused", index), _iou(control, "fused", index))
        for hrda, control in zip(results["hrda"], results["control"], strict=True)
    ]
    return [None if a is None or b is None else a - b for a, b in pairs]


def _iou(result: Mapping[str, Any], head: str, index: int | None = None) -> float | None:
    """In %: of a class, or the mean of all that occur."""
    values: list[float | None] = result["iou"][head]
    chosen = [value for value in (values if index is None else [values[index]]) if value is not None]
    return 100 * statistics.mean(chosen) if chosen else None


def spread(values: Sequence[float | None], *, signed: bool = False) -> str:
    """Mean, and the standard deviation where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{statistics.mean(known):{'+' if signed else ''}.1f}"
    return text if len(known) == 1 else f"{text} ± {statistics.stdev(known):.1f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head; columns are aligned, so that it reads well in a terminal too."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    head, *body = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ruler, *body]) + "\n"
