import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hrda_lib import FeatureDistance


def make_encoder(seed: int = 0) -> nn.Module:
    """Float64 images (B, 3, 2h, 2w) -> features (B, 5, h, w)."""
    encoder = nn.Conv2d(3, 5, 2, stride=2).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in encoder.parameters():
        parameter.data.normal_(generator=generator)
    return encoder


def draw(height: int = 16, width: int = 20, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Student features of 4x5 cells, images of 8x10 pixels, and labels in which most cells have a clear majority."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 5, 4, 5, generator=generator, dtype=torch.float64)
    images = torch.rand(2, 3, 8, 10, generator=generator, dtype=torch.float64)
    side = width // 5
    labels = torch.full((2, height, width), 3)
    cells = torch.randint(5, (2, 4, 5), generator=generator).repeat_interleave(side, 1).repeat_interleave(side, 2)
    labels[:, : 4 * side, : 5 * side] = cells
    noise = torch.rand(labels.shape, generator=generator) < 0.3
    labels = torch.where(noise, torch.randint(5, labels.shape, generator=generator), labels)
    return features, images, torch.where(labels == 4, 255, labels)


def oracle(
    features: Tensor,
    reference: Tensor,
    labels: Tensor,
    *,
    classes: list[int],
    num_classes: int = 4,
    weight: float = 0.005,
    min_ratio: float = 0.75,
    ignore_index: int = 255,
) -> float:
    side = labels.shape[2] // features.shape[3]
    distances = []
    for b, i, j in np.ndindex(len(features), *features.shape[2:]):
        counts = [0] * (num_classes + 1)
        for label in labels[b, i * side : (i + 1) * side, j * side : (j + 1) * side].flatten().tolist():
            counts[num_classes if label == ignore_index else label] += 1
        majority = counts.index(max(counts))
        if majority in classes and counts[majority] / side**2 >= min_ratio:
            pairs = zip(features[b, :, i, j].tolist(), reference[b, :, i, j].tolist(), strict=True)
            distances.append(math.sqrt(sum((x - y) ** 2 for x, y in pairs)))
    return weight * sum(distances) / len(distances) if distances else 0.0


def one_cell(pixels: list[int], classes: list[int] | None, min_ratio: float) -> bool:
    """Whether a single cell of 2x2 such pixels is selected."""
    distance = FeatureDistance(make_encoder(), classes=classes, num_classes=4, min_ratio=min_ratio)
    images = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    features = torch.full((1, 5, 1, 1), 9.0, dtype=torch.float64)
    return distance(features, images, torch.tensor(pixels).view(1, 2, 2)).item() > 0


@pytest.mark.parametrize("min_ratio", [0.0, 0.5, 0.625, 0.75, 1.0])
@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [1], [3, 2]], ids=str)
@pytest.mark.parametrize("size", [(16, 20), (19, 22), (4, 5), (8, 10)], ids=str)
def test_equals_loop(min_ratio: float, classes: list[int], size: tuple[int, int]) -> None:
    features, images, labels = draw(*size)
    encoder = make_encoder()
    distance = FeatureDistance(encoder, classes=classes, num_classes=4, min_ratio=min_ratio, weight=0.3)
    expected = oracle(features, encoder(images), labels, classes=classes, min_ratio=min_ratio, weight=0.3)
    result = distance(features, images, labels)
    assert result.dtype == torch.float64
    assert result.item() == pytest.approx(expected, rel=1e-12)
    assert distance(features, images, labels.byte()).item() == result.item()


def test_default_settings_are_those_of_the_paper() -> None:
    features, images, labels = draw(32, 40)
    encoder = make_encoder()
    expected = oracle(features, encoder(images), labels, classes=[1, 2], weight=0.005, min_ratio=0.75)
    assert expected > 0
    result = FeatureDistance(encoder, classes=[1, 2], num_classes=4)(features, images, labels)
    assert result.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ignore_index", [0, -1, 9])
def test_any_ignore_index(ignore_index: int) -> None:
    features, images, labels = draw()
    labels = torch.where(labels == 255, ignore_index, labels)
    encoder = make_encoder()
    settings = {"num_classes": 4, "min_ratio": 0.6, "ignore_index": ignore_index}
    result = FeatureDistance(encoder, classes=None, **settings)(features, images, labels)
    every = [label for label in range(4) if label != ignore_index]
    expected = oracle(features, encoder(images), labels, classes=every, **settings)
    assert result.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("pixels", "classes", "min_ratio", "selected"),
    [
        ([1, 1, 1, 3], [1], 0.75, True),
        ([1, 1, 1, 3], [1], 0.76, False),
        ([1, 1, 1, 3], [3], 0.0, False),
        ([3, 3, 1, 1], [1], 0.5, True),
        ([3, 3, 1, 1], [3], 0.5, False),
        ([255, 255, 1, 1], [1], 0.5, True),
        ([255, 255, 2, 1], None, 0.25, False),
        ([255, 255, 255, 255], None, 0.0, False),
        ([255, 1, 1, 1], [1], 0.76, False),
    ],
    ids=[
        "share reached",
        "share missed",
        "minority",
        "tie goes to the lower class",
        "tie lost by the higher class",
        "tie with ignored goes to the class",
        "ignored pixels are a majority of their own",
        "all ignored",
        "ignored pixels count in the share",
    ],
)
def test_selection(pixels: list[int], classes: list[int] | None, min_ratio: float, selected: bool) -> None:
    assert one_cell(pixels, classes, min_ratio) == selected


