"""Every number of the public callables, out of its meaning: refused by name, or right; never a plausible wrong answer.

A case calls something with one number, or with a tensor of which one value is replaced. What is not listed as fine must
be a ValueError that names the argument. What is fine must come out finite; what is passed on must come out not finite,
which nobody can take for an answer.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import TINY
from torch import Tensor, nn

import hrda_lib
import hrda_lib.augment
import hrda_lib.checkpointing
import hrda_lib.data
import hrda_lib.distributed
import hrda_lib.lora
import hrda_lib.losses
import hrda_lib.models
import hrda_lib.optim
from hrda_lib import (
    ConfidenceWeightedCE,
    ConfusionMatrix,
    CropBox,
    EMATeacher,
    FeatureDistance,
    MultiResCropSampler,
    MultiResSegmenter,
    ScaleAttentionFusion,
    ScaleAttentionHead,
    SelfTraining,
    SlidingWindowInferer,
    StrongAugment,
    TokenDistillation,
    class_mix,
    confidence_weighted_ce,
    crop,
    fuse_scales,
    gaussian_blur,
    patch_mask,
    pseudo_labels,
    resize,
    sample_box_mask,
    sample_class_mask,
    window_grid,
)
from hrda_lib.augment import fourier_style
from hrda_lib.checkpointing import seed_step
from hrda_lib.data import (
    RareClasses,
    Resized,
    ResizedImages,
    Sample,
    SourceCrops,
    TargetCrops,
    channel_statistics,
    normalize,
)
from hrda_lib.lora import add_lora
from hrda_lib.losses import entropy
from hrda_lib.models import (
    DAFormerHead,
    DeconvHead,
    DeepLabV2Head,
    EncoderDecoder,
    MixTransformer,
    SimplePyramid,
    TimmEncoder,
    daformer,
    hrda,
)
from hrda_lib.optim import parameter_groups, warmup_poly

VALUES = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "1e38": 1e38,
    "True": True,
    "text": "2",
    "-1": -1,
    "0": 0,
}


class Case(NamedTuple):
    """A call of one number."""

    call: Callable[[Any], Any]
    named: str  # what the error must name
    fine: tuple[str, ...] = ()
    passed_on: tuple[str, ...] = ()
    wholes: bool = False  # the number goes into a tensor of whole numbers
    inside: bool = False  # it goes into a tensor, where True is 1


torch.manual_seed(0)
LOGITS, LABELS = torch.randn(1, 4, 8, 8), torch.randint(4, (1, 8, 8))
IMAGES, MAPS = torch.rand(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64)
WEIGHT, COUNTS = torch.full((1, 8, 8), 0.5), torch.tensor([[5, 0], [3, 4]])
PLAIN = nn.Conv2d(3, 4, 1)
AUGMENT: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "jitter": 1.0, "blur": 1.0}
ENCODER = nn.Conv2d(3, 8, 4, stride=4)
DISTANCE: dict[str, Any] = {"classes": None, "num_classes": 4}


def spoiled(x: Tensor, value: Any) -> Tensor:
    x = x.clone()
    x[(0,) * x.dim()] = value
    return x


def segmenter(**settings: Any) -> MultiResSegmenter:
    arguments = {"attention": 0.5, "detail_size": 16, **settings}
    return MultiResSegmenter(ENCODER, nn.Conv2d(8, 4, 1), **arguments)


def training(**settings: Any) -> SelfTraining:
    return SelfTraining(PLAIN, PLAIN, **settings)


def distance(value: Any = None, features: Any = None, **settings: Any) -> Tensor:
    images = IMAGES if value is None else value
    features = ENCODER(IMAGES).detach() + 1 if features is None else features
    return FeatureDistance(ENCODER, **{**DISTANCE, **settings})(features, images, MAPS)


def distillation(value: Any = None, features: Any = None, **settings: Any) -> Tensor:
    reference = nn.Conv2d(3, 8, 4, stride=4)
    reference.channels = (8,)  # type: ignore[assignment]
    images = IMAGES if value is None else value
    features = ENCODER(IMAGES).detach() if features is None else features
    answer: Tensor = TokenDistillation(reference, **{"in_channels": 8, "size": 32, **settings})(features, images)
    return answer


def adapters(**settings: Any) -> Tensor:
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)])})
    add_lora(network, **{"rank": 2, "targets": ["0"], **settings})
    answer: Tensor = network["blocks"][0](torch.ones(1, 4))
    return answer


def layers(decay: Any) -> list[float]:
    vit = nn.ModuleDict({"patch_embed": nn.Conv2d(3, 3, 1), "blocks": nn.ModuleList([nn.Conv2d(3, 3, 1)])})
    model = nn.ModuleDict({"encoder": vit, "head": nn.Conv2d(3, 3, 1)})
    return [group["lr"] for group in parameter_groups(model, layer_decay=decay)]


def confusion(**settings: Any) -> ConfusionMatrix:
    matrix = ConfusionMatrix(**{"num_classes": 4, **settings})
    matrix.update(LABELS, LABELS)
    return matrix


def schedule(**settings: Any) -> list[float]:
    optimizer = torch.optim.SGD(PLAIN.parameters(), lr=1.0)
    return [warmup_poly(optimizer, **{"total": 9, "warmup": 3, **settings}).lr_lambdas[0](t) for t in range(12)]


def groups(**settings: Any) -> list[float]:
    model = nn.ModuleDict({"encoder": nn.Conv2d(3, 3, 1), "head": nn.Conv2d(3, 3, 1)})
    return [number for group in parameter_groups(model, **settings) for number in (group["lr"], group["weight_decay"])]


def sampler(**settings: Any) -> Any:
    return MultiResCropSampler(**{"detail_size": 16, **settings})(IMAGES).context


def ce(**settings: Any) -> Tensor:
    return confidence_weighted_ce(**{"logits": LOGITS, "target": LABELS, "weight": WEIGHT, **settings})


def augmented(**settings: Any) -> Tensor:
    return StrongAugment(**{**AUGMENT, **settings})(IMAGES, torch.Generator().manual_seed(0))


class Pictures:
    """Two labelled images without files."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.zeros(3, 24, 32, dtype=torch.uint8), self.label(index), str(index))

    def label(self, index: int) -> Tensor:
        return torch.full((24, 32), index, dtype=torch.uint8)


