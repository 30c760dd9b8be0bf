"""Low-rank adapters: around many networks, against peft, merged, alone in a file, under compilers and autocast."""

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hrda_lib import EMATeacher
from hrda_lib.checkpointing import load_checkpoint, save_checkpoint
from hrda_lib.lora import add_lora, merge_lora

timm = pytest.importorskip("timm", reason="needs the extra timm")

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
VIT = {**SMALL, "num_classes": 0}
# a part that is not asked for an answer, such as the attention pooling of SigLIP, would get adapters without gradient
NETWORKS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {**VIT, "img_size": 32},
    "vit_small_patch14_dinov2": {**VIT, "img_size": 28},
    "vit_small_patch14_reg4_dinov2": {**VIT, "img_size": 28},
    "vit_giant_patch14_dinov2": {**VIT, "img_size": 28},  # SwiGLU in one layer
    "vit_small_patch16_dinov3": {**VIT, "img_size": 32},
    "vit_base_patch16_clip_224": {**VIT, "img_size": 32},
    "vit_base_patch16_siglip_224": {**VIT, "img_size": 32, "global_pool": "avg"},
    "deit3_small_patch16_224": {**VIT, "img_size": 32},
    "eva02_tiny_patch14_224": {**VIT, "img_size": 28},  # fused qkv, read past forward
    "eva02_base_patch14_224": {**VIT, "img_size": 28},  # q, k and v apart
    "beit_base_patch16_224": {**VIT, "img_size": 32},  # fused qkv, read past forward
    "beitv2_base_patch16_224": {**VIT, "img_size": 32},
    "samvit_base_patch16": {**VIT, "img_size": 32},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "img_size": 56},
    "swinv2_tiny_window8_256": {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "img_size": 64},
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "hiera_tiny_224": {"num_classes": 0, "embed_dim": 24, "num_heads": 1, "stages": (1, 1, 1, 1), "img_size": (64, 64)},
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, **NETWORKS[name]).eval()
    with torch.no_grad():  # some start with scales of 1e-5 or 0, next to which no adapter can be seen
        for part, parameter in network.named_parameters():
            if part.endswith(("gamma", "gamma_1", "gamma_2", "norm1.weight", "norm2.weight")):
                parameter.fill_(1)
    return network


def loss(answer: torch.Tensor) -> torch.Tensor:
    """Other numbers for other features: their sum, and that of their squares, stand still behind a norm."""
    return (answer.double() * torch.linspace(-1, 1, answer.numel()).view_as(answer)).sum()


def pictures(network: nn.Module) -> torch.Tensor:
    embedding = getattr(network, "patch_embed", None) or getattr(network, "stem", None)
    side = embedding.img_size if hasattr(embedding, "img_size") else (64, 64)
    return torch.rand(2, 3, *side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_around_networks_of_timm(name: str) -> None:
    """No change at the start; an effect of each adapter after a step, and of them only; merged as it was."""
    network = built(name)
    images, keys = pictures(network), set(network.state_dict())
    with torch.no_grad():
        before = network(images)
    names = add_lora(network, rank=4)
    assert names
    assert {key for key in network.state_dict() if "lora_" not in key} == keys
    with torch.no_grad():
        torch.testing.assert_close(network(images), before, rtol=0, atol=0)
    trains = {key for key, p in network.named_parameters() if p.requires_grad}
    assert trains == {f"{layer}.{part}" for layer in names for part in ("lora_down", "lora_up")}

    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.1)
    loss(network(images)).backward()
    assert all(network.get_submodule(layer).lora_up.grad.abs().max() > 0 for layer in names)
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    optimizer.step()
    with torch.no_grad():
        after = network(images)
        assert not torch.allclose(after, before)
        for layer in names:  # each by itself
            up = network.get_submodule(layer).lora_up
            held = up.clone()
            up.zero_()
            assert not torch.equal(network(images), after), layer
            up.copy_(held)
        merge_lora(network)
        assert set(network.state_dict()) == keys
        torch.testing.assert_close(network(images), after, rtol=1e-5, atol=1e-5 * after.abs().max().item())


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_against_peft(alpha: float | None) -> None:
    peft = pytest.importorskip("peft", reason="needs peft, of the extra integrations")
    names = ["qkv", "fc1", "fc2"]
    ours, theirs = built("vit_tiny_patch16_224").double(), built("vit_tiny_patch16_224").double()
    layers = add_lora(ours, rank=4, alpha=alpha)
    config = peft.LoraConfig(r=4, lora_alpha=4 if alpha is None else alpha, target_modules=names, lora_dropout=0.0)
    wrapped = peft.get_peft_model(theirs, config).double()
    torch.manual_seed(2)
    with torch.no_grad():
        for layer in layers:
            mine, other = ours.get_submodule(layer), theirs.get_submodule(layer)
            mine.lora_up.normal_()
            other.lora_A["default"].weight.copy_(mine.lora_down)
            other.lora_B["default"].weight.copy_(mine.lora_up)
    images = pictures(ours).double()
    answers = [network(images) for network in (ours, wrapped)]
    torch.testing.assert_close(*answers, rtol=1e-12, atol=1e-12)
    for answer in answers:
        loss(answer).backward()
    for layer in layers:
        mine, other = ours.get_submodule(layer), theirs.get_submodule(layer)
        torch.testing.assert_close(mine.lora_down.grad, other.lora_A["default"].weight.grad)
        torch.testing.assert_close(mine.lora_up.grad, other.lora_B["default"].weight.grad)
    merge_lora(ours)
    merged = wrapped.merge_and_unload()
    for key, tensor in merged.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], tensor)


