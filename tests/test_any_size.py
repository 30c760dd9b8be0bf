"""Networks that take only some sides: at both scales, in boxes, in windows and in predict."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from hrda_lib import (
    Adapted,
    CropBox,
    EMATeacher,
    MultiResCropSampler,
    MultiResSegmenter,
    SelfTraining,
    SlidingWindowInferer,
    crop,
    fuse_scales,
    resize,
)

CLASSES = 4


class UNet(nn.Module):
    """Halves ``depth`` times and adds each level again on the way up: sides must be multiples of 2**depth."""

    def __init__(self, depth: int = 3, answers: int = 1) -> None:
        super().__init__()
        widths = [3, *[6] * depth]
        self.down = nn.ModuleList(nn.Conv2d(i, o, 2, stride=2) for i, o in pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for o, i in pairwise(widths))
        self.out = nn.Conv2d(3, CLASSES, 1)
        self.answers = answers

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for layer in self.down:
            levels.append(x)
            x = layer(x)
        for layer, skip in zip(reversed(self.up), reversed(levels), strict=True):
            x = layer(x).relu() + skip
        return self.out(x)[..., :: self.answers, :: self.answers]


class Patches(nn.Module):
    """Patches of 14, as of DINOv2; it refuses other sides as timm does, and any but ``only`` where that is given."""

    def __init__(self, patch: int = 14, only: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.embed, self.patch, self.only, self.seen = nn.Conv2d(3, 8, patch, stride=patch), patch, only, set()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        self.seen.add((height, width))
        assert height % self.patch == 0, f"Input height ({height}) should be divisible by patch size ({self.patch})."
        assert width % self.patch == 0, f"Input width ({width}) should be divisible by patch size ({self.patch})."
        assert self.only in (None, (height, width)), f"Input height ({height}) doesn't match model."
        return self.embed(x)


def upsampled(factor: float) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, CLASSES, 1), nn.Upsample(scale_factor=factor, mode="bilinear"))


def unet(**settings: Any) -> MultiResSegmenter:
    torch.manual_seed(0)
    return MultiResSegmenter(nn.Identity(), UNet(), 0.5, **{"detail_size": 32, "output_stride": 1, **settings})


def vit(stride: float | None = 3.5, **settings: Any) -> MultiResSegmenter:
    torch.manual_seed(0)
    encoder, factor = Patches(only=settings.pop("only", None)), 14 / (stride or 3.5)
    given = {"detail_size": 28, "output_stride": stride, "multiple_of": 14, **settings}
    return MultiResSegmenter(encoder, upsampled(factor), upsampled(factor), **given)


def step(student: nn.Module, size: int | tuple[int, int]) -> list[float]:
    """One training step at those sides; the losses."""
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 1, 3, height, width, generator=generator)
    labels = torch.randint(CLASSES, (1, height, width), generator=generator)
    losses = []
    for _, loss in SelfTraining(student, EMATeacher(student), generator=generator).losses(source, labels, target):
        loss.backward()
        losses.append(loss.item())
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    return losses


NETWORKS: dict[str, tuple[Callable[[], MultiResSegmenter], Any]] = {
    "U-Net": (lambda: unet(multiple_of=8), 64),
    "U-Net, wide": (lambda: unet(multiple_of=(8, 16), detail_size=(32, 48)), (48, 96)),
    "U-Net, three scales apart": (lambda: unet(multiple_of=8, scale=3, detail_size=24), 72),
    "U-Net, 1.5": (lambda: unet(multiple_of=8, scale=1.5, detail_size=24), 36),
    "patches of 14, stride 14": (lambda: vit(14), 56),
    "patches of 14, stride 7": (lambda: vit(7), 56),
    "patches of 14, stride 3.5": (lambda: vit(3.5), 56),
    "patches of 14, stride 3.5, wide": (lambda: vit(3.5, detail_size=(28, 42)), (56, 84)),
    "patches of 14, at pixels": (lambda: vit(None), 56),
    "one size": (lambda: vit(3.5, only=(28, 28), multiple_of=28), 56),
    "one size, wide": (lambda: vit(3.5, only=(28, 42), multiple_of=(28, 42), detail_size=(28, 42)), (56, 84)),
    "one size, at pixels": (lambda: vit(None, only=(28, 28), multiple_of=28), 56),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_and_predicts_any_size(name: str) -> None:
    build, size = NETWORKS[name]
    student = build()
    assert len(step(student, size)) == 2
    for rows, columns in ((50, 131), (131, 50), (1, 1), (7, 200), (64, 64), (57, 85)):
        images = torch.randn(2, 3, rows, columns)
        assert student.predict(images).shape == (2, CLASSES, rows, columns)
    assert student.predict(images, output="labels").shape == (2, 57, 85)
    assert student.predict_scales(images).attention.shape[-2:] == (57, 85)


@given(st.sampled_from([1, 1.5, 2, 3]), st.sampled_from([1, 3.5, 4, None]), st.sampled_from([1, 4, 14]), st.data())
def test_predict_gives_the_encoder_sides_that_it_takes(scale: float, stride: Any, of: int, data: st.DataObject) -> None:
    encoder = Patches(of)
    decoder = nn.Sequential(nn.Conv2d(8, 2, 1), ToStride(of / stride) if stride else nn.Identity())
    fit = MultiResSegmenter(
        encoder,
        decoder,
        0.5,
        detail_size=84 if scale != 1.5 else 252,
        scale=scale,
        output_stride=stride,
        multiple_of=of,
    )
    rows, columns = (data.draw(st.integers(1, 300)) for _ in range(2))
    assert fit.predict(torch.zeros(1, 3, rows, columns)).shape[-2:] == (rows, columns)
    assert all(side % of == 0 for sides in encoder.seen for side in sides)


class ToStride(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        size = [round(side * self.factor) for side in x.shape[-2:]]
        return interpolate(x, size=size, mode="bilinear")


def test_predict_is_the_padded_image_cut_back() -> None:
    student, images = unet(multiple_of=8), torch.randn(1, 3, 70, 90)
    expected = student.predict(pad(images, (0, 96 - 90, 0, 80 - 70)))[..., :70, :90]
    assert torch.equal(student.predict(images), expected)


def test_predict_pads_no_more_than_it_must() -> None:
    student = vit(3.5)
    student.predict(torch.randn(1, 3, 10, 100))  # two scales of one patch, not the window of 56
    assert {rows for rows, _ in student.encoder.seen} == {14, 28}


def test_a_network_that_names_no_multiple_is_padded_to_the_window() -> None:
    student, images = unet(), torch.randn(1, 3, 50, 131)
    expected = student.predict(pad(images, (0, 1, 0, 14)))[..., :50, :131]
    torch.testing.assert_close(student.predict(images), expected)


@pytest.mark.parametrize(
    ("size", "box", "message"),
    [
        (
            (64, 72),
            None,
            "sides of images must be a multiple of 16 (by scale, output_stride and multiple_of), got (64, 72",
        ),
        (
            (64, 64),
            CropBox(0, 0, 20, 32),
            "box must have sides that are multiples of multiple_of=(8, 8), got (0, 0, 20",
        ),
    ],
    ids=["images", "box"],
)
def test_training_sides_that_do_not_fit(size: tuple[int, int], box: CropBox | None, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        unet(multiple_of=8)(torch.zeros(1, 3, *size), box)


def test_a_network_that_refuses_its_crops_says_so() -> None:
    message = (
        "encoder and decoder must take crops of (32, 36), but came to: The size of tensor a (8) must match the size "
    )
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        unet()(torch.zeros(1, 3, 64, 72))
    assert "pass what their sides must be divisible by, such as multiple_of=32 (it is (1, 1))" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, ValueError])
def test_predict_pads_to_the_window_however_the_network_refuses(kind: type[Exception]) -> None:
    class Picky(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-2:] != (32, 32):
                raise kind(f"Input image size {tuple(x.shape[-2:])} doesn't match model")
            return super().forward(x)

    student = MultiResSegmenter(Picky(3, 8, 4, stride=4), nn.Conv2d(8, CLASSES, 1), 0.5, detail_size=32)
    assert student.predict(torch.randn(1, 3, 20, 131)).shape == (1, CLASSES, 20, 131)
    with pytest.raises(ValueError, match=r"must take crops of \(32, 48\), but came to: Input image size \(32, 48\)"):
        student(torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize("error", [RuntimeError("mine, and about no number"), torch.OutOfMemoryError("size 8 GB")])
def test_other_errors_of_a_network_stay_what_they_are(error: Exception) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(type(error), match=str(error)):
        MultiResSegmenter(Broken(), nn.Identity(), 0.5, detail_size=8)(torch.zeros(1, 3, 16, 16))
    with pytest.raises(type(error), match=str(error)):
        SlidingWindowInferer(32)(torch.zeros(1, 3, 16, 16), Broken())


@pytest.mark.parametrize("scale", [1.5, 2])
def test_windows_of_an_image_smaller_than_the_detail(scale: float) -> None:
    student = MultiResSegmenter(Patches(8), upsampled(2), 0.5, detail_size=96, scale=scale, multiple_of=8).eval()
    side = 24 if scale == 1.5 else 32
    if scale == 2:
        assert student(torch.zeros(1, 3, side, 192)).logits.shape == (1, CLASSES, 8, 48)
    wrong = MultiResSegmenter(Patches(16), upsampled(4), 0.5, detail_size=96, scale=1.5, multiple_of=16).eval()
    with pytest.raises(
        ValueError, match=re.escape("must be at least detail_size (96, 96) or multiples of multiple_of=")
    ):
        wrong(torch.zeros(1, 3, 24, 96))
    with pytest.raises(ValueError, match=re.escape("window must be at least detail_size (96, 96) or multiples of")):
        wrong.predict(torch.zeros(1, 3, 96, 96), window=24)


# Windows alone


@pytest.mark.parametrize("size", [(10, 70), (52, 96), (64, 64), (100, 20), (100, 200), (1, 1)])
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_padded_windows(size: tuple[int, int], blend: Any) -> None:
    net, image = UNet(), torch.randn(2, 3, *size)
    infer = SlidingWindowInferer(64, pad=True, blend=blend)
    with torch.no_grad():
        rows, columns = (max(64 - side, 0) for side in size)
        expected = SlidingWindowInferer(64, blend=blend)(pad(image, (0, columns, 0, rows)), net)[
            ..., : size[0], : size[1]
        ]
        assert torch.equal(infer(image, net), expected)
    if min(size) >= 64:
        assert torch.equal(expected, SlidingWindowInferer(64, blend=blend)(image, net))


def test_padded_windows_at_the_predictors_resolution() -> None:
    net = UNet(answers=4)
    infer = SlidingWindowInferer(64, pad=True, resize=False)
    with torch.no_grad():
        assert infer(torch.randn(1, 3, 52, 96), net).shape == (1, CLASSES, 13, 24)
        with pytest.raises(ValueError, match=re.escape("do not line up with the box (0, 0, 50, 96)")):
            infer(torch.randn(1, 3, 50, 96), net)


def test_windows_cut_to_the_image_name_pad() -> None:
    message = "predictor must take windows of (52, 64), (64, 64) cut to the image, but came to: "
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        SlidingWindowInferer(64)(torch.zeros(1, 3, 52, 96), UNet())
    assert "pass pad=True, which pads the image instead" in str(caught.value)


# Logits of any size, and other ways to fuse


@pytest.mark.parametrize("box", [CropBox(0, 0, 28, 28), CropBox(3, 17, 28, 42)])
def test_at_pixels_equals_the_equation_written_out(box: CropBox) -> None:
    student, images = vit(None).eval(), torch.randn(2, 3, 84, 84)
    out = student(images, box)
    context = interpolate(images, scale_factor=0.5, mode="bilinear")
    features = student.encoder(context)
    coarse = interpolate(student.decoder(features), size=(84, 84), mode="bilinear")
    share = interpolate(student.attention(features).sigmoid(), size=(84, 84), mode="bilinear")
    fine = interpolate(student.decoder(student.encoder(crop(images, box))), size=box[2:], mode="bilinear")
    inside = torch.zeros(1, 1, 84, 84)
    inside[..., box.top : box.top + box.height, box.left : box.left + box.width] = 1
    left, right = box.left, 84 - box.left - box.width
    placed = pad(fine, (left, right, box.top, 84 - box.top - box.height))
    torch.testing.assert_close(out.logits, (1 - share * inside) * coarse + share * inside * placed)
    torch.testing.assert_close(out.detail_logits, fine)
    assert torch.equal(out.context_logits, student.decoder(features))  # as the decoder gave them
    assert out.detail_box == box


def test_at_pixels_and_at_cells_agree_where_all_is_linear() -> None:
    images, box = torch.randn(1, 3, 56, 56), CropBox(14, 28, 28, 28)
    pixels, cells = vit(None).eval(), vit(3.5).eval()
    assert all(torch.equal(a, b) for a, b in zip(pixels.parameters(), cells.parameters(), strict=True))
    detail = [resize(net(images, box).detail_logits, (28, 28)) for net in (pixels, cells)]
    torch.testing.assert_close(*detail)


def test_at_pixels_channels_last_are_refused() -> None:
    decoder = Adapted(nn.Conv2d(8, CLASSES, 1), output=lambda x: x.permute(0, 2, 3, 1))
    net = MultiResSegmenter(nn.Conv2d(3, 8, 4, stride=4), decoder, 0.5, detail_size=48, output_stride=None)
    message = "decoder must return logits (B, C, h, w) for images of (48, 48), got (1, 12, 12, 4); these are"
    with pytest.raises(ValueError, match=re.escape(message)):
        net(torch.zeros(1, 3, 96, 96))


@pytest.mark.parametrize("cells", [(1, 1), (1, 2), (3, 4), (4, 5), (96, 128)])
def test_at_pixels_any_rounding_of_cells_will_do(cells: tuple[int, int]) -> None:
    decoder = nn.Sequential(nn.Conv2d(8, CLASSES, 1), nn.AdaptiveAvgPool2d(cells))
    net = MultiResSegmenter(nn.Conv2d(3, 8, 4, stride=4), decoder, 0.5, detail_size=(96, 128), output_stride=None)
    assert net(torch.zeros(1, 3, 96, 128)).logits.shape == (1, CLASSES, 96, 128)


def test_boxes_at_pixels_lie_anywhere_and_are_drawn_on_multiples_of_the_scale() -> None:
    student, images = vit(None), torch.randn(1, 3, 56, 56)
    drawn = {student(images, generator=torch.Generator().manual_seed(k)).detail_box[:2] for k in range(30)}
    assert {side % 2 for place in drawn for side in place} == {0}
    assert {side % 4 for place in drawn for side in place} == {0, 2}
    assert student(images, CropBox(1, 27, 28, 14)).detail_logits.shape[-2:] == (28, 14)


class Attention(nn.Module):
    """One cell for every ``stride`` of the features, in both directions."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 1, stride, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features)


