"""The paper's parameter groups and learning-rate schedule."""

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hrda_lib._checks import check_up_to, is_count, is_id, is_number


def parameter_groups(
    model: nn.Module,
    *,
    lr: float = 6e-5,
    head_factor: float = 10.0,
    weight_decay: float = 0.01,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    r"""Encoder at ``lr``, its LayerNorms without weight decay; everything else at ``lr * head_factor``.

    (DAFormer, arXiv 2111.14887, section 4; the released code's groups for MiT and ResNet encoders.) With
    ``layer_decay`` :math:`d < 1` the parameters of layer :math:`l` of a plain ViT of depth L learn at

    .. math::
        \eta_l = \eta\, d^{\,L - l}

    where block i, counted from 0, is layer i + 1, what comes after the blocks (the last norm) layer L, and what comes
    before them (patch and position embedding, tokens) layer 0 (BEiT, arXiv 2106.08254, appendix; the rates of VFM-UDA,
    which puts the last norm with the embeddings). Frozen parameters are left out.

    Args:
        model: a module with an ``encoder`` attribute.
        lr: :math:`\eta`, learning rate of the encoder, 0 or more; the default is the paper's.
        head_factor: how many times as fast all else learns, 0 or more.
        weight_decay: of all but the encoder's LayerNorms, 0 or more.
        layer_decay: d in (0, 1]; 1: one rate for the whole encoder. Less is for an encoder that is or holds a plain ViT
            with ``blocks``, such as :class:`hrda_lib.models.ViTFeatures`; other parts of that encoder learn at ``lr``.

    Returns:
        Groups for an optimiser, each with ``name``, ``params``, ``lr`` and ``weight_decay``; none is empty. Their names
        are "encoder", "encoder norm" and "head", or with ``layer_decay`` "encoder 0", "encoder 0 norm", "encoder 1" and
        so on, and "head".

    Raises:
        ValueError: the model has no module ``encoder``, or one without parameters; a number is negative or not finite;
            ``layer_decay`` is less than 1 and the encoder has no ``blocks``.

    Example:
        >>> from torch import nn
        >>> from hrda_lib.optim import parameter_groups
        >>> model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "head": nn.Linear(2, 2)})
        >>> [(g["name"], g["lr"], g["weight_decay"]) for g in parameter_groups(model, lr=1.0)]
        [('encoder', 1.0, 0.01), ('encoder norm', 1.0, 0.0), ('head', 10.0, 0.01)]
    """
    check_up_to(math.inf, lr=lr, head_factor=head_factor, weight_decay=weight_decay)
    if not is_number(layer_decay) or not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be a number in (0, 1], got {layer_decay!r}")
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
    depth, layers = (0, {}) if layer_decay == 1 else _layers_of(encoder)
    groups: dict[str, dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        name, rate, decay = "head", lr * head_factor, weight_decay
        if id(parameter) in in_encoder:
            layer, norm = layers.get(id(parameter), depth), id(parameter) in norms
            name = "encoder" + f" {layer}" * (layer_decay != 1) + " norm" * norm
            rate, decay = lr * layer_decay ** (depth - layer), 0.0 if norm else weight_decay
        group = groups.setdefault(name, {"name": name, "params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return sorted(groups.values(), key=_order)


def _order(group: dict[str, Any]) -> tuple[bool, int, bool]:
    """Encoder before head, layer by layer, norms last."""
    words = group["name"].split()
    return words[0] == "head", next((int(word) for word in words if word.isdecimal()), 0), words[-1] == "norm"


def _layers_of(encoder: nn.Module) -> tuple[int, dict[int, int]]:
    """Depth of the ViT inside, and the layer of each of its parameters by id."""
    kinds = nn.ModuleList | nn.Sequential
    vits = [m for m in encoder.modules() if isinstance(getattr(m, "blocks", None), kinds) and hasattr(m, "patch_embed")]
    if len(vits) != 1:
        raise ValueError(
            f"layer_decay needs an encoder with one plain ViT, with patch_embed and blocks, in it, got "
            f"{type(encoder).__name__} with {len(vits) or 'none'}; take layer_decay=1, or make the groups by hand"
        )
    blocks: Any = vits[0].blocks
    layers = {id(parameter): 0 for parameter in vits[0].parameters()}
    children = list(vits[0].children())
    for child in children[children.index(blocks) + 1 :]:
        layers |= {id(parameter): len(blocks) for parameter in child.parameters()}
    for index, block in enumerate(blocks):
        layers |= {id(parameter): index + 1 for parameter in block.parameters()}
    return len(blocks), layers


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