def test_drawn_as_a_linear_layer() -> None:
    torch.manual_seed(0)
    layer = nn.ModuleDict({"fc1": nn.Linear(64, 8)})
    add_lora(layer, rank=16)
    down = layer["fc1"].lora_down
    assert torch.equal(layer["fc1"].lora_up, torch.zeros(8, 16))
    assert down.abs().max() <= 1 / 8  # sqrt(1 / 64)
    assert down.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"])
def test_adapters_alone_in_a_file(name: str) -> None:
    network, other = built(name), built(name)
    add_lora(network, rank=4)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    file = io.BytesIO()
    torch.save({name: x for name, x in network.state_dict().items() if "lora_" in name}, file)
    file.seek(0)
    add_lora(other, rank=4)
    state = torch.load(file, weights_only=True)
    found = other.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert not any("lora_" in name for name in found.missing_keys)
    images = pictures(network)
    assert torch.equal(other(images), network(images))
    learned = sum(x.numel() for name, x in state.items() if not name.endswith("lora_scale"))
    assert learned == sum(p.numel() for p in network.parameters() if p.requires_grad)


def with_adapters(alpha: float | None = None) -> nn.Module:
    torch.manual_seed(0)
    network = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 4)})
    add_lora(network, rank=3, alpha=alpha)
    return network


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_of_another_scale_are_refused(strict: bool, dtype: torch.dtype) -> None:
    state = {name: x.to(dtype) for name, x in drawn(with_adapters(alpha=1)).state_dict().items()}
    if not strict:
        state = {name: x for name, x in state.items() if "lora_" in name}
    assert not with_adapters(alpha=1).load_state_dict(state, strict=strict).unexpected_keys
    text = (
        r"fc1.lora_scale must be 1, alpha / rank of the adapters here, got 0.33\d*: those in the state dict would "
        r"answer differently; load them after add_lora with alpha = 0.33\d* \* rank"
    )
    with pytest.raises(ValueError, match=text):
        with_adapters().load_state_dict(state, strict=strict)
    teacher = EMATeacher(with_adapters())
    with pytest.raises(ValueError, match=r"fc1.lora_scale must be 1"):
        teacher.load_state_dict({f"module.{name}": x for name, x in state.items()}, strict=strict)


def test_a_file_with_adapters_of_another_scale_is_refused_before_anything_is_loaded(tmp_path: Any) -> None:
    save_checkpoint(tmp_path / "last.pt", {"plain": nn.Linear(1, 1), "student": with_adapters(alpha=6)})
    plain, student = nn.Linear(1, 1), with_adapters(alpha=3)
    before = plain.weight.clone()
    with pytest.raises(
        ValueError, match=r"last.pt: 'student': fc1.lora_scale must be 1, .*, got 2: .*alpha = 2 \* rank"
    ):
        load_checkpoint(tmp_path / "last.pt", {"plain": plain, "student": student})
    assert torch.equal(plain.weight, before)
    load_checkpoint(tmp_path / "last.pt", {"student": with_adapters(alpha=6)})