@pytest.mark.parametrize("stride", [4, None])
def test_an_attention_of_another_size_is_resized_after_the_sigmoid(stride: int | None) -> None:
    torch.manual_seed(0)
    student = MultiResSegmenter(
        nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, CLASSES, 1), Attention(2), detail_size=32, output_stride=stride
    )
    images, box = torch.randn(1, 3, 64, 64), CropBox(8, 16, 32, 32)
    out = student(images, box)
    share = student.attention(student.encoder(out.context)).sigmoid()
    assert share.shape[-2:] == (4, 4)
    if stride is None:
        assert torch.equal(out.attention, share)
        fused = fuse_scales(resize(out.context_logits, 64), out.detail_logits, resize(share, 64), box=box, scale=1)
    else:
        assert torch.equal(out.attention, resize(share, (8, 8)))
        fused = fuse_scales(out.context_logits, out.detail_logits, resize(share, 8), box=box.scaled(1 / 4))
    assert torch.equal(out.logits, fused)


def test_another_fusion() -> None:
    seen = []

    def larger(context: Tensor, detail: Tensor, attention: Any, *, box: Any, scale: float) -> Tensor:
        seen.append((attention, box, scale))
        return torch.maximum(resize(context, [round(side * scale) for side in context.shape[-2:]]), detail.mean())

    encoder, decoder = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, CLASSES, 1)
    student = MultiResSegmenter(encoder, decoder, 0.25, detail_size=32, fusion=larger)
    out = student(torch.randn(1, 3, 64, 64), CropBox(8, 16, 32, 32))
    assert seen == [(0.25, CropBox(2, 4, 8, 8), 2)]
    assert torch.equal(out.logits, torch.maximum(resize(out.context_logits, 16), out.detail_logits.mean()))
    assert student.predict(torch.randn(1, 3, 50, 60)).shape == (1, CLASSES, 50, 60)


