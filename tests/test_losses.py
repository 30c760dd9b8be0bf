import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from bilinear import resize
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from hrda_lib import ConfidenceWeightedCE, confidence_weighted_ce
from hrda_lib.losses import entropy

NORMALIZERS = ("all", "valid", "weight")
KAPPA = [0.5, 2.0, 1.3]


def draw(size: tuple[int, int] = (4, 6), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 logits of three classes and that size; target (with 255) and weight of 4x6 pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (2, 4, 6), generator=generator)
    weight = torch.rand(2, 4, 6, generator=generator, dtype=torch.float64)
    return logits, torch.where(target == 3, 255, target), weight


def oracle(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    class_weight: Sequence[float] | None = None,
    normalize: str = "all",
) -> float:
    scores = resize(logits.double().numpy(), (target.shape[1], target.shape[2]))
    total = z = 0.0
    for b, i, j in np.ndindex(*target.shape):
        y = int(target[b, i, j])
        if normalize == "all":
            z += 1
        if y == ignore_index:
            continue
        powers = [math.exp(score) for score in scores[b, :, i, j]]
        factor = (1.0 if weight is None else float(weight[b, i, j])) * (
            1.0 if class_weight is None else class_weight[y]
        )
        total -= factor * math.log(powers[y] / sum(powers))
        z += {"all": 0.0, "valid": 1.0, "weight": factor}[normalize]
    return total / z if z else 0.0