def test_entries_without_a_scale_are_taken_at_that_of_the_layer_if_not_strict() -> None:
    network, other = drawn(with_adapters(alpha=6)), with_adapters(alpha=6)
    state = {name: x for name, x in network.state_dict().items() if not name.endswith("lora_scale")}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "fc1.lora_scale", "fc2.lora_scale"'):
        other.load_state_dict(state)
    assert other.load_state_dict(state, strict=False).missing_keys == ["fc1.lora_scale", "fc2.lora_scale"]
    assert torch.equal(other["fc1"].weight, network["fc1"].weight)


def test_the_scale_stays_exact_in_any_dtype() -> None:
    network = with_adapters(alpha=1).to(torch.bfloat16)
    assert network["fc1"].scale == 1 / 3
    assert repr(network["fc1"]) == "LoRALinear(in_features=4, out_features=4, bias=True, rank=3, scale=0.333333)"
    network.load_state_dict(network.state_dict())
    assert network["fc1"].scale == 1 / 3
    x = torch.rand(2, 4, dtype=torch.bfloat16)
    layer = drawn(network)["fc1"]
    assert torch.equal(torch.func.functional_call(layer, layer.state_dict(), (x,)), layer(x))


def test_what_learns_after_it_was_added() -> None:
    """The default leaves attention's last layer alone, and a head is frozen until its owner says otherwise."""
    network = timm.create_model("vit_tiny_patch16_224", **{**NETWORKS["vit_tiny_patch16_224"], "num_classes": 5})
    names = add_lora(network, rank=2)
    assert {name.rpartition(".")[2] for name in names} == {"qkv", "fc1", "fc2"}
    assert not any(p.requires_grad for p in network.head.parameters())


def test_weights_of_the_plain_network_load_into_one_with_adapters() -> None:
    plain, network = built("vit_tiny_patch16_224"), built("vit_tiny_patch16_224")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1)
    add_lora(network, rank=4)
    assert not network.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    images = pictures(plain)
    assert torch.equal(network(images), plain(images))


def test_blocks_before_the_first_one_stay_plain() -> None:
    network = built("vit_tiny_patch16_224")
    assert {name.split(".")[1] for name in add_lora(copy.deepcopy(network), first_block=1)} == {"1"}
    assert {name.split(".")[0] for name in add_lora(network.blocks, first_block=1)} == {"1"}
    with pytest.raises(ValueError, match=r"first_block must be the number of a block of the module, at most 1, got 2"):
        add_lora(built("vit_tiny_patch16_224"), first_block=2)
    with pytest.raises(ValueError, match=r"first_block must be .*, whose names have none, got 1"):
        add_lora(nn.ModuleDict({"fc1": nn.Linear(4, 4)}), first_block=1)


def test_blocks_are_counted_in_the_network_not_in_what_holds_it() -> None:
    first, second = built("vit_tiny_patch16_224"), built("vit_tiny_patch16_224")
    for holder in (nn.Sequential(nn.Identity(), first), nn.ModuleDict({"body": nn.Sequential(second)})):
        assert {name.partition("blocks.")[2][0] for name in add_lora(holder, first_block=1)} == {"1"}
    swin = built("swin_tiny_patch4_window7_224")
    assert {name.split(".")[1] for name in add_lora(swin, first_block=1)} == {"1"}  # its layers are stages
    layers = nn.ModuleDict({"head": nn.Linear(4, 4), "layer": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])})
    assert add_lora(layers, targets=["0", "1", "head"], rank=1, first_block=1) == ["head", "layer.1"]


def test_a_teacher_shares_what_is_frozen_and_averages_the_adapters() -> None:
    student = built("vit_tiny_patch16_224")
    names = add_lora(student, rank=4)
    teacher = EMATeacher(student, share_frozen=True)
    own = [p for p in teacher.module.parameters() if all(p is not q for q in student.parameters())]
    assert len(own) == 2 * len(names)
    with torch.no_grad():
        for layer in names:
            student.get_submodule(layer).lora_up.add_(1)
    teacher.update(student)
    assert all((teacher.module.get_submodule(layer).lora_up == 0.5).all() for layer in names)
    images = pictures(student)
    assert not torch.equal(teacher(images), student(images))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_compiled_and_exported(name: str) -> None:
    network = built(name)
    add_lora(network, rank=4)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    images = pictures(network)
    expected = network(images)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
    wanted = torch.autograd.grad(expected.sum(), [p for p in network.parameters() if p.requires_grad])
    got = torch.autograd.grad(compiled(images).sum(), [p for p in network.parameters() if p.requires_grad])
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(network, (images,)).module()(images), expected)


