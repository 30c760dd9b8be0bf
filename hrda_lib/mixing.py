"""ClassMix and CutMix: paste some classes, or a box, of a source image onto a target image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hrda_lib._checks import LABEL_TYPES, check_counts, check_generator, check_up_to, expect, pair
from hrda_lib._processes import own_part

if TYPE_CHECKING:
    from hrda_lib._processes import Group


def class_mix(source: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    r"""Take ``source`` where the mask is True, else ``target``.

    .. math::
        x_m = m \odot x_s + (1 - m) \odot x_t

    (ClassMix, arXiv 2007.07936; DACS, arXiv 2007.08702). Use it for images, labels and weights alike.

    Args:
        source: (B, K, H, W) or (B, H, W).
        target: of the same shape and dtype.
        mask: (B, H, W) bool.

    Returns:
        Of the shape and dtype of ``source``.

    Raises:
        ValueError: shapes or dtypes differ.

    Example:
        >>> import torch
        >>> from hrda_lib import class_mix
        >>> mask = torch.tensor([[[True, False]]])
        >>> class_mix(torch.tensor([[[1, 1]]]), torch.tensor([[[2, 2]]]), mask)
        tensor([[[1, 2]]])
    """
    expect("source", source, "BKHW", "BHW")
    expect("target", target, source.shape, kind=source.dtype, like="source")
    expect("mask", mask, (source.shape[0], *source.shape[-2:]), kind=torch.bool)
    return torch.where(mask if source.dim() == 3 else mask[:, None], source, target)


def sample_class_mask(
    labels: Tensor,
    generator: torch.Generator | None = None,
    classes: Sequence[Sequence[int]] | None = None,
    *,
    group: "Group" = None,
) -> Tensor:
    """True where the label is one of the chosen classes: by default half of those in the image, rounded up.

    Each image's classes are drawn from its own labels; the ignore label counts as a class (DACS, arXiv 2007.08702).

    Args:
        labels: (B, H, W) uint8 or int64.
        generator: a CPU generator; None: torch's default.
        classes: one list of class ids an image, instead of drawing; None: drawn, half of those in the image.
        group: processes that share a batch, each with as many images and a generator of the same state: each draws for
            all, and takes its own; None: this one alone.

    Returns:
        (B, H, W) bool.

    Raises:
        ValueError: shapes or types differ from the above, or ``classes`` is not one list an image.

    Example:
        >>> import torch
        >>> from hrda_lib import sample_class_mask
        >>> labels = torch.tensor([[[0, 1, 2, 3]]])
        >>> sample_class_mask(labels, classes=[[1, 3]])
        tensor([[[False,  True, False,  True]]])
        >>> sample_class_mask(labels).sum().item()
        2
    """
    check_generator(generator)
    expect("labels", labels, "BHW", kind=LABEL_TYPES)
    if classes is None:
        return _half_of_each(labels, generator, group)
    if len(classes) != len(labels) or any(isinstance(ids, int) for ids in classes):
        raise ValueError(f"classes must hold one list an image ({len(labels)}), got {classes}")
    if any(isinstance(label, float | bool | str) for ids in classes for label in ids):
        raise ValueError(f"classes must hold ids, ints that labels may have, got {classes}")
    chosen = [torch.tensor(list(ids), dtype=torch.int64, device=labels.device) for ids in classes]
    return torch.stack([torch.isin(image, ids) for image, ids in zip(labels, chosen, strict=True)])


def sample_box_mask(
    size: int | tuple[int, int],
    generator: torch.Generator | None = None,
    *,
    batch: int = 1,
    ratio: float = 0.5,
    group: "Group" = None,
) -> Tensor:
    r"""True in a box of each image, anywhere in it, for what has no outline that one could cut along.

    .. math::
        h = H r^{u}, \qquad w = W r^{1 - u}, \qquad u \sim U(0, 1)

    (CutMix for segmentation, arXiv 1906.01916: half of the area, any aspect.) Where a class is thin, such as vessels or
    roads from above, pasting the class alone pastes its outline, which the network then learns to find.

    Args:
        size: image size (H, W) in pixels.
        generator: a CPU generator; None: torch's default.
        batch: number of images B, each with a box of its own.
        ratio: r, the share of the area that the box has, in [0, 1].
        group: processes that share a batch, each with as many images and a generator of the same state: each draws for
            all, and takes its own; None: this one alone.

    Returns:
        (B, H, W) bool, on the CPU.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from hrda_lib import sample_box_mask
        >>> sample_box_mask((4, 6), torch.Generator().manual_seed(1))[0].int()
        tensor([[1, 1, 1, 1, 1, 0],
                [1, 1, 1, 1, 1, 0],
                [0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    """
    height, width = pair("size", size)
    check_generator(generator)
    check_counts(batch=batch)
    check_up_to(1, ratio=ratio)
    total, mine = own_part(batch, group)
    aspect, top, left = torch.rand(total, 3, generator=generator)[mine].unbind(dim=1)
    rows, columns = (height * ratio**aspect).round(), (width * ratio ** (1 - aspect)).round()
    first_row, first_column = (top * (height - rows + 1)).floor(), (left * (width - columns + 1)).floor()
    row, column = torch.arange(height)[:, None], torch.arange(width)
    inside_rows = (row >= first_row[:, None, None]) & (row < (first_row + rows)[:, None, None])
    inside_columns = (column >= first_column[:, None, None]) & (column < (first_column + columns)[:, None, None])
    return inside_rows & inside_columns


def _half_of_each(labels: Tensor, generator: torch.Generator | None, group: "Group") -> Tensor:
    """The mask of half of the classes of each image, by a table of those that are there: no pixel is sorted.

    The classes with the smallest of 256 numbers an image are chosen, however many are there: what a generator has to
    draw does not depend on labels, which other processes do not see.
    """
    low, high = labels.aminmax()
    if low >= 0 and high < 256:
        index, count = labels.flatten(1).long(), 256
    else:
        ids, index = torch.unique(labels.flatten(1), return_inverse=True)
        count = max(len(ids), 256)
        if group is not None and len(ids) > 256:
            raise ValueError(f"labels must have at most 256 ids where processes share a batch, got {len(ids)}")
    present = index.new_zeros(len(labels), count, dtype=torch.bool).scatter_(1, index, True)
    total, mine = own_part(len(labels), group)
    drawn = torch.rand(total, count, generator=generator)[mine].to(labels.device)
    rank = torch.where(present, drawn, 2).argsort(dim=1).argsort(dim=1)
    chosen = present & (rank < (present.sum(dim=1, keepdim=True) + 1) // 2)
    return chosen.gather(1, index).view_as(labels)
