"""Plausible mistakes of a caller, across rooms: a ValueError with a hint, or handled; never a silently wrong number."""

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hrda_lib import (
    ConfusionMatrix,
    CropBox,
    EMATeacher,
    FeatureDistance,
    MultiResCropSampler,
    MultiResSegmenter,
    ScaleAttentionFusion,
    ScaleAttentionHead,
    SegmenterOutput,
    SelfTraining,
    SlidingWindowInferer,
    StrongAugment,
    class_mix,
    confidence_weighted_ce,
    crop,
    fuse_scales,
    pseudo_labels,
    resize,
    sample_class_mask,
)
from hrda_lib.data import Concatenated, Folders, SourceCrops, TargetCrops
from hrda_lib.models import DAFormerHead, DeepLabV2Head

LOGITS, LABELS = torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
ONE_HOT = torch.nn.functional.one_hot(LABELS, 4).permute(0, 3, 1, 2)
IMAGES, MAPS = torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64)
PLAIN = nn.Conv2d(3, 4, 1)
AUGMENT = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
SEED = torch.Generator().manual_seed(0)


def segmenter(**settings: Any) -> MultiResSegmenter:
    return MultiResSegmenter(
        nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 4, 1), 0.5, **{"detail_size": (16, 16), **settings}
    )


class Keeps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x * 2
        return self.last


def keeping() -> nn.Module:
    module = Keeps()
    module(torch.ones(1, requires_grad=True))
    return module


class Answer(OrderedDict[str, Any]):
    """As those of transformers: entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Says(nn.Module):
    """Answers with what is given, in place of logits."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


def around(answer: Callable[[Tensor], Any], attention: Callable[[Tensor], Any] | None = None) -> SegmenterOutput:
    """A segmenter whose decoder answers so of features (1, 8, 8, 8)."""
    head = 0.5 if attention is None else Says(attention)
    net = MultiResSegmenter(nn.Conv2d(3, 8, 4, stride=4), Says(answer), head, detail_size=32)
    return net(torch.zeros(1, 3, 64, 64), (0, 0, 32, 32))