def test_frozen_weights_in_bfloat16() -> None:
    """Half the memory of what never learns; the adapters stay float32, so that small steps count."""
    network = built("vit_tiny_patch16_224")
    images = pictures(network)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(images)
    for layer in network.modules():
        if type(layer) is nn.Linear:  # norms stay float32
            layer.to(torch.bfloat16)
    names = add_lora(network, rank=4)
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = network(images)
        loss(answer).backward()
    torch.testing.assert_close(answer.float(), expected.float(), rtol=0.05, atol=0.05 * expected.abs().max().item())
    grads = [p.grad for p in network.parameters() if p.requires_grad]
    assert all(grad is not None and grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)
    other = copy.deepcopy(drawn(network))
    merge_lora(network)
    assert {network.get_submodule(name).weight.dtype for name in names} == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which would round the product
        merge_lora(other)
    assert all(torch.equal(x, y) for x, y in zip(network.parameters(), other.parameters(), strict=True))


def test_adapters_lie_where_the_layer_is() -> None:
    with torch.device("meta"):
        network = timm.create_model("vit_tiny_patch16_224", **NETWORKS["vit_tiny_patch16_224"])
    add_lora(network, rank=2)
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert network(torch.rand(1, 3, 32, 32, device="meta")).shape == (1, 48)