def source_crops(**settings: Any) -> Tensor:
    return SourceCrops(Pictures(), **{"size": 16, **settings})[0].image  # type: ignore[arg-type]


def predicted(**settings: Any) -> Tensor:
    return EncoderDecoder(ENCODER, nn.Conv2d(8, 4, 1)).predict(IMAGES, **{"window": 16, **settings})


def pixel_weight(logits: Tensor) -> Tensor:
    """nan where a pixel without a best class would be trusted."""
    weight = pseudo_labels(logits, threshold=0.0, per="pixel")[1]
    return torch.where(weight.bool() & ~logits.amax(1).isfinite(), math.nan, weight)


CASES: dict[str, Case] = {
    # geometry and crops
    "CropBox.scaled factor": Case(lambda v: list(CropBox(0, 8, 16, 32).scaled(v)), "factor", ("1e38",)),
    "crop box": Case(lambda v: crop(IMAGES, (v, 0, 8, 8)), "box", ("0",)),
    "crop tensor": Case(
        lambda v: crop(spoiled(IMAGES, v), (0, 0, 8, 8)), "", ("1e38", "-1", "0"), ("nan", "inf", "-inf"), inside=True
    ),
    "window_grid size": Case(lambda v: window_grid(v, 4, 2), "size"),
    "window_grid window": Case(lambda v: window_grid(8, (4, v), 2), "window"),
    "window_grid stride": Case(lambda v: window_grid(8, 4, v), "stride"),
    "resize size": Case(lambda v: resize(IMAGES, (8, v)), "size"),
    "resize x": Case(
        lambda v: resize(spoiled(IMAGES, v), 64), "", ("1e38", "-1", "0"), ("nan", "inf", "-inf"), inside=True
    ),
    "MultiResCropSampler detail_size": Case(lambda v: sampler(detail_size=v), "detail_size"),
    "MultiResCropSampler context_size": Case(lambda v: sampler(context_size=(32, v)), "context_size"),
    "MultiResCropSampler scale": Case(lambda v: sampler(scale=v), "scale"),
    "MultiResCropSampler output_stride": Case(lambda v: sampler(output_stride=v), "output_stride"),
    "MultiResCropSampler multiple_of": Case(lambda v: sampler(multiple_of=v), "multiple_of"),
    "MultiResCropSampler.sample size": Case(lambda v: MultiResCropSampler(16).sample(v), "size"),
    # fusion
    "fuse_scales attention": Case(lambda v: fuse_scales(LOGITS, resize(LOGITS, 16), v), "attention", ("0",)),
    "fuse_scales attention map": Case(
        lambda v: fuse_scales(LOGITS, resize(LOGITS, 16), spoiled(LOGITS.sigmoid(), v)),
        "attention",
        ("0",),
        inside=True,
    ),
    "fuse_scales scale": Case(lambda v: fuse_scales(LOGITS, resize(LOGITS, 16), 0.5, scale=v), "scale|detail_logits"),
    "fuse_scales context_logits": Case(
        lambda v: fuse_scales(spoiled(LOGITS, v), resize(LOGITS, 16), 0.0),
        "context_logits",
        ("1e38", "-1", "0"),
        inside=True,
    ),
    "fuse_scales detail_logits": Case(
        lambda v: fuse_scales(LOGITS, spoiled(resize(LOGITS, 16), v), 0.0),
        "detail_logits",
        ("1e38", "-1", "0"),
        inside=True,
    ),
    "ScaleAttentionFusion scale": Case(
        lambda v: ScaleAttentionFusion(scale=v)(LOGITS, LOGITS, LOGITS), "scale|detail_logits"
    ),
    "ScaleAttentionFusion output_stride": Case(lambda v: ScaleAttentionFusion(output_stride=v), "output_stride"),
    "ScaleAttentionFusion.forward attention_logits": Case(
        lambda v: ScaleAttentionFusion()(LOGITS, resize(LOGITS, 16), v), "attention", ("0",)
    ),
    "ScaleAttentionFusion attention_logits": Case(
        lambda v: ScaleAttentionFusion()(LOGITS, resize(LOGITS, 16), spoiled(LOGITS, v)),
        "attention",
        ("inf", "-inf", "1e38", "-1", "0"),  # a sigmoid of 0 or 1
        inside=True,
    ),
    "ScaleAttentionHead in_channels": Case(lambda v: ScaleAttentionHead([v], 4), "in_channels"),
    "ScaleAttentionHead out_channels": Case(lambda v: ScaleAttentionHead([8], v), "out_channels"),
    "ScaleAttentionHead embed_dims": Case(lambda v: ScaleAttentionHead([8], 4, embed_dims=v), "embed_dims"),
    "ScaleAttentionHead dropout": Case(lambda v: bool(ScaleAttentionHead([8], 4, dropout=v)), "dropout", ("0",)),
    # windows
    "SlidingWindowInferer window": Case(lambda v: SlidingWindowInferer((8, v)), "window"),
    "SlidingWindowInferer stride": Case(lambda v: SlidingWindowInferer(8, stride=v), "stride"),
    "SlidingWindowInferer batch_size": Case(lambda v: SlidingWindowInferer(8, batch_size=v), "batch_size"),
    "SlidingWindowInferer logits": Case(
        lambda v: SlidingWindowInferer(8)(spoiled(LOGITS, v), lambda x: x),
        "",
        ("1e38", "-1", "0"),
        ("nan", "inf", "-inf"),
        inside=True,
    ),
    "SlidingWindowInferer labels": Case(
        lambda v: SlidingWindowInferer(8, output="labels")(spoiled(LOGITS, v), lambda x: x),
        "predictor's logits",
        ("-inf", "1e38", "-1", "0"),
        inside=True,
    ),
    "SlidingWindowInferer probs": Case(
        lambda v: SlidingWindowInferer(8, output="probs")(spoiled(LOGITS, v), lambda x: x),
        "predictor's logits",
        ("-inf", "1e38", "-1", "0"),
        inside=True,
    ),
    # losses and labels
    "EMATeacher decay": Case(lambda v: EMATeacher(PLAIN, decay=v).module.weight, "decay", ("0",)),
    "confidence_weighted_ce logits": Case(
        lambda v: ce(logits=spoiled(LOGITS, v), target=torch.ones_like(LABELS)),
        "logits",
        ("-inf", "1e38", "-1", "0"),  # -inf rules out a class that is not the label
        inside=True,
    ),
    "confidence_weighted_ce logit of the label": Case(
        lambda v: ce(logits=spoiled(LOGITS, v), target=torch.zeros_like(LABELS)),
        "logits",
        ("1e38", "-1", "0"),
        inside=True,
    ),
    "confidence_weighted_ce resized logits": Case(
        lambda v: ce(logits=spoiled(LOGITS[..., :4, :4], v)), "logits", ("1e38", "-1", "0"), inside=True
    ),
    "confidence_weighted_ce weight": Case(lambda v: ce(weight=spoiled(WEIGHT, v)), "weight", ("0",), inside=True),
    "confidence_weighted_ce class_weight": Case(
        lambda v: ce(class_weight=[v, 1.0, 1.0, 1.0]), "class_weight", ("0",), inside=True
    ),
    "confidence_weighted_ce divisor": Case(
        lambda v: ce(
            logits=99 * nn.functional.one_hot(LABELS, 4).movedim(3, 1).float(),
            class_weight=[v, 1.0, 1.0, 1.0],
            normalize="weight",
        ),
        "class_weight",
        ("0",),
        inside=True,
    ),
    "confidence_weighted_ce ignore_index": Case(lambda v: ce(ignore_index=v), "ignore_index", ("-1", "0")),
    "confidence_weighted_ce target": Case(lambda v: ce(target=spoiled(LABELS, v)), "target", ("0",), wholes=True),
    "ConfidenceWeightedCE class_weight": Case(
        lambda v: ConfidenceWeightedCE(class_weight=[v, 1.0]).class_weight, "class_weight", ("1e38", "0"), inside=True
    ),
    "ConfidenceWeightedCE ignore_index": Case(
        lambda v: ConfidenceWeightedCE(ignore_index=v).ignore_index, "ignore_index", ("-1", "0")
    ),
    "entropy logits": Case(lambda v: entropy(spoiled(LOGITS, v)), "logits", ("-inf", "1e38", "-1", "0"), inside=True),
    "entropy weight": Case(lambda v: entropy(LOGITS, spoiled(WEIGHT, v)), "weight", ("0",), inside=True),
    "pseudo_labels logits": Case(
        lambda v: pixel_weight(spoiled(LOGITS, v)), "", ("nan", "inf", "-inf", "1e38", "-1", "0"), inside=True
    ),
    "pseudo_labels threshold": Case(lambda v: pseudo_labels(LOGITS, threshold=v)[1], "threshold", ("0",)),
    "pseudo_labels size": Case(lambda v: pseudo_labels(LOGITS, size=(8, v)), "size"),
    "ConfusionMatrix num_classes": Case(lambda v: ConfusionMatrix(v), "num_classes"),
    "ConfusionMatrix ignore_index": Case(lambda v: confusion(ignore_index=v).mean_iou(), "ignore_index", ("-1", "0")),
    "ConfusionMatrix target": Case(
        lambda v: confusion().update(LABELS, spoiled(LABELS, v)), "target", ("0",), wholes=True
    ),
    "ConfusionMatrix prediction": Case(
        lambda v: confusion().update(spoiled(LABELS, v), LABELS), "prediction", ("0",), wholes=True
    ),
    "ConfusionMatrix.iou absent": Case(lambda v: confusion().iou(absent=v), "absent", ("nan", "0")),
    "ConfusionMatrix.mean_iou classes": Case(lambda v: confusion().mean_iou([v]), "classes", ("0",)),
    "ConfusionMatrix.mean_iou absent": Case(lambda v: confusion().mean_iou(absent=v), "absent", ("nan", "0")),
    # mixing and augmentation
    "patch_mask size": Case(lambda v: patch_mask((8, v)), "size"),
    "patch_mask batch": Case(lambda v: patch_mask(8, batch=v), "batch"),
    "patch_mask ratio": Case(lambda v: patch_mask(8, ratio=v), "ratio", ("0",)),
    "patch_mask block": Case(lambda v: patch_mask(8, block=v), "block"),
    "sample_box_mask size": Case(lambda v: sample_box_mask((8, v)), "size"),
    "sample_box_mask batch": Case(lambda v: sample_box_mask(8, batch=v), "batch"),
    "sample_box_mask ratio": Case(lambda v: sample_box_mask(8, ratio=v), "ratio", ("0",)),
    "sample_class_mask classes": Case(lambda v: sample_class_mask(LABELS, classes=[[v]]), "classes", ("-1", "0")),
    "class_mix source": Case(
        lambda v: class_mix(spoiled(IMAGES, v), IMAGES, MAPS == 0),
        "",
        ("1e38", "-1", "0"),
        ("nan", "inf", "-inf"),
        inside=True,
    ),
    "class_mix source that is not seen": Case(
        lambda v: class_mix(spoiled(IMAGES, v), IMAGES, MAPS == 1), "", tuple(set(VALUES) - {"True"}), inside=True
    ),
    "StrongAugment images": Case(
        lambda v: StrongAugment(**AUGMENT)(spoiled(IMAGES, v)), "images", ("-1", "0"), inside=True
    ),
    "StrongAugment mean": Case(lambda v: augmented(mean=(0.5, v, 0.5)), "mean", ("0",)),
    "StrongAugment std": Case(lambda v: augmented(std=(0.5, v, 0.5)), "std"),
    "StrongAugment sigma, low": Case(lambda v: augmented(sigma=(v, 2.0)), "sigma"),
    "StrongAugment sigma, high": Case(lambda v: augmented(sigma=(1.5, v)), "sigma", ("1e38",)),
    **{
        f"StrongAugment {name}": Case(lambda v, name=name: augmented(**{name: v}), name, ("0",))
        for name in ("jitter", "brightness", "contrast", "saturation", "hue", "blur")
    },
    "gaussian_blur sigma": Case(
        lambda v: gaussian_blur(IMAGES, torch.tensor([float(v)])), "sigma", ("1e38", "True"), inside=True
    ),
    "gaussian_blur images": Case(
        lambda v: gaussian_blur(spoiled(IMAGES, v), torch.ones(1)),
        "",
        ("1e38", "-1", "0"),
        ("nan", "inf", "-inf"),
        inside=True,
    ),
    "fourier_style beta": Case(lambda v: fourier_style(IMAGES, IMAGES / 2, beta=v), "beta", ("0",)),
    "fourier_style source": Case(
        lambda v: fourier_style(spoiled(IMAGES, v), IMAGES), "source", ("-1", "0"), ("1e38",), inside=True
    ),
    "fourier_style target": Case(
        lambda v: fourier_style(IMAGES, spoiled(IMAGES, v)), "target", ("1e38", "-1", "0"), inside=True
    ),
    # feature distance
    "FeatureDistance classes": Case(lambda v: distance(classes=[v]), "classes", ("0",)),
    "FeatureDistance num_classes": Case(lambda v: distance(num_classes=v), "classes"),
    "FeatureDistance weight": Case(lambda v: distance(weight=v), "weight", ("1e38", "0")),
    "FeatureDistance min_ratio": Case(lambda v: distance(min_ratio=v), "min_ratio", ("0",)),
    "FeatureDistance ignore_index": Case(lambda v: distance(ignore_index=v), "ignore_index", ("-1", "0")),
    "FeatureDistance images": Case(lambda v: distance(spoiled(IMAGES, v)), "images|features", ("-1", "0"), inside=True),
    "FeatureDistance features": Case(
        lambda v: distance(features=spoiled(ENCODER(IMAGES).detach(), v)), "features", ("-1", "0"), inside=True
    ),
    # foundation models
    "TokenDistillation in_channels": Case(lambda v: distillation(in_channels=v), "in_channels"),
    "TokenDistillation weight": Case(lambda v: distillation(weight=v), "weight", ("1e38", "0")),
    "TokenDistillation size": Case(lambda v: distillation(size=v), "size"),
    "TokenDistillation images": Case(
        lambda v: distillation(spoiled(IMAGES, v)), "images", ("1e38", "-1", "0"), inside=True
    ),
    "TokenDistillation features": Case(
        lambda v: distillation(features=spoiled(ENCODER(IMAGES).detach(), v)), "features", ("-1", "0"), inside=True
    ),
    "add_lora rank": Case(lambda v: adapters(rank=v), "rank"),
    "add_lora alpha": Case(lambda v: adapters(alpha=v), "alpha", ("1e38",)),
    "add_lora first_block": Case(lambda v: adapters(first_block=v), "first_block", ("0",)),
    "parameter_groups layer_decay": Case(layers, "layer_decay"),
    # the segmenter and the step
    "MultiResSegmenter attention": Case(
        lambda v: segmenter(attention=v)(IMAGES, (0, 0, 16, 16)).logits, "attention", ("0",)
    ),
    "MultiResSegmenter detail_size": Case(lambda v: segmenter(detail_size=v), "detail_size"),
    "MultiResSegmenter scale": Case(lambda v: segmenter(scale=v), "scale"),
    "MultiResSegmenter output_stride": Case(lambda v: segmenter(output_stride=v), "output_stride"),
    "MultiResSegmenter multiple_of": Case(lambda v: segmenter(multiple_of=(8, v)), "multiple_of"),
    "MultiResSegmenter detail_stride": Case(lambda v: segmenter(detail_stride=v), "detail_stride"),
    "MultiResSegmenter images": Case(
        lambda v: segmenter()(spoiled(IMAGES, v)).logits, "images|logits", ("-1", "0", "1e38"), inside=True
    ),
    "MultiResSegmenter.predict images": Case(
        lambda v: segmenter().predict(spoiled(IMAGES, v), output="labels"),
        "images|logits",
        ("-1", "0", "1e38"),
        inside=True,
    ),
    "MultiResSegmenter.predict window": Case(lambda v: segmenter().predict(IMAGES, window=v), "window"),
    "MultiResSegmenter.predict stride": Case(lambda v: segmenter().predict(IMAGES, stride=v), "stride"),
    "MultiResSegmenter.predict batch_size": Case(lambda v: segmenter().predict(IMAGES, batch_size=v), "batch_size"),
    "MultiResSegmenter.predict confident": Case(
        lambda v: segmenter().predict(IMAGES, confident=v), "confident", ("0",)
    ),
    "MultiResSegmenter.predict_scales stride": Case(lambda v: segmenter().predict_scales(IMAGES, stride=v), "stride"),
    "MultiResSegmenter.predict_scales batch_size": Case(
        lambda v: segmenter().predict_scales(IMAGES, batch_size=v), "batch_size"
    ),
    "MultiResSegmenter.predict_scales window": Case(lambda v: segmenter().predict_scales(IMAGES, window=v), "window"),
    "SelfTraining detail_weight": Case(
        lambda v: training(detail_weight=v).source(IMAGES, MAPS)[0], "detail_weight", ("0",)
    ),
    "SelfTraining threshold": Case(lambda v: training(threshold=v).pseudo_label(IMAGES)[1], "threshold", ("0",)),
    "SelfTraining.pseudo_label micro_batch": Case(
        lambda v: training().pseudo_label(IMAGES, micro_batch=v)[1], "micro_batch"
    ),
    "SelfTraining.source images": Case(
        lambda v: training().source(spoiled(IMAGES, v), MAPS)[0], "images|logits", ("-1", "0", "1e38"), inside=True
    ),
    "SelfTraining.source labels": Case(
        lambda v: training().source(IMAGES, spoiled(MAPS, v))[0], "target", ("0",), wholes=True
    ),
    "SelfTraining.mix classes": Case(
        lambda v: training().mix(IMAGES, MAPS, IMAGES, MAPS, IMAGES[:, 0], classes=[[v]]).images, "classes", ("-1", "0")
    ),
    "SelfTraining.mixed classes": Case(
        lambda v: training().mixed(IMAGES, MAPS, IMAGES, MAPS, IMAGES[:, 0], classes=[[v]])[0], "classes", ("-1", "0")
    ),
    "SelfTraining.losses mixed_classes": Case(
        lambda v: [x for _, x in training().losses(IMAGES, MAPS, IMAGES, mixed_classes=[[v]])], "classes", ("-1", "0")
    ),
    "SelfTraining.mixed weight": Case(
        lambda v: training().mixed(IMAGES, MAPS, IMAGES, MAPS, spoiled(IMAGES[:, 0], v), classes=[[]])[0],
        "weight",
        ("0",),
        inside=True,
    ),
    "SelfTraining.masked images": Case(
        lambda v: training().masked(spoiled(IMAGES, v), MAPS, IMAGES[:, 0], mask=MAPS[:, None] == 1)[0],
        "images",
        ("-1", "0", "1e38"),
        inside=True,
    ),
    # optimisation
    "parameter_groups lr": Case(lambda v: groups(lr=v), "lr", ("1e38", "0")),
    "parameter_groups head_factor": Case(lambda v: groups(head_factor=v), "head_factor", ("1e38", "0")),
    "parameter_groups weight_decay": Case(lambda v: groups(weight_decay=v), "weight_decay", ("1e38", "0")),
    "warmup_poly total": Case(lambda v: schedule(total=v), "total"),
    "warmup_poly warmup": Case(lambda v: schedule(warmup=v), "warmup", ("0",)),
    "warmup_poly warmup_ratio": Case(lambda v: schedule(warmup_ratio=v), "warmup_ratio", ("0",)),
    "warmup_poly power": Case(lambda v: schedule(power=v), "power", ("1e38", "0")),
    # networks
    "EncoderDecoder.predict images": Case(
        lambda v: EncoderDecoder(ENCODER, nn.Conv2d(8, 4, 1)).predict(spoiled(IMAGES, v), output="labels"),
        "images|logits",
        ("-1", "0", "1e38"),
        inside=True,
    ),
    **{
        f"hrda {name}": Case(
            lambda v, name=name: hrda(TINY, **{"num_classes": 5, "detail_size": 32, name: v}).training,
            "num_classes|channels" if name == "num_classes" else name,
            ("0",) if name in ("fixed_attention", "drop_path", "dropout") else (),
        )
        for name in (
            "num_classes",
            "embed_dims",
            "attention_embed_dims",
            "detail_size",
            "fixed_attention",
            "drop_path",
            "dropout",
            "in_channels",
        )
    },
    **{
        f"daformer {name}": Case(
            lambda v, name=name: daformer(TINY, **{"num_classes": 5, name: v}).training,
            name,
            ("0",) if name in ("drop_path", "dropout") else (),
        )
        for name in ("num_classes", "embed_dims", "drop_path", "dropout", "in_channels")
    },
    "DAFormerHead in_channels": Case(lambda v: DAFormerHead([8, v], 5), "in_channels"),
    "DAFormerHead dilations": Case(lambda v: DAFormerHead([8], 5, dilations=[1, v]), "dilations"),
    "DeconvHead in_channels": Case(lambda v: DeconvHead([8, v], 5), "in_channels"),
    "DeconvHead num_classes": Case(lambda v: DeconvHead([8], v), "num_classes"),
    "DeconvHead embed_dims": Case(lambda v: DeconvHead([8], 5, embed_dims=v), "embed_dims"),
    "DeconvHead upsample": Case(lambda v: DeconvHead([8], 5, upsample=v), "upsample"),
    "SimplePyramid in_channels": Case(lambda v: SimplePyramid(v), "in_channels"),
    "SimplePyramid embed_dims": Case(lambda v: SimplePyramid(8, embed_dims=v), "embed_dims"),
    "DeepLabV2Head in_channels": Case(lambda v: DeepLabV2Head(v, 5), "in_channels"),
    "DeepLabV2Head dilations": Case(lambda v: DeepLabV2Head(8, 5, dilations=[v]), "dilations"),
    "MixTransformer in_channels": Case(lambda v: MixTransformer(TINY, in_channels=v), "in_channels"),
    "MixTransformer checkpoint_stages": Case(
        lambda v: MixTransformer(TINY, checkpoint_stages=[v]).training, "checkpoint_stages", ("0",)
    ),
    "TimmEncoder in_channels": Case(lambda v: TimmEncoder("resnet10t", in_channels=v), "in_channels"),
    "EncoderDecoder.predict window": Case(lambda v: predicted(window=v), "window"),
    "EncoderDecoder.predict stride": Case(lambda v: predicted(stride=v), "stride"),
    "EncoderDecoder.predict batch_size": Case(lambda v: predicted(batch_size=v), "batch_size"),
    "DAFormerHead num_classes": Case(lambda v: DAFormerHead([8], v), "num_classes"),
    "DAFormerHead embed_dims": Case(lambda v: DAFormerHead([8], 5, embed_dims=v), "embed_dims"),
    "DAFormerHead dropout": Case(lambda v: DAFormerHead([8], 5, dropout=v).training, "dropout", ("0",)),
    "DeepLabV2Head num_classes": Case(lambda v: DeepLabV2Head(8, v), "num_classes"),
    "MixTransformer drop_path": Case(lambda v: MixTransformer(TINY, drop_path=v).training, "drop_path", ("0",)),
    # data
    "SourceCrops size": Case(lambda v: source_crops(size=(16, v)), "size"),
    "SourceCrops min_crop_pixels": Case(lambda v: source_crops(min_crop_pixels=v), "min_crop_pixels", ("1e38", "0")),
    "SourceCrops max_class_share": Case(lambda v: source_crops(max_class_share=v), "max_class_share"),
    "SourceCrops tries": Case(lambda v: source_crops(tries=v), "tries"),
    "TargetCrops size": Case(lambda v: TargetCrops(Pictures(), (16, v)), "size"),  # type: ignore[arg-type]
    "Resized size": Case(lambda v: Resized(Pictures(), (v, 9)), "size"),  # type: ignore[arg-type]
    "ResizedImages size": Case(lambda v: ResizedImages(Pictures(), (v, 9)), "size"),  # type: ignore[arg-type]
    # a step's place
    "seed_step seed": Case(lambda v: seed_step(v, 0), "seed", ("0",)),
    "seed_step step": Case(lambda v: seed_step(0, v), "step", ("0",)),
    "seed_step rank": Case(lambda v: seed_step(0, 0, v), "rank", ("0",)),
    # statistics of data
    "RareClasses counts": Case(
        lambda v: RareClasses(spoiled(COUNTS.float(), v), min_pixels=1).probabilities,
        "counts|no image",
        ("0", "1e38"),
        inside=True,
    ),
    "RareClasses whole counts": Case(
        lambda v: RareClasses(spoiled(COUNTS, v), min_pixels=1).probabilities, "counts", ("0",), wholes=True
    ),
    "RareClasses temperature": Case(
        lambda v: RareClasses(COUNTS, min_pixels=1, temperature=v).probabilities, "temperature", ("1e38",)
    ),
    "RareClasses min_pixels": Case(lambda v: RareClasses(COUNTS, min_pixels=v).probabilities, "min_pixels", ("0",)),
    "channel_statistics images": Case(
        lambda v: channel_statistics([spoiled(IMAGES[0], v)]), "images", ("1e38", "-1", "0"), inside=True
    ),
    "normalize images": Case(lambda v: normalize(spoiled(IMAGES, v)), "images", ("-1", "0"), inside=True),
    "normalize mean": Case(lambda v: normalize(IMAGES, mean=(v, 0, 0), std=(1, 1, 1)), "mean", ("1e38", "-1", "0")),
    "normalize std": Case(lambda v: normalize(IMAGES, mean=(0, 0, 0), std=(1, v, 1)), "std", ("1e38",)),
}


