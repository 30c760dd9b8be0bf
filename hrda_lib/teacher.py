"""The mean teacher: an exponential moving average of the student."""

import copy
import warnings
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hrda_lib._checks import check_choice
from hrda_lib._modules import unwrap

Buffers = Literal["keep", "copy", "average"]
BatchNormMode = Literal["train", "eval"]
Named = Iterable[tuple[str, Tensor]]


class EMATeacher(nn.Module):
    r"""A frozen copy of the student whose parameters follow it slowly.

    .. math::
        \phi_k = \alpha_k \phi_{k-1} + (1 - \alpha_k)\,\theta, \qquad \alpha_k = \min(1 - 1/(k+1),\ \alpha)

    (Tarvainen & Valpola 2017; DAFormer, arXiv 2111.14887, section 3.1). Construction is the copy :math:`\phi_0`;
    the k-th :meth:`update` uses :math:`\alpha_k`, so 0.5 first.

    Args:
        student: the module to copy and follow; ``DistributedDataParallel`` and ``torch.compile`` are unwrapped.
        decay: :math:`\alpha` in [0, 1).
        warmup: False uses :math:`\alpha` from the first update.
        buffers: "keep" the teacher's own (the paper), "copy" the student's at each update, or "average" them too.
        batch_norm: what batch norm layers use after ``train()`` (the state after construction): statistics of
            the "train" batch (the paper) or, with "eval", the running ones. Every Dropout and DropPath is always off.

    ``eval()`` is pure inference and leaves all buffers alone. Calls run without gradient and return whatever the
    student returns; ``.module`` is the averaged copy. The step counter and the settings are part of ``state_dict``
    and come back with ``load_state_dict``; to change a setting after a resume, set the attribute.

    Raises:
        ValueError: a setting is unknown, or a student's names or shapes differ from the teacher's.

    Example:
        >>> student = nn.BatchNorm2d(2)  # weight 1, bias 0
        >>> teacher = EMATeacher(student, decay=0.99)
        >>> with torch.no_grad():
        ...     _ = student.bias.add_(1.0)
        >>> teacher.update(student)
        >>> teacher.module.bias.tolist()
        [0.5, 0.5]
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        decay: float = 0.999,
        warmup: bool = True,
        buffers: Buffers = "keep",
        batch_norm: BatchNormMode = "train",
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        check_choice("buffers", buffers, get_args(Buffers))
        check_choice("batch_norm", batch_norm, get_args(BatchNormMode))
        self.decay, self.warmup, self.buffer_policy, self.batch_norm = decay, warmup, buffers, batch_norm
        self.step = 0
        self.module = _copied(unwrap(student)).requires_grad_(False)
        self.train()

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move the average towards ``student``, on whatever device and in whatever dtype it is."""
        student = unwrap(student)
        parameters = _matched(self.module.named_parameters(), student.named_parameters(), "parameters")
        keep = self.buffer_policy == "keep"
        buffers = [] if keep else _matched(self.module.named_buffers(), student.named_buffers(), "buffers")
        decay = min(1 - 1 / (self.step + 2), self.decay) if self.warmup else self.decay
        _warn_of_rounding([mine for mine, _ in parameters], decay)
        floats = [(mine, new) for mine, new in parameters if mine.is_floating_point() or mine.is_complex()]
        if floats:
            torch._foreach_lerp_([mine for mine, _ in floats], [new for _, new in floats], 1 - decay)
        for mine, new in parameters:
            if not (mine.is_floating_point() or mine.is_complex()):
                mine.copy_(new)
        for mine, new in buffers:
            averaged = self.buffer_policy == "average" and mine.is_floating_point()
            # equal values stay: the mean of two infinities would be nan
            mine.copy_(torch.where(mine == new, new, mine.lerp(new, 1 - decay)) if averaged else new)
        self.step += 1

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> "EMATeacher":
        super().train(mode)
        self.module.eval()
        for layer in self.module.modules():
            if isinstance(layer, _BatchNorm):
                layer.training = mode and self.batch_norm == "train"
        return self

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "decay": self.decay,
            "warmup": self.warmup,
            "buffers": self.buffer_policy,
            "batch_norm": self.batch_norm,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.step, self.decay, self.warmup = state["step"], state["decay"], state["warmup"]
        self.buffer_policy, self.batch_norm = state["buffers"], state["batch_norm"]
        self.train(self.training)


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:
        raise ValueError(
            "student cannot be copied: it holds a tensor with a graph, such as a kept activation or old weight_norm; "
            f"drop it, or use torch.nn.utils.parametrizations ({error})"
        ) from None


def _matched(mine: Named, theirs: Named, kind: str) -> list[tuple[Tensor, Tensor]]:
    """Pairs of the teacher's and the student's tensors, the latter on the former's device and in its dtype."""
    own = {name.replace("_orig_mod.", ""): tensor for name, tensor in mine}
    new = {name.replace("_orig_mod.", ""): tensor for name, tensor in theirs}
    if own.keys() != new.keys():
        missing, unexpected = sorted(own.keys() - new.keys()), sorted(new.keys() - own.keys())
        raise ValueError(
            f"student must have the teacher's {kind}: missing {missing[:5]}, unexpected {unexpected[:5]}; "
            "update with the module that the teacher was built from"
        )
    for name, tensor in own.items():
        if tensor.shape != new[name].shape:
            raise ValueError(
                f"student's {name} must have the teacher's shape {tuple(tensor.shape)}, got {tuple(new[name].shape)}"
            )
    return [(tensor, new[name].to(tensor)) for name, tensor in own.items()]


def _warn_of_rounding(parameters: list[Tensor], decay: float) -> None:
    coarse = [p for p in parameters if p.is_floating_point() and torch.finfo(p.dtype).eps > 1 - decay]
    if coarse:
        warnings.warn(
            f"the teacher's {coarse[0].dtype} parameters cannot follow with decay {decay:.6g}: the change is rounded "
            "away; keep the teacher in float32 with teacher.float()",
            stacklevel=4,
        )
