"""SelfTraining against the loss written out by hand."""

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from hrda_lib import (
    ConfidenceWeightedCE,
    CropBox,
    EMATeacher,
    FeatureDistance,
    MultiResSegmenter,
    SegmenterOutput,
    SelfTraining,
    class_mix,
    crop,
    patch_mask,
    pseudo_labels,
    sample_box_mask,
)

CLASSES, SIZE = 5, 32
SOURCE_BOX, MIXED_BOX = CropBox(8, 0, 16, 16), CropBox(16, 8, 16, 16)


def images(seed: int) -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def labels(seed: int) -> Tensor:
    y = torch.randint(CLASSES, (2, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    y[:, :3] = 255
    return y


def student(attention: nn.Module | float | None = None) -> MultiResSegmenter:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8))
    decoder = nn.Conv2d(8, CLASSES, 1)
    head = nn.Conv2d(8, 1, 1) if attention is None else attention
    return MultiResSegmenter(encoder, decoder, head, detail_size=(16, 16))


def setup(net: nn.Module | None = None, **settings: Any) -> SelfTraining:
    net = net or student()
    settings = {"threshold": 0.3, "generator": torch.Generator().manual_seed(0), **settings}
    return SelfTraining(net, EMATeacher(net), **settings)


def naive_ce(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    up = interpolate(logits, size=target.shape[-2:], mode="bilinear")
    ce = cross_entropy(up, target, ignore_index=255, reduction="none")
    return (ce if weight is None else ce * weight).mean()


def test_source_is_fused_plus_detail_plus_feature_distance() -> None:
    net = student()
    reference = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8))
    distance = FeatureDistance(reference, classes=None, num_classes=CLASSES, min_ratio=0.2)
    x, y = images(1), labels(2)
    loss, parts = setup(net, feature_distance=distance, detail_weight=0.3).source(x, y, box=SOURCE_BOX)
    out = net(x, SOURCE_BOX)
    fused, detail = naive_ce(out.logits, y), naive_ce(out.detail_logits, crop(y, SOURCE_BOX))
    far = distance(out.features, out.context, y)
    assert far > 0
    torch.testing.assert_close(loss, 0.7 * fused + 0.3 * detail + far)
    assert list(parts) == ["fused", "detail", "feature_distance"]
    torch.testing.assert_close(torch.stack(list(parts.values())), torch.stack([fused, detail, far]).detach())
    assert not any(part.requires_grad for part in parts.values())


def test_mixed_by_hand() -> None:
    net = student()
    training = setup(net)
    xs, ys, xt = images(1), labels(2), images(3)
    yt, q = training.pseudo_label(xt)
    loss, parts = training.mixed(xs, ys, xt, yt, q, classes=[[1, 255], [0, 2]], box=MIXED_BOX)
    mask = torch.stack([(ys[0] == 1) | (ys[0] == 255), (ys[1] == 0) | (ys[1] == 2)])
    x, y, w = class_mix(xs, xt, mask), torch.where(mask, ys, yt), torch.where(mask, 1.0, q)
    out = net(x, MIXED_BOX)
    fused = naive_ce(out.logits, y, w)
    detail = naive_ce(out.detail_logits, crop(y, MIXED_BOX), crop(w, MIXED_BOX))
    torch.testing.assert_close(loss, 0.9 * fused + 0.1 * detail)
    assert list(parts) == ["fused", "detail"]


def test_pseudo_label_is_the_teachers_over_windows() -> None:
    training, x = setup(), images(3)
    valid = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    valid[:, 20:] = False
    got, weight = training.pseudo_label(x, valid=valid)
    expected = training.teacher(x)
    assert expected.detail_box is None
    y, q = pseudo_labels(expected.logits, size=SIZE, threshold=0.3, valid=valid)
    assert torch.equal(got, y)
    torch.testing.assert_close(weight, q)
    assert weight[:, 20:].max() == 0 < weight[:, :20].min()


def test_pseudo_label_in_parts_is_that_of_the_batch() -> None:
    """The teacher is given an image at a time; the share of trusted pixels is that of both."""
    training, x = setup(), images(3)
    teacher, given = training.teacher.eval(), list[int]()  # batch norm would look at the batch

    def counting(part: Tensor) -> Any:
        given.append(len(part))
        return teacher(part)

    whole = training.pseudo_label(x)
    assert 0 < whole[1].mean() < 1
    training.teacher = counting
    parts = training.pseudo_label(x, micro_batch=1)
    assert given == [1, 1]
    assert torch.equal(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])
    with pytest.raises(ValueError, match="micro_batch must be a positive int, got 0"):
        training.pseudo_label(x, micro_batch=0)


