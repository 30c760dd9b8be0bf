"""Teacher logits to pseudo labels and their confidence."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hrda_lib.geometry import check_tensor, pair

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
) -> tuple[Tensor, Tensor]:
    r"""The most likely class of each pixel, and how far to trust it.

    .. math::
        \hat y_i = \arg\max_c p_{ic}, \qquad q = \frac{1}{N} \sum_{i=1}^{N} [\max_c p_{ic} \ge \tau]

    with p the softmax of the logits (DACS, arXiv 2007.08702; DAFormer, arXiv 2111.14887, section 3.1).

    Args:
        logits: (B, C, h, w).
        size: (H, W) of the labels; the logits are upsampled to it bilinearly before the softmax. None: (h, w).
        threshold: :math:`\tau` in [0, 1].
        valid: (B, H, W) bool; where False the weight becomes 0, after q was computed over all pixels.
        per: q is one share for the whole "batch" (the paper), one an "image", or the decision itself a "pixel".

    Returns:
        labels (B, H, W) int64, and weight (B, H, W) in [0, 1], float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes, types or settings differ from the above.

    Example:
        >>> logits = torch.tensor([9.0, 1.0]).view(1, 2, 1, 1).repeat(1, 1, 2, 2)
        >>> labels, weight = pseudo_labels(logits, valid=torch.tensor([[[True, True], [True, False]]]))
        >>> labels.tolist(), weight.tolist()
        ([[[0, 0], [0, 0]]], [[[1.0, 1.0], [1.0, 0.0]]])
    """
    check_tensor("logits", logits)
    if logits.dim() != 4 or not logits.is_floating_point():
        raise ValueError(f"logits must be float (B, C, h, w), got {logits.dtype} {tuple(logits.shape)}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    if per not in PERS:
        raise ValueError(f"per must be one of {PERS}, got {per!r}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if size is not None:
        logits = interpolate(logits, size=pair("size", size), mode="bilinear", align_corners=False)
    highest, labels = logits.max(dim=1)
    probability = (highest - logits.logsumexp(dim=1)).exp()
    weight = (probability >= threshold).to(logits.dtype)
    if per != "pixel":
        dims = (0, 1, 2) if per == "batch" else (1, 2)
        weight = weight.mean(dim=dims, keepdim=True).expand_as(weight)
    if valid is not None:
        if valid.dtype != torch.bool or valid.shape != labels.shape:
            raise ValueError(f"valid must be bool {tuple(labels.shape)}, got {valid.dtype} {tuple(valid.shape)}")
        weight = weight * valid
    return labels, torch.where(probability.isnan(), 0.0, weight)
