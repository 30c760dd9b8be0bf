"""ViTFeatures, SimplePyramid and DeconvHead."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hrda_lib import CropBox, EMATeacher, MultiResSegmenter, ScaleAttentionHead, SelfTraining
from hrda_lib.lora import add_lora
from hrda_lib.models import DAFormerHead, DeconvHead, SimplePyramid, ViTFeatures
from hrda_lib.optim import parameter_groups

timm = pytest.importorskip("timm", reason="needs the extra timm")

# name, settings, width, patch, (h, w) of an image
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3}
NETWORKS: list[tuple[str, dict[str, Any], int]] = [
    ("vit_tiny_patch16_224", {"dynamic_img_size": True}, 16),
    ("vit_small_patch14_dinov2", {"dynamic_img_size": True}, 14),
    ("vit_small_patch14_reg4_dinov2", {"dynamic_img_size": True}, 14),
    ("vit_base_patch16_clip_224", {"dynamic_img_size": True}, 16),
    ("vit_base_patch16_siglip_224", {"dynamic_img_size": True}, 16),
    ("deit3_small_patch16_224", {"dynamic_img_size": True}, 16),
    ("vit_small_patch16_dinov3", {}, 16),
    ("eva02_tiny_patch14_224", {"dynamic_img_size": True}, 14),
    ("eva02_small_patch14_224", {"dynamic_img_size": True}, 14),
    ("beit_base_patch16_224", {"img_size": (64, 96)}, 16),
    ("samvit_base_patch16", {"img_size": (64, 96)}, 16),
]


def built(name: str, settings: dict[str, Any]) -> nn.Module:
    network: nn.Module = timm.create_model(name, num_classes=0, **SMALL, **settings)
    return network.eval()


@pytest.mark.parametrize(("name", "settings", "patch"), NETWORKS, ids=[name for name, *_ in NETWORKS])
@torch.no_grad()
def test_maps_of_many_networks(name: str, settings: dict[str, Any], patch: int) -> None:
    """The last map is the tokens of the whole network, without prefix; the rest have its size."""
    torch.manual_seed(0)
    vit = built(name, settings)
    encoder = ViTFeatures(vit, out_indices=[0, -1])
    assert (encoder.channels, encoder.patch, encoder.out_indices) == ((48, 48), patch, (0, 2))
    height, width = (64, 96) if patch == 16 else (56, 84)
    images = torch.rand(2, 3, height, width)
    maps = encoder(images)
    assert [tuple(x.shape) for x in maps] == [(2, 48, height // patch, width // patch)] * 2
    if name.startswith("sam"):  # its own features pass a neck, which these leave out
        return
    tokens = vit.forward_features(images)[:, getattr(vit, "num_prefix_tokens", 0) :]
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), tokens)


def cubic(length: int, new_length: int) -> np.ndarray:
    """(new_length, length): what each cell takes from each at the scale of DINOv2's hub, (n + 0.1) / N."""

    def share(x: float, a: float = -0.75) -> float:
        x = abs(x)
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
        return near if x <= 1 else far if x < 2 else 0.0

    weights = np.zeros((new_length, length))
    for i in range(new_length):
        position = (i + 0.5) / ((new_length + 0.1) / length) - 0.5
        first = int(np.floor(position)) - 1
        for j in range(first, first + 4):
            weights[i, min(max(j, 0), length - 1)] += share(position - j)
    return weights


def embedding_of(cells: Tensor, side: int, grid: tuple[int, int], rule: str) -> Tensor:
    if grid == (side, side):
        return cells
    maps = cells.reshape(side, side, -1)
    if rule == "own":  # timm's, in float32, for which torch is the oracle
        maps = maps.float().permute(2, 0, 1)[None]
        resized = nn.functional.interpolate(maps, size=grid, mode="bicubic", antialias=True)
        return resized[0].permute(1, 2, 0).flatten(0, 1).to(cells.dtype)
    rows, columns = (torch.from_numpy(cubic(side, n)) for n in grid)
    return torch.einsum("yh,xw,hwd->yxd", rows, columns, maps).flatten(0, 1)