def test_a_fusion_may_have_weights() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(()))

        def forward(
            self, context: Tensor, detail: Tensor, attention: Any, *, box: Any = None, scale: float = 2
        ) -> Tensor:
            return fuse_scales(context, detail, attention * self.gate.sigmoid(), box=box, scale=scale)

    student = MultiResSegmenter(
        nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, CLASSES, 1), nn.Conv2d(8, 1, 1), detail_size=32, fusion=Gate()
    )
    step(student, 64)
    assert student.fusion.gate.grad != 0
    assert EMATeacher(student).module.fusion is not student.fusion


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        ("attention", "fusion must be a function like hrda_lib.fuse_scales, got 'attention'"),
        (
            lambda c, d, a, *, box, scale: c,
            "fusion's answer must be float (1, 4, 16, 16), got torch.float32 (1, 4, 8, 8)",
        ),
    ],
    ids=["no function", "another size"],
)
def test_a_fusion_that_does_not_fit(fusion: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiResSegmenter(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, CLASSES, 1), 0.5, detail_size=32, fusion=fusion)(
            torch.zeros(1, 3, 64, 64)
        )


def test_logits_that_do_not_fit_name_their_stride() -> None:
    net = MultiResSegmenter(Patches(), upsampled(4), 0.5, detail_size=28, output_stride=7, multiple_of=14)
    message = (
        "decoder must return logits (B, C, 4, 4) for images of (28, 28) at output_stride=7, got (1, 4, 8, 8); this is "
        "output_stride=3.5, and output_stride=None takes logits of any size"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        net(torch.zeros(1, 3, 56, 56))


def test_predict_shows_its_progress() -> None:
    calls: list[int] = []

    def shown(jobs: Any) -> Any:
        calls.append(len(jobs))
        return jobs

    unet(multiple_of=8).predict(torch.zeros(1, 3, 64, 128), progress=shown)
    assert calls == [3]


@pytest.mark.parametrize("size", [(7, 200), (300, 20), (1, 1), (4, 64)])
def test_at_pixels_one_cell_may_be_of_any_height(size: tuple[int, int]) -> None:
    layers = [nn.Conv2d(3 if i == 0 else 4, 4, 3, stride=2, padding=1) for i in range(5)]
    student = MultiResSegmenter(nn.Sequential(*layers), nn.Conv2d(4, 4, 1), 0.5, detail_size=64, output_stride=None)
    assert student.predict(torch.randn(1, 3, *size)).shape == (1, 4, *size)


def test_at_pixels_cells_need_not_be_square() -> None:
    student = MultiResSegmenter(
        nn.Conv2d(3, 5, (16, 8), stride=(16, 8)),
        nn.Identity(),
        0.5,
        detail_size=64,
        output_stride=None,
        multiple_of=(16, 8),
    )
    assert student.predict(torch.randn(1, 3, 100, 131)).shape == (1, 5, 100, 131)


@pytest.mark.parametrize("text", ["Input width (16) doesn't match model (32).", "", "wrong resolution"])
def test_however_a_network_says_that_sides_do_not_fit(text: str) -> None:
    class Picky(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-2:] == (32, 32), text
            return super().forward(x)

    student = MultiResSegmenter(Picky(3, 8, 4, stride=4), nn.Conv2d(8, CLASSES, 1), 0.5, detail_size=32)
    assert student.predict(torch.randn(1, 3, 64, 20)).shape == (1, CLASSES, 64, 20)


@pytest.mark.parametrize("setting", [{"scale": 1.3333333}, {"output_stride": 3.3333333}, {"scale": 2.000001}])
def test_rounded_numbers_are_refused_at_once(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be a quotient of whole numbers up to 4096, got"):
        MultiResCropSampler(48, **setting)
    assert MultiResCropSampler(48, scale=4 / 3).sample(48)[1] == (0, 0, 48, 48)