@pytest.mark.parametrize("label", [0, 255], ids=["another class", "ignored"])
def test_zero_with_zero_gradient_where_no_cell_is_selected(label: int) -> None:
    features, images, labels = draw()
    features.requires_grad_()
    loss = FeatureDistance(make_encoder(), classes=[1], num_classes=4)(features, images, torch.full_like(labels, label))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_zero_with_zero_gradient_at_the_reference_itself() -> None:
    _, images, labels = draw()
    encoder = make_encoder()
    features = encoder(images).detach().requires_grad_()
    loss = FeatureDistance(encoder, classes=None, num_classes=4)(features, images, labels)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_gradient_reaches_the_student_only() -> None:
    features, images, labels = draw()
    distance = FeatureDistance(make_encoder(), classes=None, num_classes=4, min_ratio=0.5)
    assert torch.autograd.gradcheck(lambda x: distance(x, images, labels), features.requires_grad_())
    distance(features, images.requires_grad_(), labels).backward()
    assert images.grad is None
    assert all(parameter.grad is None for parameter in distance.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_low_precision_features_give_float32(dtype: torch.dtype) -> None:
    features, images, labels = draw()
    features, encoder = features.to(dtype), make_encoder().float()
    loss = FeatureDistance(encoder, classes=[1, 2], num_classes=4)(features, images.float(), labels)
    expected = oracle(features, encoder.double()(images.float().double()), labels, classes=[1, 2])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_reference_is_a_frozen_copy_in_eval_mode() -> None:
    encoder = nn.Sequential(make_encoder(), nn.BatchNorm2d(5).double(), nn.Dropout(0.5))
    distance = FeatureDistance(encoder, classes=None, num_classes=4)
    assert all(module.training for module in encoder.modules())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(parameter.requires_grad for parameter in distance.parameters())

    features, images, labels = draw()
    first = distance(features, images, labels)
    for parameter in encoder.parameters():
        parameter.data.zero_()
    nn.ModuleList([distance]).train()
    assert distance.training
    assert not any(module.training for module in distance.reference_encoder.modules())
    assert distance(features, images, labels).item() == first.item()
    assert distance.reference_encoder[1].num_batches_tracked == 0


def test_a_sequence_stands_for_its_last() -> None:
    features, images, labels = draw()

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = make_encoder()

        def forward(self, images: Tensor) -> list[Tensor]:
            return [images, self.last(images)]

    plain, levels = (FeatureDistance(e, classes=None, num_classes=4) for e in (make_encoder(), Levels()))
    expected = plain(features, images, labels).item()
    assert expected > 0
    for given_features in (features, [images, features], (images, features)):
        assert levels(given_features, images, labels).item() == expected
    assert plain((images, features), images, labels).item() == expected


@pytest.mark.parametrize("level", [0, 1, -1, -2, "fine", "coarse"])
@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_level_names_one_of_several(level: int | str, kind: Any) -> None:
    """Of what the student gives and of what the reference gives, the same."""
    first, images, labels = draw()
    coarse = torch.randn(2, 5, 4, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = make_encoder(0), make_encoder(1)

        def forward(self, images: Tensor) -> Any:
            levels = {"fine": self.fine(images), "coarse": self.coarse(images)}
            return levels if kind is dict else kind(levels.values())

    given_features = {"fine": first, "coarse": coarse} if kind is dict else kind([first, coarse])
    distance = FeatureDistance(Levels(), classes=None, num_classes=4, level=level)
    if kind is not dict and isinstance(level, str):
        with pytest.raises(ValueError, match=re.escape(f"hold one at level={level!r}, got {kind.__name__} (it has 0,")):
            distance(given_features, images, labels)
        return
    k = {"fine": 0, "coarse": 1}.get(level, level) % 2  # type: ignore[call-overload]
    expected = FeatureDistance(make_encoder(k), classes=None, num_classes=4)((first, coarse)[k], images, labels)
    assert distance(given_features, images, labels).item() == expected.item() > 0


@pytest.mark.parametrize("size", [(8, 16), (12, 8)])
def test_channels_last_are_refused(size: tuple[int, int]) -> None:
    encoder = nn.Conv2d(3, 5, 4, stride=4)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, images: Tensor) -> Tensor:
            return self.encoder(images).permute(0, 2, 3, 1)

    images, labels = torch.rand(2, 3, *size), torch.zeros(2, 2 * size[0], 2 * size[1], dtype=torch.int64)
    with pytest.raises(ValueError, match=r"features are channels last: permute\(0, 3, 1, 2\)"):
        FeatureDistance(Last(), classes=None, num_classes=4)(Last()(images), images, labels)


@given(st.integers(0, 99), st.floats(0, 2))
def test_linear_in_lambda_and_blind_to_batch_order(seed: int, weight: float) -> None:
    features, images, labels = draw(seed=seed)
    unit, other = (FeatureDistance(make_encoder(), classes=[0, 2], num_classes=4, weight=w) for w in (1.0, weight))
    expected = weight * unit(features, images, labels).item()
    assert other(features.flip(0), images.flip(0), labels.flip(0)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": []}, "classes must be ids in [0, 4), at least one, got []"),
        ({"classes": [1, 4]}, "classes must be ids in [0, 4), at least one, got [1, 4]"),
        ({"classes": [-1]}, "classes must be ids in [0, 4), at least one, got [-1]"),
        (
            {"classes": [1, 2], "ignore_index": 2},
            "classes must be without the ignore_index 2, got [1, 2]; leave",
        ),
        ({"num_classes": 300}, "ignore_index 255 is one of the 300 classes"),
        ({"num_classes": 0}, "classes must be ids in [0, 0), at least one, got []"),
        ({"min_ratio": 1.5}, "min_ratio must be in [0, 1], got 1.5"),
        ({"level": 0.5}, "level must be an index or a key, got 0.5"),
        ({"level": True}, "level must be an index or a key, got True"),
        ({"min_ratio": -0.5}, "min_ratio must be in [0, 1], got -0.5"),
    ],
    ids=[
        "no class",
        "class above",
        "class below",
        "class ignored",
        "256 classes",
        "no classes at all",
        "ratio above",
        "level",
        "truth as level",
        "ratio below",
    ],
)
def test_refuses_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FeatureDistance(make_encoder(), **({"classes": None, "num_classes": 4} | settings))