REMEDIES: dict[str, tuple[Callable[[], Any], str]] = {
    "torchvision": (
        lambda: SelfTraining(Says(lambda x: {"aux": x, "out": x}), PLAIN).source(IMAGES, MAPS),
        "student must return SegmenterOutput or a logits tensor, got dict; put Adapted(..., "
        "output='out') around the module that it is from (it has aux, out)",
    ),
    "transformers": (
        lambda: SelfTraining(Says(lambda x: Answer(loss=x, logits=x)), PLAIN).source(IMAGES, MAPS),
        "got Answer; put Adapted(..., output='logits') around the module that it is from (it has loss, logits)",
    ),
    "an object": (
        lambda: SelfTraining(PLAIN, Says(lambda x: SimpleNamespace(masks=x, n=3))).pseudo_label(IMAGES),
        "teacher must return SegmenterOutput or a logits tensor, got SimpleNamespace; put "
        "Adapted(..., output='masks') around the module that it is from (it has masks, n)",
    ),
    "a tuple": (
        lambda: SelfTraining(Says(lambda x: (x, x)), PLAIN).source(IMAGES, MAPS),
        "got tuple; put Adapted(..., output=0) around the module that it is from (it has 2 entries)",
    ),
    "other keys": (
        lambda: confidence_weighted_ce({"seg": LOGITS, "n": 1}, LABELS),
        "logits must be a tensor, got dict; pass its 'seg', or put Adapted(..., output='seg') around the module "
        "that it is from (it has seg, n)",
    ),
    "logits of transformers": (
        lambda: pseudo_labels(Answer(loss=1.0, logits=LOGITS)),
        "logits must be a tensor, got Answer; pass its 'logits', or put Adapted(..., output='logits') around the "
        "module that it is from (it has loss, logits)",
    ),
    "a SegmenterOutput": (
        lambda: pseudo_labels(segmenter()(IMAGES)),
        "logits must be a tensor, got SegmenterOutput; pass its 'logits', or put Adapted(..., output='logits') "
        "around the module that it is from (it has logits, detail_logits, detail_box, context_logits,",
    ),
    "a predictor of transformers": (
        lambda: SlidingWindowInferer(8)(IMAGES, lambda x: Answer(logits=x)),
        "predictor must return float logits (b, C, h, w), got Answer; put Adapted(..., output='logits') around",
    ),
    "a decoder of torchvision": (
        lambda: around(lambda x: {"out": x}),
        "got dict; put Adapted(..., output='out') around the module that it is from (it has out)",
    ),
    "full resolution": (
        lambda: around(lambda x: resize(x, 4 * x.shape[-1])),
        "decoder must return logits (B, C, 8, 8) for images of (32, 32) at output_stride=4, got (1, 8, 32, 32); this "
        "is output_stride=1",
    ),
    "half the resolution": (lambda: around(lambda x: resize(x, 4)), "got (1, 8, 4, 4); this is output_stride=8"),
    "channels-last logits": (
        lambda: around(lambda x: torch.zeros(1, 8, 8, 5)),
        "got (1, 8, 8, 5); these are channels last: permute(0, 3, 1, 2)",
    ),
    "an attention without tensor": (
        lambda: around(lambda x: x, lambda x: [x]),
        "attention must return logits (B, C or 1, h, w), got list; put Adapted(..., output=0) around the module",
    ),
    "channels-last features of the attention": (
        lambda: ScaleAttentionHead([8, 16], 4)([torch.zeros(1, 8, 6, 6), torch.zeros(1, 3, 3, 16)]),
        "with channels [8, 16], got [8, 3]; these are channels last: permute(0, 3, 1, 2), or an encoder such as hrda",
    ),
    "features that start with the image": (
        lambda: ScaleAttentionHead([8, 16], 4)([torch.zeros(1, c, 4, 16) for c in (3, 0, 8, 16)]),
        "with channels [8, 16], got [3, 0, 8, 16]; put Adapted(..., input=slice(2, None)) around this module (it is "
        "given 4 entries)",
    ),
    "levels in the middle": (
        lambda: DAFormerHead([8], 4)([torch.zeros(1, c, 4, 4) for c in (3, 8, 16)]),
        "got [3, 8, 16]; put Adapted(..., input=slice(1, 2)) around this module",
    ),
    "features in a dictionary": (
        lambda: ScaleAttentionHead([8, 16], 4)({"a": torch.zeros(1, 16, 4, 4), "b": torch.zeros(1, 8, 4, 4)}),
        "got dict; put Adapted(..., input=['b', 'a']) around this module (it is given a, b)",
    ),
    "features in an object": (
        lambda: ScaleAttentionHead([8], 4)(Answer(last=1, hidden_states=(torch.zeros(1, 8, 4, 4),))),
        "got Answer; put Adapted(..., input='hidden_states') around this module (it is given last, hidden_states)",
    ),
    "one tensor of features": (
        lambda: DeepLabV2Head(8, 4)(torch.zeros(1, 8, 4, 4)),
        "got channels a tensor of (1, 8, 4, 4); put Adapted(..., input=lambda x: [x]) around this module",
    ),
    "an attention in a dictionary": (
        lambda: around(lambda x: x, lambda x: {"out": x}),
        "got dict; put Adapted(..., output='out') around the module that it is from (it has out)",
    ),
    "channels-last features of the decoder": (
        lambda: DAFormerHead([8], 4)([torch.zeros(1, 6, 6, 8)]),
        "with channels [8], got [6]; these are channels last: permute(0, 3, 1, 2)",
    ),
    "channels-last features of DeepLab": (
        lambda: DeepLabV2Head(8, 4)([torch.zeros(1, 6, 6, 8)]),
        "got channels [6]; these are channels last: permute(0, 3, 1, 2)",
    ),
    "labels with a channel": (
        lambda: confidence_weighted_ce(LOGITS, LABELS[:, None]),
        "target must be (1, H, W) like logits, got (1, 1, 8, 8); drop the channel by squeeze(1)",
    ),
    "labels with a channel in the step": (
        lambda: SelfTraining(PLAIN, PLAIN).source(IMAGES, MAPS[:, None]),
        "got torch.int64 (1, 1, 32, 32); drop the channel by squeeze(1)",
    ),
    "labels with a channel to mix": (lambda: sample_class_mask(LABELS[:, None]), "drop the channel by squeeze(1)"),
    "a weight with a channel": (
        lambda: confidence_weighted_ce(LOGITS, LABELS, torch.ones(1, 1, 8, 8)),
        "got torch.float32 (1, 1, 8, 8); drop the channel by squeeze(1)",
    ),
    "predictions with a channel": (
        lambda: ConfusionMatrix(4).update(LABELS[:, None], LABELS),
        "prediction must be (1, 8, 8) like target, got (1, 1, 8, 8); drop the channel by squeeze(1)",
    ),
    "truth with a channel": (
        lambda: ConfusionMatrix(4).update(LABELS, LABELS[:, None]),
        "prediction must be (1, 1, 8, 8) like target, got (1, 8, 8); target.squeeze(1)",
    ),
    "one-hot labels": (
        lambda: confidence_weighted_ce(LOGITS, ONE_HOT),
        "target must be (1, H, W) like logits, got (1, 4, 8, 8); one class id a pixel is wanted: of one-hot labels, "
        "argmax over the classes",
    ),
    "one-hot labels, channels last": (
        lambda: confidence_weighted_ce(LOGITS, ONE_HOT.permute(0, 2, 3, 1)),
        "got (1, 8, 8, 4); one class id a pixel is wanted: of one-hot labels, argmax over the classes",
    ),
    "one-hot labels in the step": (
        lambda: SelfTraining(PLAIN, PLAIN).source(IMAGES, torch.zeros(1, 4, 32, 32)),
        "labels must be uint8 or int64 (1, 32, 32) like its images, got torch.float32 (1, 4, 32, 32); one class id a "
        "pixel is wanted: of one-hot labels, argmax over the classes",
    ),
    "one-hot labels to mix": (
        lambda: sample_class_mask(ONE_HOT),
        "got torch.int64 (1, 4, 8, 8); one class id a pixel is wanted",
    ),
    "one-hot truth": (
        lambda: ConfusionMatrix(4).update(LABELS, ONE_HOT),
        "prediction must be (1, 4, 8, 8) like target, got (1, 8, 8); pass a target of labels, not one-hot: argmax",
    ),
    "torch's ignored label": (
        lambda: confidence_weighted_ce(LOGITS, LABELS - 100),
        "target holds the label -100, outside [0, 4) and not the ignore_index 255; that is what torch ignores: choose "
        "ignore_index=-100, or write the other in its place",
    ),
    "torch's ignored label, measured": (
        lambda: ConfusionMatrix(4).update(LABELS, LABELS - 100),
        "target holds the label -100, outside [0, 4) and not the ignore_index 255; that is what torch ignores: choose",
    ),
    "a class weight as weight": (
        lambda: confidence_weighted_ce(LOGITS, LABELS, torch.ones(4)),
        "weight must be float (1, 8, 8) like target, got torch.float32 (4,); one number a pixel is wanted: one a class "
        "is class_weight",
    ),
    "images channels last": (
        lambda: segmenter()(IMAGES.permute(0, 2, 3, 1)),
        "got (32, 3); take (32, 8), but these look like channels last: permute(0, 3, 1, 2)",
    ),
    "images channels last in the step": (
        lambda: SelfTraining(PLAIN, PLAIN).source(IMAGES.permute(0, 2, 3, 1), MAPS),
        "labels must be uint8 or int64 (1, 32, 3) like its images, got torch.int64 (1, 32, 32); these look like "
        "channels last: permute(0, 3, 1, 2)",
    ),
    "images channels last to augment": (
        lambda: StrongAugment(**AUGMENT)(IMAGES.permute(0, 2, 3, 1)),  # type: ignore[arg-type]
        "images must be float (B, 3, H, W), got torch.float32 (1, 32, 32, 3); these look like channels last: permute(0",
    ),
    "an image without a batch": (
        lambda: segmenter().predict(IMAGES[0]),
        "images must be float (B, K, H, W), got torch.float32 (3, 32, 32); a batch of one is image[None]",
    ),
    "an image as cameras give it": (
        lambda: SlidingWindowInferer(8)(IMAGES[0].permute(1, 2, 0), PLAIN),
        "image must be (B, K, H, W), got (32, 32, 3); a batch of one is image.permute(2, 0, 1)[None]",
    ),
    "bytes as images": (
        lambda: segmenter()(IMAGES.byte()),
        "images must be float (B, K, H, W), got torch.uint8 (1, 3, 32, 32); convert with .float() / 255 and normalise, "
        "as hrda_lib.data.normalize does",
    ),
    "bytes as images to augment": (
        lambda: StrongAugment(**AUGMENT)(IMAGES.byte()),  # type: ignore[arg-type]
        "got torch.uint8 (1, 3, 32, 32); convert with .float() / 255 and normalise, as hrda_lib.data.normalize does",
    ),
    "labels with a channel in the distance": (
        lambda: FeatureDistance(PLAIN, classes=None, num_classes=4)(PLAIN(IMAGES) + 1, IMAGES, MAPS[:, None]),
        "got (1, 1, 32, 32); drop the channel by squeeze(1)",
    ),
}


