"""MultiResSegmenter against the parts it is made of, and around other people's encoders."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hrda_lib import CropBox, EMATeacher, MultiResSegmenter, ScaleAttentionHead, crop, fuse_scales

CLASSES = 5


class Encoder(nn.Module):
    """Hand-written: two levels at strides 4 and 8, batch norm in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 6, 4, stride=4)
        self.coarse = nn.Sequential(nn.Conv2d(6, 8, 2, stride=2), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(images)
        return [fine, self.coarse(fine)]


class Decoder(nn.Module):
    """Sum of both levels at stride 4; counts its calls."""

    def __init__(self, channels: tuple[int, ...] = (6, 8)) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(c, CLASSES, 1) for c in channels)
        self.batches: list[int] = []

    def forward(self, features: list[Tensor]) -> Tensor:
        self.batches.append(len(features[0]))
        size = features[0].shape[-2:]
        return sum(
            interpolate(head(f), size=size, mode="bilinear") for head, f in zip(self.heads, features, strict=True)
        )


def model(attention: nn.Module | float | None = None, **settings: Any) -> MultiResSegmenter:
    torch.manual_seed(0)
    head = ScaleAttentionHead([6, 8], CLASSES, embed_dims=4) if attention is None else attention
    return MultiResSegmenter(Encoder(), Decoder(), head, **{"detail_size": (32, 16), **settings})


