"""Teacher logits to pseudo labels and their confidence."""

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from hrda_lib._checks import at_least_float32, check_choice, check_two_classes, check_up_to, expect
from hrda_lib._processes import mean_over
from hrda_lib.geometry import resize

if TYPE_CHECKING:
    from hrda_lib._processes import Group

Per = Literal["batch", "image", "pixel"]
PERS = get_args(Per)


@torch.no_grad()
def pseudo_labels(
    logits: Tensor,
    *,
    size: int | tuple[int, int] | None = None,
    threshold: float = 0.968,
    valid: Tensor | None = None,
    per: Per = "batch",
    group: "Group" = None,
) -> tuple[Tensor, Tensor]:
    r"""The most likely class of each pixel, and how far to trust it.

    .. math::
        \hat y_i = \arg\max_c p_{ic}, \qquad q = \frac{1}{N} \sum_{i=1}^{N} [\max_c p_{ic} \ge \tau]

    with p the softmax of the logits (DACS, arXiv 2007.08702; DAFormer, arXiv 2111.14887, section 3.1).

    Args:
        logits: (B, C, h, w), of two classes at least.
        size: (H, W) of the labels; the logits are upsampled to it bilinearly before the softmax. None: (h, w).
        threshold: :math:`\tau` in [0, 1].
        valid: (B, H, W) bool; where False the weight becomes 0, after q was computed over all pixels; None: True
            everywhere.
        per: q is one share for the whole "batch" (the paper), one an "image", or the decision itself a "pixel".
        group: processes that share the batch, each with as many images: the share is that of all; None: of this one.

    Returns:
        labels (B, H, W) int64, and weight (B, H, W) in [0, 1], float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes, types or settings differ from the above. Where logits are nan, or infinite and so without
            a best class, the weight is 0: a teacher that fails says nothing.

    Example:
        >>> import torch
        >>> from hrda_lib import pseudo_labels
        >>> logits = torch.tensor([9.0, 1.0]).view(1, 2, 1, 1).repeat(1, 1, 2, 2)
        >>> labels, weight = pseudo_labels(logits, valid=torch.tensor([[[True, True], [True, False]]]))
        >>> labels.tolist(), weight.tolist()
        ([[[0, 0], [0, 0]]], [[[1.0, 1.0], [1.0, 0.0]]])
    """
    expect("logits", logits, "BChw", kind="float")
    check_two_classes("logits", logits.shape[1])
    check_up_to(1, threshold=threshold)
    check_choice("per", per, PERS)
    logits = at_least_float32(logits)
    if size is not None:
        logits = resize(logits, size)
    highest, labels = logits.max(dim=1)
    probability = (highest - logits.logsumexp(dim=1)).exp()
    weight = (probability >= threshold).to(logits.dtype)
    if per != "pixel":
        dims = (0, 1, 2) if per == "batch" else (1, 2)
        share = weight.mean(dim=dims, keepdim=True)
        weight = (mean_over(share, group) if per == "batch" else share).expand_as(weight)
    if valid is not None:
        expect("valid", valid, labels.shape, kind=torch.bool)
        weight = weight * valid
    return labels, torch.where(probability.isnan(), 0.0, weight)