def training(student: nn.Module, **settings: Any) -> SelfTraining:
    return SelfTraining(student, EMATeacher(student), **settings)


ONE, ONE_LABELS = torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.int64)
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a generator that a wrapper hides": (
        lambda: training(nn.Sequential(segmenter()), generator=torch.Generator()).source(ONE, ONE_LABELS),
        "student must take box and generator, got Sequential, whose forward does not pass them to the segmenter inside",
    ),
    "an augmentation that crops": (
        lambda: training(segmenter(), augment=lambda x, _: x[..., :32, :32]).mix(
            ONE, ONE_LABELS, ONE, ONE_LABELS, torch.ones(1, 64, 64)
        ),
        "augment's answer must be (1, 3, 64, 64) like its images, got (1, 3, 32, 32)",
    ),
    "a mask of 0 and 255": (
        lambda: training(segmenter()).masked(
            ONE, ONE_LABELS, torch.ones(1, 64, 64), mask=torch.full((1, 1, 64, 64), 255, dtype=torch.uint8)
        ),
        "mask must be in [0, 1], 1 or True = kept, got 255 to 255",
    ),
    "torch's own loss as criterion": (
        lambda: training(segmenter(), criterion=nn.CrossEntropyLoss()),
        "criterion must be callable as (logits, labels, weight), got CrossEntropyLoss()",
    ),
    "masking of other arguments": (
        lambda: training(segmenter(), masking=lambda images: images),
        "masking must be callable as (size, batch=, generator=), got <function",
    ),
    "fusion of other arguments": (
        lambda: MultiResSegmenter(nn.Identity(), nn.Identity(), 0.5, detail_size=8, fusion=lambda a, b: a),
        "fusion must be a function like hrda_lib.fuse_scales, got <function",
    ),
    "levels of one width in a dictionary": (
        lambda: ScaleAttentionHead([4, 4], 1)({"a": torch.zeros(1, 4, 8, 8), "b": torch.zeros(1, 4, 4, 4)}),
        "Adapted(..., input=['a', 'b'])",
    ),
    "a torchvision dictionary": (
        lambda: confidence_weighted_ce({"out": LOGITS}, LABELS),  # type: ignore[arg-type]
        "logits must be a tensor, got dict; pass its 'out', or put Adapted(..., output='out') around the module",
    ),
    "a numpy target": (
        lambda: confidence_weighted_ce(LOGITS, LABELS.numpy()),
        "target must be a tensor, got ndarray; see torch.from_numpy",
    ),
    "a number as weight": (lambda: confidence_weighted_ce(LOGITS, LABELS, 0.5), "weight must be a tensor, got float"),
    "a negative class weight": (
        lambda: confidence_weighted_ce(LOGITS, LABELS, class_weight=[1, 1, 1, -1]),
        "class_weight must not be negative, got [1.0, 1.0, 1.0, -1.0]",
    ),
    "pseudo labels of a dictionary": (lambda: pseudo_labels({"out": LOGITS}), "logits must be a tensor, got dict"),
    "fusing a dictionary": (lambda: fuse_scales({}, LOGITS, 0.5), "context_logits must be a tensor, got dict"),
    "cropping numpy": (lambda: crop(np.zeros((8, 8)), CropBox(0, 0, 2, 2)), "tensor must be a tensor, got ndarray"),
    "a box of three": (
        lambda: crop(LOGITS, (0, 0, 2)),
        "box must be four ints (top, left, height, width), got (0, 0, 2)",
    ),
    "a box of floats": (lambda: crop(LOGITS, (0.0, 0, 2, 2)), "box must be four ints"),
    "no box": (lambda: crop(LOGITS, None), "box must be four ints (top, left, height, width), got None"),
    "labels as box": (
        lambda: segmenter()(IMAGES, LABELS),
        "box must be four ints (top, left, height, width), got a tensor of (1, 8, 8)",
    ),
    "image and predictor swapped": (
        lambda: SlidingWindowInferer(8)(PLAIN, IMAGES),
        "image must be a tensor, got Conv2d",
    ),
    "no mask": (lambda: class_mix(LABELS, LABELS, None), "mask must be a tensor, got NoneType"),
    "a seed as generator": (
        lambda: sample_class_mask(LABELS, 0),
        "generator must be a torch.Generator, got 0; use torch.Generator().manual_seed(...)",
    ),
    "a seed for the step": (
        lambda: SelfTraining(PLAIN, PLAIN, generator=0),
        "generator must be a torch.Generator, got 0",
    ),
    "no teacher": (
        lambda: SelfTraining(PLAIN, None),
        "teacher and augment must be callable, got None and None",
    ),
    "numpy images": (
        lambda: MultiResCropSampler((8, 8))(np.zeros((1, 3, 8, 8))),
        "image must be a tensor, got ndarray",
    ),
    "lists in the metric": (lambda: ConfusionMatrix(2).update([0], [0]), "target must be a tensor, got list"),
    "mean of 0..255 images": (
        lambda: StrongAugment(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
        "got (123.675, 116.28, 103.53) and (58.395, 57.12, 57.375); divide those of images in [0, 255] by 255",
    ),
    "a negative feature distance": (
        lambda: FeatureDistance(PLAIN, classes=[0], num_classes=2, weight=-1),
        "weight must be in [0, inf], got -1",
    ),
    "probabilities as labels": (
        lambda: SelfTraining(PLAIN, PLAIN).source(IMAGES, torch.rand(1, 32, 32)),
        "labels must be uint8 or int64 (1, 32, 32) like its images, got torch.float32 (1, 32, 32); convert",
    ),
    "another dtype of the target": (
        lambda: SelfTraining(PLAIN, PLAIN).losses(IMAGES, torch.zeros(1, 32, 32, dtype=torch.uint8), IMAGES.double()),
        "source_images and target_images must have one shape, dtype and device",
    ),
    "attention left out": (lambda: MultiResSegmenter(PLAIN, PLAIN, None, detail_size=8), "got None"),
    "a state dict as student": (
        lambda: EMATeacher(PLAIN).update(PLAIN.state_dict()),
        "student must be a torch.nn.Module, got OrderedDict",
    ),
    "a kept activation": (lambda: EMATeacher(keeping()), "student cannot be copied: it holds a tensor with a graph"),
}


