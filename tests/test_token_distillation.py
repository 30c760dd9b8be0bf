"""Token distillation against loops, and what it must leave alone: its reference."""

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from bilinear import resize
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hrda_lib import TokenDistillation


class Reference(nn.Module):
    """Images (B, 3, 4h, 4w) -> two maps, the last of 5 channels, with a norm and a dropout that know two modes."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.channels = (4, channels)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.second = nn.Conv2d(4, channels, 2, stride=2)

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.first(images)
        return [first, self.second(first)]


def built(seed: int = 0, in_channels: int = 3, **settings: Any) -> TokenDistillation:
    torch.manual_seed(seed)
    return TokenDistillation(Reference(), in_channels, **{"weight": 1.0, "size": 16, **settings}).double()


def draw(seed: int = 0, batch: int = 2, side: tuple[int, int] = (16, 24)) -> tuple[Tensor, Tensor]:
    """Features of 3x4 cells and images."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, 3, 3, 4, generator=generator, dtype=torch.float64)
    return features, torch.rand(batch, 3, *side, generator=generator, dtype=torch.float64)


def projected(layers: Any, vector: list[float]) -> list[float]:
    """1x1 convolution, layer norm, GELU and 1x1 convolution of one cell, number by number."""
    first, norm, _, last = layers
    hidden = [
        sum(w * x for w, x in zip(row, vector, strict=True)) + b
        for row, b in zip(first.weight[:, :, 0, 0].tolist(), first.bias.tolist(), strict=True)
    ]
    mean = sum(hidden) / len(hidden)
    spread = math.sqrt(sum((x - mean) ** 2 for x in hidden) / len(hidden) + 1e-6)
    scaled = zip(hidden, norm.weight.tolist(), norm.bias.tolist(), strict=True)
    normed = [(x - mean) / spread * w + b for x, w, b in scaled]
    active = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in normed]
    return [
        sum(w * x for w, x in zip(row, active, strict=True)) + b
        for row, b in zip(last.weight[:, :, 0, 0].tolist(), last.bias.tolist(), strict=True)
    ]


def apart(ours: list[float], theirs: list[float]) -> float:
    pairs = list(zip(ours, theirs, strict=True))
    dot = sum(x * y for x, y in pairs)
    lengths = [math.sqrt(sum(x * x for x in vector)) for vector in (ours, theirs)]
    smooth = [d * d / 2 if d < 1 else d - 0.5 for d in (abs(x - y) for x, y in pairs)]
    return 0.9 * (1 - dot / (lengths[0] * lengths[1])) + 0.1 * sum(smooth) / len(smooth)


@torch.no_grad()
def oracle(distillation: TokenDistillation, features: Tensor, images: Tensor, size: tuple[int, int] | None) -> float:
    seen = images if size is None else torch.from_numpy(resize(images.numpy(), size))
    reference = copy.deepcopy(distillation.reference).eval()
    tokens = reference(seen)[-1].numpy()
    maps = np.zeros((len(features), tokens.shape[1], *features.shape[-2:]))
    for b, i, j in np.ndindex(len(maps), *maps.shape[2:]):
        maps[b, :, i, j] = projected(distillation.project, features[b, :, i, j].tolist())
    maps = resize(maps, tokens.shape[-2:])
    cells = list(np.ndindex(len(maps), *maps.shape[2:]))
    total = sum(apart(maps[b, :, i, j].tolist(), tokens[b, :, i, j].tolist()) for b, i, j in cells)
    return distillation.weight * total / len(cells)


@pytest.mark.parametrize("size", [16, (12, 20), (8, 8), None], ids=str)
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_equals_loop(size: Any, weight: float) -> None:
    for seed in range(3):
        distillation = built(seed, size=size, weight=weight)
        features, images = draw(seed)
        wanted = (16, 16) if size == 16 else size
        expected = oracle(distillation, features, images, wanted)
        result = distillation(features, images)
        assert result.dtype == torch.float64
        assert result.item() == pytest.approx(expected, rel=1e-12)


def test_default_weight_and_size_are_the_published_ones() -> None:
    torch.manual_seed(0)
    distillation = TokenDistillation(Reference(), 3)
    assert (distillation.weight, distillation.size) == (0.1, (406, 406))


@pytest.mark.parametrize("as_given", [lambda x: [x * 2, x], lambda x: (x,), lambda x: {"a": x * 2, "b": x}])
def test_takes_the_last_of_several_features(as_given: Any) -> None:
    features, images = draw()
    assert built()(as_given(features), images).item() == built()(features, images).item()


def test_zero_with_zero_gradient_at_the_tokens_themselves() -> None:
    distillation = built(in_channels=5, size=None)
    distillation.project = nn.Sequential()
    _, images = draw()
    tokens = distillation.reference(images)[-1].detach().requires_grad_()
    loss = distillation(tokens, images)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert tokens.grad.abs().max() < 1e-15


