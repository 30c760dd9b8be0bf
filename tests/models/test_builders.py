"""The papers' networks, assembled."""

from typing import Any

import pytest
import torch
from tiny_models import TINY, parameters, tiny
from torch import Tensor, nn

from hrda_lib import EMATeacher, FeatureDistance, ScaleAttentionHead, SelfTraining
from hrda_lib.models import (
    DAFormerHead,
    EncoderDecoder,
    MixTransformer,
    daformer,
    hrda,
)


def test_parameters_of_hrda() -> None:
    with torch.device("meta"):
        assert parameters(hrda()) == 85_685_990


def test_small_images_and_windows() -> None:
    torch.manual_seed(0)
    model = hrda(TINY, 5, embed_dims=8, attention_embed_dims=8, detail_size=(16, 24)).eval()
    assert model.predict(torch.rand(1, 3, 50, 33)).shape == (1, 5, 50, 33)
    assert model.train()(torch.rand(2, 3, 32, 48)).detail_logits.shape == (2, 5, 4, 6)


def test_initial_weights() -> None:
    """Convolutions before a batch norm: normal, 2 / (outputs x kernel); classifiers 0.01; the encoder 0.02."""
    torch.manual_seed(0)
    model = hrda("mit_b0")
    std = {name: p.std().item() for name, p in model.named_parameters() if p.dim() > 1}
    branch = "decoder.fuse.branches"
    expected = {
        "decoder.fuse.bottleneck.conv.weight": (2 / (256 * 9)) ** 0.5,
        f"{branch}.0.conv.weight": (2 / 256) ** 0.5,
        f"{branch}.1.depthwise_conv.conv.weight": (2 / (1024 * 9)) ** 0.5,
        f"{branch}.3.pointwise_conv.conv.weight": (2 / 256) ** 0.5,
        "attention.fuse.0.weight": (2 / 256) ** 0.5,
        "decoder.classifier.weight": 0.01,
        "attention.classifier.weight": 0.01,
        "encoder.stages.0.embed.weight": (2 / (32 * 49)) ** 0.5,
        "encoder.stages.3.blocks.1.attention.query.weight": 0.02,
        "encoder.stages.3.blocks.1.feed_forward.depthwise.weight": (2 / 9) ** 0.5,
    }
    assert {name: std[name] for name in expected} == pytest.approx(expected, rel=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("classifier.bias") or (name.startswith("encoder") and name.endswith("bias")):
            assert not parameter.any(), name


@pytest.mark.parametrize("maps", [5, 1])
def test_weights_are_drawn_for_encoder_decoder_and_attention_in_this_order(maps: int) -> None:
    """So that a seed gives the weights that it gave in every version."""
    torch.manual_seed(0)
    model = tiny(attention_classwise=maps == 5, drop_path=0.3, dropout=0.2)
    after = torch.rand(1)
    torch.manual_seed(0)
    encoder = MixTransformer(TINY, drop_path=0.3)
    decoder = DAFormerHead(TINY.widths, 5, embed_dims=8, dropout=0.2)
    attention = ScaleAttentionHead(TINY.widths, maps, embed_dims=8, dropout=0.2)
    nn.init.kaiming_normal_(attention.fuse[0].weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(attention.classifier.bias)
    assert torch.equal(torch.rand(1), after)
    for part, by_hand in ((model.encoder, encoder), (model.decoder, decoder), (model.attention, attention)):
        assert part.state_dict().keys() == by_hand.state_dict().keys()
        assert all(torch.equal(x, by_hand.state_dict()[name]) for name, x in part.state_dict().items())
        assert repr(part) == repr(by_hand)
    torch.manual_seed(0)
    one_scale = daformer(TINY, 5, embed_dims=8)
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in one_scale.state_dict().items())


def test_the_teacher_drops_nothing() -> None:
    teacher = EMATeacher(tiny(drop_path=0.9, dropout=0.9))
    assert teacher.training
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(teacher(images).logits, teacher(images).logits)


def test_channels_and_classes_of_your_own() -> None:
    model = tiny(in_channels=4, attention_classwise=False).eval()
    out = model(torch.rand(1, 4, 64, 96))
    assert out.logits.shape == (1, 5, 16, 24)
    assert out.attention.shape == (1, 1, 8, 12)
    fixed = tiny(fixed_attention=0.25).eval()(torch.rand(1, 3, 64, 64))
    assert fixed.attention == 0.25


@pytest.mark.parametrize("build", [tiny, lambda: daformer(TINY, 5, embed_dims=8)])
@torch.no_grad()
def test_compiled_and_exported_agree_with_eager(build: Any) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()  # other tests may have compiled the same code so often that it is given up
    model, images = build().eval(), torch.rand(1, 3, 64, 64)
    model.decoder.classifier.weight.normal_()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(model, (images,)).module()
    eager, *others = (run(images) for run in (model, compiled, exported))
    for other in others:
        if build is tiny:
            eager, other = eager[0], other[0]
        assert (other - eager).abs().max() < 1e-5
    assert eager.abs().max() > 0.1


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_one_scale_can_be_traced_for_other_sizes() -> None:
    torch.manual_seed(0)
    model = daformer(TINY, 5, embed_dims=8).eval()
    traced = torch.jit.trace(model, torch.rand(1, 3, 64, 64), check_trace=False)
    images = torch.rand(1, 3, 128, 96)
    assert torch.allclose(traced(images), model(images), atol=1e-5)


def test_feature_distance_with_one_scale() -> None:
    torch.manual_seed(0)
    model = daformer(TINY, 5, embed_dims=8, drop_path=0, dropout=0)
    reference = MixTransformer(TINY, drop_path=0)
    distance = FeatureDistance(reference, classes=[1, 2], num_classes=5, weight=0.5)
    training = SelfTraining(model, EMATeacher(model), feature_distance=distance)
    images, labels = torch.rand(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.int64)
    labels[1, :, 32:] = 3
    loss, parts = training.source(images, labels)
    away = (model.encoder(images)[-1] - reference.eval()(images)[-1]).norm(dim=1)
    expected = 0.5 * (away[0].sum() + away[1, :, 0].sum()) / 6
    assert torch.allclose(parts["feature_distance"], expected)
    logits, features = model(images, return_features=True)
    assert torch.allclose(loss, parts["logits"] + expected)
    assert [feature.shape[1] for feature in features] == list(TINY.widths)
    assert torch.equal(logits, model(images))
    loss.backward()
    names = [name for name, _ in training.losses(images, labels, images)]
    assert names == ["source", "mixed"]


def test_one_scale_predicts_whole_images() -> None:
    torch.manual_seed(0)
    model = daformer(TINY, 5, embed_dims=8, dropout=0.5)
    model.encoder.eval()
    images = torch.rand(2, 3, 50, 70)
    logits = model.predict(images)
    assert (model.training, model.encoder.training, model.decoder.dropout.training) == (True, False, True)
    with torch.no_grad():
        expected = nn.functional.interpolate(model.eval()(images), size=(50, 70), mode="bilinear")
    assert torch.allclose(logits, expected, atol=1e-6)
    assert not logits.requires_grad
    assert torch.equal(model.predict(images, output="labels"), expected.argmax(1))
    assert torch.equal(model.predict(images, output="labels", label_dtype=torch.uint8), expected.argmax(1).byte())
    left, right = (model.predict(images[..., start : start + 50]) for start in (0, 20))
    windows = model.predict(images, window=(50, 50), stride=(50, 20))
    assert torch.allclose(windows[..., :20], left[..., :20], atol=1e-6)
    assert torch.allclose(windows[..., 20:50], (left[..., 20:] + right[..., :30]) / 2, atol=1e-6)


def test_gradients_end_to_end_in_float64() -> None:
    """Of a direction in parameter space, through both scales, the fusion and both losses."""
    from hrda_lib import CropBox, confidence_weighted_ce, crop

    torch.manual_seed(0)
    model = tiny(drop_path=0, dropout=0).double().train()
    images, labels = torch.rand(1, 3, 64, 64, dtype=torch.float64), torch.randint(5, (1, 64, 64))
    box, names = CropBox(8, 16, 32, 32), [name for name, _ in model.named_parameters()]
    start = [p.detach().clone() for p in model.parameters()]
    direction = [torch.randn_like(p) for p in start]

    def loss(step: Tensor) -> Tensor:
        moved = {name: p + step * d for name, p, d in zip(names, start, direction, strict=True)}
        out = torch.func.functional_call(model, moved, (images, box))
        fused = confidence_weighted_ce(out.logits, labels)
        return 0.9 * fused + 0.1 * confidence_weighted_ce(out.detail_logits, crop(labels, box))

    assert torch.autograd.gradcheck(loss, torch.zeros((), dtype=torch.float64, requires_grad=True), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hrda("mit_b6"), r"size must be one of mit_b0, mit_b1, .*, or a MixTransformerSize of four"),
        (lambda: tiny(attention_classwise="no"), "attention_classwise must be True or False, got 'no'"),
        (lambda: tiny(fixed_attention=nn.Identity()), r"fixed_attention must be a number in \[0, 1\] or None"),
        (lambda: tiny(fixed_attention=2), r"fixed_attention must be a number in \[0, 1\] or None, got 2"),
        (lambda: tiny(dropout="0.1"), r"dropout must be a number in \[0, 1\), got '0.1'"),
        (lambda: EncoderDecoder(None, nn.Identity()), "encoder must be a torch.nn.Module, got NoneType"),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
