"""Low-rank adapters: a frozen network learns by a few small matrices beside its linear layers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hrda_lib._checks import at_least_float32, check_counts, is_id, is_number, short

TARGETS = ("qkv", "q_proj", "k_proj", "v_proj", "fc1", "fc1_g", "fc1_x", "fc2")


class LoRALinear(nn.Linear):
    """What :func:`add_lora` makes of a linear layer; entries of its own keep their names in ``state_dict``."""

    lora_down: Tensor
    lora_up: Tensor
    lora_scale: float

    # timm's EVA-02 and BEiT call F.linear(x, layer.weight) past forward()
    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The frozen weight and the adapter's product, for code that reads it past ``forward``."""
        frozen = self._frozen_weight()
        return frozen + (self.lora_scale * (self.lora_up @ self.lora_down)).to(frozen.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The answer of the frozen layer and that of the adapter, which is never multiplied out.

        Args:
            input: (…, n) float.

        Returns:
            (…, m), in the dtype of the frozen layer's answer.
        """
        down, up = self.lora_down.to(input.dtype), self.lora_up.to(input.dtype)
        frozen = F.linear(input, self._frozen_weight(), self.bias)
        return frozen + F.linear(F.linear(input, down), up) * self.lora_scale

    def _frozen_weight(self) -> Tensor:
        weight = self._parameters["weight"]
        assert weight is not None
        return weight


def add_lora(
    module: nn.Module,
    *,
    rank: int = 32,
    alpha: float | None = None,
    targets: Sequence[str] = TARGETS,
    first_block: int = 0,
) -> list[str]:
    r"""Freeze the module and put adapters beside its linear layers, in place.

    .. math::
        y = W x + b + \frac{\alpha}{r}\, B A x, \qquad A \in \mathbb{R}^{r \times n},\ B \in \mathbb{R}^{m \times r}

    with W and b frozen, A drawn (torch's default of a linear layer) and B = 0, so that nothing changes at the start
    (LoRA, Hu et al. 2022, arXiv 2106.09685, section 4.1). Only A and B, ``lora_down`` and ``lora_up`` of each layer,
    require a gradient afterwards; unfreeze whatever else shall train. They are at least float32 where the layer is in
    lower precision.

    ``state_dict`` keeps the plain names and adds ``lora_down`` and ``lora_up``. The adapters alone are
    ``{name: x for name, x in module.state_dict().items() if "lora_" in name}``, loaded with ``strict=False``.

    An :class:`hrda_lib.EMATeacher` averages A and B; the average of the factors is not the factor of the averages.

    Args:
        module: such as an encoder, or its ``blocks``.
        rank: r.
        alpha: :math:`\alpha`; None: r, so that the factor is 1.
        targets: last parts of the names of the layers; the default has those of attention and MLP in timm's ViTs, of
            which those are taken that are there. Names of your own must each be there.
        first_block: blocks before this one, by the number after ``blocks.``, ``layers.`` or ``layer.`` in the name, or
            at its beginning, stay without adapters.

    Returns:
        The names of the layers.

    Raises:
        ValueError: a setting is out of its range, or no ``nn.Linear`` of the module has such a name.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hrda_lib.lora import add_lora, merge_lora
        >>> network = nn.ModuleDict({"fc1": nn.Linear(8, 8), "head": nn.Linear(8, 2)})
        >>> add_lora(network, rank=2)
        ['fc1']
        >>> [name for name, p in network.named_parameters() if p.requires_grad]
        ['fc1.lora_down', 'fc1.lora_up']
        >>> merge_lora(network)
        >>> [name for name, p in network.named_parameters()]
        ['fc1.weight', 'fc1.bias', 'head.weight', 'head.bias']
    """
    check_counts(rank=rank)
    alpha = rank if alpha is None else alpha
    if not is_number(alpha) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a positive number or None, got {short(alpha)}")
    found = _found(module, targets, first_block)
    module.requires_grad_(False)
    for name in found:
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        dtype, device = torch.promote_types(layer.weight.dtype, torch.float32), layer.weight.device
        down = nn.Parameter(torch.empty(rank, layer.in_features, dtype=dtype, device=device))
        layer.lora_down, layer.lora_scale = down, alpha / rank  # type: ignore[assignment]
        layer.lora_up = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=dtype, device=device))
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        layer.__class__ = LoRALinear
    return found


@torch.no_grad()
def merge_lora(module: nn.Module) -> None:
    r"""Put :math:`W + \frac{\alpha}{r} B A` in the place of each layer's weight and take the adapters away, in place.

    (LoRA, arXiv 2106.09685, section 4.1.) The module answers as before, to rounding, at the cost of the plain network;
    its parameters stay frozen.

    Args:
        module: one that :func:`add_lora` was called with, or that holds it.

    Raises:
        ValueError: it has no adapters.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hrda_lib.lora import add_lora, merge_lora
        >>> network = nn.Sequential(nn.Linear(4, 4))
        >>> names = add_lora(network, rank=1, targets=["0"])
        >>> _ = nn.init.ones_(network[0].lora_up)
        >>> x = torch.rand(2, 4)
        >>> before = network(x)
        >>> merge_lora(network)
        >>> torch.allclose(network(x), before)
        True
    """
    layers = [layer for layer in module.modules() if isinstance(layer, LoRALinear)]
    if not layers:
        raise ValueError(f"module must have adapters of add_lora, got {type(module).__name__} without any")
    for layer in layers:
        frozen = layer._frozen_weight()
        with torch.autocast(frozen.device.type, enabled=False):
            product = layer.lora_scale * (layer.lora_up @ layer.lora_down)
            frozen.copy_(at_least_float32(frozen) + product)
        del layer.lora_down, layer.lora_up, layer.lora_scale
        layer.__class__ = nn.Linear  # type: ignore[assignment]


def _found(module: nn.Module, targets: Sequence[str], first_block: int) -> list[str]:
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if not is_id(first_block):
        raise ValueError(f"first_block must be an int of at least 0, got {short(first_block)}")
    if not isinstance(targets, (tuple, list)) or not targets or not all(isinstance(x, str) for x in targets):
        raise ValueError(f"targets must be a list of names of layers, got {short(targets)}")
    linear = [name for name, layer in module.named_modules() if type(layer) is nn.Linear]
    found = [name for name in linear if name.rpartition(".")[2] in targets]
    missing = set(targets) - {name.rpartition(".")[2] for name in found}
    if not found or (missing and targets is not TARGETS):
        names = sorted({name.rpartition(".")[2] for name in linear})
        done = any(isinstance(layer, LoRALinear) for layer in module.modules())
        raise ValueError(
            f"targets must be the last parts of names of nn.Linear layers ({', '.join(names) or 'there are none'}), "
            f"got {', '.join(targets)}" + "; it has adapters already: merge_lora() first" * done
        )
    kept = [name for name in found if _block(name) is None or _block(name) >= first_block]  # type: ignore[operator]
    if not kept:
        raise ValueError(f"first_block must be the number of a block of the module, got {first_block}: none is left")
    return kept


def _block(name: str) -> int | None:
    """The number of the block in a layer's name: after a list's name, or at the beginning."""
    parts = name.split(".")
    for before, part in zip(["blocks", *parts], parts, strict=False):
        if part.isdecimal() and before in ("blocks", "layers", "layer"):
            return int(part)
    return None
