"""Cross-entropy weighted by pseudo-label confidence; entropy, for comparison."""

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from hrda_lib._checks import (
    at_least_float32,
    check_choice,
    check_finite,
    check_ignore_index,
    check_labels,
    check_scores,
    check_two_classes,
    expect,
    readable,
)
from hrda_lib._modules import written_out
from hrda_lib._processes import mean_over
from hrda_lib.geometry import resize

if TYPE_CHECKING:
    from hrda_lib._processes import Group

Normalize = Literal["all", "valid", "weight"]
NORMALIZERS = get_args(Normalize)
# numbers a band: what a cache holds on a CPU, what keeps a GPU busy
CPU_BAND, GPU_BAND = 1 << 19, 1 << 24


def confidence_weighted_ce(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    class_weight: Tensor | Sequence[float] | None = None,
    normalize: Normalize = "all",
    group: "Group" = None,
) -> Tensor:
    r"""Cross-entropy with a weight a pixel.

    .. math::
        L = \frac{1}{Z} \sum_{i \in V} q_i\, \kappa_{y_i} \left(-\log \mathrm{softmax}(\hat y_i)_{y_i}\right),
        \qquad V = \{i : y_i \ne \text{ignore_index}\}

    (DAFormer, arXiv 2111.14887, section 3.1), where Z is one of

    - ``"all"``: :math:`B \cdot H \cdot W`, ignored pixels too (DAFormer, HRDA),
    - ``"valid"``: :math:`|V|`, as torch divides without class weights,
    - ``"weight"``: :math:`\sum_{i \in V} q_i \kappa_{y_i}`, as torch divides with class weights (it has no q).

    Args:
        logits: (B, C, h, w) raw, of two classes at least, at most as large as the target: upsampled bilinearly to it.
        target: (B, H, W) uint8 or int64 class ids or ``ignore_index``.
        weight: q, (B, H, W) in [0, 1]; None: 1.
        ignore_index: the label without loss. A class may be meant: it is not learned then. Above 255 classes, another
            than 255 must be chosen.
        class_weight: :math:`\kappa`, one non-negative weight a class; None: 1.
        normalize: which Z, by its name above.
        group: processes that share the batch, each with as many images: Z is the mean of theirs, so that the mean of
            their losses is the loss of all images; None: this one alone.

    Returns:
        A scalar, in float32 at least; 0 with zero gradient where nothing counts, never NaN. It is summed by bands of
        rows, its gradient in the same sweep, so that no map of all pixels and classes is ever kept; compiled code,
        ``torch.func`` and a ``weight`` that learns take the plain way. It has no second derivative.

    Raises:
        ValueError: shapes or types differ from the above; on the CPU also for a label that is no class, a weight
            outside [0, 1], and logits or class weights that are nan, infinite or too large for the sum. Axes in another
            order, (B, C, w, h) or (B, h, w, C), are told by the sides, from 32 on; squares look alike when transposed.

    Example:
        >>> import torch
        >>> from hrda_lib import confidence_weighted_ce
        >>> logits = torch.zeros(1, 4, 2, 2)
        >>> target = torch.tensor([[[0, 1], [3, 255]]])
        >>> round(confidence_weighted_ce(logits, target).item(), 4)  # 3/4 log 4
        1.0397
    """
    _check(logits, target, weight, ignore_index, normalize)
    kappa = None if class_weight is None else _class_weight(class_weight, logits)
    if _in_bands(logits, weight, kappa):
        learns = logits.requires_grad and torch.is_grad_enabled()
        total, z = _BandedSum.apply(logits, target, weight, kappa, ignore_index, normalize, learns)
    else:
        total, z = _plain_sum(logits, target, weight, kappa, ignore_index, normalize)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if normalize != "all":
        z = mean_over(z, group)
    _check_sum(total.to(dtype))  # as gradients are
    _check_sum(z.to(dtype))
    loss: Tensor = (total / torch.where(z > 0, z, 1)).to(dtype)
    return loss


