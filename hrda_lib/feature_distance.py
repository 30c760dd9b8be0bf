"""Keep the student's features of things close to frozen ImageNet features."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hrda_lib._checks import (
    as_classes,
    at_least_float32,
    check_counts,
    check_finite,
    check_ignore_index,
    check_labels,
    check_tensor,
    check_up_to,
    entries_of,
    expect,
    is_id,
    short,
)
from hrda_lib._modules import copied
from hrda_lib._processes import mean_over

if TYPE_CHECKING:
    from hrda_lib._processes import Group


class FeatureDistance(nn.Module):
    r"""Distance between the student's and a frozen encoder's features, on cells of the chosen classes.

    .. math::
        L_{FD} = \lambda \frac{\sum_{j} \lVert F_\theta(x)_j - F_0(x)_j \rVert_2\, M_j}{\sum_j M_j}

    where :math:`M_j = 1` if at least ``min_ratio`` of the pixels of cell j carry one and the same class, and that class
    is chosen (DAFormer, arXiv 2111.14887, section 3.3). 0, not NaN, where no cell is.

    Args:
        reference_encoder: images -> features; copied, frozen and always in eval mode. It must have parameters.
        classes: chosen class ids (the paper: things); None chooses all but the ignored one.
        num_classes: number of classes of the labels.
        weight: :math:`\lambda`, 0 or more.
        min_ratio: share of a cell's pixels that its class must reach, in [0, 1].
        ignore_index: the label without class. A class may be meant; above 255 classes, another than 255 must be chosen.
        level: which of several features, an index or a key; -1: the last of a sequence or dictionary (the paper: the
            coarsest).

    A cell covers W // w pixels a side; a rest at the bottom and right is left out, as in the released code.

    Raises:
        ValueError: settings, shapes or types differ from the above, or the encoder cannot be copied.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hrda_lib import FeatureDistance
        >>> encoder = nn.Conv2d(3, 8, 4, stride=4)
        >>> distance = FeatureDistance(encoder, classes=[1], num_classes=2)
        >>> images, labels = torch.rand(1, 3, 8, 8), torch.ones(1, 16, 16, dtype=torch.int64)
        >>> distance(encoder(images) + 1, images, labels).item() > 0
        True
        >>> distance(encoder(images) + 1, images, labels - 1).item()
        0.0
    """

    selected: Tensor

    def __init__(
        self,
        reference_encoder: nn.Module,
        *,
        classes: Sequence[int] | None,
        num_classes: int,
        weight: float = 0.005,
        min_ratio: float = 0.75,
        ignore_index: int = 255,
        level: int | str = -1,
    ) -> None:
        super().__init__()
        if not is_id(num_classes):
            check_counts(num_classes=num_classes)
        check_ignore_index(ignore_index, num_classes)
        every = [c for c in range(num_classes) if c != ignore_index]
        chosen = as_classes(every if classes is None else classes, num_classes, ignore_index)
        check_up_to(1, min_ratio=min_ratio)
        check_up_to(math.inf, weight=weight)
        self.num_classes, self.weight, self.min_ratio = num_classes, weight, min_ratio
        if not isinstance(level, (int, str)) or isinstance(level, bool):
            raise ValueError(f"level must be an index or a key, got {short(level)}")
        self.ignore_index, self.level = ignore_index, level
        if next(reference_encoder.parameters(), None) is None:
            raise ValueError(
                f"reference_encoder must have parameters, got {type(reference_encoder).__name__} without any: it says "
                "the same before and after training, so the distance would be 0 for ever; take an encoder apart from "
                "its head, or leave the feature distance out"
            )
        way_out = "pass one that copy.deepcopy can copy"
        self.reference_encoder = copied(reference_encoder, "reference_encoder", way_out)
        selected = torch.zeros(num_classes + 1, dtype=torch.bool)  # the last entry stands for the ignored pixels
        selected[chosen] = True
        self.register_buffer("selected", selected.to(next(reference_encoder.parameters()).device), persistent=False)
        self.train(False)

    def forward(
        self,
        features: Any,
        images: Tensor,
        labels: Tensor,
        *,
        group: "Group" = None,
        whole: Tensor | None = None,
    ) -> Tensor:
        """The distance on one batch.

        Args:
            features: the student's on ``images``: a tensor (B, C, h, w), or what holds one at ``level``. Channels come
                first: (B, h, w, C) is refused, but where C / w happens to be w / h.
            images: (B, K, H', W') float, what both encoders see (HRDA: the context crop).
            labels: (B, H, W) uint8 or int64 at full resolution.
            group: processes that share a batch: the sum is divided by the mean of their numbers of cells; None: by
                those of this one.
            whole: (B', H, W) labels of the batch that the images are a part of: the sum is divided by its cells; None:
                the images are the batch.

        Returns:
            A scalar, in float32 at least; 0 where no cell is chosen.

        Raises:
            ValueError: shapes or types differ from the above, or (on the CPU) a number is not finite or a label no
                class.
        """
        feature = _at(self.level, features)
        check_finite("images", images)
        if images.device != self.selected.device:
            raise ValueError(
                f"images must be on the reference encoder's device {self.selected.device}, got {images.device}; move "
                "the FeatureDistance there by to(device)"
            )
        with torch.no_grad():
            reference = _at(self.level, self.reference_encoder(images))
        same = "pass the features of those same images"
        expect("features", feature, reference.shape, like="the reference encoder's", hint=same)
        mask = self._mask(labels, feature)
        difference = at_least_float32(feature) - reference
        distance = torch.linalg.vector_norm(difference, dim=1)
        check_finite("features", distance)
        cells = mask if whole is None else self._mask(whole, feature[:1].expand(len(whole), -1, -1, -1))
        count = cells.sum().to(distance.dtype)
        all_cells = mean_over(count, group)
        mean: Tensor = (distance * mask).sum() / torch.where(all_cells > 0, all_cells, 1)
        return self.weight * mean

    def train(self, mode: bool = True) -> "FeatureDistance":
        """As of any module, but the reference encoder stays in eval mode.

        Args:
            mode: of the module itself, which behaves alike in both.

        Returns:
            The module.
        """
        super().train(mode)
        self.reference_encoder.eval()
        return self

    def _mask(self, labels: Tensor, feature: Tensor) -> Tensor:
        """M of the equation, (B, h, w)."""
        check_tensor("labels", labels)
        batch, _, height, width = feature.shape
        if not _cells_fit(labels, batch, height, width):
            flat = labels.dim() == 4 and labels.shape[1] == 1
            last = _cells_fit(labels, batch, feature.shape[1], height)
            hint = (
                "; drop the channel by squeeze(1)" * flat + "; features are channels last: permute(0, 3, 1, 2)" * last
            )
            raise ValueError(
                f"labels must be (B, H, W) of {batch} images, H and W the same whole multiple of the features' "
                f"{(height, width)}, got {tuple(labels.shape)}{hint}"
            )
        side = labels.shape[-1] // width
        check_labels("labels", labels, self.num_classes, self.ignore_index)
        labels = labels.long()
        labels = torch.where(labels == self.ignore_index, self.num_classes, labels)
        cells = labels[:, : height * side, : width * side].view(batch, height, side, width, side)
        cells = cells.transpose(2, 3).reshape(batch, height, width, side * side)
        counts = feature.new_zeros(batch, height, width, self.num_classes + 1, dtype=torch.float32)
        count, majority = counts.scatter_add_(3, cells, torch.ones_like(cells, dtype=torch.float32)).max(dim=3)
        return (count >= self.min_ratio * side * side) & self.selected[majority]


def _at(level: int | str, features: object) -> Tensor:
    """The tensor itself, or the one at ``level`` of a sequence or dictionary."""
    entries, found = entries_of(features), features
    if entries and level in entries:
        found = entries[level]
    elif entries and isinstance(level, int) and -len(entries) <= level < len(entries):
        found = list(entries.values())[level]
    if not isinstance(found, Tensor) or found.dim() != 4:
        got = f"a tensor of {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        has = f" (it has {', '.join(map(repr, entries))})" if entries else ""
        raise ValueError(
            f"features must be a (B, C, h, w) tensor or hold one at level={level!r}, got {got}{has}; choose another "
            "level, or put Adapted(..., output=...) around the encoder"
        )
    return found


def _cells_fit(labels: Tensor, batch: int, height: int, width: int) -> bool:
    """Whether (B, H, W) labels are the same whole multiple of the cells at both sides, but for a rest."""
    side = labels.shape[-1] // width
    return labels.dim() == 3 and len(labels) == batch and side > 0 and labels.shape[1] // side == height
