import re
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn

from hrda_lib.optim import parameter_groups, warmup_poly


def make_model(encoder: nn.Module) -> nn.Module:
    head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm(4))
    return nn.ModuleDict({"decoder": head, "encoder": encoder, "attention": nn.Linear(4, 4)})


def grouped(model: nn.Module, **settings: Any) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by parameter name, after checking that none is in two groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, **settings)
    entries = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(entries) == len(dict(entries))
    return dict(entries)


def exact(t: int, total: int, warmup: int, ratio: Fraction = Fraction(1, 10**6), power: int = 1) -> Fraction:
    """The released formula: decay times warm-up factor."""
    factor = (1 - Fraction(t, total)) ** power if t < total else Fraction(0)
    return factor * (1 - (1 - Fraction(t, warmup)) * (1 - ratio)) if t < warmup else factor


def test_groups_of_a_small_model() -> None:
    model = make_model(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4)))
    encoder, norm, head = (6e-5, 0.01), (6e-5, 0.0), (6e-4, 0.01)
    expected = {"encoder.0": encoder, "encoder.1": encoder, "encoder.2": norm, "encoder.3": encoder}
    expected |= {"decoder.0": head, "decoder.1": head, "decoder.2": head, "attention": head}
    got = grouped(model)
    assert {name.rsplit(".", 1)[0] for name in got} == set(expected)
    for name, (lr, decay) in got.items():
        assert (lr, decay) == pytest.approx(expected[name.rsplit(".", 1)[0]]), name


def test_settings_reach_the_groups() -> None:
    got = grouped(make_model(nn.LayerNorm(4)), lr=0.5, head_factor=4.0, weight_decay=0.3)
    assert {got[name] for name in got if name.startswith("encoder")} == {(0.5, 0.0)}
    assert {got[name] for name in got if not name.startswith("encoder")} == {(2.0, 0.3)}


def test_frozen_parameters_are_left_out() -> None:
    model = make_model(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    model["encoder"][1].requires_grad_(False)
    model["decoder"][0].bias.requires_grad_(False)
    assert set(grouped(model)) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(group["params"] for group in parameter_groups(model))
    torch.optim.AdamW(parameter_groups(model.requires_grad_(True)))


def test_a_shared_parameter_is_grouped_once() -> None:
    model = make_model(nn.Linear(4, 4))
    model["attention"].weight = model["encoder"].weight
    assert grouped(model)["encoder.weight"] == (6e-5, 0.01)
    assert "attention.weight" not in grouped(model)


@pytest.mark.parametrize("library", ["timm", "torchvision", "torchvision resnet"])
def test_every_parameter_of_a_real_encoder_once(library: str) -> None:
    if library == "timm":
        encoder = pytest.importorskip("timm").create_model("pvt_v2_b0", pretrained=False)
    else:
        models = pytest.importorskip("torchvision").models
        encoder = models.resnet18(weights=None) if library.endswith("resnet") else models.swin_t(weights=None)
    model = make_model(encoder)
    got = grouped(model)
    assert set(got) == {name for name, _ in model.named_parameters()}
    modules = {name: module for name, module in model.named_modules() if name.startswith("encoder")}
    norms = {n for n in got if type(modules.get(n.rpartition(".")[0])).__name__ == "LayerNorm"}
    assert bool(norms) != library.endswith("resnet")
    assert {name for name, (_, decay) in got.items() if decay == 0} == norms
    assert {name for name, (lr, _) in got.items() if lr == 6e-5} == {n for n in got if n.startswith("encoder.")}


@pytest.mark.parametrize(
    ("model", "name"),
    [(nn.Linear(2, 2), "Linear"), (nn.Sequential(), "Sequential")],
    ids=["no encoder", "empty"],
)
def test_groups_refuse_a_model_without_encoder(model: nn.Module, name: str) -> None:
    message = f"model must have a module named encoder, got {name}; make the groups by hand"
    with pytest.raises(ValueError, match=re.escape(message)):
        parameter_groups(model)
    model.encoder = lambda images: images
    with pytest.raises(ValueError, match=re.escape(message)):
        parameter_groups(model)


def test_groups_refuse_an_encoder_without_parameters() -> None:
    model = nn.ModuleDict({"encoder": nn.Identity(), "decoder": nn.Linear(2, 2)})
    message = "model.encoder must have parameters, got Identity without any: all would learn at 10.0 times lr; make the"
    with pytest.raises(ValueError, match=re.escape(message)):
        parameter_groups(model)
    model["encoder"] = nn.Linear(2, 2).requires_grad_(False)  # frozen is another thing
    assert [group["name"] for group in parameter_groups(model)] == ["head"]


@pytest.mark.parametrize("t", [0, 1, 2, 749, 750, 1498, 1499, 1500, 1501, 20_000, 39_000, 39_998, 39_999])
def test_schedule_equals_exact_arithmetic(t: int) -> None:
    schedule = warmup_poly(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))
    want = exact(t, 40_000, 1_500)
    assert abs(Fraction(schedule.lr_lambdas[0](t)) - want) <= want / 10**12


