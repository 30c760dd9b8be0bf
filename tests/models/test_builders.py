"""The Mix Transformer, the DAFormer head, the builders, and published files in and out."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import checkpoint, image
from torch import Tensor, nn
from torch.torch_version import TorchVersion
from torchvision.models import resnet101

from hrda_lib import EMATeacher, FeatureDistance, MultiResSegmenter, ScaleAttentionHead, SelfTraining
from hrda_lib.models import (
    DAFormerHead,
    DeepLabV2Head,
    EncoderDecoder,
    MixTransformer,
    MixTransformerSize,
    ResNet101,
    daformer,
    deeplab_v2,
    hrda,
    load_encoder_weights,
    load_reference_checkpoint,
    to_reference_state_dict,
)
from hrda_lib.models.mix_transformer import DropPath

TINY = MixTransformerSize((8, 16, 20, 32), (1, 1, 2, 1))


def tiny(**settings: Any) -> nn.Module:
    return hrda(TINY, 5, embed_dims=8, attention_embed_dims=8, detail_size=(32, 32), **settings)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("mit_b0", 3_319_392),
        ("mit_b1", 13_151_424),
        ("mit_b2", 24_196_288),
        ("mit_b3", 44_072_128),
        ("mit_b4", 60_842_688),
        ("mit_b5", 81_443_008),
    ],
)
def test_parameter_counts(size: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(MixTransformer(size)) == count


def test_parameters_of_hrda() -> None:
    with torch.device("meta"):
        assert parameters(hrda()) == 85_685_990


@pytest.mark.parametrize("size", [(64, 64), (65, 90), (33, 32), (34, 200), (31, 9), (1, 1)])
def test_any_image_size(size: tuple[int, int]) -> None:
    features = MixTransformer(TINY)(torch.rand(2, 3, *size))
    for feature, width, stride in zip(features, TINY.widths, (4, 8, 16, 32), strict=True):
        assert feature.shape == (2, width, -(-size[0] // stride), -(-size[1] // stride))


def test_small_images_and_windows() -> None:
    torch.manual_seed(0)
    model = hrda(TINY, 5, embed_dims=8, attention_embed_dims=8, detail_size=(16, 24)).eval()
    assert model.predict(torch.rand(1, 3, 50, 33)).shape == (1, 5, 50, 33)
    assert model.train()(torch.rand(2, 3, 32, 48)).detail_logits.shape == (2, 5, 4, 6)


def test_two_epsilons() -> None:
    for name, module in MixTransformer(TINY).named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-5 if name.endswith(("embed_norm", "reduce_norm")) else 1e-6), name


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


def test_drop_path_skips_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.ones(4000, 3, 2)
    out = layer(x)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert abs(out.mean() - 1) < 0.03
    assert layer.eval()(x) is x
    rates = [block.drop_path.rate for stage in MixTransformer(TINY, drop_path=0.4).stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_the_teacher_drops_nothing() -> None:
    teacher = EMATeacher(tiny(drop_path=0.9, dropout=0.9))
    assert teacher.training
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(teacher(images).logits, teacher(images).logits)


def test_recomputed_stages_have_the_same_gradients() -> None:
    gradients = []
    for stages in ((), (0, 2, 3)):
        torch.manual_seed(0)
        encoder = MixTransformer(TINY, drop_path=0.5, checkpoint_stages=stages)
        torch.manual_seed(1)
        sum(feature.sin().sum() for feature in encoder(torch.rand(2, 3, 64, 64))).backward()
        gradients.append([p.grad for p in encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_channels_and_classes_of_your_own() -> None:
    model = tiny(in_channels=4, attention_classwise=False).eval()
    out = model(torch.rand(1, 4, 64, 96))
    assert out.logits.shape == (1, 5, 16, 24)
    assert out.attention.shape == (1, 1, 8, 12)
    fixed = tiny(fixed_attention=0.25).eval()(torch.rand(1, 3, 64, 64))
    assert fixed.attention == 0.25


@pytest.mark.parametrize("fusion", ["sepaspp", "aspp", "conv1"])
def test_head(fusion: Any) -> None:
    torch.manual_seed(0)
    head = DAFormerHead([8, 16], 5, embed_dims=8, fusion=fusion, dropout=0).eval()
    features = [torch.rand(2, 8, 16, 12), torch.rand(2, 16, 8, 6)]
    logits = head(features)
    assert logits.shape == (2, 5, 16, 12)
    levels = []
    for feature, embed in zip(features, head.embeddings, strict=True):
        level = torch.einsum("bchw,oc->bohw", feature, embed.weight[:, :, 0, 0]) + embed.bias[:, None, None]
        levels.append(nn.functional.interpolate(level, size=(16, 12), mode="bilinear"))
    expected = head.classifier(head.fuse(torch.cat(levels, 1)))
    assert torch.allclose(logits, expected, atol=1e-5)
    assert [m.p for m in head.modules() if isinstance(m, nn.Dropout2d)] == [0]


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
    assert torch.equal(model.predict(images, output="labels"), expected.argmax(1).to(torch.uint8))
    left, right = (model.predict(images[..., start : start + 50]) for start in (0, 20))
    windows = model.predict(images, window=(50, 50), stride=(50, 20))
    assert torch.allclose(windows[..., :20], left[..., :20], atol=1e-6)
    assert torch.allclose(windows[..., 20:50], (left[..., 20:] + right[..., :30]) / 2, atol=1e-6)


def test_deeplab_at_two_scales() -> None:
    torch.manual_seed(0)
    network = deeplab_v2(5)
    names = {name for name, _ in network.encoder.named_parameters()}
    with torch.device("meta"):
        expected = resnet101()
    assert names | {"fc.weight", "fc.bias"} == {name for name, _ in expected.named_parameters()}
    assert network(torch.rand(2, 3, 65, 96)).shape == (2, 5, 9, 12)
    attention = ScaleAttentionHead(network.encoder.channels, 5, embed_dims=8)
    model = MultiResSegmenter(network.encoder, network.decoder, attention, detail_size=(32, 32), output_stride=8)
    training = SelfTraining(
        model, EMATeacher(model), feature_distance=FeatureDistance(network.encoder, classes=None, num_classes=5)
    )
    images, labels = torch.rand(2, 3, 64, 64), torch.randint(5, (2, 64, 64))
    for _, loss in training.losses(images, labels, images):
        loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_deeplab_head_is_the_sum_of_its_branches() -> None:
    torch.manual_seed(0)
    head = DeepLabV2Head(4, 3, dilations=(2, 3)).double()
    feature = torch.rand(1, 4, 7, 9, dtype=torch.float64)
    around = nn.functional.pad(feature, (3, 3, 3, 3))
    expected = torch.zeros(1, 3, 7, 9, dtype=torch.float64)
    for branch, dilation in zip(head.branches, (2, 3), strict=True):
        expected += branch.bias[:, None, None]
        for i in range(3):
            for j in range(3):
                top, left = 3 + dilation * (i - 1), 3 + dilation * (j - 1)
                window = around[:, :, top : top + 7, left : left + 9]
                expected += torch.einsum("bchw,oc->bohw", window, branch.weight[:, :, i, j])
    assert torch.allclose(head([feature]), expected, atol=1e-12)


@pytest.mark.parametrize("build", [tiny, lambda: daformer(TINY, 5, embed_dims=8), lambda: tiny(fixed_attention=0.5)])
def test_published_names_are_an_exact_inverse(build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = build(), build()
    entries = to_reference_state_dict(model)
    stored = {p.data_ptr() for p in model.state_dict().values()}
    assert all(entry.data_ptr() in stored for entry in entries.values())
    file = tmp_path / "iter_40000.pth"
    torch.save({"meta": {"CLASSES": ("road",), "iter": 40000}, "state_dict": prefixed("model", entries)}, file)
    load_reference_checkpoint(other, file)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def prefixed(prefix: str, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": entry for name, entry in entries.items()}


def test_student_teacher_and_bare_names() -> None:
    models = [tiny() for _ in range(3)]
    student, teacher = (to_reference_state_dict(model) for model in models[:2])
    file = {
        "state_dict": prefixed("model", student) | prefixed("ema_model", teacher) | prefixed("imnet_model", student)
    }
    for prefix, expected in ((None, student), ("model", student), ("ema_model", teacher)):
        load_reference_checkpoint(models[2], file, prefix=prefix)
        got = to_reference_state_dict(models[2])
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    load_reference_checkpoint(models[2], prefixed("ema_model", teacher))
    load_reference_checkpoint(models[2], student)
    with pytest.raises(ValueError, match="no entry starts with 'ema_model'; it has names without a prefix"):
        load_reference_checkpoint(models[2], student, prefix="ema_model")
    with pytest.raises(ValueError, match="prefix must be 'model', 'ema_model' or None, got 'student'"):
        load_reference_checkpoint(models[2], student, prefix="student")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.to_sparse(), "must be a dense tensor with values, got torch.sparse_coo"),
        (lambda x: x.to("meta"), "must be a dense tensor with values, got torch.strided of torch.float32 on meta"),
        (lambda x: nn.UninitializedParameter(), "must be a tensor, got UninitializedParameter"),
        (lambda x: x.long(), "must be a floating-point tensor, got torch.int64"),
        (lambda x: x > 0, "must be a floating-point tensor, got torch.bool"),
        (lambda x: x * float("nan"), "must be finite in torch.float32"),
        (lambda x: torch.full_like(x, 1e300, dtype=torch.float64), "must be finite in torch.float32"),
    ],
)
def test_a_bad_entry_changes_nothing(spoil: Any, message: str) -> None:
    model, entries = tiny(), to_reference_state_dict(tiny())
    before = [x.clone() for x in model.state_dict().values()]
    last = list(entries)[-1]
    with pytest.raises(ValueError, match=rf"\(0 entries missing, 0 unexpected, 1 wrong\): {re.escape(last)} {message}"):
        load_reference_checkpoint(model, {**entries, last: spoil(entries[last])})
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_entries_may_be_of_another_precision_or_share_memory_with_the_model() -> None:
    model, other = tiny(), tiny()
    half = {name: x.half() if x.is_floating_point() else x for name, x in to_reference_state_dict(other).items()}
    load_reference_checkpoint(model, half)
    assert all(
        torch.equal(x.half(), half[name]) for name, x in to_reference_state_dict(model).items() if x.is_floating_point()
    )
    own = to_reference_state_dict(model)
    a, b = "backbone.norm1.weight", "backbone.norm1.bias"
    expected = own[b].clone(), own[a].clone()
    load_reference_checkpoint(model, {**own, a: own[b], b: own[a]})
    assert torch.equal(own[a], expected[0])
    assert torch.equal(own[b], expected[1])


def test_a_model_without_memory_is_refused() -> None:
    with torch.device("meta"):
        empty = tiny()
    with pytest.raises(ValueError, match="of the model is on the meta device; give it memory first"):
        load_reference_checkpoint(empty, to_reference_state_dict(tiny()))


def test_wrapped_models() -> None:
    model = tiny()
    compiled = torch.compile(model, backend="eager")
    entries = to_reference_state_dict(compiled)
    assert entries.keys() == to_reference_state_dict(model).keys()
    load_reference_checkpoint(compiled, to_reference_state_dict(tiny()))


def test_no_name_in_common() -> None:
    entries = {f"module.{name}": x for name, x in to_reference_state_dict(tiny()).items()}
    message = r"59 unexpected, 0 wrong; no name is one of the model's, the first is module\.backbone\.patch_embed1"
    with pytest.raises(ValueError, match=message.replace("59", str(len(entries)))):
        load_reference_checkpoint(tiny(), entries)


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HOSTILE"],)


def test_a_hostile_file_is_refused_and_its_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTILE", str(tmp_path / "it ran"))
    file = tmp_path / "hostile.pth"
    torch.save({"state_dict": Hostile()}, file)
    message = r"hostile\.pth: refused, for it holds more than tensors \(it asks for (posix|nt)\.mkdir\)"
    for load in (load_reference_checkpoint, lambda model, file: load_encoder_weights(model.encoder, file)):
        with pytest.raises(ValueError, match=message):
            load(tiny(), file)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.skipif(TorchVersion(torch.__version__) < TorchVersion("2.7"), reason="older torch refuses numpy's numbers")
def test_notes_beside_the_weights_may_hold_numbers(tmp_path: Path) -> None:
    model, file = tiny(), tmp_path / "notes.pth"
    notes = {
        "best": np.float64(0.5),
        "iter": np.int64(3),
        "flag": np.bool_(True),
        "half": np.float16(0.5),
        "byte": np.uint8(7),
        "CLASSES": ("road",),
        "PALETTE": [[1, 2, 3]],
        "hooks": {},
    }
    torch.save({"meta": notes, "state_dict": prefixed("model", to_reference_state_dict(model))}, file)
    load_reference_checkpoint(model, file)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("truncated", "cannot be read as a checkpoint"),
        ("empty", "cannot be read as a checkpoint"),
        ("text", r"refused, for it holds more than tensors \(.{5,60}\); pass a file of torch.save or .safetensors"),
        ("absent", "no such file"),
        ("list", "a checkpoint must hold a dictionary of tensors, got list"),
        ("classes", r"decode_head.head.conv_seg.weight must be \(5, 8, 1, 1\), got \(7, 8, 1, 1\)"),
        ("missing", "missing backbone.norm4.weight; missing backbone.norm4.bias"),
        ("unexpected", "unexpected decode_head.extra"),
        ("encoder", "missing backbone.patch_embed1.proj.weight"),
        ("no tensor", "backbone.norm4.bias must be a tensor, got int"),
    ],
)
def test_damaged_files(case: str, message: str, tmp_path: Path) -> None:
    model, file = tiny(), tmp_path / "file.pth"
    entries: dict[str, Any] = dict(to_reference_state_dict(model))
    if case == "classes":
        entries = to_reference_state_dict(hrda(TINY, 7, embed_dims=8, attention_embed_dims=8, detail_size=(32, 32)))
    elif case == "missing":
        del entries["backbone.norm4.weight"], entries["backbone.norm4.bias"]
    elif case == "unexpected":
        entries["decode_head.extra"] = torch.zeros(1)
    elif case == "encoder":
        entries = {"layer1.0.weight": torch.zeros(1)}
    elif case == "no tensor":
        entries["backbone.norm4.bias"] = 3
    torch.save([1] if case == "list" else {"state_dict": entries}, file)
    if case == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif case in ("empty", "text"):
        file.write_text("" if case == "empty" else "weights\n")
    elif case == "absent":
        file.unlink()
    with pytest.raises(ValueError, match=message):
        load_reference_checkpoint(model, file)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (lambda size=size: hrda(size), r"size must be one of mit_b0, mit_b1, .*, or a MixTransformerSize of four")
            for size in (
                *("mit_b6", None, 5, True, [], (5, 5), ((8, 16, 20, 32), (1, 1, 1)), ((8, 16, 20), (1, 1, 1))),
                *(((8, 16, 20, 32), (0, 0, 0, 0)), ((8, 16, 20, -8), (1, 1, 1, 1)), ((8.0, 16, 20, 32), (1, 1, 1, 1))),
                ((8, 16, 20, 32), (True, 1, 1, 1)),
            )
        ),
        (lambda: MixTransformer("mit_b0", drop_path=1), r"drop_path must be a number in \[0, 1\), got 1"),
        *(
            (
                lambda stages=stages: MixTransformer("mit_b0", checkpoint_stages=stages),
                "checkpoint_stages must be a list of stages 0 to 3",
            )
            for stages in ([4], 2, None, True, torch.tensor([0, 1]))
        ),
        (lambda: MixTransformer(TINY, in_channels=2.5), "in_channels must be a positive int, got 2.5"),
        (lambda: tiny(attention_classwise="no"), "attention_classwise must be True or False, got 'no'"),
        (lambda: tiny(fixed_attention=nn.Identity()), r"fixed_attention must be a number in \[0, 1\] or None"),
        (lambda: tiny(fixed_attention=2), r"fixed_attention must be a number in \[0, 1\] or None, got 2"),
        (lambda: tiny(dropout="0.1"), r"dropout must be a number in \[0, 1\), got '0.1'"),
        (lambda: EncoderDecoder(None, nn.Identity()), "encoder must be a torch.nn.Module, got NoneType"),
        (lambda: ResNet101("nonsense"), "weights must be None or one of IMAGENET1K_V1, .*, got 'nonsense'"),
        (lambda: ResNet101(True), "weights must be None or one of"),
        (
            lambda: MixTransformer(TINY)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)),
            "must be float .* got torch.uint8",
        ),
        (lambda: MixTransformer(TINY)(torch.rand(0, 3, 32, 32)), r"\(B, 3, H, W\), got torch.float32 \(0, 3, 32, 32\)"),
        (lambda: DAFormerHead([8], 5)(None), r"channels \[8\], got NoneType"),
        (lambda: MixTransformer(MixTransformerSize((8, 15, 20, 32), (1, 1, 1, 1))), "multiples of the heads"),
        (
            lambda: MixTransformer(TINY)(torch.rand(1, 4, 32, 32)),
            r"images must be float \(B, 3, H, W\), got torch.float32 \(1, 4, 32, 32\)",
        ),
        (lambda: DAFormerHead([], 5), "in_channels must be a list of positive ints"),
        (lambda: DAFormerHead([8], 5, fusion="isa"), "fusion must be one of"),
        (lambda: DAFormerHead([8], 5, dilations=(6.5,)), "dilations must be a list of positive ints"),
        (lambda: DAFormerHead([8], 5)([torch.rand(1, 9, 4, 4)]), r"with channels \[8\], got \[9\]"),
        (lambda: DeepLabV2Head(8, 5, dilations=()), "dilations must be a list of positive ints, at least one"),
        (lambda: DeepLabV2Head(8, 5)([torch.rand(1, 9, 4, 4)]), r"last is \(B, 8, h, w\), got channels \[9\]"),
        (lambda: to_reference_state_dict(nn.Linear(1, 1)), "model must be built by hrda"),
        (lambda: to_reference_state_dict(EMATeacher(tiny())), "got EMATeacher; of an EMATeacher pass .module"),
        (
            lambda: to_reference_state_dict(EncoderDecoder(MixTransformer(TINY), DeepLabV2Head(32, 5))),
            "must be built by",
        ),
        (
            lambda: load_reference_checkpoint(tiny(), None),
            "path_or_state_dict must be a path or a dictionary of tensors, got NoneType",
        ),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


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


def test_the_file_is_read_in_full(tmp_path: Path) -> None:
    model = hrda("mit_b0", embed_dims=32, attention_embed_dims=32, detail_size=(64, 64)).eval()
    file = tmp_path / "b0.pth"
    torch.save(checkpoint(11), file)
    load_reference_checkpoint(model, file)
    with torch.no_grad():
        assert model.predict(image(11, "eval.image", 1, 128, 128)).isfinite().all()
    assert pickle.dumps(sorted(to_reference_state_dict(model))) == pickle.dumps(sorted(checkpoint(11)))