def test_masked_by_hand() -> None:
    net = student()
    training, x = setup(net), images(3)
    y, q = training.pseudo_label(x)
    mask = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    mask[..., 8:] = True
    loss, _ = training.masked(x, y, q, mask=mask, box=MIXED_BOX)
    out = net(torch.where(mask, x, 0.0), MIXED_BOX)
    expected = 0.9 * naive_ce(out.logits, y, q) + 0.1 * naive_ce(
        out.detail_logits, crop(y, MIXED_BOX), crop(q, MIXED_BOX)
    )
    torch.testing.assert_close(loss, expected)


def test_a_mask_of_one_s_own_says_what_is_pasted() -> None:
    training = SelfTraining(nn.Identity(), nn.Identity(), generator=torch.Generator().manual_seed(0))
    images, others = torch.zeros(1, 2, 4, 6), torch.ones(1, 2, 4, 6)
    labels, guessed = torch.zeros(1, 4, 6, dtype=torch.long), torch.ones(1, 4, 6, dtype=torch.long)
    mask = sample_box_mask((4, 6), torch.Generator().manual_seed(1))
    given = images, labels, others, guessed, torch.full((1, 4, 6), 0.25)
    state = training.generator.get_state()  # type: ignore[union-attr]
    mixed = training.mix(*given, mask=mask)
    assert torch.equal(mixed.images[:, 0] == 0, mask)
    assert torch.equal(mixed.labels == 0, mask)
    assert torch.equal(mixed.weight == 1, mask)
    assert torch.equal(state, training.generator.get_state())  # type: ignore[union-attr]  # no classes are drawn
    loss, _ = training.mixed(*given, mask=mask)
    assert torch.equal(loss, training.supervised(*mixed)[0])
    with pytest.raises(ValueError, match="mask says what is pasted, and so does classes: give one"):
        training.mix(*given, mask=mask, classes=[[0]])
    with pytest.raises(ValueError, match=r"mask must be bool \(1, 4, 6\)"):
        training.mix(*given, mask=mask[:, :3])


def test_mix_hands_out_what_mixed_learns() -> None:
    xs, ys, xt = images(1), labels(2).byte(), images(3)
    results = []
    for by_hand in (False, True):
        training = setup(augment=lambda x, generator: x + torch.rand(1, generator=generator))
        y, q = training.pseudo_label(xt)
        if by_hand:
            batch = training.mix(xs, ys, xt, y, q)
            assert batch.labels.dtype == torch.int64
            out = training.student(batch.images, MIXED_BOX)
            detail = crop(batch.labels, MIXED_BOX), crop(batch.weight, MIXED_BOX)
            fused, small = naive_ce(out.logits, batch.labels, batch.weight), naive_ce(out.detail_logits, *detail)
            results.append(0.9 * fused + 0.1 * small)
        else:
            results.append(training.mixed(xs, ys, xt, y, q, box=MIXED_BOX)[0])
    torch.testing.assert_close(*results)
    mask = torch.stack([ys[0] == 1, ys[1] == 2])
    batch = setup().mix(xs, ys, xt, y, q, classes=[[1], [2]])
    assert torch.equal(batch.images, class_mix(xs, xt, mask))
    assert torch.equal(batch.labels, torch.where(mask, ys.long(), y))
    assert torch.equal(batch.weight, torch.where(mask, 1.0, q))


