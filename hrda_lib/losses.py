"""Cross-entropy weighted by pseudo-label confidence."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

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
from hrda_lib.geometry import resize

Normalize = Literal["all", "valid", "weight"]
NORMALIZERS = get_args(Normalize)


def confidence_weighted_ce(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    class_weight: Tensor | Sequence[float] | None = None,
    normalize: Normalize = "all",
) -> Tensor:
    r"""Cross-entropy with a weight a pixel.

    .. math::
        L = \frac{1}{Z} \sum_{i \in V} q_i\, \kappa_{y_i} \left(-\log \mathrm{softmax}(\hat y_i)_{y_i}\right),
        \qquad V = \{i : y_i \ne \text{ignore\_index}\}

    (DAFormer, arXiv 2111.14887, section 3.1), where Z is one of

    - ``"all"``: :math:`B \cdot H \cdot W`, ignored pixels too (DAFormer, HRDA),
    - ``"valid"``: :math:`|V|`,
    - ``"weight"``: :math:`\sum_{i \in V} q_i \kappa_{y_i}`.

    Args:
        logits: (B, C, h, w) raw, of two classes at least, at most as large as the target: upsampled bilinearly to it.
        target: (B, H, W) uint8 or int64 class ids or ``ignore_index``.
        weight: q, (B, H, W) in [0, 1]; None: 1.
        ignore_index: the label without loss. A class may be meant: it is not learned then. Above 255 classes, another
            than 255 must be chosen.
        class_weight: :math:`\kappa`, one non-negative weight a class; None: 1.
        normalize: which Z.

    Returns:
        A scalar, in float32 at least; 0 with zero gradient where nothing counts, never NaN.

    Raises:
        ValueError: shapes or types differ from the above; on the CPU also for a label that is no class, a weight
            outside [0, 1], and logits or class weights that are nan, infinite or too large for the sum.

    Example:
        >>> logits = torch.zeros(1, 4, 2, 2)
        >>> target = torch.tensor([[[0, 1], [3, 255]]])
        >>> round(confidence_weighted_ce(logits, target).item(), 4)  # 3/4 log 4
        1.0397
    """
    _check(logits, target, weight, ignore_index, normalize)
    logits = resize(at_least_float32(logits), target.shape[-2:])
    kappa = None if class_weight is None else _class_weight(class_weight, logits)
    target = target.long()
    # a pixel of weight 0 says nothing, whatever its logits are
    heard = target if weight is None else torch.where(weight == 0, ignore_index, target)
    loss = cross_entropy(logits, heard, weight=kappa, ignore_index=ignore_index, reduction="none")
    total = (loss if weight is None else loss * weight).sum()
    if normalize == "all":
        return _finite(total) / target.numel()
    counted = (target != ignore_index).to(loss.dtype)
    if normalize == "weight":
        counted = counted if weight is None else counted * weight
        counted = counted if kappa is None else counted * kappa[torch.where(target == ignore_index, 0, target)]
    z = _finite(counted.sum())
    return _finite(total) / torch.where(z > 0, z, 1)


class ConfidenceWeightedCE(nn.Module):
    """:func:`confidence_weighted_ce` with its settings kept.

    Example:
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

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return confidence_weighted_ce(
            logits,
            target,
            weight,
            ignore_index=self.ignore_index,
            class_weight=self.class_weight,
            normalize=self.normalize,
        )

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, normalize={self.normalize!r}"


def _finite(total: Tensor) -> Tensor:
    if readable(total) and not total.isfinite():
        raise ValueError(
            f"logits and class_weight must give a finite sum, got {total.item():.4g}: they are too large, or a logit "
            "is -inf and its label is asked for, or it is resized beside others"
        )
    return total


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
    if logits.shape[-2] > target.shape[-2] or logits.shape[-1] > target.shape[-1]:
        raise ValueError(
            f"logits must be at most as large as the target, got {tuple(logits.shape[-2:])} logits "
            f"for a target of {tuple(target.shape[-2:])}"
        )
    check_labels("target", target, logits.shape[1], ignore_index)
    check_scores("logits", logits)
    if weight is None:
        return
    expect("weight", weight, target.shape, kind="float", like="target")
    if readable(weight) and not ((weight >= 0) & (weight <= 1)).all():
        raise ValueError(f"weight must be in [0, 1], got values from {weight.min():.4g} to {weight.max():.4g}")
