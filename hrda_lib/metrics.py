"""Intersection over union from one confusion matrix over all images."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from hrda_lib._checks import (
    as_classes,
    check_counts,
    check_ignore_index,
    check_labels,
    check_tensor,
    check_two_classes,
    expect,
)


class ConfusionMatrix:
    r"""Count how often each class was predicted as each class.

    .. math::
        \mathrm{IoU}_c = \frac{M_{cc}}{\sum_j M_{cj} + \sum_i M_{ic} - M_{cc}}

    with :math:`M_{ij}` the number of pixels of class i predicted as j, over all images (Cityscapes, arXiv 1604.01685,
    section 4.1). ``.matrix`` is (C, C) int64, rows the truth, columns the prediction. Printed, it is a table.

    Args:
        num_classes: number of classes C.
        ignore_index: target label that is not counted. A class may be meant: it is not measured then, its IoU is nan,
            and it is in no mean; where it is predicted, the true class is missed. Above 255 classes, another than 255
            must be chosen.

    Raises:
        ValueError: there are fewer than two classes, shapes or types differ, or (on the CPU) a label is no class.

    Example:
        >>> import torch
        >>> from hrda_lib import ConfusionMatrix
        >>> confusion = ConfusionMatrix(3)
        >>> confusion.update(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 1], [0, 255]]))
        >>> confusion.iou()
        tensor([0.5000, 0.5000,    nan])
        >>> confusion.mean_iou()
        0.5
        >>> round(confusion.mean_iou(absent=0), 4)
        0.3333
        >>> confusion
        ConfusionMatrix(3, ignore_index=255): 3 pixels
        class     IoU  pixels
            0  0.5000       2
            1  0.5000       1
            2     nan       0
         mean  0.5000
    """

    def __init__(self, num_classes: int, *, ignore_index: int = 255) -> None:
        check_counts(num_classes=num_classes)
        check_two_classes("num_classes", num_classes)
        check_ignore_index(ignore_index, num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add label maps of one shape.

        Args:
            prediction: class ids, uint8 or int64; anything where the target is ignored.
            target: class ids or ``ignore_index``, uint8 or int64, of the same shape, such as (B, H, W).

        Raises:
            ValueError: shapes or types differ, or (on the CPU) a label is no class.
        """
        check_tensor("target", target)
        check_tensor("prediction", prediction)
        target, prediction = (x.as_subclass(Tensor) for x in (target, prediction))  # such as MONAI's and torchvision's
        labels = "pass labels, not logits: logits.argmax(1)"
        if target.dim() == 4 and prediction.dim() == 3:
            labels = "target.squeeze(1)" if target.shape[1] == 1 else "pass a target of labels, not one-hot: argmax"
        expect("prediction", prediction, target.shape, like="target", hint=labels)
        check_labels("target", target, self.num_classes, self.ignore_index)
        ignored = target.int() == self.ignore_index
        prediction = torch.where(ignored, torch.zeros_like(prediction), prediction)
        check_labels("prediction", prediction, self.num_classes, None)
        cells = self.num_classes**2
        small = torch.int16 if cells < 2**15 else torch.int64  # bincount over int16 is several times as fast
        index = target.to(small) * self.num_classes + prediction.to(small)
        counts = torch.where(ignored, cells, index).flatten().bincount(minlength=cells + 1)
        self.matrix = self.matrix.to(counts.device) + counts[:cells].view_as(self.matrix)

    def reset(self) -> None:
        """Forget all that was counted."""
        self.matrix = torch.zeros_like(self.matrix)

    def all_reduce(self, group: "dist.ProcessGroup | None" = None) -> None:
        """Sum the counts over processes, once, after the last update: a second call would count them again.

        Args:
            group: the processes; None: all. Without a process group nothing happens.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        device = self.matrix.device
        nccl = dist.get_backend(group) == "nccl"  # takes no tensor of the CPU, gloo takes those
        total = self.matrix.to(torch.device("cuda", torch.cuda.current_device()) if nccl else "cpu", copy=True)
        dist.all_reduce(total, group=group)
        self.matrix = total.to(device)

    def __repr__(self) -> str:
        pixels = self.matrix.sum(dim=1).tolist()
        rows = zip(map(str, range(self.num_classes)), self.iou().tolist(), map(str, pixels), strict=True)
        width = max(6, *(len(str(count)) for count in pixels))
        lines = [f"{name:>5}  {iou:6.4f}  {count:>{width}}" for name, iou, count in rows]
        first = f"ConfusionMatrix({self.num_classes}, ignore_index={self.ignore_index}): {sum(pixels)} pixels"
        return "\n".join([first, f"class     IoU  {'pixels':>{width}}", *lines, f" mean  {self.mean_iou():6.4f}"])

    def iou(self, *, absent: float = math.nan) -> Tensor:
        """IoU of each class, (C,) float32 in [0, 1].

        Args:
            absent: what a class gets that is neither in a target nor predicted: nan, or 0, a failure. The ignored class
                gets nan always.

        Raises:
            ValueError: ``absent`` is another number.
        """
        if isinstance(absent, bool) or (absent != 0 and absent == absent):  # only nan differs from itself
            raise ValueError(f"absent must be nan (not in the mean) or 0 (a failure), got {absent!r}")
        correct = self.matrix.diagonal()
        union = self.matrix.sum(0) + self.matrix.sum(1) - correct
        iou = (correct.double() / union.double()).float().nan_to_num(nan=absent)
        if 0 <= self.ignore_index < self.num_classes:
            iou[self.ignore_index] = math.nan
        return iou

    def mean_iou(self, classes: Sequence[int] | None = None, *, absent: float = math.nan) -> float:
        """Mean IoU over classes, in [0, 1].

        Args:
            classes: ids to take the mean over; None: all but the ignored one.
            absent: of :meth:`iou`: by default the mean is over the classes that occur, and nan if none does.

        Raises:
            ValueError: ``classes`` are no ids or none, or hold the ignored one, or ``absent`` is neither nan nor 0.
        """
        iou = self.iou(absent=absent)
        if classes is None:
            return iou.nanmean().item()
        return iou[as_classes(classes, self.num_classes, self.ignore_index)].nanmean().item()
