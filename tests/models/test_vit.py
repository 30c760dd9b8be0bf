"""ViTFeatures, SimplePyramid and DeconvHead."""

from typing import Any

import pytest
import torch
from torch import nn

from hrda_lib import MultiResSegmenter, ScaleAttentionHead
from hrda_lib.models import DAFormerHead, DeconvHead, SimplePyramid, ViTFeatures

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
        (lambda: built("vit_small_patch16_dinov3", {}), {"pos_embed": "dinov2"}, "take pos_embed='own'"),
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
    with pytest.raises(ValueError, match="embed_dims must be a positive int"):
        SimplePyramid(24, embed_dims=0)


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
