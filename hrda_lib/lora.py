"""Low-rank adapters: a frozen network learns by a few small matrices beside its linear layers."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hrda_lib._checks import check_counts, check_lora_scale, is_id, is_number, short

TARGETS = ("qkv", "q_proj", "k_proj", "v_proj", "fc1", "fc1_g", "fc1_x", "fc2")
BLOCKS = ("blocks", "layers", "layer")


class LoRALinear(nn.Linear):
    """What :func:`add_lora` makes of a linear layer; entries of its own keep their names in ``state_dict``.

    To load adapters of another ``alpha / rank`` is a ValueError.
    """

    lora_down: Tensor
    lora_up: Tensor
    lora_scale: Tensor  # for state_dict, in which no setting is
    scale: float  # the same, exact in any dtype

    # timm's EVA-02 and BEiT call F.linear(x, layer.weight) past forward()
    @property
    def weight(self) -> Tensor:
        """The frozen weight and the adapter's product, (m, n), for code that reads it past ``forward``.

        It is computed at each reading: what is written into it is lost. Set it, or load a ``state_dict``, to change the
        frozen weight.
        """
        frozen = self._frozen_weight()
        return frozen + (self.scale * (self.lora_up @ self.lora_down)).to(frozen.dtype)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        self._parameters["weight"] = value  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        """The answer of the frozen layer and that of the adapter, which is never multiplied out.

        Args:
            input: (…, n) float.

        Returns:
            (…, m), in the dtype of the frozen layer's answer.
        """
        down, up = self.lora_down.to(input.dtype), self.lora_up.to(input.dtype)
        frozen = F.linear(input, self._frozen_weight(), self.bias)
        return frozen + F.linear(F.linear(input, down), up) * self.scale

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={len(self.lora_down)}, scale={self.scale:g}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        if (name := f"{prefix}lora_scale") in state_dict:
            check_lora_scale(name, state_dict[name], self.scale)
        super()._load_from_state_dict(state_dict, prefix, *others)

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
    require a gradient afterwards: a head in the module is frozen too, until ``head.requires_grad_(True)``. Build the
    optimiser afterwards, for one that is there already holds what no longer learns, and no adapter. They are at least
    float32 where the layer is in lower precision.

    ``state_dict`` keeps the plain names and adds ``lora_down``, ``lora_up`` and ``lora_scale``, :math:`\alpha / r`, for
    each layer. The adapters alone are ``{name: x for name, x in module.state_dict().items() if "lora_" in name}``,
    loaded with ``strict=False``. Loading refuses another scale than that of the layer; entries without one, as of
    another library, are taken with ``strict=False``, at the scale of the layer.

    An :class:`hrda_lib.EMATeacher` averages A and B; the product of averages is not the average of products.

    Args:
        module: such as an encoder, or its ``blocks``: parts that never run, such as the pooling of SigLIP inside
            :class:`hrda_lib.models.ViTFeatures`, would get adapters without gradient.
        rank: r, columns of B and rows of A, at least 1.
        alpha: :math:`\alpha`, more than 0; None: r, so that the factor is 1.
        targets: last parts of the names of the layers; the default has those of queries, keys, values and the MLP in
            timm's ViTs, not attention's last layer (``proj``), of which those are taken that are there. Names of your
            own must each be there.
        first_block: blocks before this one, by the number after ``blocks.``, ``layers.`` or ``layer.`` in the name, or
            at its beginning where no name has one, stay without adapters; 0: all get them.

    Returns:
        The names of the layers.

    Raises:
        ValueError: a setting is out of its range, no ``nn.Linear`` of the module has such a name, one that has it is of
            a subclass, or the module has adapters already.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hrda_lib.lora import add_lora, merge_lora
        >>> network = nn.ModuleDict({"fc1": nn.Linear(8, 8), "head": nn.Linear(8, 2)})
        >>> add_lora(network, rank=2)
        ['fc1']
        >>> [name for name, p in network.named_parameters() if p.requires_grad]
        ['fc1.lora_down', 'fc1.lora_up']
        >>> _ = network["head"].requires_grad_(True)  # a new head learns whole; now build the optimiser
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
        layer.lora_down, layer.scale = down, alpha / rank  # type: ignore[assignment]
        layer.register_buffer("lora_scale", torch.tensor(alpha / rank, dtype=torch.float32, device=device))
        layer.lora_up = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=dtype, device=device))
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        layer.__class__ = LoRALinear
    return found


@torch.no_grad()
def merge_lora(module: nn.Module) -> None:
    r"""Put :math:`W + \frac{\alpha}{r} B A` in the place of each layer's weight and take the adapters away, in place.

    (LoRA, arXiv 2106.09685, section 4.1.) The module answers as before, to rounding, at the cost of the plain network;
    its parameters stay frozen. The merged weights are new: a layer or an :class:`hrda_lib.EMATeacher` that shared the
    frozen ones keeps them.

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
    _check_module(module)
    layers = [layer for layer in module.modules() if isinstance(layer, LoRALinear)]
    if not layers:
        raise ValueError(f"module must have adapters of add_lora, got {type(module).__name__} without any")
    for layer in layers:
        frozen = layer._frozen_weight()
        with torch.autocast(frozen.device.type, enabled=False):
            merged = frozen + layer.scale * (layer.lora_up @ layer.lora_down)
        layer._parameters["weight"] = nn.Parameter(merged.to(frozen.dtype), requires_grad=False)
        del layer.lora_down, layer.lora_up, layer.lora_scale, layer.scale
        layer.__class__ = nn.Linear  # type: ignore[assignment]