def written_out(w: dict[str, Tensor], images: Tensor, patch: int, heads: int, rule: str) -> list[Tensor]:
    """The maps after each block of a plain ViT, from its weights alone."""

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.einsum("...i,oi->...o", x, w[f"{name}.weight"]) + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    cells = images.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, K, h, w, p, p)
    grid = cells.shape[2], cells.shape[3]
    x = torch.einsum("bkhwyx,dkyx->bhwd", cells, w["patch_embed.proj.weight"]).flatten(1, 2)
    x = x + w["patch_embed.proj.bias"]
    prefix = [w[name].expand(len(images), -1, -1) for name in ("cls_token", "reg_token") if name in w]
    count = sum(token.shape[1] for token in prefix)
    positions = w["pos_embed"][0]
    side = int(len(positions) ** 0.5)
    embedded = len(positions) - side * side  # of the class token too, or of none
    x = x + embedding_of(positions[embedded:], side, grid, rule)
    x = torch.cat([*prefix, x], 1)
    x[:, :embedded] += positions[:embedded]
    maps = []
    for index in range(1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))):
        at = f"blocks.{index}"
        q, k, v = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv").unflatten(-1, (3, heads, -1)).unbind(2)
        scores = torch.einsum("bihc,bjhc->bhij", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("bhij,bjhc->bihc", scores.softmax(-1), v).flatten(2)
        x = x + linear(mixed, f"{at}.attn.proj") * w.get(f"{at}.ls1.gamma", 1.0)
        hidden = linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + linear(hidden, f"{at}.mlp.fc2") * w.get(f"{at}.ls2.gamma", 1.0)
        maps.append(norm(x, "norm")[:, count:].unflatten(1, grid).permute(0, 3, 1, 2))
    return maps


@pytest.mark.parametrize("rule", ["own", "dinov2"])
@pytest.mark.parametrize(
    ("name", "patch", "width", "heads", "depth", "native", "grid"),
    [
        ("vit_small_patch14_dinov2", 14, 24, 2, 3, 4, (4, 4)),
        ("vit_small_patch14_dinov2", 14, 30, 5, 2, 5, (3, 8)),
        ("vit_small_patch14_reg4_dinov2", 14, 24, 3, 3, 4, (7, 2)),
        ("vit_tiny_patch16_224", 16, 16, 4, 4, 3, (1, 5)),
        ("vit_tiny_patch16_224", 16, 24, 1, 2, 2, (6, 6)),
        ("deit3_small_patch16_224", 16, 24, 2, 2, 4, (2, 8)),  # as many cells as at the native grid
        ("vit_base_patch8_224", 8, 16, 2, 2, 3, (4, 3)),
    ],
)
@torch.no_grad()
def test_equals_a_vit_written_out(
    name: str, patch: int, width: int, heads: int, depth: int, native: int, grid: tuple[int, int], rule: Any
) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        settings = {"img_size": native * patch, "embed_dim": width, "depth": depth, "num_heads": heads}
        vit = timm.create_model(name, num_classes=0, dynamic_img_size=True, **settings).double().eval()
        for parameter in vit.parameters():
            parameter.normal_(std=0.3)
        images = torch.rand(1 + seed, 3, grid[0] * patch, grid[1] * patch, dtype=torch.float64)
        expected = written_out(dict(vit.state_dict()), images, patch, heads, rule)
        for chosen in ([depth - 1], [-1, 0], list(range(depth))):
            maps = ViTFeatures(vit, out_indices=chosen, pos_embed=rule)(images)
            torch.testing.assert_close(maps, [expected[i] for i in chosen], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", ["own", "dinov2"])
def test_blocks_after_the_last_map_do_not_run(rule: Any) -> None:
    vit = built("vit_tiny_patch16_224", {"dynamic_img_size": True})
    with torch.no_grad():
        whole = ViTFeatures(vit, out_indices=3, pos_embed=rule)(torch.ones(1, 3, 32, 48))
    ran: list[nn.Module] = []
    for block in vit.blocks:
        block.register_forward_hook(lambda module, _, __: ran.append(module))
    with torch.no_grad():
        maps = ViTFeatures(vit, out_indices=[1, 0], pos_embed=rule)(torch.ones(1, 3, 32, 48))
    assert ran == list(vit.blocks[:2])
    torch.testing.assert_close(maps, [whole[1], whole[0]])


@pytest.mark.parametrize(
    ("name", "settings", "patch"),
    [
        ("vit_small_r26_s32_224", {"img_size": 64}, 32),  # patches of a convolutional network's features
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}, 16),  # two tokens before the patches
    ],
)
@torch.no_grad()
def test_stems_and_tokens_of_other_kinds(name: str, settings: dict[str, Any], patch: int) -> None:
    vit = built(name, {"dynamic_img_size": True, **settings})
    images = torch.rand(1, 3, 64, 64)
    maps = [ViTFeatures(vit, out_indices=1, pos_embed=rule) for rule in ("own", "dinov2")]
    assert [encoder.patch for encoder in maps] == [patch] * 2
    own, hub = (encoder(images)[0] for encoder in maps)
    assert own.shape == (1, 48, 64 // patch, 64 // patch)
    torch.testing.assert_close(own, hub)
    assert maps[1](torch.rand(1, 3, 64, 96))[0].shape == (1, 48, 64 // patch, 96 // patch)
    with pytest.raises(ValueError, match=f"multiples of the patch {patch}"):
        maps[0](torch.rand(1, 3, 72, 64))


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
@torch.no_grad()
def test_both_position_embeddings_are_one_at_the_native_grid_and_two_elsewhere(name: str) -> None:
    vit = built(name, {"dynamic_img_size": True, "img_size": 56})
    own, hub = ViTFeatures(vit, out_indices=2), ViTFeatures(vit, out_indices=2, pos_embed="dinov2")
    native, other = torch.rand(1, 3, 56, 56), torch.rand(1, 3, 70, 98)
    for ours, theirs in zip(hub(native), own(native), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(not torch.allclose(x, y, atol=1e-4) for x, y in zip(hub(other), own(other), strict=True))


@pytest.mark.parametrize("pos_embed", ["own", "dinov2"])
def test_a_network_of_one_size(pos_embed: Any) -> None:
    encoder = ViTFeatures(built("vit_small_patch14_dinov2", {"img_size": 56}), out_indices=1, pos_embed=pos_embed)
    assert encoder(torch.rand(1, 3, 56, 56))[0].shape == (1, 48, 4, 4)
    with pytest.raises(ValueError, match=r"do not fit this ViT .*dynamic_img_size=True"):
        encoder(torch.rand(1, 3, 70, 56))


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    vit = built("vit_small_patch14_dinov2", {"dynamic_img_size": True, "img_size": 56})
    images, found = torch.rand(1, 3, 70, 70), []
    for frees in (False, True):
        vit.set_grad_checkpointing(frees)
        vit.zero_grad()
        sum(x.square().mean() for x in ViTFeatures(vit, pos_embed="dinov2", out_indices=2)(images)).backward()
        found.append([p.grad.clone() for p in vit.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1])


def test_evenly_spread_maps() -> None:
    vit = built("vit_tiny_patch16_224", {"dynamic_img_size": True})
    assert [ViTFeatures(vit, out_indices=n).out_indices for n in (1, 2, 3)] == [(2,), (0, 2), (0, 1, 2)]
    backwards = ViTFeatures(vit, out_indices=[2, 0]).eval()
    with torch.no_grad():
        last, first = backwards(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        maps = ViTFeatures(vit, out_indices=3)(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(first, maps[0])
    assert torch.equal(last, maps[2])


def test_maps_in_the_order_asked_for_with_the_hubs_embedding_too() -> None:
    vit = built("vit_tiny_patch16_224", {"dynamic_img_size": True})
    images = torch.rand(1, 3, 48, 32)
    with torch.no_grad():
        last, first = ViTFeatures(vit, out_indices=[2, 0], pos_embed="dinov2")(images)
        first_again, last_again = ViTFeatures(vit, out_indices=[0, 2], pos_embed="dinov2")(images)
    assert torch.equal(first, first_again)
    assert torch.equal(last, last_again)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out_indices": 4}, r"out_indices must be different blocks in \[0, 3\), or how many maps, at most 3, got 4"),
        ({"out_indices": [0, 3]}, r"out_indices must .*got \[0, 3\]"),
        ({"out_indices": [2, -1]}, "out_indices must be different blocks"),
        ({"out_indices": []}, "out_indices must"),
        ({"out_indices": True}, "out_indices must"),
        ({"out_indices": -1}, "out_indices must .*got -1"),
        ({"out_indices": 0}, "out_indices must .*got 0"),
        ({"out_indices": 2.0}, "out_indices must .*got 2.0"),
        ({"out_indices": [1, 1]}, r"out_indices must be different blocks .*got \[1, 1\]"),
        ({"out_indices": [-4]}, r"out_indices must .*got \[-4\]"),
        ({"out_indices": [0.0]}, r"out_indices must .*got \[0.0\]"),
        ({"out_indices": [True]}, r"out_indices must .*got \[True\]"),
        ({"out_indices": "last"}, r"out_indices must .*got 'last'"),
        ({"pos_embed": None}, "pos_embed must be one of"),
        ({"pos_embed": "hub"}, "pos_embed must be one of"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTFeatures(built("vit_tiny_patch16_224", {}), **settings)


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (lambda: nn.Linear(3, 3), {}, "vit must be a plain ViT of timm, .*got Linear; build one"),
        (lambda: timm.create_model("resnet18"), {}, "vit must be a plain ViT .*TimmEncoder"),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", features_only=True),
            {},
            "vit must be a plain ViT .*not features_only",
        ),
        (lambda: "vit_tiny_patch16_224", {}, "vit must be a plain ViT .*got str; build one"),
        (
            lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1,)),
            {},
            "vit must be .*got SwinTransformer",
        ),
        (lambda: timm.create_model("hiera_tiny_224", stages=(1, 1, 1, 1)), {}, "vit must be a plain ViT .*got Hiera"),
        (lambda: built("vit_small_patch16_dinov3", {}), {"pos_embed": "dinov2"}, "take pos_embed='own'"),
        (lambda: built("eva02_tiny_patch14_224", {}), {"pos_embed": "dinov2"}, "got Eva; take pos_embed='own'"),
        (
            lambda: built("eva02_tiny_patch14_224", {"patch_drop_rate": 0.5}),
            {"pos_embed": "dinov2"},
            "got Eva; take pos_embed='own'",
        ),
        (lambda: built("eva_giant_patch14_224", {}), {"pos_embed": "dinov2"}, "got Eva; take pos_embed='own'"),
        (lambda: built("samvit_base_patch16", {}), {"pos_embed": "dinov2"}, "take pos_embed='own'"),
        (
            lambda: built("vit_tiny_patch16_224", {"img_size": (32, 64)}),
            {"pos_embed": "dinov2"},
            "needs a square native grid, got 8 cells",
        ),
    ],
)
def test_networks_that_do_not_fit(network: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTFeatures(network(), **settings)


@pytest.mark.parametrize("pos_embed", ["own", "dinov2"])
def test_images_that_do_not_fit(pos_embed: Any) -> None:
    settings = {"dynamic_img_size": True}
    encoder = ViTFeatures(built("vit_tiny_patch16_224", settings), out_indices=1, pos_embed=pos_embed)
    for images, message in (
        (torch.rand(1, 3, 32, 40), r"multiples of the patch 16, got \(32, 40\); give MultiResSegmenter multiple_of=16"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"images must be float"),
        (torch.rand(3, 32, 32), "images must be float"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder(images)


def test_pyramid_levels_and_what_it_refuses() -> None:
    pyramid = SimplePyramid(24, embed_dims=8)
    for height, width in ((4, 6), (5, 3), (1, 1)):
        levels = pyramid([torch.rand(1, 8, 2, 2), torch.rand(2, 24, height, width)])
        sides = [(4 * height, 4 * width), (2 * height, 2 * width), (height, width), (-(-height // 2), -(-width // 2))]
        assert [tuple(x.shape) for x in levels] == [(2, 8, *side) for side in sides]
    assert torch.equal(pyramid(torch.ones(1, 24, 2, 2))[2], pyramid([torch.ones(1, 24, 2, 2)])[2])
    with pytest.raises(ValueError, match=r"features must be float \(B, 24, h, w\), got"):
        pyramid([torch.rand(1, 23, 4, 4)])
    with pytest.raises(ValueError, match=r"got .*\(1, 4, 5, 24\); these are channels last"):
        pyramid(torch.rand(1, 4, 5, 24))
    for empty in ([], {}, None, torch.rand(24, 4, 4)):
        with pytest.raises(ValueError, match=r"features must be a \(B, C, h, w\) tensor or end in one, got"):
            pyramid(empty)
    with pytest.raises(ValueError, match="embed_dims must be a positive int"):
        SimplePyramid(24, embed_dims=0)
    with pytest.raises(ValueError, match=r"in_channels must be a positive int, got \(24, 24\)"):
        SimplePyramid((24, 24))  # type: ignore[arg-type]


def test_pyramid_of_a_dictionary_written_out() -> None:
    torch.manual_seed(0)
    pyramid, x = SimplePyramid(6, embed_dims=4).double(), torch.rand(2, 6, 3, 5, dtype=torch.float64)

    def up(x: Tensor, layer: Any) -> Tensor:
        spread = torch.einsum("bchw,coyx->bohywx", x, layer.weight)
        return spread.reshape(len(x), -1, 2 * x.shape[2], 2 * x.shape[3]) + layer.bias.view(1, -1, 1, 1)

    def one(x: Tensor, layer: Any) -> Tensor:
        return torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias.view(1, -1, 1, 1)

    finest, fine, same, coarse = pyramid.levels
    middle = up(x, finest[0])
    flat = middle.flatten(1)
    middle = (middle - flat.mean(1).view(-1, 1, 1, 1)) / (flat.var(1, correction=0) + 1e-5).sqrt().view(-1, 1, 1, 1)
    middle = middle * finest[1].weight.view(1, -1, 1, 1) + finest[1].bias.view(1, -1, 1, 1)
    expected = [up(middle * (1 + torch.erf(middle / 2**0.5)) / 2, finest[3]), up(x, fine), one(x, same)]
    padded = nn.functional.pad(x, (0, 1, 0, 1), value=-torch.inf).unfold(2, 2, 2).unfold(3, 2, 2)
    expected.append(one(padded.amax((-2, -1)), coarse[1]))
    torch.testing.assert_close(pyramid({"first": x[:, :1], "last": x}), expected)


def test_head_written_out() -> None:
    head = DeconvHead([6, 4], 3, embed_dims=8, upsample=2).double()
    maps = [torch.rand(2, channels, 3, 5, dtype=torch.float64) for channels in (6, 4)]
    first, norm, _, up, again, _, last = head.layers
    x = torch.einsum("oc,bchw->bohw", first.weight[:, :, 0, 0], torch.cat(maps, 1)) + first.bias.view(1, -1, 1, 1)
    x = nn.functional.gelu(nn.functional.group_norm(x, 8, norm.weight, norm.bias))
    spread = torch.einsum("bchw,coyx->bohywx", x, up.weight).reshape(2, 8, 6, 10) + up.bias.view(1, -1, 1, 1)
    x = nn.functional.gelu(nn.functional.group_norm(spread, 8, again.weight, again.bias))
    expected = torch.einsum("oc,bchw->bohw", last.weight[:, :, 0, 0], x) + last.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(head(maps), expected)


def test_head_sizes_and_what_it_refuses() -> None:
    maps = [torch.rand(1, 6, 3, 5), torch.rand(1, 4, 3, 5)]
    for upsample in (1, 2, 4, 8):
        assert DeconvHead([6, 4], 3, embed_dims=8, upsample=upsample)(maps).shape == (1, 3, 3 * upsample, 5 * upsample)
    head = DeconvHead([6, 4], 3, embed_dims=8)
    with pytest.raises(ValueError, match=r"features must be a list .*channels \[6, 4\], got \[6, 5\]"):
        head([maps[0], torch.rand(1, 5, 3, 5)])
    with pytest.raises(ValueError, match=r"features must be maps of one size.*take DAFormerHead"):
        head([maps[0], torch.rand(1, 4, 6, 10)])
    for upsample in (0, 3, 6, 2.0, True):
        with pytest.raises(ValueError, match="upsample must be a power of two"):
            DeconvHead([6, 4], 3, upsample=upsample)  # type: ignore[arg-type]


def test_daformer_head_on_a_pyramid_as_two_scales() -> None:
    vit = built("vit_small_patch14_dinov2", {"dynamic_img_size": True})
    features = ViTFeatures(vit, out_indices=1)
    encoder = nn.Sequential(features, SimplePyramid(features.channels[-1], embed_dims=16))
    decoder = DAFormerHead((16,) * 4, 5, embed_dims=8)
    attention = ScaleAttentionHead((16,) * 4, 5, embed_dims=8)
    model = MultiResSegmenter(encoder, decoder, attention, detail_size=28, output_stride=3.5, multiple_of=14)
    output = model(torch.rand(2, 3, 56, 56))
    assert output.logits.shape == (2, 5, 16, 16)
    assert model.predict(torch.rand(1, 3, 61, 45), output="labels").shape == (1, 61, 45)


@pytest.mark.parametrize(
    ("name", "patch", "upsample", "stride"),
    [
        ("vit_small_patch14_dinov2", 14, 4, 3.5),
        ("vit_small_patch14_reg4_dinov2", 14, 2, 7),
        ("vit_small_patch14_dinov2", 14, 1, 14),
        ("vit_tiny_patch16_224", 16, 4, 4),
        ("vit_tiny_patch16_224", 16, 1, 16),
        ("vit_small_patch14_dinov2", 14, 4, None),
    ],
)
def test_a_step_of_two_scales_with_adapters(name: str, patch: int, upsample: int, stride: float | None) -> None:
    """Fused logits written out, and one step of self-training in which adapters and heads alone learn."""
    torch.manual_seed(0)
    encoder = ViTFeatures(built(name, {"dynamic_img_size": True, "img_size": 4 * patch}), out_indices=2)
    encoder.requires_grad_(False)
    names = add_lora(encoder.body.blocks, rank=2)
    heads = [DeconvHead(encoder.channels, classes, embed_dims=8, upsample=upsample) for classes in (5, 1)]
    settings = {"detail_size": 4 * patch, "output_stride": stride, "multiple_of": patch}
    student = MultiResSegmenter(encoder, *heads, **settings).double()
    images = torch.rand(2, 3, 8 * patch, 12 * patch, dtype=torch.float64)
    box = CropBox(2 * patch, 4 * patch, 4 * patch, 4 * patch)

    with torch.no_grad():
        small = nn.functional.interpolate(images, scale_factor=0.5, mode="bilinear")
        context = encoder(small)
        logits, attention = heads[0](context), heads[1](context).sigmoid()
        top, left, height, width = box
        detail = heads[0](encoder(images[..., top : top + height, left : left + width]))
        cell = stride or 1
        sides = [int(side / cell) for side in images.shape[-2:]]
        if stride is None:
            logits, attention, detail = up(logits, sides), up(attention, sides), up(detail, [height, width])
        inside = torch.zeros(sides, dtype=torch.float64)
        y, x, h, w = (int(side / cell) for side in box)
        inside[y : y + h, x : x + w] = 1
        mask = inside if stride is None else inside[::2, ::2]
        base, share = up((1 - attention * mask) * logits, sides), up(attention * mask, sides)
        padded = torch.zeros(2, 5, *sides, dtype=torch.float64)
        padded[..., y : y + h, x : x + w] = detail
        torch.testing.assert_close(student(images, box).logits, base + share * padded)

    teacher = EMATeacher(student, share_frozen=True)
    before = {key: p.detach().clone() for key, p in student.named_parameters()}
    training = SelfTraining(student, teacher, threshold=0.0)
    optimizer = torch.optim.AdamW(parameter_groups(student, lr=1e-3, layer_decay=0.9))
    labels = torch.randint(5, (2, *images.shape[-2:]))
    for _, loss in training.losses(images, labels, images.flip(-1), source_box=box, mixed_box=box):
        loss.backward()
    optimizer.step()
    teacher.update(student)
    moved = {key for key, p in student.named_parameters() if not torch.equal(p, before[key])}
    assert moved == {key for key, p in student.named_parameters() if p.requires_grad}
    assert {key for key in moved if key.startswith("encoder")} >= {f"encoder.body.blocks.{n}.lora_up" for n in names}
    assert teacher.module.encoder.body.pos_embed is encoder.body.pos_embed


def up(x: Tensor, sides: list[int]) -> Tensor:
    return nn.functional.interpolate(x, size=sides, mode="bilinear")


@pytest.mark.parametrize("pos_embed", ["own", "dinov2"])
def test_compiled_and_exported(pos_embed: Any) -> None:
    torch.manual_seed(0)
    settings = {"dynamic_img_size": True, "img_size": 56}
    features = ViTFeatures(built("vit_small_patch14_dinov2", settings), out_indices=2, pos_embed=pos_embed)
    network = nn.Sequential(features, DeconvHead(features.channels, 3, embed_dims=8)).eval()
    images = torch.rand(1, 3, 56, 70)
    with torch.no_grad():
        expected = network(images)
        compiled = torch.compile(network, backend="eager", fullgraph=True)(images)
        exported = torch.export.export(network, (images,)).module()(images)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)