def test_twice_the_cosine_where_features_point_the_other_way() -> None:
    distillation = built(in_channels=5, size=None)
    distillation.project = nn.Sequential()
    _, images = draw()
    tokens = distillation.reference(images)[-1].detach()
    smooth = torch.where(2 * tokens.abs() < 1, 2 * tokens**2, 2 * tokens.abs() - 0.5).mean()
    assert distillation(-tokens, images).item() == pytest.approx(1.8 + 0.1 * smooth.item())


@given(seed=st.integers(0, 99), batch=st.integers(1, 3))
def test_the_mean_over_images_in_any_order(seed: int, batch: int) -> None:
    distillation = built()
    features, images = draw(seed, batch)
    each = [distillation(features[b : b + 1], images[b : b + 1]).item() for b in range(batch)]
    whole = distillation(features, images).item()
    assert whole == pytest.approx(sum(each) / batch, rel=1e-12)
    assert whole == pytest.approx(distillation(features.flip(0), images.flip(0)).item(), rel=1e-12)
    assert whole >= 0


def test_gradients() -> None:
    distillation = built()
    features, images = draw(batch=1)
    names = [name for name, p in distillation.named_parameters() if p.requires_grad]
    inputs = (features.requires_grad_(), *(dict(distillation.named_parameters())[name] for name in names))

    def loss(feature: Tensor, *weights: Tensor) -> Tensor:
        state = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(distillation, state, (feature, images))

    assert {name.split(".")[0] for name in names} == {"project"}
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_nothing_of_the_reference_ever_changes() -> None:
    """Not by gradients, not by statistics of batches, not with the network that it was copied from."""
    torch.manual_seed(0)
    encoder = Reference().double()
    distillation = TokenDistillation(encoder, 5, size=None).double().train()
    _, images = draw()
    before = {name: x.clone() for name, x in distillation.reference.state_dict().items()}
    optimizer = torch.optim.AdamW([*encoder.parameters(), *distillation.parameters()], lr=0.1)
    for _ in range(2):
        distillation(encoder.train()(images), images).backward()
        optimizer.step()
    assert not distillation.reference.training
    assert not any(part.training for part in distillation.reference.modules())
    assert distillation.project.training
    assert all(torch.equal(x, before[name]) for name, x in distillation.reference.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in distillation.reference.parameters())
    assert all(p.grad is not None for p in distillation.project.parameters())
    assert not torch.equal(encoder.second.weight, distillation.reference.second.weight)
    assert all(p.requires_grad for p in encoder.parameters())


def test_images_get_no_gradient_through_the_reference() -> None:
    distillation = built()
    features, images = draw()
    distillation(features.requires_grad_(), images.requires_grad_()).backward()
    assert images.grad is None
    assert features.grad.abs().max() > 0


def test_no_activation_of_the_reference_is_kept_for_backward() -> None:
    """What is kept does not grow with the depth of the reference."""

    def kept(depth: int) -> int:
        torch.manual_seed(0)
        middle = [nn.Sequential(nn.Conv2d(16, 16, 1), nn.GELU()) for _ in range(depth)]
        reference = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), *middle)
        reference.channels = (16,)  # type: ignore[assignment]
        distillation, found = TokenDistillation(reference, 3, size=64), dict[int, int]()

        def pack(x: Tensor) -> Tensor:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        features = torch.rand(1, 3, 16, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            distillation(features, torch.rand(1, 3, 64, 64))
        return sum(found.values())

    assert kept(8) == kept(0)


def test_the_projection_alone_is_enough_to_go_on() -> None:
    features, images = draw()
    first, file = built(0), io.BytesIO()
    torch.save(first.project.state_dict(), file)
    file.seek(0)
    torch.manual_seed(0)
    second = TokenDistillation(Reference(), 3, weight=1.0, size=16).double()
    nn.init.zeros_(second.project[0].weight)
    second.project.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first(features, images), second(features, images))
    other = built(1)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first(features, images), other(features, images))
    assert torch.equal(first(features, images), copy.deepcopy(first)(features, images))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_under_autocast_finite_and_close(stored: torch.dtype) -> None:
    features, images = (x.float() for x in draw())
    distillation = built().float()
    expected = distillation(features, images)
    distillation.reference.to(stored)
    features.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation(features.bfloat16(), images)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.03)
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in distillation.project.parameters())
    assert features.grad.isfinite().all()