class Once(nn.Module):
    """A teacher that counts its calls."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher, self.calls = teacher, 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.teacher(x)


def test_masked_term_of_losses_is_that_of_mic() -> None:
    """Augmented, then masked, then the box: as ``separatetrgaug``, with the labels of the images as they came."""

    def augment(x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x + torch.rand(1, generator=generator)

    def augment_alone(x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x.clone()

    net = student()
    xs, ys, xt = images(1), labels(2), images(3)
    teacher = Once(EMATeacher(net))
    for augmentation in (augment, augment_alone):
        settings = {"threshold": 0.3, "augment": augmentation, "masking": functools.partial(patch_mask, block=8)}
        generator = torch.Generator().manual_seed(5)
        terms = SelfTraining(net, teacher, generator=generator, **settings).losses(xs, ys, xt)
        names = [name for name, _ in (next(terms), next(terms))]
        before = generator.get_state()
        name, loss = next(terms)
        assert [*names, name, next(terms, None)] == ["source", "mixed", "masked", None]

        generator = torch.Generator()
        generator.set_state(before)
        expected = setup(net)
        y, q = expected.pseudo_label(xt)
        x = augmentation(xt, generator)
        kept = patch_mask(SIZE, batch=2, block=8, generator=generator)
        box = net._sampler.sample((SIZE, SIZE), generator)[1]
        torch.testing.assert_close(loss, expected.masked(x, y, q, mask=kept, box=box)[0])
    assert teacher.calls == 2
    boxes = {"source_box": SOURCE_BOX, "mixed_box": MIXED_BOX, "mixed_classes": [[1], [2]]}
    same = setup(net, masking=lambda size, batch, generator: torch.ones(batch, 1, *size))
    got = dict(same.losses(xs, ys, xt, **boxes, masked_box=MIXED_BOX))
    y, q = same.pseudo_label(xt)
    assert torch.equal(got["masked"], same.masked(xt, y, q, box=MIXED_BOX)[0])


def hidden(x: Tensor, seed: int) -> Tensor:
    """MIC's mask: 0 in the blocks of 8x8 pixels whose number is at most 0.7."""
    blocks = torch.rand(2, 1, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(seed))
    return torch.where(interpolate(blocks, size=SIZE, mode="nearest") > 0.7, x, 0.0)