def _check_module(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")


def _found(module: nn.Module, targets: Sequence[str], first_block: int) -> list[str]:
    _check_module(module)
    if not is_id(first_block):
        raise ValueError(f"first_block must be an int of at least 0, got {short(first_block)}")
    if not isinstance(targets, (tuple, list)) or not targets or not all(isinstance(x, str) for x in targets):
        raise ValueError(f"targets must be a list of names of layers, got {short(targets)}")
    if any(isinstance(layer, LoRALinear) for layer in module.modules()):
        raise ValueError(
            "module must have no adapters, got one that has: those would be frozen; name all targets in one call, or "
            "merge_lora() first"
        )
    linear = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    found = [name for name in linear if _last(name) in targets]
    missing = set(targets) - set(map(_last, found))
    if not found or (missing and targets is not TARGETS):
        names = sorted(set(map(_last, linear)))
        raise ValueError(
            f"targets must be the last parts of names of nn.Linear layers ({', '.join(names) or 'there are none'}), "
            f"got {', '.join(targets)}"
        )
    kept = _from_block(found, first_block)
    for name in kept:
        if type(linear[name]) is not nn.Linear:
            raise ValueError(
                f"targets must be layers of nn.Linear itself, got {name or 'module'}, a {type(linear[name]).__name__}, "
                "which may do more than multiply; leave its name out"
            )
    return kept


def _from_block(names: list[str], first_block: int) -> list[str]:
    blocks = [_block(name) for name in names]
    if not any(block is not None for block in blocks):  # of a list of blocks itself
        blocks = [int(first) if (first := name.partition(".")[0]).isdecimal() else None for name in names]
    kept = [name for name, block in zip(names, blocks, strict=True) if block is None or block >= first_block]
    known = [block for block in blocks if block is not None]
    if not kept or (first_block and not known):
        raise ValueError(
            f"first_block must be the number of a block of the module, "
            f"{f'at most {max(known)}' if known else 'whose names have none'}, got {first_block}"
        )
    return kept


def _block(name: str) -> int | None:
    """The number of the block in a layer's name."""
    pairs = pairwise(name.split("."))
    return next((int(part) for before, part in pairs if part.isdecimal() and before in BLOCKS), None)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