def test_an_input_of_lower_precision_stays_so() -> None:
    layer = nn.ModuleDict({"fc1": nn.Linear(8, 4)}).to(torch.bfloat16)
    add_lora(layer, rank=2)
    assert layer["fc1"](torch.rand(3, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer["fc1"].weight.dtype == torch.bfloat16


def test_weight_read_past_forward() -> None:
    torch.manual_seed(0)
    layer = nn.ModuleDict({"fc1": nn.Linear(8, 4).double()})
    frozen = layer["fc1"].weight.detach().clone()
    add_lora(layer, rank=2, alpha=3)
    nn.init.normal_(layer["fc1"].lora_up)
    down, up = layer["fc1"].lora_down, layer["fc1"].lora_up
    torch.testing.assert_close(layer["fc1"].weight, frozen + 1.5 * up @ down)
    x = torch.rand(3, 8, dtype=torch.float64)
    torch.testing.assert_close(nn.functional.linear(x, layer["fc1"].weight, layer["fc1"].bias), layer["fc1"](x))
    assert torch.autograd.gradcheck(lambda a, b: functional(layer["fc1"], a, b, x), (down, up))


def functional(layer: nn.Module, down: torch.Tensor, up: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(layer, {"lora_down": down, "lora_up": up}, (x,))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be a positive int, got 0"),
        ({"alpha": 0}, "alpha must be a positive number or None, got 0"),
        ({"alpha": float("inf")}, "alpha must be a positive number"),
        ({"targets": "qkv"}, "targets must be a list of names of layers, got 'qkv'"),
        ({"targets": []}, "targets must be a list of names"),
        ({"targets": ["qkv", "query"]}, r"names of nn.Linear layers \(.*fc1.*\), got qkv, query"),
        ({"targets": ["norm1"]}, r"names of nn.Linear layers"),
        ({"first_block": -1}, "first_block must be an int of at least 0, got -1"),
        ({"first_block": 1.0}, "first_block must be an int"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    network = built("vit_tiny_patch16_224")
    state = {name: x.clone() for name, x in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        add_lora(network, **settings)
    assert all(p.requires_grad for p in network.parameters())
    assert network.state_dict().keys() == state.keys()


def test_twice_and_never() -> None:
    network = built("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="module must have adapters of add_lora, got VisionTransformer without any"):
        merge_lora(network)
    names = add_lora(network.blocks[0], rank=4)
    trains = {name for name, p in network.blocks[0].named_parameters() if p.requires_grad}
    assert len(trains) == 2 * len(names)
    for module, targets in ((network, ["qkv"]), (network, ["proj"]), (network.blocks, ["fc1"])):
        with pytest.raises(ValueError, match=r"module must have no adapters, .*one call, or merge_lora\(\) first"):
            add_lora(module, targets=targets, rank=4)
    assert {name for name, p in network.blocks[0].named_parameters() if p.requires_grad} == trains
    add_lora(network.blocks[1], rank=2)  # beside the first, of another rank
    merge_lora(network)
    with pytest.raises(ValueError, match="module must have adapters of add_lora"):
        merge_lora(network)
    assert len(add_lora(network, rank=4)) == 6
    with pytest.raises(ValueError, match=r"module must be a torch.nn.Module, got str"):
        add_lora("network")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"nn.Linear layers \(there are none\)"):
        add_lora(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match=r"module must be a torch.nn.Module, got str"):
        merge_lora("network")  # type: ignore[arg-type]


class Own(nn.Linear):
    """A linear layer that does something else."""


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Own(4, 4),
        lambda: nn.LazyLinear(4),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: nn.MultiheadAttention(4, 1).out_proj,
    ],
    ids=["subclass", "lazy", "weight norm", "attention"],
)
def test_layers_that_do_more_are_refused(layer: Any) -> None:
    network = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": layer()})
    with pytest.raises(ValueError, match=r"targets must be layers of nn.Linear itself, got fc2, a \w+, .*its name out"):
        add_lora(network)
    assert all(p.requires_grad for p in network.parameters())
    assert type(network["fc1"]) is nn.Linear


def test_convolutions_of_that_name_stay_as_they_are() -> None:
    network = built("vit_tiny_patch16_224")
    names = add_lora(network, targets=["proj"], rank=2)
    assert names == ["blocks.0.attn.proj", "blocks.1.attn.proj"]
    assert type(network.patch_embed.proj) is nn.Conv2d
    with pytest.raises(ValueError, match=r"nn.Linear layers \(there are none\), got proj"):
        add_lora(built("vit_tiny_patch16_224").patch_embed, targets=["proj"])


def drawn(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("merged", ["student", "teacher"])
def test_merging_leaves_what_others_share(merged: str) -> None:
    student = built("vit_tiny_patch16_224")
    add_lora(student, rank=4)
    teacher = EMATeacher(drawn(student), share_frozen=True)
    teacher.update(drawn(student))
    images = pictures(student)
    with torch.no_grad():
        before = student(images), teacher(images)
        merge_lora(student if merged == "student" else teacher.module)
        torch.testing.assert_close((student(images), teacher(images)), before, rtol=1e-5, atol=1e-5)
    other = teacher.module if merged == "student" else student
    assert any("lora_" in name for name in other.state_dict())


def test_merging_layers_of_one_weight() -> None:
    torch.manual_seed(0)
    network = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 4)})
    network["fc2"].weight = network["fc1"].weight
    add_lora(network, rank=2)
    drawn(network)
    x = torch.rand(3, 4)
    before = network["fc1"](x), network["fc2"](x)
    merge_lora(network)
    torch.testing.assert_close((network["fc1"](x), network["fc2"](x)), before)
    assert not any(p.requires_grad for p in network.parameters())


def test_frozen_weights_are_once_in_memory_and_on_disk(tmp_path: Any) -> None:
    student = built("vit_tiny_patch16_224")
    frozen = sum(p.nbytes for p in student.parameters())
    add_lora(student, rank=1)
    teacher = EMATeacher(drawn(student), share_frozen=True)
    adapters = sum(p.nbytes for p in student.parameters() if p.requires_grad)
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for x in (*student.parameters(), *teacher.parameters())
    }
    assert sum(storages.values()) == frozen + 2 * adapters
    file = tmp_path / "run.pt"
    save_checkpoint(file, {"student": student, "teacher": teacher})
    assert frozen + 2 * adapters < file.stat().st_size < 1.5 * frozen

    other = built("vit_tiny_patch16_224")
    add_lora(other, rank=1)
    with torch.no_grad():
        other.cls_token.add_(1)
    again = EMATeacher(other, share_frozen=True)
    load_checkpoint(file, {"student": other, "teacher": again})
    images = pictures(student)
    assert torch.equal(other(images), student(images))
    assert torch.equal(again(images), teacher(images))
    assert again.module.cls_token is other.cls_token
    teacher.update(drawn(student))
    other.load_state_dict(student.state_dict())
    again.update(other)
    assert torch.equal(again(images), teacher(images))