def test_schedule_drives_an_optimiser_step_by_step() -> None:
    model = make_model(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    optimizer = torch.optim.AdamW(parameter_groups(model))
    schedule = warmup_poly(optimizer, total=12, warmup=5)
    base = {"encoder": Fraction(6e-5), "encoder norm": Fraction(6e-5), "head": Fraction(6e-5 * 10)}
    for t in range(15):
        for group in optimizer.param_groups:
            want = base[group["name"]] * exact(t, 12, 5)
            assert abs(Fraction(group["lr"]) - want) <= want / 10**12
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("warmup", "ratio", "power"),
    [
        (0, Fraction(1, 2), 1),
        (4, Fraction(0), 1),
        (4, Fraction(1), 1),
        (4, Fraction(1, 4), 2),
        (20, Fraction(1, 8), 3),
        (4, Fraction(1, 4), 0),
    ],
    ids=["no warm-up", "from 0", "from 1", "square", "warm-up beyond the end", "power 0"],
)
def test_schedule_settings(warmup: int, ratio: Fraction, power: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_poly(optimizer, total=10, warmup=warmup, warmup_ratio=float(ratio), power=power)
    for t in range(12):
        want = exact(t, 10, warmup, ratio, power)
        assert schedule.lr_lambdas[0](t) == pytest.approx(float(want), rel=1e-12)


def test_schedule_resumes_from_its_state() -> None:
    def start() -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer, warmup_poly(optimizer, total=10, warmup=3)

    def run(optimizer: torch.optim.Optimizer, schedule: Any, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            optimizer.step()
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    whole = run(*start(), 8)
    optimizer, schedule = start()
    run(optimizer, schedule, 4)
    again, resumed = start()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert run(again, resumed, 4) == whole[4:]


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"total": 0}, "got 0, 1500, 1.0, 1e-06"),
        ({"warmup": -1}, "got 40000, -1, 1.0, 1e-06"),
        ({"power": -0.5}, "got 40000, 1500, -0.5, 1e-06"),
        ({"warmup_ratio": 1.5}, "got 40000, 1500, 1.0, 1.5"),
        ({"warmup_ratio": -0.1}, "got 40000, 1500, 1.0, -0.1"),
    ],
    ids=["total", "warmup", "power", "ratio above", "ratio below"],
)
def test_schedule_refuses(settings: dict[str, Any], got: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    message = f"total must be positive, warmup and power not negative, warmup_ratio in [0, 1], {got}"
    with pytest.raises(ValueError, match=re.escape(message)):
        warmup_poly(optimizer, **settings)


class Vit(nn.Module):
    """The parts of a plain ViT that layer decay looks at."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.patch_embed, self.norm_pre = nn.Conv2d(3, 4, 2, 2), nn.LayerNorm(4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(depth))
        self.norm = nn.LayerNorm(4)


def test_layer_decay_written_out() -> None:
    encoder = nn.ModuleDict({"vit": Vit(), "pyramid": nn.Linear(4, 4)})
    got = grouped(make_model(encoder), lr=1.0, head_factor=2.0, weight_decay=0.1, layer_decay=0.5)
    expected = {"encoder.vit.cls_token": (0.125, 0.1), "encoder.vit.patch_embed": (0.125, 0.1)}
    expected |= {"encoder.vit.norm_pre": (0.125, 0.0), "encoder.vit.norm": (1.0, 0.0), "encoder.pyramid": (1.0, 0.1)}
    for index, rate in enumerate((0.25, 0.5, 1.0)):
        expected |= {f"encoder.vit.blocks.{index}.0": (rate, 0.0), f"encoder.vit.blocks.{index}.1": (rate, 0.1)}
    expected |= {f"{name}": (2.0, 0.1) for name in ("decoder.0", "decoder.1", "decoder.2", "attention")}
    found = {name if name.endswith("token") else name.rpartition(".")[0]: setting for name, setting in got.items()}
    assert found == expected


def test_what_comes_after_the_blocks_is_of_the_last_layer() -> None:
    encoder = Vit()
    encoder.neck = nn.Conv2d(4, 4, 1)
    got = grouped(make_model(encoder), lr=1.0, layer_decay=0.5)
    assert got["encoder.neck.weight"] == (1.0, 0.01)


@pytest.mark.parametrize("decay", [0.9, 0.65, 1e-3])
def test_layer_decay_around_a_vit_of_timm(decay: float) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    from hrda_lib.lora import add_lora
    from hrda_lib.models import ViTFeatures

    settings = {"num_classes": 0, "embed_dim": 12, "depth": 5, "num_heads": 2, "img_size": 28, "dynamic_img_size": True}
    encoder = ViTFeatures(timm.create_model("vit_small_patch14_reg4_dinov2", **settings), out_indices=2)
    got = grouped(make_model(encoder), lr=2.0, head_factor=3.0, layer_decay=decay)
    for name in ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight"):
        assert got[f"encoder.body.{name}"] == pytest.approx((2 * decay**5, 0.01))
    for i in range(5):
        assert got[f"encoder.body.blocks.{i}.mlp.fc1.weight"] == pytest.approx((2 * decay ** (4 - i), 0.01))
        assert got[f"encoder.body.blocks.{i}.norm1.bias"] == pytest.approx((2 * decay ** (4 - i), 0.0))
    assert got["encoder.body.norm.weight"] == (2.0, 0.0)
    assert got["attention.weight"] == (6.0, 0.01)

    encoder.body.blocks[:3].requires_grad_(False)
    left = grouped(make_model(encoder), lr=2.0, head_factor=3.0, layer_decay=decay)
    assert left == {name: setting for name, setting in got.items() if ".blocks." not in name or int(name[20]) > 2}
    names = add_lora(encoder, rank=2, first_block=2)
    adapted = grouped(make_model(encoder), lr=2.0, head_factor=3.0, layer_decay=decay)
    trains = {f"encoder.{name}.{part}" for name in names for part in ("lora_down", "lora_up")}
    assert {name for name in adapted if name.startswith("encoder")} == trains
    assert adapted["encoder.body.blocks.2.attn.qkv.lora_up"] == pytest.approx((2 * decay**2, 0.01))


def test_layer_decay_of_one_changes_nothing() -> None:
    model = make_model(Vit())
    assert grouped(model, layer_decay=1.0) == grouped(model)
    assert [group["name"] for group in parameter_groups(model)] == ["encoder", "encoder norm", "head"]
    names = [group["name"] for group in parameter_groups(model, layer_decay=0.9)]
    assert names == [f"encoder {i}{end}" for i in range(4) for end in ("", " norm")] + ["head"]


@pytest.mark.parametrize("layer_decay", [0, -0.5, 1.1, True, float("nan"), "0.9"])
def test_layer_decay_out_of_range(layer_decay: Any) -> None:
    with pytest.raises(ValueError, match=r"layer_decay must be a number in \(0, 1\]"):
        parameter_groups(make_model(Vit()), layer_decay=layer_decay)


@pytest.mark.parametrize("encoder", [nn.Linear(4, 4), nn.Sequential(Vit(), Vit())])
def test_layer_decay_needs_one_plain_vit(encoder: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"layer_decay needs an encoder with one plain ViT, .*take layer_decay=1"):
        parameter_groups(make_model(encoder), layer_decay=0.9)