def test_sums_are_float32_where_all_is_bfloat16() -> None:
    features, images = (x.bfloat16() for x in draw())
    distillation = built().bfloat16()
    loss = distillation(features, images)
    assert loss.dtype == torch.float32
    with torch.no_grad():
        ours, tokens = (
            x.float() for x in (distillation.project(features), distillation.reference(resized(images))[-1])
        )
    ours = resized(ours.bfloat16(), 4).float()
    smooth = nn.functional.smooth_l1_loss(ours, tokens)
    expected = 0.9 * (1 - nn.functional.cosine_similarity(ours, tokens).mean()) + 0.1 * smooth
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def resized(x: Tensor, side: int = 16) -> Tensor:
    return nn.functional.interpolate(x, size=(side, side), mode="bilinear")


def test_compiled() -> None:
    features, images = draw()
    distillation = built()
    compiled = torch.compile(distillation, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(features, images), distillation(features, images))


def test_sizes_are_whole_patches_of_the_reference() -> None:
    reference = Reference()
    reference.patch = 16  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"size must be whole patches of 16, .*got \(406, 406\); take size=464"):
        TokenDistillation(reference, 3)
    assert TokenDistillation(reference, 3, size=464).size == (464, 464)


class Answers(nn.Module):
    """A reference that answers with what is given."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.channels = answer, (5,)

    def forward(self, _: Tensor) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("reference", "settings", "message"),
    [
        (lambda: "dinov2", {}, "reference must be a torch.nn.Module, got str"),
        (
            lambda: nn.Conv2d(3, 4, 1),
            {},
            r"reference must state its channels as a tuple .channels, got Conv2d without; ",
        ),
        (Reference, {"in_channels": 0}, "in_channels must be a positive int, got 0"),
        (Reference, {"in_channels": [3]}, r"in_channels must be a positive int, got \[3\]"),
        (Reference, {"weight": -1}, r"weight must be in \[0, inf\], got -1"),
        (Reference, {"size": (8, 8, 8)}, r"size must be a positive int or two of them"),
        (Reference, {"size": 0}, r"size must be a positive int"),
        (lambda: Reference(0), {}, r"channels must be a positive int, got 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_settings_that_do_not_fit(reference: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenDistillation(reference(), **{"in_channels": 3, **settings})


@pytest.mark.parametrize(
    ("features", "images", "message"),
    [
        (
            torch.zeros(2, 4, 3, 4),
            torch.zeros(2, 3, 8, 8),
            r"features must be float \(2, 3, h, w\), got .*\(2, 4, 3, 4\)",
        ),
        (torch.zeros(2, 4, 4, 3), torch.zeros(2, 3, 8, 8), r"got .*\(2, 4, 4, 3\); these are channels last: permute"),
        (torch.zeros(1, 3, 3, 4), torch.zeros(2, 3, 8, 8), r"features must be float \(2, 3, h, w\)"),
        (torch.zeros(2, 3, 3, 4), torch.zeros(3, 8, 8), r"images must be float \(B, K, H, W\), got"),
        (torch.zeros(2, 3, 3, 4), torch.zeros(2, 3, 8, 8).byte(), r"images must be float"),
        (
            torch.zeros(2, 3, 3),
            torch.zeros(2, 3, 8, 8),
            r"features must be a \(B, C, h, w\) tensor or end in one, got a",
        ),
        ([], torch.zeros(2, 3, 8, 8), r"features must be .*or end in one, got list"),
        ({}, torch.zeros(2, 3, 8, 8), r"features must be .*or end in one, got dict"),
        (None, torch.zeros(2, 3, 8, 8), r"features must be .*or end in one, got NoneType"),
        (torch.zeros(2, 3, 3, 4).long(), torch.zeros(2, 3, 8, 8), r"features must be float"),
        (torch.zeros(2, 3, 3, 4), None, r"images must be a tensor, got NoneType"),
        (torch.full((2, 3, 3, 4), math.nan), torch.zeros(2, 3, 8, 8), "features must be finite"),
        (torch.zeros(2, 3, 3, 4), torch.full((2, 3, 8, 8), math.inf), "images must be finite"),
    ],
)
def test_calls_that_do_not_fit(features: Any, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built().float()(features, images)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(2, 4, 3, 4), r"reference's answer must be \(2, 5, 3, 4\), got \(2, 4, 3, 4\); reference.channels"),
        (torch.zeros(2, 12, 5), r"reference's answer must be a \(B, C, h, w\) tensor or end in one, got a tensor of"),
        ((), r"reference's answer must be a \(B, C, h, w\) tensor or end in one, got tuple"),
    ],
)
def test_answers_of_the_reference_that_do_not_fit(answer: Any, message: str) -> None:
    distillation = TokenDistillation(Answers(answer), 3, size=None)
    with pytest.raises(ValueError, match=message):
        distillation(torch.zeros(2, 3, 3, 4), torch.zeros(2, 3, 8, 8))