def hrda_loss(net: MultiResSegmenter, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    out = net(x, MIXED_BOX)
    fused, detail = naive_ce(out.logits, y, w), naive_ce(out.detail_logits, crop(y, MIXED_BOX), crop(w, MIXED_BOX))
    return 0.9 * fused + 0.1 * detail


def test_released_mode_separatetrgaug_written_out() -> None:
    """Labels of the images as they came; jitter, then blocks of the mean colour, on both target images."""
    net, masks = student(), torch.Generator().manual_seed(7)
    training = setup(
        net,
        augment=lambda x, generator: 0.5 * x + 1,
        masking=lambda size, batch, generator: patch_mask(size, batch=batch, block=8, generator=masks),
    )
    terms = dict(training.losses(images(1), labels(2), images(3), masked_box=MIXED_BOX))
    logits = interpolate(training.teacher(images(3)).logits, size=SIZE, mode="bilinear")
    share, y = logits.softmax(dim=1).max(dim=1)
    w = torch.full_like(share, (share >= 0.3).float().mean().item())
    assert 0 < w.mean() < 1
    torch.testing.assert_close(terms["masked"], hrda_loss(net, hidden(0.5 * images(3) + 1, 7), y, w))


def test_released_mode_separate_written_out() -> None:
    """The first source image with its own labels and weight 1, the first target image with the teacher's; no jitter."""
    net = student()
    training = setup(net, masking=functools.partial(patch_mask, block=8), augment=lambda x, generator: 0.5 * x + 1)
    xs, ys, xt = images(1), labels(2).byte(), images(3)
    yt, q = training.pseudo_label(xt)
    training.generator.manual_seed(7)
    loss, _ = training.masked(
        torch.stack([xs[0], xt[0]]),
        torch.stack([ys[0].long(), yt[0]]),
        torch.stack([torch.ones_like(q[0]), q[0]]),
        box=MIXED_BOX,
    )
    x, y, w = (torch.empty_like(value) for value in (xs, yt, q))
    x[0], y[0], w[0] = xs[0], ys[0], 1.0
    x[1], y[1], w[1] = xt[0], yt[0], q[0]
    assert (y[0] == 255).any()
    torch.testing.assert_close(loss, hrda_loss(net, hidden(x, 7), y, w))


def test_without_masking_the_draws_are_what_they_were() -> None:
    plain, masked = (dict(setup(masking=m).losses(images(1), labels(2), images(3))) for m in (None, patch_mask))
    assert list(plain) == ["source", "mixed"]
    assert all(torch.equal(plain[name], masked[name]) for name in plain)


def test_losses_equal_the_methods_called_one_by_one() -> None:
    xs, ys, xt = images(1), labels(2), images(3)
    valid = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    chosen = {"source_box": SOURCE_BOX, "mixed_box": MIXED_BOX, "mixed_classes": [[1], [2]], "target_valid": valid}
    got = dict(setup().losses(xs, ys, xt, **chosen))
    training = setup()
    source, _ = training.source(xs, ys, box=SOURCE_BOX)
    y, q = training.pseudo_label(xt, valid=valid)
    mixed, _ = training.mixed(xs, ys, xt, y, q, classes=[[1], [2]], box=MIXED_BOX)
    assert list(got) == ["source", "mixed"]
    assert torch.equal(got["source"], source)
    assert torch.equal(got["mixed"], mixed)


def test_backward_before_the_next_term_adds_gradients_and_frees_the_graph() -> None:
    net = student()
    xs, ys, xt = images(1), labels(2), images(3)
    terms = setup(net).losses(xs, ys, xt, source_box=SOURCE_BOX, mixed_box=MIXED_BOX, mixed_classes=[[1], [2]])
    _, source = next(terms)
    source.backward()
    first = net.decoder.weight.grad.clone()
    _, mixed = next(terms)
    (second,) = torch.autograd.grad(mixed, net.decoder.weight, retain_graph=True)
    mixed.backward()
    torch.testing.assert_close(net.decoder.weight.grad, first + second)
    assert next(terms, None) is None


@pytest.mark.parametrize(
    ("objective", "parts"),
    [
        ("fused", ["fused", "detail"]),
        ("context", ["context"]),
        ("detail", ["detail"]),
        ("separate", ["context", "detail"]),
    ],
)
def test_objectives(objective: str, parts: list[str]) -> None:
    net = student()
    training = setup(net, objective=objective, detail_weight=0.4)
    x, y, xt = images(1), labels(2), images(3)
    loss, got = training.source(x, y, box=SOURCE_BOX)
    assert list(got) == parts
    out = net(x, SOURCE_BOX)
    terms = {
        "fused": naive_ce(out.logits, y),
        "context": naive_ce(out.context_logits, y),
        "detail": naive_ce(out.detail_logits, crop(y, SOURCE_BOX)),
    }
    expected = terms[parts[0]] if len(parts) == 1 else 0.6 * terms[parts[0]] + 0.4 * terms[parts[1]]
    torch.testing.assert_close(loss, expected)

    said = training.teacher(xt)
    mean = (interpolate(said.context_logits, scale_factor=2, mode="bilinear") + said.detail_logits) / 2
    logits = {
        "fused": said.logits,
        "context": said.context_logits,
        "detail": said.detail_logits,
        "separate": mean,
    }[objective]
    assert torch.equal(training.pseudo_label(xt)[0], pseudo_labels(logits, size=SIZE)[0])


@pytest.mark.parametrize(("objective", "untrained"), [("context", True), ("separate", True), ("fused", False)])
def test_attention_is_trained_by_the_fused_loss_alone(objective: str, untrained: bool) -> None:
    net = student()
    setup(net, objective=objective).source(images(1), labels(2))[0].backward()
    assert (net.attention.weight.grad is None) == untrained


@pytest.mark.parametrize("attention", [0.0, 0.5, 1.0])
def test_fixed_attention(attention: float) -> None:
    for _, loss in setup(student(attention)).losses(images(1), labels(2), images(3)):
        loss.backward()
        assert loss > 0


def test_a_student_with_plain_logits() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, CLASSES, 4, stride=4))
    training, x, y = setup(net), images(1), labels(2)
    loss, parts = training.source(x, y)
    assert list(parts) == ["logits"]
    torch.testing.assert_close(loss, naive_ce(net(x), y))
    assert [name for name, _ in training.losses(x, y, images(3))] == ["source", "mixed"]


def test_augment_sees_the_mixed_images_and_the_generator() -> None:
    seen = []

    def augment(x: Tensor, generator: torch.Generator | None) -> Tensor:
        seen.append((x, generator))
        return x * 0

    net = student()
    training = setup(net, augment=augment)
    xs, ys, xt = images(1), labels(2), images(3)
    y, q = training.pseudo_label(xt)
    training.source(xs, ys)
    assert seen == []
    loss, _ = training.mixed(xs, ys, xt, y, q, classes=[[1], [2]], box=MIXED_BOX)
    mask = torch.stack([ys[0] == 1, ys[1] == 2])
    assert torch.equal(seen[0][0], class_mix(xs, xt, mask))
    assert seen[0][1] is training.generator
    out = net(xs * 0, MIXED_BOX)
    w, m = torch.where(mask, 1.0, q), torch.where(mask, ys, y)
    expected = 0.9 * naive_ce(out.logits, m, w) + 0.1 * naive_ce(
        out.detail_logits, crop(m, MIXED_BOX), crop(w, MIXED_BOX)
    )
    torch.testing.assert_close(loss, expected)