def entropy(logits: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Entropy of predictions, a loss that needs no labels: 1 where all classes are alike, 0 where one is certain.

    .. math::
        L = \frac{1}{B\, h\, w} \sum_i q_i \frac{-\sum_c p_{ic} \log p_{ic}}{\log C},
        \qquad p_i = \mathrm{softmax}(\hat y_i)

    (ADVENT, arXiv 1811.12833, direct entropy minimisation; its code multiplies this by 0.001.)

    Args:
        logits: (B, C, h, w) raw, of two classes at least, at any resolution; -inf rules out a class.
        weight: q, (B, h, w) in [0, 1], a number a cell of the logits; None: 1. It does not change the divisor.

    Returns:
        A scalar in [0, 1], in float32 at least.

    Raises:
        ValueError: shapes or types differ from the above; on the CPU also for a weight outside [0, 1], and for logits
            of which no class is finite and the best.

    Example:
        >>> import torch
        >>> from hrda_lib.losses import entropy
        >>> logits = torch.zeros(1, 4, 1, 2)
        >>> logits[0, 2, 0, 0] = 999  # certain here, all alike there
        >>> entropy(logits).item(), entropy(logits, torch.tensor([[[1.0, 0.0]]])).item()
        (0.5, 0.0)
    """
    expect("logits", logits, "BChw", kind="float")
    check_two_classes("logits", logits.shape[1])
    check_scores("logits", logits)
    logs = at_least_float32(logits).log_softmax(dim=1)
    probabilities = logs.exp()
    # 0 times the logarithm of 0 is 0, and so is its gradient
    information = -torch.where(probabilities == 0, 0, logs)
    entropies = (probabilities * information).sum(dim=1) / math.log(logits.shape[1])
    if weight is None:
        return entropies.mean()
    _check_weight(weight, entropies.shape, "logits")
    return (entropies * weight.to(entropies.dtype)).mean()


class ConfidenceWeightedCE(nn.Module):
    """:func:`confidence_weighted_ce` with its settings kept.

    Args:
        ignore_index: the label without loss, as there.
        class_weight: one non-negative weight a class; None: 1. It moves with the module, and is not in ``state_dict``.
        normalize: "all" pixels (the papers), "valid" ones or by "weight", as there.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from hrda_lib import ConfidenceWeightedCE
        >>> criterion = ConfidenceWeightedCE(ignore_index=255)
        >>> logits = torch.zeros(1, 4, 2, 2, requires_grad=True)
        >>> target = torch.full((1, 8, 8), 255)
        >>> criterion(logits, target, torch.ones(1, 8, 8)).item()
        0.0
    """

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        ignore_index: int = 255,
        class_weight: Tensor | Sequence[float] | None = None,
        normalize: Normalize = "all",
    ) -> None:
        super().__init__()
        check_choice("normalize", normalize, NORMALIZERS)
        check_ignore_index(ignore_index)
        self.ignore_index, self.normalize = ignore_index, normalize
        kept = None if class_weight is None else torch.as_tensor(class_weight).clone()
        if kept is not None:
            _check_class_weight(kept)
        self.register_buffer("class_weight", kept, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, group: "Group" = None) -> Tensor:
        """The loss, as :func:`confidence_weighted_ce` with the settings kept.

        Args:
            logits: (B, C, h, w) raw, at most as large as the target.
            target: (B, H, W) uint8 or int64 class ids or ``ignore_index``.
            weight: (B, H, W) in [0, 1]; None: 1.
            group: processes that share the batch, as there; None: this one alone.

        Returns:
            A scalar, in float32 at least.

        Raises:
            ValueError: as there.
        """
        return confidence_weighted_ce(
            logits,
            target,
            weight,
            ignore_index=self.ignore_index,
            class_weight=self.class_weight,
            normalize=self.normalize,
            group=group,
        )

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, normalize={self.normalize!r}"


def _in_bands(logits: Tensor, weight: Tensor | None, kappa: Tensor | None) -> bool:
    """Whether the sum may be taken band by band: compilers fuse the plain way themselves, others cannot look inside."""
    if written_out():
        return False
    if any(x is not None and x.requires_grad for x in (weight, kappa)):
        return False
    # 0 times infinity is nan, which the product with the rows' weights would spread over a band
    return not readable(logits) or bool(logits.detach().isfinite().all())


def _plain_sum(
    logits: Tensor, target: Tensor, weight: Tensor | None, kappa: Tensor | None, ignore_index: int, normalize: str
) -> tuple[Tensor, Tensor]:
    """The sum of the equation, and Z, from logits and losses of all pixels at once."""
    logits = resize(at_least_float32(logits), target.shape[-2:])
    target = target.long()
    # a pixel of weight 0 says nothing, whatever its logits are
    heard = target if weight is None else torch.where(weight == 0, ignore_index, target)
    loss = cross_entropy(logits, heard, weight=kappa, ignore_index=ignore_index, reduction="none")
    total = (loss if weight is None else loss * weight).sum()
    return total, _divisor(target, _factor(target, weight, kappa, ignore_index, loss.dtype), ignore_index, normalize)


def _factor(
    target: Tensor, weight: Tensor | None, kappa: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    """What each pixel's loss is multiplied by: its weight and its class's, 0 where it is ignored."""
    valid = target != ignore_index
    factor = valid.to(dtype) if weight is None else torch.where(valid, weight, 0).to(dtype)
    return factor if kappa is None else factor * kappa[torch.where(valid, target, 0)]


def _divisor(target: Tensor, factor: Tensor, ignore_index: int, normalize: str) -> Tensor:
    """Z of the equation, of these pixels."""
    if normalize == "all":
        return factor.new_full((), target.numel())
    return factor.sum() if normalize == "weight" else (target != ignore_index).sum().to(factor.dtype)


class _BandedSum(torch.autograd.Function):
    """:func:`_plain_sum` by bands of rows, gradient in the same sweep: there is no map of all pixels and classes."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        kappa: Tensor | None,
        ignore_index: int,
        normalize: str,
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        columns, dtype = target.shape[-1], torch.promote_types(logits.dtype, torch.float32)
        exact = dtype if logits.device.type == "mps" else torch.float64  # of sums: few numbers
        gradient = torch.zeros_like(logits, dtype=dtype) if learns else None
        totals, divisors = [], []
        with torch.autocast(logits.device.type, enabled=False):
            for band, image in product(_bands(logits, target), range(len(logits))):
                y = target[image, band.rows].long()
                q = None if weight is None else weight[image, band.rows]
                factor = _factor(y, q, kappa, ignore_index, dtype)
                divisors.append(_divisor(y, factor.to(exact), ignore_index, normalize))
                source = logits[image, :, band.source].transpose(0, 1).to(dtype)  # rows, classes, columns
                scores = band.up(_columns_up(source, columns)).log_softmax(dim=1)
                y, factor = torch.where(factor == 0, 0, y)[:, None], factor[:, None]
                totals.append(-torch.where(factor == 0, 0, scores.gather(1, y) * factor).sum(dtype=exact))
                if gradient is not None:
                    slope = scores.exp_().mul_(factor)
                    slope.scatter_(1, y, slope.gather(1, y) - factor)
                    gradient[image, :, band.source] += _columns_down(band.down(slope), source).transpose(0, 1)
        ctx.save_for_backward(*([] if gradient is None else [gradient.to(logits.dtype)]))
        z = torch.stack(divisors).sum()
        ctx.mark_non_differentiable(z)
        return torch.stack(totals).sum(), z

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        gradient = gradient * slope.detach().to(gradient.dtype)
        if (
            torch.is_grad_enabled()
        ):  # create_graph: what is asked of this gradient's own fails, and is not just left out
            refusal = b"confidence_weighted_ce has no second derivative; write the loss out to differentiate it twice"
            gradient = torch._C._functions.DelayedError(refusal, 1)(gradient.requires_grad_())
        return gradient, *[None] * 6


class _Band(NamedTuple):
    """Some rows of the target, and how those of the logits make them: by ``share`` between ``lower`` and the next."""

    rows: slice
    source: slice
    lower: Tensor
    upper: Tensor
    share: Tensor
    matrix: Tensor | None  # the same as (rows, source rows); where products keep full precision, it is much faster

    def up(self, x: Tensor) -> Tensor:
        if self.matrix is not None:
            return (self.matrix @ x.flatten(1)).view(-1, *x.shape[1:])
        return torch.lerp(x[self.lower], x[self.upper], self.share)

    def down(self, x: Tensor) -> Tensor:
        """The adjoint."""
        if self.matrix is not None:
            return (self.matrix.T @ x.flatten(1)).view(-1, *x.shape[1:])
        out = x.new_zeros(self.source.stop - self.source.start, *x.shape[1:])
        return out.index_add_(0, self.lower, x * (1 - self.share)).index_add_(0, self.upper, x * self.share)


def _bands(logits: Tensor, target: Tensor) -> list[_Band]:
    """Bands of rows, none shared."""
    cpu = logits.device.type == "cpu"
    height, size, numbers = logits.shape[-2], target.shape[-2], logits.shape[1] * target.shape[-1]
    step = max((CPU_BAND if cpu else GPU_BAND) // numbers, 1)
    lower, upper, share = _neighbours(height, size)
    bands = []
    for top in range(0, size, step):
        rows = slice(top, min(top + step, size))
        source = slice(int(lower[rows][0]), int(upper[rows][-1]) + 1)
        ends = lower[rows] - source.start, upper[rows] - source.start
        part = share[rows].to(torch.promote_types(logits.dtype, torch.float32))
        matrix = _matrix(*ends, part, source.stop - source.start) if cpu else None
        first, second, part = (x.to(logits.device) for x in (*ends, part[:, None, None]))
        bands.append(_Band(rows, source, first, second, part, matrix))
    return bands


def _neighbours(length: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``size`` places along ``length`` cells: the two cells that each lies between, and its share of the second."""
    place = ((torch.arange(size, dtype=torch.float64) + 0.5) * length / size - 0.5).clamp(min=0)
    lower = place.long().clamp(max=length - 1)
    return lower, (lower + 1).clamp(max=length - 1), place - lower


def _matrix(lower: Tensor, upper: Tensor, share: Tensor, width: int) -> Tensor:
    one = torch.eye(width, dtype=share.dtype)
    return one[lower] * (1 - share[:, None]) + one[upper] * share[:, None]


def _refused(x: Tensor) -> bool:
    """Where torch, asked to be deterministic, refuses to resize columns."""
    return x.device.type != "cpu" and torch.are_deterministic_algorithms_enabled()


def _columns_up(x: Tensor, columns: int) -> Tensor:
    if x.shape[-1] == columns:
        return x.contiguous()
    if _refused(x):
        lower, upper, share = (part.to(x.device) for part in _neighbours(x.shape[-1], columns))
        return torch.lerp(x[..., lower], x[..., upper], share.to(x.dtype))
    return interpolate(x, size=columns, mode="linear", align_corners=False)


def _columns_down(x: Tensor, like: Tensor) -> Tensor:
    """The adjoint."""
    if x.shape == like.shape:
        return x
    if _refused(x):
        lower, upper, share = (part.to(x.device) for part in _neighbours(like.shape[-1], x.shape[-1]))
        out, share = torch.zeros_like(like, dtype=x.dtype), share.to(x.dtype)
        return out.index_add_(-1, lower, x * (1 - share)).index_add_(-1, upper, x * share)
    sizes = [x.shape[-1]], list(like.shape)
    return torch.ops.aten.upsample_linear1d_backward(x, *sizes, False, None)  # type: ignore[no-any-return]


def _check_sum(total: Tensor) -> None:
    if readable(total) and not total.isfinite():
        raise ValueError(
            f"logits and class_weight must give a finite sum, got {total.item():.4g}: they are too large, or a logit "
            "is -inf and its label is asked for, or it is resized beside others"
        )


def _class_weight(class_weight: Tensor | Sequence[float], logits: Tensor) -> Tensor:
    kappa = torch.as_tensor(class_weight, dtype=logits.dtype, device=logits.device)
    if tuple(kappa.shape) != (logits.shape[1],):
        raise ValueError(f"class_weight must be one number a class ({logits.shape[1]},), got {tuple(kappa.shape)}")
    _check_class_weight(kappa)
    return kappa


def _check_class_weight(kappa: Tensor) -> None:
    expect("class_weight", kappa, "C")
    check_finite("class_weight", kappa)
    if readable(kappa) and not (kappa >= 0).all():
        raise ValueError(f"class_weight must not be negative, got {kappa.tolist()}")


def _check(logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, normalize: str) -> None:
    check_choice("normalize", normalize, NORMALIZERS)
    expect("logits", logits, "BChw", kind="float")
    check_two_classes("logits", logits.shape[1])
    check_ignore_index(ignore_index, logits.shape[1])
    expect("target", target, (len(logits), "H", "W"), like="logits")
    _check_axes(logits.shape, target.shape)
    if logits.shape[-2] > target.shape[-2] or logits.shape[-1] > target.shape[-1]:
        raise ValueError(
            f"logits must be at most as large as the target, got {tuple(logits.shape[-2:])} logits "
            f"for a target of {tuple(target.shape[-2:])}"
        )
    check_labels("target", target, logits.shape[1], ignore_index)
    check_scores("logits", logits)
    if weight is not None:
        _check_weight(weight, target.shape, "target")


def _check_axes(logits: Sequence[int], target: Sequence[int]) -> None:
    """Refuse logits whose axes are in another order, where their sides can tell."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if torch.compiler.is_compiling() or tracing:  # sides that are symbols would be fixed by the comparison
        return
    (_, channels, rows, columns), (_, height, width) = logits, target
    if min(height, width) < 32:  # by chance, maps of a few cells may fit in any order
        return
    shrinks = (height / rows) / (width / columns)  # 1, or about 1 where the network rounds sides
    if rows * height == columns * width and shrinks != 1:
        order, remedy = "(B, C, w, h)", "transpose(-2, -1)"
    elif channels * width == rows * height and not 0.5 <= shrinks <= 2:
        order, remedy = "(B, h, w, C)", "permute(0, 3, 1, 2)"
    else:
        return
    raise ValueError(
        f"logits must be (B, C, h, w) for a target (B, H, W) of {tuple(target)}, got {tuple(logits)}, which fit it as "
        f"{order}: {remedy}; if they are right, resize them to the target's sides before"
    )


def _check_weight(weight: Tensor, shape: Sequence[int], like: str) -> None:
    of_classes = isinstance(weight, Tensor) and weight.dim() == 1 and like == "target"
    hint = "one number a pixel is wanted: one a class is class_weight" if of_classes else ""
    expect("weight", weight, shape, kind="float", like=like, hint=hint)
    if readable(weight) and not ((weight >= 0) & (weight <= 1)).all():
        raise ValueError(f"weight must be in [0, 1], got values from {weight.min():.4g} to {weight.max():.4g}")