@pytest.mark.parametrize("normalize", NORMALIZERS)
@pytest.mark.parametrize("class_weight", [None, KAPPA], ids=["plain", "class_weight"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("size", [(4, 6), (2, 3), (3, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_equals_loop(
    normalize: Any, class_weight: list[float] | None, weighted: bool, size: tuple[int, int], dtype: torch.dtype
) -> None:
    logits, target, weight = draw(size)
    q = weight if weighted else None
    loss = confidence_weighted_ce(logits, target.to(dtype), q, class_weight=class_weight, normalize=normalize)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(
        oracle(logits, target, q, class_weight=class_weight, normalize=normalize), rel=1e-12
    )


@pytest.mark.parametrize("ignore_index", [0, 2, -1, -100, 7])
@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_any_ignore_index(ignore_index: int, normalize: Any) -> None:
    logits, target, weight = draw()
    target = torch.where(target == 255, ignore_index, target)
    settings = {"ignore_index": ignore_index, "class_weight": KAPPA, "normalize": normalize}
    loss = confidence_weighted_ce(logits, target, weight, **settings)
    assert loss.item() == pytest.approx(oracle(logits, target, weight, **settings), rel=1e-12)


@pytest.mark.parametrize("normalize", NORMALIZERS)
@pytest.mark.parametrize("nothing", ["ignored", "weight 0", "class weight 0"])
@pytest.mark.parametrize("size", [(4, 6), (2, 3)], ids=str)
def test_zero_with_zero_gradient_where_nothing_counts(normalize: Any, nothing: str, size: tuple[int, int]) -> None:
    logits, target, weight = draw(size)
    logits = logits.float().requires_grad_()
    target = torch.full_like(target, 255) if nothing == "ignored" else target
    weight = torch.zeros_like(weight) if nothing == "weight 0" else weight
    kappa = [0.0, 0.0, 0.0] if nothing == "class weight 0" else KAPPA
    loss = confidence_weighted_ce(logits, target, weight.float(), class_weight=kappa, normalize=normalize)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("normalize", NORMALIZERS)
@pytest.mark.parametrize("size", [(4, 6), (2, 3)], ids=str)
def test_gradient(normalize: Any, size: tuple[int, int]) -> None:
    logits, target, weight = draw(size)
    assert torch.autograd.gradcheck(
        lambda x: confidence_weighted_ce(x, target, weight, class_weight=KAPPA, normalize=normalize),
        logits.requires_grad_(),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(4, 6), (2, 3)], ids=str)
def test_low_precision_logits_give_float32_loss(dtype: torch.dtype, size: tuple[int, int]) -> None:
    logits, target, weight = draw(size)
    logits = logits.to(dtype).requires_grad_()
    loss = confidence_weighted_ce(logits, target, weight.float())
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == dtype
    assert loss.item() == pytest.approx(oracle(logits.detach(), target, weight.float()), rel=5e-7)


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([30000.0, -30000.0], dtype=torch.float16).view(1, 2, 1, 1)
    assert confidence_weighted_ce(logits, torch.tensor([[[1]]])).item() == 60000
    assert confidence_weighted_ce(logits, torch.tensor([[[0]]])).item() == 0


@pytest.mark.parametrize("normalize", NORMALIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_module_is_the_function(normalize: Any, dtype: torch.dtype) -> None:
    logits, target, weight = draw((2, 3))
    logits, weight, kappa = logits.to(dtype), weight.to(dtype), torch.tensor(KAPPA, dtype=dtype)
    target = torch.where(target == 255, 4, target)
    module = ConfidenceWeightedCE(ignore_index=4, class_weight=kappa, normalize=normalize)
    expected = confidence_weighted_ce(logits, target, weight, ignore_index=4, class_weight=kappa, normalize=normalize)
    assert module(logits, target, weight).item() == expected.item()
    assert module.state_dict() == {}
    assert repr(module) == f"ConfidenceWeightedCE(ignore_index=4, normalize={normalize!r})"


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_compiles_without_a_break(normalize: Any) -> None:
    logits, target, weight = draw((2, 3))
    module = ConfidenceWeightedCE(class_weight=KAPPA, normalize=normalize)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert compiled(logits, target, weight).item() == pytest.approx(module(logits, target, weight).item(), rel=1e-6)


def test_torch_cross_entropy_is_a_special_case() -> None:
    logits, target, _ = draw()
    kappa = torch.tensor(KAPPA, dtype=torch.float64)
    plain = cross_entropy(logits, target, ignore_index=255)
    weighted = cross_entropy(logits, target, kappa, ignore_index=255)
    assert confidence_weighted_ce(logits, target, normalize="valid").item() == pytest.approx(plain.item(), rel=1e-12)
    got = confidence_weighted_ce(logits, target, class_weight=kappa, normalize="weight")
    assert got.item() == pytest.approx(weighted.item(), rel=1e-12)


@given(st.integers(0, 99), st.floats(0.01, 1), st.sampled_from(NORMALIZERS))
def test_linear_in_the_weight(seed: int, factor: float, normalize: Any) -> None:
    logits, target, weight = draw((2, 3), seed)
    whole = confidence_weighted_ce(logits, target, weight, normalize=normalize).item()
    scaled = confidence_weighted_ce(logits, target, factor * weight, normalize=normalize).item()
    assert scaled == pytest.approx(whole if normalize == "weight" else factor * whole, rel=1e-12)


@given(st.integers(0, 99), st.permutations(range(2)), st.floats(-9, 9), st.sampled_from(NORMALIZERS))
def test_blind_to_batch_order_and_logit_offset(seed: int, order: list[int], offset: float, normalize: Any) -> None:
    logits, target, weight = draw((2, 3), seed)
    loss = confidence_weighted_ce(logits, target, weight, normalize=normalize).item()
    permuted = confidence_weighted_ce(logits[order] + offset, target[order], weight[order], normalize=normalize).item()
    assert permuted == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize(("label", "ignore_index"), [(3, 255), (19, 255), (254, 255), (255, -1), (156, -100)])
def test_refuses_a_label_that_is_no_class(label: int, ignore_index: int, dtype: torch.dtype) -> None:
    logits, target, _ = draw()
    target = torch.where(target == 255, 0, target)
    target[1, 2, 3] = label
    message = f"target holds the label {label}, outside [0, 3) and not the ignore_index {ignore_index}; map it to"
    with pytest.raises(ValueError, match=re.escape(message)):
        confidence_weighted_ce(logits, target.to(dtype), ignore_index=ignore_index)


def test_refuses_a_negative_label() -> None:
    with pytest.raises(ValueError, match=re.escape("target holds the label -2, outside [0, 3)")):
        confidence_weighted_ce(torch.zeros(1, 3, 1, 1), torch.tensor([[[-2]]]))


@pytest.mark.parametrize("num_classes", [256, 300])
def test_uint8_target_of_many_classes(num_classes: int) -> None:
    target = torch.tensor([[[0, 1, 254, 255]]], dtype=torch.uint8)
    loss = confidence_weighted_ce(torch.zeros(1, num_classes, 1, 4), target, ignore_index=-1)
    assert loss.item() == pytest.approx(math.log(num_classes))
    with pytest.raises(ValueError, match=f"ignore_index 255 is one of the {num_classes} classes"):
        confidence_weighted_ce(torch.zeros(1, num_classes, 1, 4), target)


def test_a_class_that_is_ignored_is_not_learned() -> None:
    logits = torch.zeros(1, 3, 1, 4, requires_grad=True)
    target = torch.tensor([[[0, 1, 2, 1]]])
    loss = confidence_weighted_ce(logits, target, ignore_index=1, normalize="valid")
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3))
    assert logits.grad.abs().sum(dim=1)[0, 0].tolist() == [pytest.approx(2 / 3), 0, pytest.approx(2 / 3), 0]


def test_one_class_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match=r"^logits must have at least two classes, got one class, .*; use two classes"):
        confidence_weighted_ce(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2).long())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 4, 6)}, "logits must be float (B, C, h, w), got torch.float32 (3, 4, 6)"),
        (
            {"logits": torch.zeros(2, 3, 4, 6).long()},
            "logits must be float (B, C, h, w), got torch.int64 (2, 3, 4, 6)",
        ),
        ({"logits": torch.zeros(2, 3, 5, 6)}, "logits must be at most as large as the target, got (5, 6) logits for"),
        ({"logits": torch.zeros(2, 3, 4, 7)}, "got (4, 7) logits for a target of (4, 6)"),
        ({"target": torch.zeros(2, 1, 4, 6).long()}, "target must be (2, H, W) like logits, got (2, 1, 4, 6)"),
        ({"target": torch.zeros(1, 4, 6).long()}, "target must be (2, H, W) like logits, got (1, 4, 6)"),
        ({"target": torch.zeros(2, 0, 6).long()}, "target must be (2, H, W) like logits and not empty, got (2, 0, 6)"),
        ({"target": torch.zeros(2, 4, 6).int()}, "target must be uint8 or int64, got torch.int32"),
        ({"target": torch.zeros(2, 4, 6)}, "target must be uint8 or int64, got torch.float32; convert with .long()"),
        (
            {"weight": torch.ones(4, 6)},
            "weight must be float (2, 4, 6) like target, got torch.float32 (4, 6)",
        ),
        ({"weight": torch.ones(2, 4, 6).bool()}, "weight must be float (2, 4, 6) like target, got torch.bool"),
        ({"weight": torch.full((2, 4, 6), 1.5)}, "weight must be in [0, 1], got values from 1.5 to 1.5"),
        ({"weight": torch.linspace(-0.5, 1, 48).view(2, 4, 6)}, "weight must be in [0, 1], got values from -0.5 to 1"),
        ({"weight": torch.full((2, 4, 6), math.nan)}, "weight must be in [0, 1], got values from nan to nan"),
        ({"class_weight": [1.0, 2.0]}, "class_weight must be one number a class (3,), got (2,)"),
        ({"ignore_index": 1.0}, "ignore_index must be an int of 32 bits, got 1.0"),
        ({"ignore_index": True}, "ignore_index must be an int of 32 bits, got True"),
        ({"ignore_index": 2**40}, "ignore_index must be an int of 32 bits, got 1099511627776"),
        ({"normalize": "mean"}, "normalize must be one of ('all', 'valid', 'weight'), got 'mean'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    good = {"logits": torch.zeros(2, 3, 4, 6), "target": torch.zeros(2, 4, 6, dtype=torch.int64)}
    with pytest.raises(ValueError, match=re.escape(message)):
        confidence_weighted_ce(**(good | change))


def test_module_refuses_at_construction() -> None:
    with pytest.raises(ValueError, match=re.escape("normalize must be one of ('all', 'valid', 'weight'), got 'sum'")):
        ConfidenceWeightedCE(normalize="sum")  # type: ignore[arg-type]


def entropy_by_loop(logits: Tensor, weight: Tensor | None = None) -> float:
    batch, classes, height, width = logits.shape
    total = 0.0
    for b, i, j in np.ndindex(batch, height, width):
        powers = [math.exp(score) for score in logits[b, :, i, j].tolist()]
        shares = [power / sum(powers) for power in powers]
        factor = 1.0 if weight is None else float(weight[b, i, j])
        total -= factor * sum(share * math.log(share, classes) for share in shares if share)
    return total / (batch * height * width)


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("classes", [2, 3, 19])
def test_entropy_equals_loop(classes: int, weighted: bool, generator: torch.Generator) -> None:
    logits = 3 * torch.randn(2, classes, 4, 6, generator=generator, dtype=torch.float64)
    logits[1, 0, :2] = -math.inf
    q = draw()[2] if weighted else None
    loss = entropy(logits, q)
    assert (loss.dtype, loss.shape) == (torch.float64, ())
    assert loss.item() == pytest.approx(entropy_by_loop(logits, q), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_entropy_of_low_precision_logits_is_taken_in_float32(dtype: torch.dtype) -> None:
    logits = draw()[0].to(dtype).requires_grad_()
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = entropy(logits, draw()[2])
        loss.backward()
        assert (loss.dtype, logits.grad.dtype) == (torch.float32, dtype)
        assert loss.item() == pytest.approx(entropy_by_loop(logits.detach(), draw()[2]), rel=5e-7)


@pytest.mark.parametrize("classes", [2, 19])
def test_entropy_is_1_where_all_classes_are_alike_and_0_where_one_is_certain(classes: int) -> None:
    alike = torch.full((2, classes, 3, 4), 7.5, requires_grad=True)
    entropy(alike).backward()
    assert entropy(alike).item() == pytest.approx(1, rel=1e-6)
    assert alike.grad.abs().max() < 1e-7
    for others in (-math.inf, -1e4):
        certain = torch.full((2, classes, 3, 4), others)
        certain[:, 1] = 0
        certain.requires_grad_()
        loss = entropy(certain)
        loss.backward()
        assert loss.item() == 0
        assert not certain.grad.any()


def test_classes_that_are_ruled_out_say_nothing() -> None:
    logits = draw()[0]
    padded = torch.cat([logits, torch.full_like(logits, -math.inf)], dim=1)
    assert entropy(padded).item() * math.log(6) == pytest.approx(entropy(logits).item() * math.log(3), rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_gradient_of_entropy(weighted: bool) -> None:
    logits, _, weight = draw()
    assert torch.autograd.gradcheck(lambda x: entropy(x, weight if weighted else None), logits.requires_grad_())
    ruled_out = torch.cat([logits.detach(), torch.full((2, 1, 4, 6), -math.inf)], dim=1).requires_grad_()
    entropy(ruled_out).backward()
    entropy(logits).backward()
    torch.testing.assert_close(ruled_out.grad[:, :3] * math.log(4), logits.grad * math.log(3))
    assert not ruled_out.grad[:, 3].any()


def test_descending_makes_predictions_certain() -> None:
    logits = draw()[0].requires_grad_()
    best, before = logits.argmax(dim=1), entropy(logits).item()
    for _ in range(20):
        (slope,) = torch.autograd.grad(entropy(logits), logits)
        logits = (logits - 20 * slope).detach().requires_grad_()
    assert entropy(logits).item() < 0.8 * before
    assert torch.equal(logits.argmax(dim=1), best)


@given(st.integers(0, 99), st.floats(0, 1), st.floats(-9, 9))
def test_entropy_is_linear_in_the_weight_and_blind_to_an_offset(seed: int, factor: float, offset: float) -> None:
    logits, _, weight = draw(seed=seed)
    whole = entropy(logits, weight).item()
    assert 0 <= whole <= entropy(logits).item() <= 1
    assert entropy(logits + offset, factor * weight).item() == pytest.approx(factor * whole, rel=1e-10)


@pytest.mark.parametrize(
    ("logits", "weight", "message"),
    [
        (torch.zeros(3, 4, 6), None, "logits must be float (B, C, h, w), got torch.float32 (3, 4, 6)"),
        (torch.zeros(2, 3, 4, 6).long(), None, "logits must be float (B, C, h, w), got torch.int64"),
        (torch.zeros(2, 3, 0, 6), None, "logits must be float (B, C, h, w) and not empty, got torch.float32 (2, 3, 0"),
        (torch.zeros(2, 1, 4, 6), None, "logits must have at least two classes, got one class"),
        (torch.full((2, 3, 4, 6), math.nan), None, "logits must be finite in the best class of every pixel, got nan"),
        (torch.full((2, 3, 4, 6), -math.inf), None, "logits must be finite in the best class of every pixel, got -inf"),
        (
            torch.zeros(2, 3, 4, 6),
            torch.ones(2, 8, 12),
            "weight must be float (2, 4, 6) like logits, got torch.float32 (2, 8, 12)",
        ),
        (torch.zeros(2, 3, 4, 6), torch.ones(2, 4, 6).bool(), "weight must be float (2, 4, 6) like logits, got torch."),
        (torch.zeros(2, 3, 4, 6), torch.full((2, 4, 6), 2.0), "weight must be in [0, 1], got values from 2 to 2"),
    ],
    ids=["dimensions", "dtype", "empty", "one class", "nan", "no class", "size", "mask", "range"],
)
def test_entropy_refuses(logits: Tensor, weight: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        entropy(logits, weight)


ORDERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "transposed": ((5, 96, 160), (96, 160), "transpose"),
    "transposed, at a stride": ((5, 24, 40), (96, 160), "transpose"),
    "channels last": ((5, 96, 160), (96, 160), "permute"),
    "channels last, at a stride": ((5, 24, 40), (96, 160), "permute"),
    "channels last, of squares": ((19, 128, 128), (128, 128), "permute"),
    "channels last, of squares, at a stride": ((19, 64, 64), (256, 256), "permute"),
}


@pytest.mark.parametrize("case", ORDERS)
def test_axes_in_another_order_are_refused(case: str) -> None:
    right, size, how = ORDERS[case]
    logits, target = torch.zeros(2, *right), torch.zeros(2, *size, dtype=torch.int64)
    confidence_weighted_ce(logits, target)
    wrong = logits.transpose(-2, -1) if how == "transpose" else logits.permute(0, 2, 3, 1)
    order, remedy = {
        "transpose": ("(B, C, w, h)", "transpose(-2, -1)"),
        "permute": ("(B, h, w, C)", "permute(0, 3, 1, 2)"),
    }[how]
    message = (
        f"logits must be (B, C, h, w) for a target (B, H, W) of {tuple(target.shape)}, got {tuple(wrong.shape)}, which "
        f"fit it as {order}: {remedy}; if they are right, resize them to the target's sides before"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        confidence_weighted_ce(wrong, target)


@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ((33, 65), (257, 513)),
        ((37, 74), (512, 1024)),
        ((19, 20), (76, 76)),
        ((20, 21), (76, 80)),
        ((64, 64), (64, 128)),
    ],
    ids=str,
)
def test_sides_that_a_network_rounds_or_shrinks_unlike_are_taken(cells: tuple[int, int], size: tuple[int, int]) -> None:
    logits, target = torch.zeros(1, 19, *cells), torch.zeros(1, *size, dtype=torch.int64)
    assert confidence_weighted_ce(logits, target).item() == pytest.approx(math.log(19))
    logits = torch.zeros(1, 2, *(-(-side // 14) for side in size))
    assert confidence_weighted_ce(logits, target).item() == pytest.approx(math.log(2))