def test_class_weight_counts_in_every_cross_entropy() -> None:
    net, x, y = student(), images(1), labels(2)
    kappa = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.0])
    loss, _ = setup(net, criterion=ConfidenceWeightedCE(class_weight=kappa)).source(x, y, box=SOURCE_BOX)
    q = kappa[torch.where(y == 255, 0, y)]
    out = net(x, SOURCE_BOX)
    fused, detail = naive_ce(out.logits, y, q), naive_ce(out.detail_logits, crop(y, SOURCE_BOX), crop(q, SOURCE_BOX))
    torch.testing.assert_close(loss, 0.9 * fused + 0.1 * detail)


def test_the_criterion_is_that_of_every_term() -> None:
    seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def mean_logit(logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        seen.append((logits, labels, weight))
        return logits.mean() ** 2

    net, x, y, xt = student(), images(1), labels(2).byte(), images(3)
    training = setup(net, criterion=mean_logit, detail_weight=0.25)
    pseudo, q = training.pseudo_label(xt)
    mixed = training.mixed(x, y, xt, pseudo, q, classes=[[1], [2]], box=MIXED_BOX)
    kept = torch.ones(2, 1, SIZE, SIZE, dtype=torch.bool)
    masked = training.masked(xt, pseudo, q, mask=kept, box=MIXED_BOX)
    for loss, parts in (training.source(x, y, box=SOURCE_BOX), mixed, masked):
        torch.testing.assert_close(loss.detach(), 0.75 * parts["fused"] + 0.25 * parts["detail"])
    assert [(tuple(a.shape[-2:]), tuple(b.shape[-2:])) for a, b, _ in seen] == [
        ((8, 8), (32, 32)),
        ((4, 4), (16, 16)),
    ] * 3
    assert {given.dtype for _, given, _ in seen} == {torch.int64}
    assert [q is None for *_, q in seen] == [False] * 4 + [True] * 2
    torch.testing.assert_close(masked[1]["fused"], (net(xt, MIXED_BOX).logits.mean() ** 2).detach())


@pytest.mark.parametrize("ignored", [None, -1, 300])
def test_another_ignored_label(ignored: int | None) -> None:
    """A class that is ignored (None: one that the teacher says) is learned as little as a pixel that holds 255."""
    net, x, y, xt = student(), images(1), labels(2), images(3)
    y = torch.where(y == 255, 0, y)
    usual = setup(net)
    pseudo, q = usual.pseudo_label(xt)
    gone = int(pseudo.mode().values[0, 0])
    index = gone if ignored is None else ignored
    training = setup(net, criterion=ConfidenceWeightedCE(ignore_index=index))
    losses = []
    for step, label in ((training, index), (usual, 255)):
        source, target = (torch.where(given == gone, label, given) for given in (y, pseudo))
        losses.append(step.mixed(x, source, xt, target, q, classes=[[1, label], [2]], box=MIXED_BOX)[0])
        losses.append(step.source(x, source, box=SOURCE_BOX)[0])
    assert torch.equal(torch.stack(losses[:2]), torch.stack(losses[2:]))


def test_more_than_255_classes() -> None:
    net, x = nn.Conv2d(3, 300, 1), images(1)
    y = torch.full((2, SIZE, SIZE), 255)
    with pytest.raises(ValueError, match="ignore_index 255 is one of the 300 classes"):
        setup(net).source(x, y)
    loss, _ = setup(net, criterion=ConfidenceWeightedCE(ignore_index=-1)).source(x, y)
    assert loss > 3
    assert setup(net).pseudo_label(x)[0].max() > 255


@pytest.mark.parametrize("normalize", ["valid", "weight"])
def test_the_divisor_is_a_choice(normalize: Any) -> None:
    net, x, y = student(0.5), images(1), labels(2)
    criterion = ConfidenceWeightedCE(normalize=normalize)
    loss, _ = setup(net, criterion=criterion, detail_weight=0).source(x, y, box=SOURCE_BOX)
    valid = (y != 255).float().mean()
    torch.testing.assert_close(loss, naive_ce(net(x, SOURCE_BOX).logits, y) / valid)


def test_the_generator_decides_everything() -> None:
    def total(seed: int) -> float:
        training = setup(generator=torch.Generator().manual_seed(seed))
        return sum(loss.item() for _, loss in training.losses(images(1), labels(2), images(3)))

    assert total(0) == total(0)
    assert len({total(seed) for seed in range(4)}) > 1


def test_uint8_labels_count_like_int64() -> None:
    args = {"source_box": SOURCE_BOX, "mixed_box": MIXED_BOX, "mixed_classes": [[1], [2]]}
    small = dict(setup().losses(images(1), labels(2).byte(), images(3), **args))
    large = dict(setup().losses(images(1), labels(2), images(3), **args))
    assert small["source"] == large["source"]
    assert small["mixed"] == large["mixed"]


def test_a_compiled_student_takes_boxes() -> None:
    net = student()
    training = SelfTraining(torch.compile(net, backend="eager"), EMATeacher(net))
    x, y = images(1), labels(2)
    torch.testing.assert_close(training.source(x, y, box=SOURCE_BOX)[0], setup(net).source(x, y, box=SOURCE_BOX)[0])


class Wrapper(nn.Module):
    """Takes anything and passes it on, as the wrappers of Fabric, DeepSpeed, FSDP and PEFT do."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        setattr(self, name, inner)
        self.name = name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.name)(*args, **kwargs)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DeepSpeed, FSDP": lambda net: Wrapper("module", net),
    "Fabric": lambda net: Wrapper("_forward_module", net),
    "PEFT": lambda net: Wrapper("base_model", Wrapper("model", net)),
    "several": lambda net: Wrapper("_forward_module", Wrapper("module", torch.compile(net, backend="eager"))),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_student_is_given_box_and_generator(name: str) -> None:
    def source(wrap: Callable[[nn.Module], nn.Module], seed: int, box: CropBox | None = None) -> Tensor:
        net = student()
        training = SelfTraining(wrap(net), EMATeacher(net), generator=torch.Generator().manual_seed(seed))
        return training.source(images(1), labels(2), box=box)[0]

    bare, wrapped = ([source(wrap, seed) for seed in range(4)] for wrap in (lambda net: net, WRAPPERS[name]))
    assert len({loss.item() for loss in bare}) > 1
    torch.testing.assert_close(wrapped, bare)
    torch.testing.assert_close(source(WRAPPERS[name], 0, SOURCE_BOX), source(lambda net: net, 0, SOURCE_BOX))


def test_a_wrapped_student_is_asked_for_features() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, CLASSES, 1)

        def forward(self, x: Tensor, *, return_features: bool = False) -> Any:
            features = self.body(x)
            return (self.head(features), features) if return_features else self.head(features)

    net = Features()
    distance = FeatureDistance(nn.Conv2d(3, 8, 4, stride=4), classes=None, num_classes=CLASSES)
    parts = setup(Wrapper("module", net), feature_distance=distance).source(images(1), Y)[1]
    assert parts["feature_distance"] > 0


class Partly(nn.Module):
    def forward(self, images: Tensor, **settings: Any) -> Tensor:
        return images


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.parametrize(
    "hide",
    [lambda net: Wrapper("network", net), lambda _: Partly(), lambda net: torch.jit.trace(net, X)],
    ids=["a wrapper", "any settings", "TorchScript"],
)
def test_a_student_that_hides_what_it_takes_is_refused(hide: Callable[[nn.Module], nn.Module]) -> None:
    message = r"student's forward must name its arguments, got .* names them, .* or Adapted\(student, output=\.\.\.\)"
    with pytest.raises(ValueError, match=message):
        SelfTraining(hide(nn.Conv2d(3, CLASSES, 1)), EMATeacher(student()))


def test_a_batch_with_labelled_target_images_is_a_longer_source_batch() -> None:
    net = student()
    training = setup(net)
    x, y = torch.cat([images(1), images(3)[:1]]), torch.cat([labels(2), labels(4)[:1]])
    assert training.source(x, y)[0] > 0


def test_warm_start_is_one_line() -> None:
    trained, net = student(), student()
    with torch.no_grad():
        trained.decoder.weight.add_(1)
    net.load_state_dict(trained.state_dict())
    assert torch.equal(EMATeacher(net).module.decoder.weight, trained.decoder.weight)


X, Y, Q = torch.zeros(2, 3, SIZE, SIZE), torch.zeros(2, SIZE, SIZE, dtype=torch.int64), torch.zeros(2, SIZE, SIZE)
PLAIN = nn.Conv2d(3, CLASSES, 1)
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "detail weight": (
        lambda: setup(detail_weight=1.5),
        "detail_weight must be in [0, 1], got 1.5",
    ),
    "criterion": (
        lambda: setup(criterion=0.5),
        "criterion must be callable as (logits, labels, weight), got 0.5; pass such as ConfidenceWeightedCE()",
    ),
    "another ignored label of the feature distance": (
        lambda: setup(
            criterion=ConfidenceWeightedCE(ignore_index=-1),
            feature_distance=FeatureDistance(nn.Conv2d(3, 8, 4), classes=[0], num_classes=CLASSES),
        ),
        "feature_distance must have the criterion's ignore_index -1, got 255",
    ),
    "one logit": (
        lambda: list(setup(nn.Conv2d(3, 1, 1)).losses(X, Y, X)),
        "logits must have at least two classes, got one class, whose softmax is always 1; use two classes",
    ),
    "one logit of the teacher": (
        lambda: SelfTraining(PLAIN, nn.Conv2d(3, 1, 1)).pseudo_label(X),
        "logits must have at least two classes, got one class",
    ),
    "a criterion without reduction": (
        lambda: setup(PLAIN, criterion=lambda x, y, q: cross_entropy(x, y, reduction="none")).source(X, Y),
        "criterion must return a scalar float tensor, got torch.float32 (2, 32, 32); reduce it by .mean()",
    ),
    "a criterion that returns a number": (
        lambda: setup(PLAIN, criterion=lambda x, y, q: 0.5).source(X, Y),
        "criterion must return a scalar float tensor, got float",
    ),
    "per": (lambda: setup(per="class"), "per must be one of ('batch', 'image', 'pixel'), got 'class'"),
    "objective": (
        lambda: setup(objective="both"),
        "objective must be one of ('fused', 'context', 'detail', 'separate'), got 'both'",
    ),
    "source labels": (
        lambda: setup().source(X, Y[:, :8]),
        "labels must be uint8 or int64 (2, 32, 32) like its images, got torch.int64 (2, 8, 32)",
    ),
    "target shape, at the call": (
        lambda: setup().losses(X, Y, X[:1]),
        "source_images and target_images must have one shape, dtype and device, got ((2, 3, 32, 32), torch.float32, ",
    ),
    "label shape, at the call": (
        lambda: setup().losses(X, Y[:1], X),
        "source_labels must be uint8 or int64 (2, 32, 32) like its images, got torch.int64 (1, 32, 32)",
    ),
    "mixed weight": (
        lambda: setup().mixed(X, Y, X, Y, Q[:1]),
        "weight must be float (2, 32, 32) like labels, got torch.float32 (1, 32, 32)",
    ),
    "mixed classes": (
        lambda: setup().mixed(X, Y, X, Y, Q, classes=[[1]]),
        "classes must hold one list an image (2), got [[1]]",
    ),
    "box for a plain student": (
        lambda: setup(PLAIN).source(X, Y, box=SOURCE_BOX),
        "box needs a student whose forward takes box and generator, such as MultiResSegmenter",
    ),
    "features without a pair": (
        lambda: setup(
            Careless(), feature_distance=FeatureDistance(nn.Conv2d(3, 8, 4), classes=[0], num_classes=CLASSES)
        ).source(X, Y),
        "student must return (logits, features) with return_features=True, got Tensor",
    ),
    "feature distance for a plain student": (
        lambda: setup(
            PLAIN, feature_distance=FeatureDistance(nn.Conv2d(3, 8, 4), classes=[0], num_classes=CLASSES)
        ).source(X, Y),
        "feature_distance needs a student that returns SegmenterOutput, or whose forward takes return_features and "
        "returns (logits, features); got plain logits",
    ),
    "student answer": (
        lambda: setup(Dictionary()).source(X, Y),
        "student must return SegmenterOutput or a logits tensor, got dict",
    ),
    "teacher answer": (
        lambda: SelfTraining(PLAIN, Dictionary()).pseudo_label(X),
        "teacher must return SegmenterOutput or a logits tensor, got dict",
    ),
    "teacher with one crop": (
        lambda: SelfTraining(student(), student(), objective="detail").pseudo_label(X),
        "teacher must predict the detail all over the image (windows), got one crop; call eval() on it",
    ),
    "masking": (
        lambda: setup(masking=0.7),
        "masking must be callable as (size, batch=, generator=), got 0.7; pass such as patch_mask",
    ),
    "a mask of another shape": (
        lambda: list(setup(masking=lambda size, batch, generator: torch.ones(batch, *size)).losses(X, Y, X)),
        "mask must be (2, 1, 32, 32), got (2, 32, 32)",
    ),
    "a box without masking, at the call": (
        lambda: setup().losses(X, Y, X, masked_box=MIXED_BOX),
        "masked_box is for the masked term; pass SelfTraining(masking=patch_mask)",
    ),
    "mask": (
        lambda: setup().masked(X, Y, Q, mask=torch.ones(2, SIZE, SIZE)),
        "mask must be (2, 1, 32, 32), got (2, 32, 32)",
    ),
    "valid": (
        lambda: setup().pseudo_label(X, valid=torch.ones(2, SIZE, SIZE)),
        "valid must be bool (2, 32, 32), got torch.float32 (2, 32, 32)",
    ),
}


class Careless(nn.Conv2d):
    """Takes ``return_features`` and ignores it."""

    def __init__(self) -> None:
        super().__init__(3, CLASSES, 1)

    def forward(self, images: Tensor, *, return_features: bool = False) -> Tensor:
        return super().forward(images)


class Dictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": x}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, text = BAD[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def test_output_names() -> None:
    assert isinstance(student()(images(1)), SegmenterOutput)


def test_losses_of_parts_add_up_to_those_of_the_batch() -> None:
    """With the cells of the feature distance, of which parts have other numbers."""
    torch.manual_seed(0)
    encoder = nn.Conv2d(3, 8, 4, stride=4)
    student = MultiResSegmenter(encoder, nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1), detail_size=16).double()
    distance = FeatureDistance(encoder, classes=[0, 1], num_classes=4, weight=1.0, min_ratio=0.5).double()
    training = SelfTraining(student, nn.Identity(), feature_distance=distance, detail_weight=0.3)
    with torch.no_grad():
        encoder.weight += 0.1
    images, box = torch.rand(3, 3, 32, 32, dtype=torch.float64), CropBox(8, 0, 16, 16)
    labels = torch.randint(4, (3, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[2] = 3  # no cell of the chosen classes
    weight = torch.rand(3, 32, 32, dtype=torch.float64)

    def gradients(*losses: Tensor) -> list[Tensor]:
        student.zero_grad()
        for loss in losses:
            loss.backward()
        return [p.grad.clone() for p in student.parameters() if p.grad is not None]

    for whole, parts in (
        (
            training.source(images, labels, box=box)[0],
            [training.source(images[i], labels[i], box=box, whole=labels)[0] for i in (slice(0, 2), slice(2, 3))],
        ),
        (
            training.supervised(images, labels, weight, box=box)[0],
            [
                training.supervised(images[i], labels[i], weight[i], box=box, whole=labels)[0]
                for i in (slice(0, 1), slice(1, 3))
            ],
        ),
    ):
        torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
        for got, expected in zip(gradients(*parts), gradients(whole), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)
    training.criterion = ConfidenceWeightedCE(normalize="valid")
    with pytest.raises(ValueError, match=r"whole needs a criterion that divides by all pixels.*got normalize='valid'"):
        training.supervised(images[:1], labels[:1], whole=labels)
    with pytest.raises(ValueError, match=r"whole must be .*the labels of the whole batch"):
        SelfTraining(student, nn.Identity()).supervised(images[:1], labels[:1], whole=labels[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_what_is_summed_is_float32(dtype: torch.dtype) -> None:
    """Losses, confidence and the teacher's weights; close to those without autocast."""
    torch.manual_seed(0)
    student = MultiResSegmenter(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1), detail_size=16)
    training = SelfTraining(student, EMATeacher(student), threshold=0.3, generator=torch.Generator())
    images, labels = torch.rand(2, 3, 32, 32), torch.randint(4, (2, 32, 32))

    def terms() -> tuple[Tensor, Tensor]:
        assert training.generator is not None
        training.generator.manual_seed(0)
        said, weight = training.pseudo_label(images)
        return training.mixed(images, labels, images, said, weight)[0], weight

    expected, trusted = terms()
    with torch.autocast("cpu", dtype):
        loss, weight = terms()
        assert student(images).logits.dtype in (dtype, torch.float32)
    loss.backward()
    assert loss.dtype == weight.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in student.parameters() if p.grad is not None)
    training.teacher.update(student)  # type: ignore[attr-defined]
    assert {p.dtype for p in training.teacher.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    assert weight.mean().item() == pytest.approx(trusted.mean().item(), abs=0.05)