@pytest.mark.parametrize("case", MISTAKES | REMEDIES)
def test_mistake(case: str) -> None:
    call, text = (MISTAKES | REMEDIES)[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def test_plain_tuples_are_boxes() -> None:
    detail = torch.ones(1, 4, 4, 4)
    expected = fuse_scales(LOGITS, detail, 0.5, box=CropBox(2, 2, 4, 4))
    assert torch.equal(fuse_scales(LOGITS, detail, 0.5, box=(2, 2, 4, 4)), expected)
    assert torch.equal(ScaleAttentionFusion()(LOGITS, detail, 0.5, (8, 8, 16, 16)), expected)
    assert segmenter()(IMAGES, (8, 8, 16, 16)).detail_box == CropBox(8, 8, 16, 16)


@pytest.mark.parametrize("normalize", ["all", "valid", "weight"])
def test_a_pixel_of_weight_0_says_nothing(normalize: str) -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 2, 0, 0] = -torch.inf
    logits.requires_grad_()
    target, weight = torch.full((1, 2, 2), 2), torch.ones(1, 2, 2)
    weight[:, 0, 0] = 0
    loss = confidence_weighted_ce(logits, target, weight, normalize=normalize)
    loss.backward()
    pixels = {"all": 4, "valid": 4, "weight": 3}[normalize]
    assert loss.item() == pytest.approx(3 * np.log(3) / pixels)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_nan_logits_get_no_confidence() -> None:
    logits = torch.zeros(2, 2, 2, 2)
    logits[0] = torch.nan
    logits[1, 0] = 20
    weight = pseudo_labels(logits)[1]
    assert weight[0].max() == 0
    assert weight[1].min() == 0.5


