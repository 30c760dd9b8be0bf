"""Measure the library beside its peers, and write down what came.

    pip install '.[bench]'
    python benchmarks/run.py [NAME...]           all cases, or some; a table of each
    python benchmarks/run.py --check             which of the committed targets the committed results miss
    python benchmarks/run.py --page              write the docs' tables and picture anew from the committed results

A case is a file of this folder with `rows(rounds, small=False)`: its docstring says what is measured. All ways of a row
take turns in one process. Results go to benchmarks/results/NAME.json, and from there into the docs.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
import textwrap
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from rounds import OURS, Row, quartiles, ratios

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "tables" / "speed.md"
PICTURE = HERE.parent / "docs" / "figures" / "speed.png"
CASES = (
    "cross_entropy",
    "sliding_window",
    "inference",
    "gated_detail",
    "teacher",
    "self_training",
    "step_parts",
    "primitives",
    "scaling",
    "loader",
    "mix_transformer",
    "import_time",
)
BESIDE = "| | ours | beside | theirs | ours / theirs | target |\n| --- | ---: | --- | ---: | ---: | --- |"
ALONE = "| | ours |\n| --- | ---: |"
PEERS = ("monai", "timm", "torchmetrics", "kornia", "transformers")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where JSON is written and read")
    parser.add_argument("--check", action="store_true", help="list missed targets; exit code 1 if there are any")
    parser.add_argument("--page", action="store_true", help="write the docs' tables from the results")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(CASES)
    if unknown:
        parser.error(f"there is no case {', '.join(sorted(unknown))}; choose of {', '.join(CASES)}")
    if not (options.check or options.page):
        torch.set_num_threads(options.threads)
        for name in options.names or CASES:
            measure(name, options.rounds, options.results)
    if options.page:
        PAGE.write_text(page(options.results))
        draw(options.results, PICTURE)
    return check(options.results, options.names or CASES) if options.check else 0


def measure(name: str, rounds: int, folder: Path) -> None:
    case = importlib.import_module(name)
    what = (case.__doc__ or "").partition("\n")[0]
    print(f"\n{name}: {what}")
    rows = []
    for row in case.rows(rounds):
        rows.append(row)
        print("\n".join(lines(row)), flush=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {peer: importlib.metadata.version(peer) for peer in PEERS if importlib.util.find_spec(peer)}
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        "what": what,
        "date": date.today().isoformat(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "rows": [{**row._asdict(), "targets": dict(row.targets)} for row in rows],
    }
    (folder / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def processor() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return f"{names[0].partition(':')[2].strip()}, {len(names)} cores"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def lines(row: Row) -> list[str]:
    """A row of the table, a line for each way."""
    out = [f"  {row.title}"]
    for name, values in row.values.items():
        middle, low, high = quartiles(values)
        line = f"    {name:34s}{middle:10.4g} {row.unit} ({low:.4g} to {high:.4g})"
        if name != OURS and OURS in row.values:
            ratio, low, high = ratios(row, name)
            line += f"   ours is {ratio:.2f} ({low:.2f} to {high:.2f}) of it{verdict(row, name)}"
        out.append(line)
    return [*out, f"    {row.note}"] if row.note else out


def verdict(row: Row, peer: str) -> str:
    target = row.targets.get(peer)
    if target is None:
        return ""
    return f"; target {target:.3g}: {'met' if ratios(row, peer)[0] <= target else 'MISSED'}"


def read(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = {name: folder / f"{name}.json" for name in names}
    kept = {name: json.loads(file.read_text()) for name, file in found.items() if file.exists()}
    for case in kept.values():
        case["rows"] = [Row(**row) for row in case["rows"]]
    return kept


def check(folder: Path, names: Sequence[str]) -> int:
    """List the targets that are missed."""
    missed = 0
    for name, case in read(folder, names).items():
        for row in case["rows"]:
            for peer, target in row.targets.items():
                ratio, low, high = ratios(row, peer)
                if ratio > target:
                    missed += 1
                    print(f"{name}: {row.title}: {ratio:.2f} ({low:.2f} to {high:.2f}) of {peer}, target {target:.3g}")
    print(f"{missed} targets missed")
    return 1 if missed else 0


def page(folder: Path) -> str:
    """The tables of the docs."""
    parts = ["<!-- written by: python benchmarks/run.py --page -->\n"]
    for name, case in read(folder, CASES).items():
        versions = ", ".join(f"{library} {version}" for library, version in case["versions"].items())
        parts.append(f"**{case['what'].rstrip('.')}**\n")
        place = f"`benchmarks/{name}.py`, {case['date']}, {case['processor']}, threads: {case['threads']}"
        parts.append(f"{place}; {versions}.\n")
        alone = all(set(row.values) == {OURS} for row in case["rows"])
        parts.append(ALONE if alone else BESIDE)
        parts += ["\n".join(_table_lines(row, alone)) for row in case["rows"]]
        notes = [f"{row.title}: {row.note}" for row in case["rows"] if row.note]
        parts.append("\n" + "\n".join(f"- {note}" for note in notes) + "\n" if notes else "")
    return "\n".join(parts).rstrip() + "\n"


def draw(folder: Path, file: Path) -> None:
    """A bar for each comparison with a target: ours over the peer's, beside the target."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = [
        (f"{row.title} / {peer}", ratios(row, peer), target)
        for case in read(folder, CASES).values()
        for row in case["rows"]
        for peer, target in row.targets.items()
    ]
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(bars) + 1))
    for place, (_, (middle, low, high), target) in enumerate(reversed(bars)):
        spread = [[middle - low], [high - middle]]
        axis.barh(place, middle, 0.6, xerr=spread, color="C0" if middle <= target else "C1")
        axis.plot([target, target], [place - 0.4, place + 0.4], color="black")
    axis.set_yticks(range(len(bars)), [textwrap.fill(title, 60) for title, _, _ in reversed(bars)], fontsize=8)
    axis.set_xlabel("ours / theirs, with quartiles; black: the target; orange: missed")
    axis.margins(y=0.01)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _figure(value: float) -> str:
    """Four digits, and no powers of ten."""
    return f"{value:.4g}" if value < 1e4 else f"{value:,.0f}"


def _table_lines(row: Row, alone: bool) -> list[str]:
    ours = quartiles(row.values[OURS])[0] if OURS in row.values else None
    said = "" if ours is None else f"{_figure(ours)} {row.unit}"
    if alone:
        return [f"| {row.title} | {said} |"]
    out = []
    for peer, values in row.values.items():
        if peer == OURS:
            continue
        ratio = "" if ours is None else "{:.2f} ({:.2f} to {:.2f})".format(*ratios(row, peer))
        goal = verdict(row, peer).removeprefix("; target ")
        out.append(f"| {row.title} | {said} | {peer} | {_figure(quartiles(values)[0])} {row.unit} | {ratio} | {goal} |")
    return out or [f"| {row.title} | {said} | | | | |"]


if __name__ == "__main__":
    sys.exit(main())
