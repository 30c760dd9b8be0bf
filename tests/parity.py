"""Our numbers against the authors' code, through the public API: each with its relative error and its tolerance.

``test_reference.py`` asserts them, ``verify.py`` writes them into a table of the docs.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from reference import META, VECTORS, checkpoint, draw, image, label, relative_error
from torch import Tensor
from torch.nn.functional import interpolate

from hrda_lib import (
    CropBox,
    EMATeacher,
    FeatureDistance,
    MultiResSegmenter,
    ScaleAttentionFusion,
    SelfTraining,
    SlidingWindowInferer,
    class_mix,
    confidence_weighted_ce,
    crop,
    pseudo_labels,
    sample_class_mask,
)
from hrda_lib.models import hrda, load_reference_checkpoint, to_reference_state_dict
from hrda_lib.optim import parameter_groups, warmup_poly

SEED, SIDE, CLASSES = META["seed"], META["context_size"], META["num_classes"]
STEPS = META["trajectory"]
FORWARD, GRADIENT, NORM, CHANGE = 1e-4, 1e-3, 5e-3, 2e-2  # the tolerances that go with the vectors

Rows = dict[str, tuple[float, float]]  # name in the data files -> (relative error, tolerance)


def build(seed: int = SEED) -> MultiResSegmenter:
    model = hrda(
        "mit_b0",
        CLASSES,
        embed_dims=META["embed_dims"],
        attention_embed_dims=META["attention_embed_dims"],
        detail_size=(META["detail_size"], META["detail_size"]),
        drop_path=0,
        dropout=0,
    )
    load_reference_checkpoint(model, checkpoint(seed))
    return model


@torch.no_grad()
def evaluation() -> Rows:
    """Encoder, decoder and attention one by one; both scales; a whole image."""
    model, images = build().eval(), image(SEED, "eval.image", 1, SIDE, SIDE)
    features = model.encoder(images)
    got = {f"eval.features.{i}": feature[:, ::4] for i, feature in enumerate(features)}
    got["eval.head_logits"] = model.decoder(features)
    got["eval.attention_logits"] = model.attention(features)
    logits = model(images, detail="windows").logits
    logits = interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    got["eval.hrda_logits"] = logits[..., ::4, ::4]
    big = image(SEED, "eval.big_image", 1, *META["eval.big_image"])
    logits = model.predict(big)
    got["eval.big_logits"] = logits[..., ::4, ::4]
    rows = {name: (relative_error(value, VECTORS[name]), FORWARD) for name, value in got.items()}
    # ids are no quantities: the share of pixels that differ, and none may
    both_ways = logits.argmax(1), model.predict(big, output="labels").long()
    wrong = [(labels != VECTORS["eval.big_labels"].long()).double().mean().item() for labels in both_ways]
    return rows | {"eval.big_labels": (max(wrong), 0.0)}


def training_pass() -> Rows:
    """One forward and one backward in training mode, with a given detail box."""
    model = build().train()
    images, labels = image(SEED, "train.image", 2, SIDE, SIDE), label(SEED, "train.label", 2, SIDE, SIDE, CLASSES)
    weight = torch.from_numpy(draw(SEED, "train.weight", 2, SIDE, SIDE)).float()
    box = CropBox(*META["train.box"])
    out = model(images, box)
    assert isinstance(out.attention, Tensor)
    masked, cells = torch.zeros_like(out.attention), box.scaled(1 / 8)
    crop(masked, cells).copy_(crop(out.attention, cells).detach())
    got = {
        "train.fused_logits": out.logits,
        "train.detail_logits": out.detail_logits,
        "train.weighted_context_logits": (1 - masked) * out.context_logits,
        "train.running_mean_after": to_reference_state_dict(model)[
            "decode_head.head.fuse_layer.bottleneck.bn.running_mean"
        ],
    }
    rows = {name: (relative_error(value.detach(), VECTORS[name]), FORWARD) for name, value in got.items()}

    fused = confidence_weighted_ce(out.logits, labels, weight)
    detail = confidence_weighted_ce(out.detail_logits, crop(labels, box), crop(weight, box))
    total = (1 - META["detail_loss_weight"]) * fused + META["detail_loss_weight"] * detail
    total.backward()
    for value, part in ((fused, "fused"), (detail, "detail"), (total, "total")):
        name = f"train.loss_{part}"
        rows[name] = relative_error(value.item(), META[name]), FORWARD
    parameters = dict(zip(to_reference_state_dict(model), model.state_dict(keep_vars=True).values(), strict=True))
    want = META["train.grad_norms"]
    norms = [parameters[name].grad.norm().item() for name in want]
    rows["train.grad_norms"] = relative_error(norms, list(want.values())), GRADIENT
    gradient = parameters["decode_head.head.conv_seg.weight"].grad
    rows["train.grad.conv_seg"] = relative_error(gradient, VECTORS["train.grad.conv_seg"]), GRADIENT
    rows["train.grad_total_norm"] = relative_error(gradient_norm(model), META["train.grad_total_norm"]), GRADIENT
    return rows


Step = dict[str, float]


def through_self_training(student: MultiResSegmenter) -> Iterator[tuple[Step, EMATeacher]]:
    """The four steps as a user runs them."""
    teacher, distance = EMATeacher(student, decay=META["ema_decay"]), feature_distance()
    training = SelfTraining(
        student,
        teacher,
        feature_distance=distance,
        threshold=META["pseudo_threshold"],
        detail_weight=META["detail_loss_weight"],
    )
    optimizer, schedule = optimization(student)
    for t in range(STEPS["steps"]):
        if t > 0:
            teacher.update(student)
        source, labels, target = batch(t)
        step: Step = {"encoder_lr": optimizer.param_groups[0]["lr"]}
        loss, parts = training.source(source, labels, box=CropBox(*STEPS["source_box"][t]))
        loss.backward()
        step |= {f"loss_source_{name}": parts[name].item() for name in ("fused", "detail")}
        step["loss_feature_distance"] = parts["feature_distance"].item()
        pseudo, weight = training.pseudo_label(target)
        step["confidence_ratio"] = weight.mean().item()
        loss, parts = training.mixed(
            source,
            labels,
            target,
            pseudo,
            weight,
            classes=STEPS["mixed_classes"][t],
            box=CropBox(*STEPS["mixed_box"][t]),
        )
        loss.backward()
        step |= {f"loss_mixed_{name}": parts[name].item() for name in ("fused", "detail")}
        step["grad_norm"] = gradient_norm(student)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step, teacher


def by_hand(student: MultiResSegmenter) -> Iterator[tuple[Step, EMATeacher]]:
    """The same from the primitives: encoder, decoder and attention are called one by one."""
    teacher, distance = EMATeacher(student, decay=META["ema_decay"]), feature_distance()
    fusion = ScaleAttentionFusion(scale=2, output_stride=4)
    optimizer, schedule = optimization(student)
    side, detail_weight = META["detail_size"], META["detail_loss_weight"]

    def forward(model: MultiResSegmenter, images: Tensor, box: CropBox | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        context = interpolate(images, scale_factor=0.5, mode="bilinear", align_corners=False)
        features = model.encoder(context)
        context_logits, attention = model.decoder(features), model.attention(features)

        def detail(x: Tensor) -> Tensor:
            return model.decoder(model.encoder(x))

        if box is None:
            infer = SlidingWindowInferer((side, side), stride=side // 2, batch_size=None, resize=False)
            detail_logits = infer(images, detail)
        else:
            detail_logits = detail(crop(images, box))
        return fusion(context_logits, detail_logits, attention, box), detail_logits, features[-1], context

    def loss_of(
        fused: Tensor, detail: Tensor, labels: Tensor, weight: Tensor | None, box: CropBox
    ) -> tuple[Tensor, Tensor]:
        part = None if weight is None else crop(weight, box)
        return confidence_weighted_ce(fused, labels, weight), confidence_weighted_ce(detail, crop(labels, box), part)

    for t in range(STEPS["steps"]):
        if t > 0:
            teacher.update(student)
        source, labels, target = batch(t)
        step: Step = {"encoder_lr": optimizer.param_groups[0]["lr"]}
        box = CropBox(*STEPS["source_box"][t])
        fused_logits, detail_logits, feature, context = forward(student, source, box)
        fused, detail = loss_of(fused_logits, detail_logits, labels, None, box)
        away = distance(feature, context, labels)
        ((1 - detail_weight) * fused + detail_weight * detail + away).backward()
        step |= {"loss_source_fused": fused.item(), "loss_source_detail": detail.item()}
        step["loss_feature_distance"] = away.item()

        with torch.no_grad():
            logits = forward(teacher.module, target, None)[0]
        pseudo, weight = pseudo_labels(logits, size=(SIDE, SIDE), threshold=META["pseudo_threshold"])
        step["confidence_ratio"] = weight.mean().item()
        mask = sample_class_mask(labels, classes=STEPS["mixed_classes"][t])
        mixed, mixed_labels = class_mix(source, target, mask), class_mix(labels, pseudo.long(), mask)
        box = CropBox(*STEPS["mixed_box"][t])
        fused_logits, detail_logits, _, _ = forward(student, mixed, box)
        weight = class_mix(torch.ones_like(weight), weight, mask)
        fused, detail = loss_of(fused_logits, detail_logits, mixed_labels, weight, box)
        ((1 - detail_weight) * fused + detail_weight * detail).backward()
        step |= {"loss_mixed_fused": fused.item(), "loss_mixed_detail": detail.item()}
        step["grad_norm"] = gradient_norm(student)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step, teacher


def trajectory(train: Callable[[MultiResSegmenter], Iterator[tuple[Step, EMATeacher]]]) -> Rows:
    """Scalars of the four steps, and how far student and teacher moved in them."""
    student = build().train()
    steps, teachers = zip(*train(student), strict=True)
    rows = {}
    for name in steps[0]:
        tolerance = NORM if name == "grad_norm" else FORWARD if name == "encoder_lr" else GRADIENT
        rows[f"trajectory.{name}"] = relative_error([step[name] for step in steps], STEPS[name]), tolerance
    begin = checkpoint(SEED)
    for who, model in (("student", student), ("teacher", teachers[-1].module)):
        entries = to_reference_state_dict(model)
        for key in VECTORS:
            name = key.removeprefix(f"trajectory.{who}.")
            if name == key:
                continue
            every = 1 if name.endswith("running_mean") else 7
            got, start = (x[name].detach().flatten()[::every] for x in (entries, begin))
            rows[key] = relative_error(got - start, VECTORS[key] - start), CHANGE
    return rows


class Part(NamedTuple):
    """Rows that are computed together: a title, what their names begin with, and how to get them."""

    title: str
    prefix: str
    rows: Callable[[], Rows]


PARTS = [
    Part("evaluation", "eval.", evaluation),
    Part("training mode", "train.", training_pass),
    Part("four steps by hand", "trajectory.", partial(trajectory, by_hand)),
    Part("four steps by `SelfTraining`", "trajectory.", partial(trajectory, through_self_training)),
]

# what names stand for; "*" for any ending
MEANING = {
    "eval.features.*": "encoder, all stages",
    "eval.head_logits": "decoder",
    "eval.attention_logits": "attention head, before the sigmoid",
    "eval.hrda_logits": "two scales, overlapping detail windows",
    "eval.big_logits": "whole image in overlapping windows",
    "eval.big_labels": "its labels: share of pixels that differ",
    "train.fused_logits": "fused prediction with one detail box",
    "train.detail_logits": "prediction of the detail crop",
    "train.weighted_context_logits": "prediction of the context, times 1 - masked attention",
    "train.running_mean_after": "running mean of the decoder's batch norm after this pass",
    "train.loss_*": "losses: fused, detail, total",
    "train.grad_norms": "gradient norms of single weights",
    "train.grad.conv_seg": "gradient of the classifier's weight",
    "train.grad_total_norm": "norm of all gradients",
    "trajectory.encoder_lr": "learning rate of the encoder",
    "trajectory.loss_source_*": "source losses: fused, detail",
    "trajectory.loss_feature_distance": "feature distance",
    "trajectory.confidence_ratio": "share of confident pixels",
    "trajectory.loss_mixed_*": "mixed losses: fused, detail",
    "trajectory.grad_norm": "norm of all gradients",
    "trajectory.student.*": "change of student's weights and batch-norm means",
    "trajectory.teacher.*": "change of teacher's weights and batch-norm means",
}


def reference_names() -> set[str]:
    """Every number in the data files that is no setting: what the rows must be about."""
    scalars = {name for name in META if name.startswith(("train.loss_", "train.grad_"))}
    each_step = {
        f"trajectory.{name}"
        for name, values in STEPS.items()
        if isinstance(values, list) and len(values) == STEPS["steps"] and isinstance(values[0], float)
    }
    return VECTORS.keys() | scalars | each_step


def feature_distance() -> FeatureDistance:
    settings = META["feature_distance"]
    return FeatureDistance(
        build(META["imagenet_encoder_seed"]).encoder,
        classes=settings["classes"],
        num_classes=CLASSES,
        weight=settings["weight"],
        min_ratio=settings["min_ratio"],
    )


def optimization(student: MultiResSegmenter) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LRScheduler]:
    groups = parameter_groups(
        student, lr=STEPS["base_lr"], head_factor=STEPS["head_lr_mult"], weight_decay=STEPS["weight_decay"]
    )
    optimizer = torch.optim.AdamW(groups, betas=tuple(STEPS["betas"]))
    schedule = warmup_poly(
        optimizer,
        total=STEPS["max_iters"],
        warmup=STEPS["warmup_iters"],
        warmup_ratio=STEPS["warmup_ratio"],
        power=STEPS["power"],
    )
    return optimizer, schedule


def batch(t: int) -> tuple[Tensor, Tensor, Tensor]:
    name = f"trajectory.{t}"
    return (
        image(SEED, f"{name}.source_image", 2, SIDE, SIDE),
        label(SEED, f"{name}.source_label", 2, SIDE, SIDE, CLASSES),
        image(SEED, f"{name}.target_image", 2, SIDE, SIDE),
    )


def gradient_norm(model: MultiResSegmenter) -> float:
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