def test_augmentation_keeps_float32_precision() -> None:
    augment = StrongAugment(**AUGMENT, jitter=1.0, blur=1.0)
    images = torch.rand(1, 3, 32, 32, generator=SEED)
    truth = augment(images.double(), torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (augment(images, torch.Generator().manual_seed(1)) - truth).abs().max() < 1e-5
    coarse = augment(images.bfloat16(), torch.Generator().manual_seed(1))
    assert coarse.dtype == torch.bfloat16
    rounded = augment(images.bfloat16().double(), torch.Generator().manual_seed(1))
    assert (coarse.double() - rounded).abs().max() < 0.01


def test_the_callers_tensors_stay_the_callers() -> None:
    images, kappa = torch.rand(1, 3, 8, 8), torch.ones(4)
    same = StrongAugment(**AUGMENT, jitter=0.0, blur=0.0)(images)
    assert torch.equal(same, images)
    assert same.data_ptr() != images.data_ptr()
    from hrda_lib import ConfidenceWeightedCE

    criterion = ConfidenceWeightedCE(class_weight=kappa)
    before = criterion(LOGITS, LABELS).item()
    kappa.mul_(10)
    assert criterion(LOGITS, LABELS).item() == before


@pytest.mark.parametrize(("detail", "scale"), [(12, 1), (12, 1.5), (12, 3), (16, 2)])
def test_default_strides_and_windows_fit_every_scale(detail: int, scale: float) -> None:
    net = segmenter(detail_size=detail, scale=scale).eval()
    assert net.predict(torch.zeros(1, 3, 50, 40)).shape == (1, 4, 50, 40)


def test_integer_parameters_are_copied() -> None:
    student = nn.Module()
    student.count = nn.Parameter(torch.tensor([3]), requires_grad=False)
    teacher = EMATeacher(student)
    student.count.add_(4)
    teacher.update(student)
    assert teacher.module.count.item() == 7
    assert teacher.step == 1


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_labels_of_few_bits(tmp_path: Path, bits: int) -> None:
    """Written by hand, because Pillow writes grey PNGs of 1 and 8 bits only."""
    import struct
    import zlib

    ids = np.array([[0, 1, 2, 3]] * 2, np.uint8)
    packed = b""
    for row in ids:
        value = 0
        for label in row:
            value = value << bits | int(label)
        packed += b"\0" + value.to_bytes(len(row) * bits // 8, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (4, 2)).save(tmp_path / "images" / "0.png")
    (tmp_path / "labels" / "0.png").write_bytes(png)
    assert torch.equal(Folders(tmp_path).label(0), torch.from_numpy(ids))


def test_streams_end_and_margins_leave_something(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        Image.new("RGB" if folder == "images" else "L", (16, 16)).save(tmp_path / folder / "0.png")
    folders = Concatenated(Folders(tmp_path) for _ in range(2))
    assert len(folders) == 2
    assert len(list(SourceCrops(folders, 8, length=3))) == 3
    target = Folders(tmp_path).unlabeled()
    with pytest.raises(IndexError, match=r"^sample 3 is outside 0\.\.2 of this stream$"):
        TargetCrops(target, 8, length=3)[3]
    assert TargetCrops(target, 16, length=1, margins=(0, 15, 0, 15))[0].valid.sum() == 1
    for margins in ((0, 20, 0, 0), (0, 0, 8, 8)):
        with pytest.raises(ValueError, match=r"leave nothing of 0, which has \(16, 16\) pixels"):
            TargetCrops(target, 16, length=1, margins=margins)[0]