def by_hand(net: MultiResSegmenter, images: Tensor, box: CropBox) -> Tensor:
    context = interpolate(images, scale_factor=0.5, mode="bilinear")
    features = net.encoder(context)
    detail = net.decoder(net.encoder(images[..., box.top : box.top + box.height, box.left : box.left + box.width]))
    cells = CropBox(*(side // 4 for side in box))
    return fuse_scales(net.decoder(features), detail, net.attention(features).sigmoid(), box=cells)


def test_crop_equals_the_parts_assembled_by_hand() -> None:
    net, images, box = model().eval(), torch.randn(2, 3, 64, 48), CropBox(8, 24, 32, 16)
    out = net(images, box)
    torch.testing.assert_close(out.logits, by_hand(net, images, box), rtol=0, atol=1e-6)
    assert out.detail_box == box
    assert out.detail_logits.shape == (2, CLASSES, 8, 4)
    assert out.context_logits.shape == (2, CLASSES, 8, 6)
    assert out.attention.shape == (2, CLASSES, 8, 6)
    assert out.context.shape == (2, 3, 32, 24)
    assert len(out.features) == 2


def test_windows_equal_the_average_of_all_windows_by_hand() -> None:
    net, images = model().eval(), torch.randn(2, 3, 64, 48)
    out = net(images)
    total, count = torch.zeros(2, CLASSES, 16, 12), torch.zeros(16, 12)
    for top in (0, 16, 32):
        for left in (0, 8, 16, 24, 32):
            total[..., top // 4 : top // 4 + 8, left // 4 : left // 4 + 4] += net.decoder(
                net.encoder(images[..., top : top + 32, left : left + 16])
            )
            count[top // 4 : top // 4 + 8, left // 4 : left // 4 + 4] += 1
    torch.testing.assert_close(out.detail_logits, total / count, rtol=0, atol=1e-6)
    assert out.detail_box is None
    expected = fuse_scales(out.context_logits, total / count, out.attention)
    torch.testing.assert_close(out.logits, expected, rtol=0, atol=1e-6)


def test_detail_follows_training_mode_and_box() -> None:
    net, images, box = model(), torch.randn(1, 3, 64, 64), CropBox(0, 0, 32, 16)
    assert net(images).detail_box is not None
    assert net(images, detail="windows").detail_box is None
    net.eval()
    assert net(images).detail_box is None
    assert net(images, box).detail_box == box
    assert net(images, detail="crop").detail_box is not None


def test_boxes_come_from_the_generator() -> None:
    net, images = model(), torch.randn(1, 3, 64, 64)
    boxes = [net(images, None, torch.Generator().manual_seed(seed)).detail_box for seed in (0, 0, 1, 2, 3, 4)]
    assert boxes[0] == boxes[1]
    assert len(set(boxes)) > 2


@pytest.mark.parametrize(("attention", "is_context"), [(0.0, True), (1.0, False)])
def test_a_fixed_attention_is_one_scale_alone(attention: float, is_context: bool) -> None:
    net, images = model(attention).eval(), torch.randn(1, 3, 64, 64)
    out = net(images)
    assert out.attention == attention
    expected = interpolate(out.context_logits, scale_factor=2, mode="bilinear") if is_context else out.detail_logits
    torch.testing.assert_close(out.logits, expected)


def test_batch_norm_sees_context_first_then_all_windows_at_once() -> None:
    net, images = model(), torch.randn(2, 3, 64, 64)
    net(images, detail="windows")
    assert net.decoder.batches == [2, 2 * 3 * 7]
    assert net.encoder.coarse[1].num_batches_tracked == 2
    net.decoder.batches.clear()
    net.eval()(images)
    assert max(net.decoder.batches) <= 4


def test_teacher_in_training_mode_uses_batch_statistics_of_all_windows() -> None:
    net, images = model(), torch.randn(2, 3, 64, 64)
    teacher = EMATeacher(net)
    out = teacher(images)
    assert out.detail_box is None
    assert teacher.module.decoder.batches == [2, 42]
    assert not out.logits.requires_grad


@pytest.mark.parametrize(("scale", "size"), [(1, (40, 64)), (1.5, (48, 60)), (2, (40, 64)), (4, (64, 80))])
def test_scales(scale: float, size: tuple[int, int]) -> None:
    net = model(0.5, scale=scale, detail_size=(24, 24) if scale == 1.5 else (16, 16))
    for seed in range(5):
        out = net(torch.randn(1, 3, *size), generator=torch.Generator().manual_seed(seed))
        assert out.logits.shape == (1, CLASSES, size[0] // 4, size[1] // 4)


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (9, 200), (16, 16)])
def test_predict_any_size(size: tuple[int, int]) -> None:
    net, image = model(), torch.randn(1, 3, *size)
    net.attention.train(False)
    modes = [m.training for m in net.modules()]
    logits = net.predict(image)
    assert logits.shape == (1, CLASSES, *size)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(net.predict(image, output="labels"), logits.argmax(1))
    assert torch.equal(net.predict(image, output="labels", label_dtype=torch.uint8), logits.argmax(1).byte())
    torch.testing.assert_close(net.predict(image, output="probs"), logits.softmax(1))
    torch.testing.assert_close(net.predict(image, batch_size=None), logits, rtol=0, atol=1e-5)


def test_predict_averages_fused_windows_of_the_context_size() -> None:
    net, image = model(detail_size=(16, 16)).eval(), torch.randn(1, 3, 32, 64)
    total, count = torch.zeros(1, CLASSES, 32, 64), torch.zeros(32, 64)
    for left in (0, 16, 32):
        fused = net(image[..., left : left + 32], detail="windows").logits
        total[..., left : left + 32] += interpolate(fused, scale_factor=4, mode="bilinear")
        count[:, left : left + 32] += 1
    torch.testing.assert_close(net.predict(image), total / count, rtol=0, atol=1e-6)


def test_predict_restores_modes_after_an_error() -> None:
    net = model()
    with pytest.raises(RuntimeError):
        net.predict(torch.randn(1, 4, 64, 64))
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize(
    ("attention", "size", "settings"),
    [
        (None, (50, 70), {}),
        (nn.Sequential(), (40, 104), {"window": (32, 48), "stride": (24, 32)}),
        (0.3, (72, 90), {"stride": 24}),
        (0, (16, 16), {}),
        (None, (9, 31), {"window": 64}),  # one window
    ],
    ids=["classes", "one map", "fixed", "context", "one window"],
)
@torch.no_grad()
def test_scales_equal_a_plain_loop_over_windows(
    attention: nn.Module | float | None, size: tuple[int, int], settings: dict[str, Any]
) -> None:
    if isinstance(attention, nn.Module):
        attention = ScaleAttentionHead([6, 8], 1, embed_dims=4)
    net, images = model(attention).eval(), torch.randn(2, 3, *size)
    window, stride = settings.get("window", (64, 32)), settings.get("stride")
    window = (window, window) if isinstance(window, int) else window
    stride = (stride, stride) if isinstance(stride, int) else stride or (window[0] // 2, window[1] // 2)
    rows, columns = (side + -side % 8 for side in size)
    padded = torch.zeros(2, 3, rows, columns)
    padded[..., : size[0], : size[1]] = images
    height, width = min(window[0], rows), min(window[1], columns)
    total = {name: torch.zeros(2, CLASSES, rows, columns) for name in ("fused", "context", "detail", "attention")}
    count = torch.zeros(rows, columns)
    for top in sorted({*range(0, rows - height, stride[0]), rows - height}):
        for left in sorted({*range(0, columns - width, stride[1]), columns - width}):
            here = (..., slice(top, top + height), slice(left, left + width))
            out = net(padded[here], detail="windows")
            share = (
                out.attention if isinstance(out.attention, Tensor) else torch.full((2, 1, 1, 1), float(out.attention))
            )
            maps = {"fused": out.logits, "context": out.context_logits, "detail": out.detail_logits}
            maps["attention"] = share.expand_as(out.context_logits)
            for name, small in maps.items():
                cells = interpolate(small, size=(height // 4, width // 4), mode="bilinear")
                total[name][here] += interpolate(cells, size=(height, width), mode="bilinear")
            count[here] += 1
    scales = net.predict_scales(images, **settings)
    one_map = isinstance(attention, (nn.Module, float, int))
    for name, expected in total.items():
        got = getattr(scales, name)
        expected = (expected / count)[..., : size[0], : size[1]]
        if name == "attention" and one_map:
            expected = expected[:, :1]
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    assert 0 <= scales.attention.min() <= scales.attention.max() <= 1
    if isinstance(attention, (float, int)):
        assert (scales.attention == attention).all()
    torch.testing.assert_close(scales.fused, net.predict(images, **settings), rtol=0, atol=2e-6)


def test_a_full_attention_stays_1_however_upsampling_rounds() -> None:
    head = nn.Sequential(First(), nn.Conv2d(6, 1, 1))
    nn.init.constant_(head[1].bias, 1000.0)
    attention = model(head, scale=6, detail_size=(24, 24)).predict_scales(torch.rand(1, 3, 60, 84)).attention
    assert attention.min() > 1 - 1e-6
    assert attention.max() == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fused_scales_are_what_predict_says_in_any_precision(dtype: torch.dtype) -> None:
    net, image = model().to(dtype), torch.randn(1, 3, 50, 70, dtype=dtype)
    net.attention.train(False)
    modes = [m.training for m in net.modules()]
    scales = net.predict_scales(image, batch_size=3)
    assert [m.training for m in net.modules()] == modes
    # maps are upsampled beside each other, which the CPU rounds otherwise
    atol = 1e-14 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(scales.fused, net.predict(image, batch_size=3), rtol=0, atol=atol)
    assert {x.dtype for x in scales} == {torch.promote_types(dtype, torch.float32)}
    assert not any(x.requires_grad for x in scales)


def test_gradients_reach_every_parameter() -> None:
    net = model()
    net(torch.randn(2, 3, 64, 64)).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in net.named_parameters())


def test_gradcheck_through_both_scales() -> None:
    net = model(detail_size=(16, 16)).double().eval()
    images = torch.randn(1, 3, 16, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: net(x, CropBox(0, 8, 16, 16)).logits, (images,))
    assert torch.autograd.gradcheck(lambda x: net(x, detail="windows").logits, (images,))


def test_around_torchvision() -> None:
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    get = pytest.importorskip("torchvision.models.feature_extraction").create_feature_extractor
    body = get(resnet18(weights=None), {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"})

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, images: Tensor) -> list[Tensor]:
            return list(self.body(images).values())

    check_around(Levels(), (64, 128, 256, 512))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"out_indices": (1, 2, 3, 4)}),  # stride 2 first
        ("convnext_atto", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "strict_img_size": False, "output_fmt": "NHWC"}),
    ],
)
def test_around_timm(name: str, settings: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    channels_last = settings.pop("output_fmt", "NCHW") == "NHWC"
    body = timm.create_model(name, features_only=True, pretrained=False, **settings)

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, images: Tensor) -> list[Tensor]:
            return [x.permute(0, 3, 1, 2) if channels_last else x for x in self.body(images)]

    check_around(Levels(), tuple(body.feature_info.channels()))


