"""The mean teacher: an exponential moving average of the student."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hrda_lib._checks import check_choice, is_number, short
from hrda_lib._modules import check_not_lazy, check_own, copied, unwrap

Buffers = Literal["follow", "keep", "average"]
BatchNormMode = Literal["train", "eval"]
Pair = tuple[Tensor, Tensor]  # the teacher's, the student's
Place = tuple[nn.Module, nn.Module, str]  # of a buffer: its owner in the teacher and in the student, its name there
Parts = list[tuple[str, nn.Module, nn.Module]]  # a path, the teacher's module there and the student's

WHOLE = {Tensor, nn.Parameter}  # types of tensors that nothing has sharded
EXACT = {torch.float32, torch.float64}  # in which a small step is not rounded away
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
WRAPPERS = ("", "_orig_mod", "_checkpoint_wrapped_module")  # parts of a name that wrappers inside a network add
WAY_OUT = "pass EMATeacher(student, module=a copy of yours)"


class EMATeacher(nn.Module):
    r"""A frozen copy of the student whose parameters follow it slowly.

    .. math::
        \phi_k = \alpha_k \phi_{k-1} + (1 - \alpha_k)\,\theta, \qquad \alpha_k = \min(1 - 1/(k+1),\ \alpha)

    (Tarvainen & Valpola 2017; DAFormer, arXiv 2111.14887, section 3.1). Construction is the copy :math:`\phi_0`;
    the k-th :meth:`update` uses :math:`\alpha_k`, so 0.5 first.

    Args:
        student: the module to copy and follow. Of ``DistributedDataParallel``, ``DataParallel``, ``torch.compile``,
            Fabric, DeepSpeed and PEFT the network inside is: known by their class, where they hold no weights of their
            own. Any other module around another, such as :class:`hrda_lib.Adapted`, is copied as it is.
        decay: :math:`\alpha` in [0, 1).
        warmup: False uses :math:`\alpha` from the first update.
        buffers: "follow": at each update every buffer is the student's, but for the running statistics of batch norm
            layers that run on statistics of the batch at that moment, which are the teacher's own (the paper);
            "keep": all the teacher's own; "average": floating-point buffers are averaged like parameters, others
            follow.
        batch_norm: what batch norm layers use after ``train()`` (the state after construction): statistics of
            the "train" batch (the paper) or, with "eval", the running ones. A layer that is frozen in the student (in
            eval mode while the student trains, at construction or at an update) is frozen here too.
        share_frozen: True shares the student's frozen parameters (``requires_grad`` False) in place of copying them.
            One that is unfrozen later gets a copy at the next update.
        module: a copy of yours in place of ``copy.deepcopy``'s, for students that cannot be copied, or in another
            dtype. It must have the student's parameter names and shapes and share none (but frozen ones with
            ``share_frozen``); parameters and buffers are set to the student's. None: ``copy.deepcopy`` makes it.

    ``eval()`` is pure inference and leaves all buffers alone. Every Dropout and DropPath is always off. Calls run
    without gradient and return whatever the student returns; ``.module`` is the averaged copy, ``.step`` the number of
    updates so far. ``state_dict`` holds tensors only: the module's and the step; settings are the constructor's.

    Of the student's forward and backward hooks the copy gets its methods and those that torch, torchvision, timm or
    transformers installed. Any other is left out: it would see the teacher's passes. Plain attributes stay as copied.

    Students of ``fully_shard`` (FSDP2): build the teacher before, or pass ``module``. A whole teacher gathers the
    student's parameters at each update, a sharded one averages its shards; all processes call :meth:`update`.

    Raises:
        ValueError: a setting is unknown; the student cannot be copied, or its copy would reach weights that aren't its
            own (closures, hooks, lists of modules); a trainable parameter is float16 or bfloat16 in the teacher; or a
            student's names or shapes differ from the teacher's.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hrda_lib import EMATeacher
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
        buffers: Buffers = "follow",
        batch_norm: BatchNormMode = "train",
        share_frozen: bool = False,
        module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not is_number(decay) or not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {short(decay)}")
        check_choice("warmup", warmup, (True, False))
        check_choice("share_frozen", share_frozen, (True, False))
        check_choice("buffers", buffers, get_args(Buffers))
        check_choice("batch_norm", batch_norm, get_args(BatchNormMode))
        self.decay, self.warmup, self.buffer_policy, self.batch_norm = decay, warmup, buffers, batch_norm
        self.share_frozen, self.step = share_frozen, 0
        student = unwrap(student)
        shared = [p for p in student.parameters() if share_frozen and not p.requires_grad]
        if module is None:
            _check_precision([(parameter, parameter) for parameter in student.parameters()])
            module = copied(student, "student", WAY_OUT, shared)
        else:
            _check_given(module, student, shared)
            _set_to(module, student)
        self.module = module.requires_grad_(False)
        self._frozen = _frozen_batch_norms(student)
        self.train()

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move the average towards ``student``: the k-th call is step k of the equation.

        Args:
            student: the module that the teacher was built from, on whatever device and in whatever dtype it is.

        Raises:
            ValueError: names or shapes of its parameters or buffers differ from the teacher's.
        """
        student = unwrap(student)
        _reshard(self.module)
        parts = _side_by_side(self.module, student)
        parameters = None if parts is None else _parameters_of(parts)
        plain = parameters is not None and _are_plain(parameters)
        if parameters is None or not plain:
            parameters = _matched_parameters(self.module, student)
            _check_precision(parameters)
        buffers = [] if self.buffer_policy == "keep" else _matched_buffers(self.module, student, parts)
        decay = min(1 - 1 / (self.step + 2), self.decay) if self.warmup else self.decay
        if self.share_frozen:
            parameters = [pair for pair in parameters if pair[0] is not pair[1]]
        _average(parameters, 1 - decay, plain)
        self._copy_what_trains_now()
        self._freeze_with(student, parts)
        self._update_buffers(buffers, student, 1 - decay)
        self.step += 1

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the averaged copy answers, without gradient.

        Args:
            args, kwargs: given to the copy as they are: images (B, K, H, W) for a network.

        Returns:
            Whatever the student's ``forward`` returns, such as logits or :class:`hrda_lib.SegmenterOutput`.
        """
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> "EMATeacher":
        """Set what batch norm layers of the copy use; all else in it stays in eval mode.

        Args:
            mode: True: what ``batch_norm`` says; False, as ``eval()`` does: running statistics.

        Returns:
            The teacher.
        """
        super().train(mode)
        self.module.eval()
        for path, layer in _batch_norms(self.module):
            layer.training = self._on_batch(path)
        return self

    def get_extra_state(self) -> Tensor:
        """The step counter, an int64 tensor, for ``state_dict``."""
        return torch.tensor(self.step, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take the step counter from a ``state_dict``.

        Args:
            state: what :meth:`get_extra_state` gave.
        """
        self.step = int(state)

    def _on_batch(self, path: str) -> bool:
        return self.training and self.batch_norm == "train" and path not in self._frozen

    def _freeze_with(self, student: nn.Module, parts: Parts | None) -> None:
        """A student in eval mode, as during a validation, says nothing of what is frozen."""
        if student.training:
            changed = self._frozen ^ _frozen_batch_norms(student, parts)
            self._frozen ^= changed
            for path, layer in _batch_norms(self.module) if changed else ():
                if path in changed:
                    layer.training = self._on_batch(path)

    def _copy_what_trains_now(self) -> None:
        clones: dict[int, nn.Parameter] = {}  # tied parameters stay tied
        for part in self.module.modules() if self.share_frozen else ():
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    own = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                    part._parameters[name] = clones.setdefault(id(parameter), own)

    def _update_buffers(self, places: list[Place], student: nn.Module, share: float) -> None:
        if self.buffer_policy == "follow":
            places = [place for place in places if not _is_own_statistic(place)]
        written = _renew(places, self.module, student)
        if self.buffer_policy == "average":
            # equal values stay: the mean of two infinities would be nan
            written = [
                (old, torch.where(old == new, new, old.lerp(new, share)) if old.is_floating_point() else new)
                for old, new in written
            ]
        _write(written)


def _set_to(module: nn.Module, student: nn.Module) -> None:
    """All of the student's values into the copy."""
    with torch.no_grad():
        _reshard(module)
        _write([(_local(mine), _brought(new, mine)) for mine, new in _matched_parameters(module, student)])
        _write(_renew(_matched_buffers(module, student), module, student))


def _write(pairs: list[Pair]) -> None:
    if pairs:
        torch._foreach_copy_([old for old, _ in pairs], [new for _, new in pairs])


def _are_plain(pairs: list[Pair]) -> bool:
    """Whether all can be averaged as they are. Every word of it is said a thousand times an update."""
    return all(
        type(mine) in WHOLE
        and type(new) in WHOLE
        and (dtype := mine.dtype) is new.dtype
        and dtype in EXACT
        and mine.shape == new.shape
        and mine.get_device() == new.get_device()
        for mine, new in pairs
    )


def _average(pairs: list[Pair], share: float, plain: bool) -> None:
    if plain:
        averages, values = [mine for mine, _ in pairs], [new for _, new in pairs]
    else:
        averages, values = _averaged_at_once(pairs, share)
    if averages:
        with torch.inference_mode():
            torch._foreach_lerp_(averages, values, share)


def _averaged_at_once(pairs: list[Pair], share: float) -> tuple[list[Tensor], list[Tensor]]:
    """Write what cannot be averaged in one call; the rest, in the teacher's dtype and on its device."""
    averages: list[Tensor] = []
    values: list[Tensor] = []
    for mine, new in pairs:
        if not (mine.is_floating_point() or mine.is_complex()):
            _local(mine).copy_(_brought(new, mine))
        elif _is_sharded(mine) or _is_sharded(new):  # one by one: no more than one is ever gathered
            _local(mine).lerp_(_brought(new, mine), share)
        else:
            averages.append(mine)
            values.append(new.to(mine))
    return averages, values


def _renew(places: list[Place], module: nn.Module, student: nn.Module) -> list[Pair]:
    """Clones of the student's buffers where the teacher's cannot hold their values; of the others, the pairs."""
    clones: dict[int, Tensor] = {}  # buffers that are one tensor in the student stay one
    pairs = []
    for owner, theirs, name in places:
        old, new = dict(owner._buffers.items()).get(name), theirs._buffers[name]
        if old is not None and new is not None and _holds(old, new):
            pairs.append((_local(old), _brought(new, old)))
        elif not (old is None and new is None and name in owner._buffers):
            if new is not None and id(new) not in clones:
                clones[id(new)] = _cloned(new, next(student.parameters(), None), next(module.parameters(), None))
            vars(owner).pop(name, None)  # a plain attribute that has become a buffer
            persistent = name not in theirs._non_persistent_buffers_set
            owner.register_buffer(name, None if new is None else clones[id(new)], persistent=persistent)
    return pairs


def _holds(old: Tensor, new: Tensor) -> bool:
    """Whether the values of ``new`` can be written into ``old``, and all of them seen there."""
    same_kind = old.dtype == new.dtype or (old.is_floating_point() and new.is_floating_point())
    if old.shape != new.shape or not same_kind or old.is_inference():
        return False
    if not old.layout == new.layout == torch.strided:
        return False
    return all(stride or size < 2 for stride, size in zip(old.stride(), old.shape, strict=True))  # not expanded


def _cloned(new: Tensor, theirs: Tensor | None, mine: Tensor | None) -> Tensor:
    """A clone where the teacher's parameters are if it was with the student's; the same with their dtype."""
    device, dtype = new.device, new.dtype
    if theirs is not None and mine is not None:
        device = mine.device if device == theirs.device else device
        dtype = mine.dtype if dtype == theirs.dtype else dtype
    return new.detach().to(device, dtype, copy=True)


def _is_own_statistic(place: Place) -> bool:
    owner, _, name = place
    return isinstance(owner, _BatchNorm) and owner.training and name in STATISTICS


def _batch_norms(module: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [(_plain(path), part) for path, part in module.named_modules() if isinstance(part, _BatchNorm)]


def _frozen_batch_norms(student: nn.Module, parts: Parts | None = None) -> set[str]:
    if not student.training:
        return set()
    if parts is None:
        return {path for path, layer in _batch_norms(student) if not layer.training}
    return {_plain(path) for path, _, part in parts if isinstance(part, _BatchNorm) and not part.training}


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _side_by_side(module: nn.Module, student: nn.Module) -> Parts | None:
    """All modules of both in the order of ``named_modules``; None where the two are not built alike.

    As every update walks them, they are compared name by name without putting names together.
    """
    if type(student).named_parameters is not nn.Module.named_parameters:
        return None
    found: dict[nn.Module, nn.Module] = {}
    parts: Parts = []
    waiting: list[tuple[str, nn.Module | None, nn.Module | None]] = [("", module, student)]
    while waiting:
        path, mine, theirs = waiting.pop()
        if mine is None or mine in found:
            if theirs is not (None if mine is None else found[mine]):
                return None
            continue
        if theirs is None:
            return None
        found[mine] = theirs
        parts.append((path, mine, theirs))
        inner, other = mine._modules, theirs._modules
        if inner.keys() != other.keys() or [*mine._parameters] != [*theirs._parameters]:
            return None
        if inner:
            waiting += [(f"{path}.{name}", inner[name], other[name]) for name in reversed(inner)]
    return parts


def _parameters_of(parts: Parts) -> list[Pair] | None:
    """Each of the teacher's beside the student's; None where other ones are tied, or absent."""
    pairs = [
        pair
        for _, part, other in parts
        for pair in zip(part._parameters.values(), other._parameters.values(), strict=True)
    ]
    counts = len({id(own) for own, _ in pairs}), len({id(other) for _, other in pairs})
    if counts != (len(pairs), len(pairs)):
        pairs = list({(id(own), id(other)): (own, other) for own, other in pairs}.values())
        if counts != (len(pairs), len(pairs)):
            return None
    found: list[Pair] = [(own, other) for own, other in pairs if own is not None and other is not None]
    if len(found) < len(pairs) and any((own is None) != (other is None) for own, other in pairs):
        return None
    return found


def _matched_parameters(module: nn.Module, student: nn.Module) -> list[Pair]:
    own = {_plain(name): parameter for name, parameter in module.named_parameters()}
    new = {_plain(name): parameter for name, parameter in student.named_parameters()}
    _check_names("parameters", own.keys() - new.keys(), new.keys() - own.keys())
    for name, tensor in own.items():
        if tensor.shape != new[name].shape:
            raise ValueError(
                f"student's {name} must have the teacher's shape {tuple(tensor.shape)}, got {tuple(new[name].shape)}"
            )
    return [(tensor, new[name]) for name, tensor in own.items()]


def _matched_buffers(module: nn.Module, student: nn.Module, parts: Parts | None = None) -> list[Place]:
    if parts is not None and all(part._buffers.keys() <= other._buffers.keys() for _, part, other in parts):
        return [(part, other, name) for _, part, other in parts for name in other._buffers]
    owners = {_plain(path): part for path, part in module.named_modules(remove_duplicate=False)}
    own = {(path, name) for path, part in owners.items() for name in part._buffers}
    theirs = {_plain(path): part for path, part in student.named_modules(remove_duplicate=False)}
    new = {(path, name) for path, part in theirs.items() for name in part._buffers}
    homeless = {place for place in new if place[0] not in owners}
    _check_names("buffers", {_plain(".".join(place)) for place in own - new}, {".".join(place) for place in homeless})
    return [(owners[path], theirs[path], name) for path, name in sorted(new)]


def _check_names(kind: str, missing: set[str], unexpected: set[str]) -> None:
    if missing or unexpected:
        raise ValueError(
            f"student must have the teacher's {kind}: missing {sorted(missing)[:5]}, unexpected "
            f"{sorted(unexpected)[:5]}; update with the module that the teacher was built from"
        )


def _check_precision(parameters: list[Pair]) -> None:
    for dtype in {mine.dtype for mine, _ in parameters}:
        low = (dtype.is_floating_point or dtype.is_complex) and torch.finfo(dtype).eps > 1e-4
        if low and any(new.requires_grad and mine.dtype == dtype for mine, new in parameters):
            raise ValueError(
                f"the teacher's parameters must be float32 or wider where the student trains, got {dtype}: steps "
                "of 1 - decay would be rounded away; build it from a float32 copy, EMATeacher(student, "
                "module=copy.deepcopy(student).float()); update takes a student of any dtype"
            )


def _check_given(module: nn.Module, student: nn.Module, shared: list[nn.Parameter]) -> None:
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, a copy of the student, got {type(module).__name__}")
    for name, network in (("student", student), ("module", module)):
        check_not_lazy(network, name, "pass copies that have run")
    _check_precision(_matched_parameters(module, student))
    check_own(module, student, "module", "pass another copy", shared)
    frozen = {_storage(parameter) for parameter in shared}
    theirs = {_storage(tensor) for tensor in (*student.parameters(), *student.buffers())} - frozen - {0}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if _storage(tensor) in theirs:
            raise ValueError(f"module must share no tensor with the student, but {name} does; copy with copy.deepcopy")


def _storage(tensor: Tensor) -> int:
    tensor = _local(tensor)
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")  # DTensor, whose import costs time


def _local(tensor: Any) -> Tensor:
    local: Tensor = tensor.to_local() if _is_sharded(tensor) else tensor
    return local


def _brought(new: Any, mine: Any) -> Tensor:
    """The student's tensor as the teacher holds its own: device, dtype, shard. Processes meet where shards differ."""
    if _is_sharded(new) and not (_is_sharded(mine) and new.device_mesh == mine.device_mesh):
        new = new.full_tensor()
    if _is_sharded(mine):
        from torch.distributed.tensor import DTensor, Replicate

        if not _is_sharded(new):
            everywhere = [Replicate()] * mine.device_mesh.ndim
            new = DTensor.from_local(new.to(_local(mine).device), mine.device_mesh, everywhere, run_check=False)
        new = _local(new.redistribute(mine.device_mesh, mine.placements))
    brought: Tensor = new.to(_local(mine))
    return brought


def _reshard(module: nn.Module) -> None:
    """A pass without backward leaves the root of FSDP2 gathered: what is written then would be lost."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for part in module.modules():
        if any(base.__name__ == "FSDPModule" for base in type(part).__mro__):
            part.reshard()  # type: ignore[operator]
