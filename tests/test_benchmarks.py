"""The benchmarks run, in small, and what they say of targets and write into the docs is what was measured."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
run = importlib.import_module("run")
rounds = importlib.import_module("rounds")
Row, OURS = rounds.Row, rounds.OURS
PEERS = {"sliding_window": "monai", "teacher": "timm", "primitives": "kornia", "mix_transformer": "transformers"}
PEERS |= {"loader": "cv2"}


@pytest.mark.parametrize("name", run.CASES)
@pytest.mark.filterwarnings("ignore")  # of peers
def test_case_runs_in_small(name: str) -> None:
    if name in PEERS:
        pytest.importorskip(PEERS[name])
    torch.manual_seed(0)
    found = list(importlib.import_module(name).rows(1, small=True))
    assert found
    for row in found:
        assert row.values.keys() >= {OURS, *row.targets}
        assert all(number >= 0 for values in row.values.values() for number in values)
        assert run.lines(row)


def written(folder: Path, *rows: Any) -> None:
    kept = {"what": "A case.", "date": "2026-01-01", "processor": "one", "threads": 1, "versions": {"torch": "2"}}
    kept["rows"] = [{**row._asdict(), "targets": dict(row.targets)} for row in rows]
    (folder / "teacher.json").write_text(json.dumps(kept))


def test_check_lists_what_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    met = Row("one", "ms", {OURS: [1.0, 2.0, 3.0], "peer": [2.0, 4.0, 6.0]}, {"peer": 0.5})
    written(tmp_path, met)
    assert run.main(["--check", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "0 targets missed\n"
    written(tmp_path, met, met._replace(title="two", targets={"peer": 0.4}))
    assert run.main(["--check", "--results", str(tmp_path)]) == 1
    missed, count = capsys.readouterr().out.splitlines()
    assert missed == "teacher: two: 0.50 (0.50 to 0.50) of peer, target 0.4"
    assert count == "1 targets missed"


def test_ratios_are_those_of_rounds() -> None:
    """A slow round slows both ways: the ratio is taken in each."""
    row = Row("one", "ms", {OURS: [1.0, 10.0, 3.0], "peer": [2.0, 40.0, 4.0]})
    assert rounds.ratios(row, "peer")[0] == 0.5


def test_page_shows_every_row_with_its_verdict(tmp_path: Path) -> None:
    row = Row("one", "ms", {OURS: [1.0], "peer": [4.0], "other": [0.5]}, {"peer": 0.3}, "bound by memory")
    written(tmp_path, row)
    page = run.page(tmp_path)
    assert "| one | 1 ms | peer | 4 ms | 0.25 (0.25 to 0.25) | 0.3: met |" in page
    assert "| one | 1 ms | other | 0.5 ms | 2.00 (2.00 to 2.00) |  |" in page
    assert "- one: bound by memory" in page


def test_large_figures_are_written_out_and_rows_without_a_peer_have_two_columns(tmp_path: Path) -> None:
    written(tmp_path, Row("one", "ms", {OURS: [12345.6], "peer": [10.0]}))
    assert "| one | 12,346 ms | peer | 10 ms |" in run.page(tmp_path)
    written(tmp_path, Row("one", "ms", {OURS: [1.0]}))
    assert "| | ours |\n| --- | ---: |\n| one | 1 ms |\n" in run.page(tmp_path)


def test_docs_are_what_the_results_say() -> None:
    assert run.PAGE.read_text() == run.page(run.RESULTS), "run: python benchmarks/run.py --page"


def test_unknown_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["nothing"])
    assert "there is no case nothing; choose of" in capsys.readouterr().err


def test_saved_megabytes_counts_storages_once_and_no_parameters() -> None:
    layer, x = torch.nn.Linear(250, 250, bias=False), torch.randn(1000, 250)
    got = rounds.saved_megabytes(lambda: (layer(x) + layer(x)).relu(), [layer])
    assert got == pytest.approx(2.0)  # x, and what ReLU gave


def test_the_picture_has_a_bar_for_each_target(tmp_path: Path) -> None:
    written(tmp_path, Row("one", "ms", {OURS: [1.0], "peer": [4.0]}, {"peer": 0.3}))
    run.draw(tmp_path, tmp_path / "one.png")
    run.draw(run.RESULTS, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > (tmp_path / "one.png").stat().st_size > 1000
