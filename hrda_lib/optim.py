"""The paper's parameter groups and learning-rate schedule."""

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hrda_lib._checks import check_up_to, is_count, is_id, is_number


def parameter_groups(
    model: nn.Module, *, lr: float = 6e-5, head_factor: float = 10.0, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """Encoder at ``lr``, its LayerNorms without weight decay; everything else at ``lr * head_factor``.

    (DAFormer, arXiv 2111.14887, section 4; the released code's groups for MiT and ResNet encoders.) Frozen parameters
    are left out.

    Args:
        model: a module with an ``encoder`` attribute.
        lr: learning rate of the encoder, 0 or more; the default is the paper's.
        head_factor: how many times as fast all else learns, 0 or more.
        weight_decay: of all but the encoder's LayerNorms, 0 or more.

    Returns:
        Groups for an optimiser, each with ``name``, ``params``, ``lr`` and ``weight_decay``; none is empty.

    Raises:
        ValueError: the model has no module ``encoder``, or one without parameters; a number is negative or not finite.

    Example:
        >>> from torch import nn
        >>> from hrda_lib.optim import parameter_groups
        >>> model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "head": nn.Linear(2, 2)})
        >>> [(g["name"], g["lr"], g["weight_decay"]) for g in parameter_groups(model, lr=1.0)]
        [('encoder', 1.0, 0.01), ('encoder norm', 1.0, 0.0), ('head', 10.0, 0.01)]
    """
    check_up_to(math.inf, lr=lr, head_factor=head_factor, weight_decay=weight_decay)
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ValueError(f"model must have a module named encoder, got {type(model).__name__}; make the groups by hand")
    if next(encoder.parameters(), None) is None:
        raise ValueError(
            f"model.encoder must have parameters, got {type(encoder).__name__} without any: all would learn at "
            f"{head_factor} times lr; make the groups by hand"
        )
    norms = {id(p) for m in encoder.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    in_encoder = {id(p) for p in encoder.parameters()}
    groups: list[dict[str, Any]] = [
        {"name": "encoder", "params": [], "lr": lr, "weight_decay": weight_decay},
        {"name": "encoder norm", "params": [], "lr": lr, "weight_decay": 0.0},
        {"name": "head", "params": [], "lr": lr * head_factor, "weight_decay": weight_decay},
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            group = 1 if id(parameter) in norms else 0 if id(parameter) in in_encoder else 2
            groups[group]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def warmup_poly(
    optimizer: Optimizer,
    *,
    total: int = 40_000,
    warmup: int = 1_500,
    warmup_ratio: float = 1e-6,
    power: float = 1.0,
) -> LRScheduler:
    r"""Linear warm-up, then polynomial decay to 0.

    .. math::
        \eta_t = \eta \left(1 - \frac{t}{T}\right)^{p}
            \cdot \begin{cases} 1 - (1 - t/W)(1 - r) & t < W \\ 1 & t \ge W \end{cases}

    (DAFormer, arXiv 2111.14887, section 4.) Call ``step()`` after each optimiser step; 0 from step T on.

    Args:
        optimizer: whose groups' learning rates :math:`\eta` are scaled, each by the same factor.
        total: T, number of steps, at least 1.
        warmup: W, number of warm-up steps; 0: none.
        warmup_ratio: r, the first factor, in [0, 1].
        power: the exponent p, 0 or more; 1: linear decay.

    Returns:
        A scheduler of torch.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hrda_lib.optim import warmup_poly
        >>> optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        >>> schedule = warmup_poly(optimizer, total=8, warmup=2)
        >>> [round(schedule.lr_lambdas[0](t), 3) for t in range(9)]
        [0.0, 0.438, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]
    """
    numbers = is_number(warmup_ratio) and is_number(power)
    if not is_count(total) or not is_id(warmup) or not numbers or not 0 <= warmup_ratio <= 1 or power < 0:
        raise ValueError(
            f"total must be positive, warmup and power not negative, warmup_ratio in [0, 1], "
            f"got {total}, {warmup}, {power}, {warmup_ratio}"
        )

    def factor(step: int) -> float:
        if step >= total:
            return 0.0
        ramp = warmup_ratio + (1 - warmup_ratio) * step / warmup if step < warmup else 1.0
        return ramp * float(((total - step) / total) ** power)

    return LambdaLR(optimizer, factor)