def test_refuses_an_encoder_without_parameters() -> None:
    message = "reference_encoder must have parameters, got Identity without any: it says the same before and after"
    with pytest.raises(ValueError, match=re.escape(message)):
        FeatureDistance(nn.Identity(), classes=None, num_classes=4)


FEATURES, IMAGES, LABELS = draw()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": FEATURES[:, :, :3]},
            "features must be (2, 5, 4, 5) like the reference encoder's, got (2, 5, 3, 5); pass the features of",
        ),
        ({"features": FEATURES[:1]}, "features must be (2, 5, 4, 5) like the reference encoder's, got (1, 5, 4, 5)"),
        ({"features": FEATURES[0]}, "features must be a (B, C, h, w) tensor or hold one at level=-1, got"),
        (
            {"features": [FEATURES, None]},
            "features must be a (B, C, h, w) tensor or hold one at level=-1, got NoneType (it has 0, 1); choose",
        ),
        ({"features": []}, "features must be a (B, C, h, w) tensor or hold one at level=-1, got"),
        (
            {"features": {"low": FEATURES, "last": FEATURES.mean()}},
            "got a tensor of () (it has 'low', 'last'); choose another level, or put Adapted(..., output=...) around",
        ),
        (
            {"labels": LABELS[:, :12]},
            "labels must be (B, H, W) of 2 images, H and W the same whole multiple of the features'",
        ),
        ({"labels": LABELS[:1]}, "whole multiple of the features' (4, 5), got (1, 16, 20)"),
        ({"labels": LABELS[:, None]}, "whole multiple of the features' (4, 5), got (2, 1, 16, 20)"),
        ({"labels": LABELS[:, :2, :3]}, "whole multiple of the features' (4, 5), got (2, 2, 3)"),
        ({"labels": LABELS.float()}, "labels must be uint8 or int64, got torch.float32; convert with .long()"),
        ({"labels": LABELS + 1}, "labels holds the label"),
    ],
    ids=[
        "feature size",
        "feature batch",
        "feature dimensions",
        "not a tensor",
        "empty list",
        "dict",
        "label aspect",
        "label batch",
        "label dimensions",
        "labels too small",
        "label dtype",
        "label value",
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    distance = FeatureDistance(make_encoder(), classes=None, num_classes=4)
    with pytest.raises(ValueError, match=re.escape(message)):
        distance(**({"features": FEATURES, "images": IMAGES, "labels": LABELS} | change))