def check_around(encoder: nn.Module, channels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head = ScaleAttentionHead(channels, 1, embed_dims=8)
    net = MultiResSegmenter(encoder, Decoder(channels), head, detail_size=(64, 64))
    out = net(torch.randn(2, 3, 128, 128))
    assert out.logits.shape == (2, CLASSES, 32, 32)
    out.logits.mean().backward()
    assert next(p for p in encoder.parameters()).grad is not None
    assert net.predict(torch.randn(1, 3, 100, 150), output="labels").shape == (1, 100, 150)


def test_compiled_with_changing_boxes_and_sizes() -> None:
    net = model(0.5)
    compiled = torch.compile(net, backend="eager")
    for size, top in ((64, 0), (64, 8), (96, 16), (80, 40)):
        images, box = torch.randn(1, 3, size, size), CropBox(top, 0, 32, 16)
        torch.testing.assert_close(compiled(images, box).logits, net(images, box).logits)
        torch.testing.assert_close(compiled.eval()(images).logits, net.eval()(images).logits)


IMAGES = torch.zeros(1, 3, 64, 64)
BAD = {
    "attention out of range": (lambda: model(1.5), "attention must be a module or a number in [0, 1], got 1.5"),
    "attention as a function": (
        lambda: model(torch.sigmoid),
        "attention must be a module or a number in [0, 1], got <built-in method sigmoid",
    ),
    "encoder as a function": (
        lambda: MultiResSegmenter(torch.relu, nn.Conv2d(3, 4, 1), 0.5, detail_size=8),
        "encoder must be a torch.nn.Module, got builtin_function_or_method: a function's weights would neither be ",
    ),
    "decoder as a function": (
        lambda: MultiResSegmenter(nn.Conv2d(3, 4, 1), lambda x: x, 0.5, detail_size=8),
        "decoder must be a torch.nn.Module, got function: a function's weights would neither be trained nor copied",
    ),
    "detail_size": (
        lambda: model(detail_size=(20, 16)),
        "detail_size must be a multiple of 8 (by scale, output_stride and multiple_of), got (20, 16)",
    ),
    "detail_stride": (
        lambda: model(detail_stride=6),
        "detail_stride must be a multiple of 4, whole cells of the logits, got (6, 6)",
    ),
    "image sides": (
        lambda: model()(torch.zeros(1, 3, 60, 64)),
        "sides of images must be a multiple of 8 (by scale, output_stride and multiple_of), got (60, 64); take "
        "(64, 64), pad to it, or use predict()",
    ),
    "image rank": (lambda: model()(torch.zeros(3, 64, 64)), "images must be float (B, K, H, W), got torch.float32"),
    "image type": (lambda: model()(IMAGES.byte()), "images must be float (B, K, H, W), got torch.uint8"),
    "detail name": (lambda: model()(IMAGES, detail="all"), "detail must be 'crop', 'windows' or None, got 'all'"),
    "box and windows": (
        lambda: model()(IMAGES, CropBox(0, 0, 32, 16), detail="windows"),
        "box is for detail='crop'; windows cover the whole image",
    ),
    "box outside": (
        lambda: model()(IMAGES, CropBox(40, 0, 32, 16)),
        "box (40, 0, 32, 16) must be non-empty and lie inside the tensor of 64x64 pixels",
    ),
    "box off the grid": (
        lambda: model()(IMAGES, CropBox(4, 0, 32, 16)),
        "box (4, 0, 32, 16) times 1/8 does not lie on whole cells; use a box whose coordinates are multiples of 8",
    ),
    "image smaller than the detail": (
        lambda: model()(torch.zeros(1, 3, 24, 24)),
        "detail_size (32, 16) must fit into the context crop of (24, 24)",
    ),
    "decoder size": (
        lambda: MultiResSegmenter(nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 5, 1), 0.5, detail_size=(32, 32))(IMAGES),
        "decoder must return logits (B, C, 8, 8) for images of (32, 32) at output_stride=4, got (1, 5, 4, 4)",
    ),
    "decoder type": (
        lambda: MultiResSegmenter(nn.Identity(), Dictionary(), 0.5, detail_size=(32, 32))(IMAGES),
        "at output_stride=4, got dict",
    ),
    "attention size": (
        lambda: model(nn.Sequential(First(), nn.Conv2d(6, 3, 1)))(IMAGES),
        "attention must be (1, 5, 8, 8) or (1, 1, 8, 8) like context_logits, got (1, 3, 8, 8)",
    ),
    "predict window": (
        lambda: model().predict(IMAGES, window=(30, 32)),
        "window must be a multiple of 8 (by scale, output_stride and multiple_of), got (30, 32); take (32, "
        "32), or None",
    ),
    "scales window": (
        lambda: model().predict_scales(IMAGES, window=(30, 32)),
        "window must be a multiple of 8 (by scale, output_stride and multiple_of), got (30, 32); take (32, "
        "32), or None",
    ),
    "scales rank": (lambda: model().predict_scales(IMAGES[0]), "images must be float (B, K, H, W), got torch.float32"),
    "predict rank": (
        lambda: model().predict(torch.zeros(3, 64, 64)),
        "images must be float (B, K, H, W), got torch.float32 (3, 64, 64)",
    ),
    "predict output": (
        lambda: model().predict(IMAGES, output="classes"),
        "output must be one of ('logits', 'probs', 'labels'), got 'classes'",
    ),
}


class First(nn.Module):
    def forward(self, features: list[Tensor]) -> Tensor:
        return features[0]


class Dictionary(nn.Module):
    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"out": features}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, text = BAD[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def test_labels_and_images_are_cut_alike() -> None:
    images = torch.arange(64 * 64.0).view(1, 1, 64, 64).expand(1, 3, 64, 64)
    out = model().train()(images.contiguous())
    assert out.detail_box is not None
    assert torch.equal(
        crop(images, out.detail_box)[0, 0, 0, :1], images[0, 0, out.detail_box.top, out.detail_box.left].view(1)
    )
