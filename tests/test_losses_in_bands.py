"""confidence_weighted_ce by bands of rows: the plain way's numbers, without its memory."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from hrda_lib import confidence_weighted_ce, losses

KAPPA = [0.5, 2.0, 1.3]


def draw(size: tuple[int, int], target: tuple[int, int], seed: int = 0, classes: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes + 1, (2, *target), generator=generator)
    weight = torch.rand(2, *target, generator=generator, dtype=torch.float64).round(decimals=1)
    return logits, torch.where(labels == classes, 255, labels), weight


def plain(logits: Tensor, target: Tensor, weight: Tensor | None, normalize: str, kappa: Any) -> Tensor:
    kappa = None if kappa is None else torch.tensor(kappa, dtype=logits.dtype)
    scores = interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    loss = cross_entropy(scores, target, weight=kappa, ignore_index=255, reduction="none")
    factor = (target != 255).to(logits.dtype) * (1 if weight is None else weight)
    factor = factor if kappa is None else factor * kappa[torch.where(target == 255, 0, target)]
    total = (loss if weight is None else loss * weight).sum()
    return total / {"all": target.numel(), "valid": (target != 255).sum(), "weight": factor.sum()}[normalize]


def with_gradient(loss_of: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = loss_of(leaf)
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.fixture(params=["product", "gather"])
def small_bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of few rows; and the way of devices whose products may round."""
    monkeypatch.setattr(losses, "CPU_BAND", 100)
    if request.param == "gather":
        monkeypatch.setattr(losses, "_matrix", lambda *_: None)


SIZES = [
    ((1, 1), (5, 7)),
    ((2, 3), (9, 4)),
    ((3, 5), (12, 20)),
    ((4, 4), (11, 13)),
    ((6, 2), (6, 30)),
    ((5, 6), (5, 6)),
]


@pytest.mark.usefixtures("small_bands")
@pytest.mark.parametrize(("size", "target_size"), SIZES)
@pytest.mark.parametrize("normalize", losses.NORMALIZERS)
@pytest.mark.parametrize("kappa", [None, KAPPA], ids=["plain", "class_weight"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_equals_the_plain_way(size: Any, target_size: Any, normalize: Any, kappa: Any, weighted: bool) -> None:
    logits, target, weight = draw(size, target_size)
    weight = weight if weighted else None

    def ours(x: Tensor) -> Tensor:
        return confidence_weighted_ce(x, target, weight, class_weight=kappa, normalize=normalize)

    got = with_gradient(ours, logits)
    expected = with_gradient(lambda x: plain(x, target, weight, normalize, kappa), logits)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        assert ours(logits).item() == got[0].item()


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 30), st.integers(0, 30), st.integers(1, 400), st.integers(0, 9)
)
def test_any_ratio(height: int, width: int, more: int, wider: int, band: int, seed: int) -> None:
    logits, target, weight = draw((height, width), (height + more, width + wider), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CPU_BAND", band)
        got = with_gradient(lambda x: confidence_weighted_ce(x, target, weight), logits)
    expected = with_gradient(lambda x: plain(x, target, weight, "all", None), logits)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.usefixtures("small_bands")
def test_gradcheck_over_bands() -> None:
    logits, target, weight = draw((3, 4), (8, 10))
    assert torch.autograd.gradcheck(lambda x: confidence_weighted_ce(x, target, weight), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_no_further_from_the_truth_than_the_plain_way(dtype: torch.dtype) -> None:
    logits, target, weight = draw((32, 32), (128, 128))
    truth, slope = with_gradient(lambda x: plain(x, target, weight, "all", None), logits.to(dtype).double())
    low = logits.to(dtype)
    ours, ours_slope = with_gradient(lambda x: confidence_weighted_ce(x, target, weight.float()), low)
    naive, naive_slope = with_gradient(lambda x: plain(x.float(), target, weight.float(), "all", None), low)
    assert ours.dtype == torch.float32
    assert ours_slope.dtype == dtype
    assert (ours - truth).abs() <= (naive - truth).abs() + 1e-6
    scale = slope.abs().max()
    assert (ours_slope - slope).abs().max() <= (naive_slope - slope).abs().max() + 1e-6 * scale


class Largest(TorchDispatchMode):
    """The most numbers that a result held."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            self.numbers = max(self.numbers, value.numel() if isinstance(value, Tensor) else 0)
        return result


def test_no_map_of_all_pixels_and_classes() -> None:
    logits, target, weight = (x.float() if x.is_floating_point() else x for x in draw((32, 64), (256, 512), classes=19))
    leaf = logits.requires_grad_()
    with Largest() as ours:
        confidence_weighted_ce(leaf, target, weight).backward()
    with Largest() as naive:
        plain(leaf, target, weight, "all", None).backward()
    assert naive.numbers == 2 * 19 * 256 * 512
    assert ours.numbers <= losses.CPU_BAND  # a band, the logits' gradient, or checks of the target


def test_twice() -> None:
    logits, target, weight = draw((2, 3), (8, 12))
    loss = confidence_weighted_ce(logits.requires_grad_(), target, weight)
    first, second = (torch.autograd.grad(3 * loss, logits, retain_graph=again)[0] for again in (True, False))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, logits)
    loss = confidence_weighted_ce(logits, target, weight)
    (slope,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        slope.sum().backward()


def test_autocast_keeps_float32() -> None:
    logits, target, weight = draw((8, 8), (32, 32))
    logits, weight = logits.float(), weight.float()
    expected = with_gradient(lambda x: confidence_weighted_ce(x, target, weight), logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = with_gradient(lambda x: confidence_weighted_ce(x, target, weight), logits)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_weights_that_learn_and_functions_of_gradients_take_the_plain_way() -> None:
    logits, target, weight = draw((2, 3), (8, 12))
    learned = weight.clamp(0.1, 0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: confidence_weighted_ce(logits, target, q, class_weight=KAPPA), learned)
    expected = with_gradient(lambda x: confidence_weighted_ce(x, target, weight), logits)[1]
    got = torch.func.grad(lambda x: confidence_weighted_ce(x, target, weight))(logits)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_a_class_that_is_ruled_out_stays_so() -> None:
    logits, target, _ = draw((8, 12), (8, 12))
    logits[:, 2] = -torch.inf
    target = torch.where(target == 2, 0, target)
    got = with_gradient(lambda x: confidence_weighted_ce(x, target), logits)
    expected = with_gradient(lambda x: confidence_weighted_ce(x, target), logits[:, :2])
    torch.testing.assert_close((got[0], got[1][:, :2]), expected)
    assert not got[1][:, 2].any()