ROOMS = (
    *(hrda_lib, hrda_lib.augment, hrda_lib.checkpointing, hrda_lib.data, hrda_lib.distributed, hrda_lib.lora),
    *(hrda_lib.losses, hrda_lib.models, hrda_lib.optim),
)
SAMPLE = "of a sample: an IndexError beyond the last, as of a list"
WHOLE = "a whole number, of which Python itself refuses others by a TypeError; its range is in tests/data"
ELSEWHERE = {
    "Adapted (input|output)": "a place in a sequence, or a key, tests/test_adapted.py",
    "CropBox (top|left|height|width)": "where it is used: crop box",
    "(SegmenterOutput|MixTransformerSize|LabelClass) .*": "a record",
    "FeatureDistance level": "a place in a sequence, or a key, tests/test_feature_distance.py",
    "SlidingWindowInferer.stream size": "sides as of an image, tests/test_sliding_window.py",
    ".* max_pixels": "one check of all data sets, tests/data/test_pictures.py",
    ".* index": SAMPLE,
    ".*Crops.name k": SAMPLE,
    ".* within": "a size that the caller has checked: Resized size",
    ".* progress": "a function",
    "(Folders|ListFile) ignore": "ids of labels, tests/data/test_folders.py",
    "Relabeled ids": "tests/data/test_relabeled.py",
    "StoredColours colours": "tests/data/test_stored_colours.py",
    "(Source|Target)Crops (length|seed)": WHOLE,
    "TargetCrops margins": WHOLE,
    "StepBatches .*": WHOLE,
    "check_classes .*": WHOLE,
    "count_labels workers": WHOLE,
    "ViTFeatures out_indices": "blocks of a network, tests/models/test_vit.py",
    "(daformer|hrda) checkpoint_stages": "handed on: MixTransformer checkpoint_stages",
    "deeplab_v2 .*": "handed on: DeepLabV2Head",
    "LoRALinear .*": "as torch's Linear",
    "color_jitter order": "a permutation, tests/test_augment.py",
    "save_checkpoint keep": "tests/test_checkpointing.py",
    "mean value": "any number, for it is averaged",
}


def callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public functions, classes and methods by the names that cases have."""
    for room in ROOMS:
        own = [name for name, x in vars(room).items() if getattr(x, "__module__", "") == room.__name__]
        for name in getattr(room, "__all__", own):
            found = getattr(room, name)
            if callable(found) and not name.startswith("_"):
                yield name, found
                methods = vars(found).items() if inspect.isclass(found) else ()
                yield from ((f"{name}.{key}", x) for key, x in methods if inspect.isfunction(x) and key[0] != "_")


def numbers() -> Iterator[str]:
    """``CALLABLE ARGUMENT`` of each argument that may be a number."""
    for name, found in callables():
        try:
            arguments = inspect.signature(found).parameters.values()
        except (TypeError, ValueError):  # of a type alias
            continue
        yield from (f"{name} {x.name}" for x in arguments if re.search(r"\b(int|float)\b", str(x.annotation)))


def test_every_number_has_a_case_or_a_reason() -> None:
    """An argument that is new is found by its annotation."""
    cases = {" ".join(name.replace(",", "").split()[:2]) for name in CASES}
    lacking = set(numbers()) - cases
    assert not {name for name in lacking if not any(re.fullmatch(pattern, name) for pattern in ELSEWHERE)}
    assert not {pattern for pattern in ELSEWHERE if not any(re.fullmatch(pattern, name) for name in lacking)}


def finite(answer: Any) -> bool:
    if isinstance(answer, Tensor):
        return bool(answer.isfinite().all())
    if isinstance(answer, list | tuple):
        return all(map(finite, answer))
    return answer is None or math.isfinite(answer)


def tried(case: Case) -> list[str]:
    """In a tensor of floats True is 1; one of whole numbers holds neither nan nor 1e38. None holds a text."""
    if case.wholes:
        return ["-1", "0"]
    left_out = {"text"} if case.inside or case.passed_on else set()
    left_out |= {"True"} - set(case.fine) if case.inside else set()
    return [name for name in VALUES if name not in left_out]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, case in CASES.items() for value in tried(case)])
def test_number(name: str, value: str) -> None:
    case = CASES[name]
    if value in case.fine:
        assert finite(case.call(VALUES[value]))
    elif value in case.passed_on:
        assert not finite(case.call(VALUES[value]))
    else:
        with pytest.raises(ValueError, match=case.named):
            case.call(VALUES[value])
