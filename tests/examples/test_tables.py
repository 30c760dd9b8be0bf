"""Tables of results against numbers by hand."""

from typing import Any

import pytest
import torch

from hrda_lib import ConfusionMatrix
from support.tables import arm_table, class_numbers, class_table, markdown, share_table, spread, unseen


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line]


def result(road: float, car: float, seconds: float) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        head: {"road": 0.5, "bus": None, "car": 0.25} for head in ("context", "detail", "average")
    }
    return {
        "classes": {"fused": {"road": road, "bus": None, "car": car}, **numbers},
        "steps": 10,
        "seconds": seconds,
    }


def test_results_of_two_seeds() -> None:
    control = [result(0.5, 0.1, 60), result(0.6, 0.2, 120)]
    hrda = [result(0.7, 0.3, 60), result(0.6, 0.5, 60)]
    rows = cells(class_table({"control": control, "hrda": hrda}))
    assert rows[0] == ["IoU, %", "control", "hrda", "hrda - control"]
    assert rows[2:] == [
        ["road", "55.0 ± 7.1", "65.0 ± 7.1", "+10.0 ± 14.1"],
        ["car", "15.0 ± 7.1", "40.0 ± 14.1", "+25.0 ± 7.1"],
        ["mean", "35.0 ± 7.1", "52.5 ± 3.5", "+17.5 ± 3.5"],
    ]
    rows = cells(arm_table({"control": control}, {"control": "the control"}))
    assert rows[2] == ["control", "the control", "35.0 ± 7.1", *["37.5 ± 0.0"] * 3, "10", "1.5"]
    assert spread([-1.25], signed=True) == "-1.2"


def test_one_scale_has_no_context_and_uda_is_compared_too() -> None:
    one = result(0.5, 0.1, 60)
    one["classes"] = {"fused": one["classes"]["fused"]}
    assert cells(arm_table({"uda": [one]}, {"uda": "one scale"}))[2][3:6] == ["", "", ""]
    assert cells(class_table({"control": [one], "uda": [one]}))[0][-1] == "uda - control"
    assert len(cells(class_table({"uda": [one]}))[0]) == 2


def test_shares_of_classes() -> None:
    counts = torch.tensor([[60, 0, 0], [20, 20, 0]])
    rows = cells(share_table(["road", "car", "bus"], counts, torch.tensor([0.25, 0.75, 0])))
    assert rows[0] == ["class", "pixels, %", "images", "drawn, %"]
    assert rows[2:] == [["road", "80.00", "2", "25.0"], ["car", "20.00", "1", "75.0"], ["bus", "0.00", "0", "0.0"]]
    assert [row[3] for row in cells(share_table(["road", "car", "bus"], counts, None))[2:]] == ["-"] * 3
    assert unseen(["road", "car", "bus"], counts) == ["bus"]


def test_numbers_of_classes_that_are_measured_and_there() -> None:
    fused = ConfusionMatrix(3)
    fused.update(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 1, 1, 1]]))  # class 2 is never the truth
    numbers = class_numbers({"fused": fused}, torch.tensor([0.5, 0.25, torch.nan]), ["a", "b", "c"], [0, 1, 2])
    assert numbers["fused"] == {"a": 0.5, "b": pytest.approx(1 / 3), "c": None}
    assert numbers["attention"] == {"a": 0.5, "b": 0.25, "c": None}
    assert class_numbers({"fused": fused}, torch.zeros(3), ["a", "b", "c"], [1])["fused"]["a"] is None


def test_columns_are_aligned() -> None:
    assert markdown([["a", "bc"], ["long", "1"]]) == "| a    | bc |\n| ---- | -: |\n| long |  1 |\n\n"
