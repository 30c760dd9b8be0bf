"""Our numbers against the authors' code, through the public API: every vector, then four steps of training."""

from collections.abc import Callable, Iterator

import pytest
import torch
from reference import ENTRIES, META, VECTORS, checkpoint, draw, image, label, relative_error
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
from hrda_lib.crops import downscale
from hrda_lib.models import hrda, load_reference_checkpoint, to_reference_state_dict
from hrda_lib.optim import parameter_groups, warmup_poly

SEED, SIDE, CLASSES = META["seed"], META["context_size"], META["num_classes"]
STEPS = META["trajectory"]
FORWARD, GRADIENT, NORM, CHANGE = 1e-4, 1e-3, 5e-3, 2e-2  # the tolerances that go with the vectors


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


@pytest.fixture(scope="module")
def model() -> MultiResSegmenter:
    return build()


@torch.no_grad()
def test_encoder_decoder_and_attention(model: MultiResSegmenter) -> None:
    features = model.eval().encoder(image(SEED, "eval.image", 1, SIDE, SIDE))
    for i, feature in enumerate(features):
        assert relative_error(feature[:, ::4], VECTORS[f"eval.features.{i}"]) < FORWARD
    assert relative_error(model.decoder(features), VECTORS["eval.head_logits"]) < FORWARD
    assert relative_error(model.attention(features), VECTORS["eval.attention_logits"]) < FORWARD


@torch.no_grad()
def test_two_scales_and_whole_images(model: MultiResSegmenter) -> None:
    logits = model.eval()(image(SEED, "eval.image", 1, SIDE, SIDE), detail="windows").logits
    logits = interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    assert relative_error(logits[..., ::4, ::4], VECTORS["eval.hrda_logits"]) < FORWARD
    big = image(SEED, "eval.big_image", 1, *META["eval.big_image"])
    logits = model.predict(big)
    assert relative_error(logits[..., ::4, ::4], VECTORS["eval.big_logits"]) < FORWARD
    assert torch.equal(logits.argmax(1), VECTORS["eval.big_labels"].long())
    assert torch.equal(model.predict(big, output="labels").long(), VECTORS["eval.big_labels"].long())


def test_training_forward_losses_and_gradients() -> None:
    model = build().train()
    images, labels = image(SEED, "train.image", 2, SIDE, SIDE), label(SEED, "train.label", 2, SIDE, SIDE, CLASSES)
    weight = torch.from_numpy(draw(SEED, "train.weight", 2, SIDE, SIDE)).float()
    box = CropBox(*META["train.box"])
    out = model(images, box)
    assert isinstance(out.attention, Tensor)
    masked = torch.zeros_like(out.attention)
    cells = box.scaled(1 / 8)
    masked[:, :, cells.top : cells.top + cells.height, cells.left : cells.left + cells.width] = crop(
        out.attention, cells
    )
    assert relative_error(out.logits.detach(), VECTORS["train.fused_logits"]) < FORWARD
    assert relative_error(out.detail_logits.detach(), VECTORS["train.detail_logits"]) < FORWARD
    weighted = ((1 - masked) * out.context_logits).detach()
    assert relative_error(weighted, VECTORS["train.weighted_context_logits"]) < FORWARD
    mean = to_reference_state_dict(model)["decode_head.head.fuse_layer.bottleneck.bn.running_mean"]
    assert relative_error(mean, VECTORS["train.running_mean_after"]) < FORWARD

    fused = confidence_weighted_ce(out.logits, labels, weight)
    detail = confidence_weighted_ce(out.detail_logits, crop(labels, box), crop(weight, box))
    total = (1 - META["detail_loss_weight"]) * fused + META["detail_loss_weight"] * detail
    total.backward()
    for value, name in ((fused, "fused"), (detail, "detail"), (total, "total")):
        assert relative_error(value.item(), META[f"train.loss_{name}"]) < FORWARD
    parameters = dict(zip(to_reference_state_dict(model), model.state_dict(keep_vars=True).values(), strict=True))
    norms = {name: parameters[name].grad.norm().item() for name in META["train.grad_norms"]}
    assert relative_error(list(norms.values()), list(META["train.grad_norms"].values())) < GRADIENT
    gradient = parameters["decode_head.head.conv_seg.weight"].grad
    assert relative_error(gradient, VECTORS["train.grad.conv_seg"]) < GRADIENT
    whole = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert relative_error(whole.item(), META["train.grad_total_norm"]) < GRADIENT


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
        context = downscale(images, 2)
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


@pytest.mark.parametrize("train", [through_self_training, by_hand])
def test_four_steps_of_training(train: Callable[[MultiResSegmenter], Iterator[tuple[Step, EMATeacher]]]) -> None:
    student = build().train()
    steps, teachers = zip(*train(student), strict=True)
    for name in steps[0]:
        tolerance = NORM if name == "grad_norm" else FORWARD if name == "encoder_lr" else GRADIENT
        assert relative_error([step[name] for step in steps], STEPS[name]) < tolerance, name
    begin = checkpoint(SEED)
    compared = 0
    for who, model in (("student", student), ("teacher", teachers[-1].module)):
        entries = to_reference_state_dict(model)
        for key in VECTORS:
            name = key.removeprefix(f"trajectory.{who}.")
            if name == key:
                continue
            every = 1 if name.endswith("running_mean") else 7
            got, start = (x[name].detach().flatten()[::every] for x in (entries, begin))
            assert relative_error(got - start, VECTORS[key] - start) < CHANGE, key
            compared += 1
    assert compared == 12


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
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()


def test_every_entry_of_the_file_is_a_name_of_the_model(model: MultiResSegmenter) -> None:
    assert {name: tuple(x.shape) for name, x in to_reference_state_dict(model).items()} == ENTRIES