def test_a_copy_has_adapters_of_its_own() -> None:
    network = built("vit_tiny_patch16_224")
    names = add_lora(network, rank=4, alpha=2)
    other = drawn(copy.deepcopy(network))
    assert [layer.scale for layer in other.modules() if hasattr(layer, "lora_up")] == [0.5] * len(names)
    assert all((network.get_submodule(name).lora_up == 0).all() for name in names)
    file = io.BytesIO()
    torch.save(other, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    images = pictures(network)
    assert torch.equal(again(images), other(images))
    assert not torch.equal(network(images), other(images))


@pytest.mark.parametrize("wrapper", [nn.DataParallel, nn.Sequential])
def test_added_inside_a_wrapper(wrapper: Any) -> None:
    network = wrapper(built("vit_tiny_patch16_224"))
    names = add_lora(network, rank=2, first_block=1)
    assert len(names) == 3
    loss(network(pictures(built("vit_tiny_patch16_224")))).backward()
    assert all(network.get_submodule(name).lora_up.grad.abs().max() > 0 for name in names)


def test_replicated_as_data_parallel_does() -> None:
    """Tensors set in the place of parameters, in a module whose dictionary of them is empty."""
    torch.manual_seed(0)
    network = nn.ModuleDict({"fc1": nn.Linear(4, 3)})
    add_lora(network, rank=2)
    layer, x = drawn(network)["fc1"], torch.rand(2, 4)
    replica = layer._replicate_for_data_parallel()
    for name, parameter in layer._parameters.items():
        setattr(replica, name, parameter.detach().clone())
    assert torch.equal(replica(x), layer(x))
    assert torch.equal(replica.weight, layer.weight)


@pytest.mark.filterwarnings("ignore:.*DistributedDataParallel:UserWarning")
def test_in_distributed_data_parallel(tmp_path: Any) -> None:
    start = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=start, rank=0, world_size=1)
    try:
        network = built("vit_tiny_patch16_224")
        names = add_lora(network, rank=4)
        wrapped = nn.parallel.DistributedDataParallel(network)
        teacher = EMATeacher(wrapped, share_frozen=True)
        loss(wrapped(pictures(network))).backward()
        assert all(network.get_submodule(name).lora_up.grad.abs().max() > 0 for name in names)
        teacher.update(wrapped)
        assert teacher.module.cls_token is network.cls_token
        del wrapped
    finally:
        torch.distributed.destroy_process_group()


def test_learns_the_same_in_eval_mode_and_where_gradients_are_off_when_added() -> None:
    network = built("vit_tiny_patch16_224")
    with torch.no_grad():
        names = add_lora(network.eval(), rank=2)
    assert not network.training
    loss(network(pictures(network))).backward()
    assert all(network.get_submodule(name).lora_up.grad.abs().max() > 0 for name in names)


def test_a_weight_that_is_set_or_loaded_is_the_frozen_one() -> None:
    network = nn.ModuleDict({"fc1": nn.Linear(4, 4)})
    add_lora(network, rank=1)
    layer, new = drawn(network)["fc1"], torch.rand(4, 4)
    product = layer.lora_up @ layer.lora_down
    layer.weight = nn.Parameter(new.clone(), requires_grad=False)
    torch.testing.assert_close(layer.weight, new + product)
    network.load_state_dict({"fc1.weight": new + 1, "fc1.bias": layer.bias}, strict=False)
    torch.testing.assert_close(layer.weight, new + 1 + product)


@pytest.mark.parametrize("bias", [True, False])
@given(
    sides=st.tuples(*[st.integers(1, 9)] * 2),
    rank=st.integers(1, 12),
    alpha=st.floats(0.01, 100),
    seed=st.integers(0, 9),
)
def test_any_shape_merged_is_the_same(bias: bool, sides: tuple[int, int], rank: int, alpha: float, seed: int) -> None:
    torch.manual_seed(seed)
    network = nn.ModuleDict({"fc1": nn.Linear(*sides, bias=bias).double()})
    x = torch.randn(2, 3, sides[0], dtype=torch.float64)
    frozen = network["fc1"](x)
    add_lora(network, rank=rank, alpha=alpha)
    assert torch.equal(network["fc1"](x), frozen)
    down, up = (p.detach() for name, p in drawn(network).named_parameters() if "lora" in name)
    answer = network["fc1"](x)
    torch.testing.assert_close(answer, frozen + alpha / rank * (x @ down.T) @ up.T, rtol=1e-9, atol=1e-9)
    merge_lora(network)
    torch.testing.assert_close(network["fc1"](x), answer, rtol=1e-9, atol=1e-9)
