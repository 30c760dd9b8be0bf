"""The cost of a step against figures that were counted apart, and against what it is made of."""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import DOCS
from scripts import main
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import support.cost
import vfm_uda
from hrda_lib.models import ViTFeatures
from support.cost import GIB, TERA, Cost, counting, on_meta, report, same_flops
from support.foundation import VitSpec, adapt_by_lora, vit_of_timm, vit_spec

sys.path.insert(0, str(DOCS))
from foundation_costs import ROWS, row

pytest.importorskip("timm", reason="needs the extra timm")

MIB = 2**20
FIGURES = json.loads((Path(__file__).parents[1] / "data" / "vit_cost.json").read_text())
TINY = vfm_uda.Settings()
cost, prediction = cache(support.cost.cost), cache(support.cost.prediction)


@pytest.fixture(autouse=True)
def each_network_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support.cost, "cost", cost)
    monkeypatch.setattr(support.cost, "prediction", prediction)


def spec(settings: vfm_uda.Settings) -> VitSpec:
    return vit_spec(settings)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda x: f"{x['name']} {x['size']}{' LoRA' if x['lora'] else ''}")
def test_an_encoder_costs_what_was_counted_apart(figure: dict[str, Any]) -> None:
    """Bytes within 0.3 %: there, adapters and inputs were kept in other precision."""
    wrapped = nn.Module()
    with torch.device("meta"):
        wrapped.encoder = encoder = ViTFeatures(vit_of_timm(figure["name"]))
        adapt_by_lora(wrapped, 32 if figure["lora"] else 0)
    encoder.to(torch.bfloat16)
    parameters = {name: x for name, x in encoder.named_parameters() if name != "body.pos_embed"}  # there, of that size
    trainable = sum(x.numel() for x in parameters.values() if x.requires_grad)
    if figure["lora"]:
        assert trainable / 1e6 == figure["trainable"]
    elif "dinov2" in figure["name"]:
        embedded = figure["tokens"] * encoder.channels[0]
        assert trainable + embedded == round(1e6 * figure["parameters"])
    images = torch.empty(1, 3, figure["size"], figure["size"], device="meta", dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        with counting(encoder, {figure["tokens"]}) as kept:
            maps = encoder(images)
        assert counter.get_total_flops() / TERA == figure["forward"]
        sum(x.sum() for x in maps).backward()
    assert counter.get_total_flops() / TERA == figure["both"]
    assert sum(kept.values()) / MIB == pytest.approx(figure["kept"], rel=0.003)
    heads, depth = encoder.body.blocks[0].attn.num_heads, len(encoder.body.blocks)
    assert kept["attention"] == depth * 4 * heads * figure["tokens"] ** 2


def test_a_step_is_its_terms_and_the_teacher() -> None:
    found, whole = cost(spec(TINY), TINY), cost(spec(TINY), replace(TINY, mask_ratio=0.0, mirror=1))
    assert (found.terms, whole.terms) == (3, 2)
    assert whole.label == 2 * found.label
    assert found.step == 3 * found.term + found.label
    assert whole.step == 2 * found.term + 2 * found.label
    network = on_meta(spec(TINY), TINY.rank)
    assert found.frozen + found.trained == sum(x.numel() for x in network.parameters())
    assert found.adapters == 4 * 32 * (192 * 2 + 2 * (192 + 768) + 2 * 192) == 4 * 32 * 2688


def test_bytes() -> None:
    made = Cost(term=1, label=1, terms=3, frozen=100, trained=10, adapters=4, kept=7, plain=9)
    rows = {"weights": 440, "of these adapters": 16, "teacher": 40, "gradients": 40, "AdamW": 80, "activations": 14}
    assert made.bytes(2) == rows
    assert made.total(2) == sum(rows.values()) - 16


def test_all_weights_cost_more_than_adapters() -> None:
    lora, full = (cost(spec(settings), settings) for settings in (TINY, replace(TINY, rank=0)))
    assert (full.frozen, full.adapters) == (0, 0)
    assert lora.term < full.term
    assert lora.total(2) < full.total(2) + GIB


def test_recomputing_keeps_less() -> None:
    less = replace(TINY, recompute=1)
    assert cost(spec(less), less).kept < cost(spec(TINY), TINY).kept


def test_activations_are_of_the_precision_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    half = replace(TINY, precision="bf16")
    in_half, in_full = cost(spec(half), half), cost(spec(TINY), TINY)
    assert 1.8 < in_full.kept / in_half.kept < 2  # some of it is float32 in both, as all of plain attention
    assert (in_full.plain, in_full.step) == (in_half.plain, in_half.step)
    assert main("vfm_uda.py", "--cost", "--precision", "bf16") == 0
    assert "Activations: in bfloat16" in capsys.readouterr().out
    assert "Activations: in float32" in report(spec(TINY), TINY)


def test_equal_flops() -> None:
    changes, length = same_flops(spec(TINY), TINY)
    assert changes == {"scales": 1}
    one = replace(TINY, scales=1)
    assert length == pytest.approx(cost(spec(TINY), TINY).step / cost(spec(one), one).step)
    back, shorter = same_flops(spec(one), one)
    assert (back, shorter) == ({"scales": 2}, pytest.approx(1 / length))


def test_the_report_says_what_was_counted(capsys: pytest.CaptureFixture[str]) -> None:
    large = ["--crop", 512, 1024]
    assert main("vfm_uda.py", "--cost", *large) == 0
    text, settings = capsys.readouterr().out, replace(TINY, crop=(512, 1024))
    assert text == report(spec(settings), settings)
    found = cost(spec(settings), settings)
    assert f"{2 * found.step / TERA:.2f} |" in text
    assert f"{prediction(spec(settings)) / TERA:.2f} |" in text
    assert "with fused attention" in text


def test_the_page_s_table_is_what_is_counted() -> None:
    table = (DOCS / "tables" / "foundation_costs.md").read_text(encoding="utf-8").splitlines()
    assert len(table) == len(ROWS) + 2
    assert table[2] == row(*ROWS[0])
