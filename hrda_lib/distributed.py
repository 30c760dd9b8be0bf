"""Several processes on PyTorch's own engine, without a wrapper around the model.

Each process computes the losses of its own images; after the last backward :func:`all_reduce_gradients` makes the
gradients those of all images together. In one process, or where none was started, every function here does nothing.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hrda_lib._checks import check_module, short
from hrda_lib._processes import alike, reduced

if TYPE_CHECKING:
    from hrda_lib._processes import Group
BUCKET = 25 * 2**20  # bytes that travel together


def start(backend: str | None = None) -> tuple[int, int]:
    """Join the processes that ``torchrun`` started; in a process that it did not start, nothing happens.

    Args:
        backend: "nccl" or "gloo"; None: nccl where there is a GPU, which becomes that of ``LOCAL_RANK``, else gloo.

    Returns:
        The number of this process, from 0 on, and how many there are.

    Raises:
        ValueError: ``backend`` is not there.

    Example:
        >>> from hrda_lib.distributed import start, stop
        >>> start()
        (0, 1)
        >>> stop()
    """
    if not dist.is_available():
        return 0, 1
    if not dist.is_initialized():
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return 0, 1
        if backend is None:
            backend = "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        if backend not in dist.Backend.backend_list or not dist.is_backend_available(backend):
            raise ValueError(f"backend must be one that torch has here, such as 'gloo', got {backend!r}")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group(backend)
    return dist.get_rank(), dist.get_world_size()


def stop() -> None:
    """Leave the processes, if any were joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@torch.no_grad()
def all_reduce_gradients(parameters: Iterable[Tensor], group: "Group" = None) -> None:
    r"""Make every gradient the mean over processes, once, after the last backward of a step.

    .. math::
        g \leftarrow \frac{1}{N} \sum_{r=1}^{N} g_r

    Where each process's loss is a mean over the same number of images, this is the gradient of all images together.
    They travel in flat buckets of 25 MB. A parameter that has a gradient on one process gets one on all, so that all
    take the same step; missing ones count as 0.

    Args:
        parameters: those of the student, in the same order on each process; frozen ones are left alone.
        group: the processes; None: all.

    Raises:
        ValueError: a gradient is sparse or sharded, or the processes have other parameters.

    Example:
        >>> import torch
        >>> from hrda_lib.distributed import all_reduce_gradients
        >>> student = torch.nn.Linear(2, 1)
        >>> student(torch.ones(1, 2)).sum().backward()
        >>> all_reduce_gradients(student.parameters())  # one process: nothing to do
        >>> student.weight.grad
        tensor([[1., 1.]])
    """
    if _alone(group):
        return
    trained = [p for p in parameters if p.requires_grad]
    for p in trained:
        if p.grad is not None and (p.grad.is_sparse or type(p.grad) is not Tensor):
            kind = "sparse" if p.grad.is_sparse else type(p.grad).__name__
            raise ValueError(
                f"parameters must have plain gradients, got a {kind} one of {tuple(p.shape)}; a wrapper that shards "
                "them, such as FSDP, reduces them itself"
            )
    _same_everywhere("parameters", [(tuple(p.shape), str(p.dtype)) for p in trained], group)
    found = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32)
    found = reduced(found, group)
    moved = [p for p, anywhere in zip(trained, found.tolist(), strict=True) if anywhere]
    for p in moved:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    for bucket in _buckets(p.grad for p in moved if p.grad is not None):
        flat = torch.cat([x.reshape(-1) for x in bucket])
        dist.all_reduce(flat, group=group)
        _spread(flat / dist.get_world_size(group), bucket)


@torch.no_grad()
def broadcast(module: nn.Module, group: "Group" = None) -> None:
    """Give parameters and buffers the values of the first process, once, before training.

    Args:
        module: of the same build on each process.
        group: the processes; None: all.

    Raises:
        ValueError: the processes have other networks; all of them are told.
    """
    check_module("module", module)
    if _alone(group):
        return
    named = _tensors(module)
    _same_everywhere("module", [(name, tuple(x.shape), str(x.dtype)) for name, x in named], group)
    for bucket in _buckets(x for _, x in named):
        flat = torch.cat([x.reshape(-1) for x in bucket])
        dist.broadcast(flat, src=dist.get_global_rank(group, 0) if group else 0, group=group)
        _spread(flat, bucket)


@torch.no_grad()
def average_buffers(module: nn.Module, group: "Group" = None) -> None:
    """Make the running statistics of batch norm the same on each process, after each step.

    Floating-point buffers become their means over processes, others are those of the first. It is for a student, and
    for a teacher whose batch norm runs on batch statistics (:class:`hrda_lib.EMATeacher`): each process sees other
    images, and would predict otherwise. The mean of the processes' variances leaves out how much their means differ;
    ``torch.nn.SyncBatchNorm``, on GPUs, has the statistics of all images, and then nothing changes here.

    Args:
        module: student or teacher.
        group: the processes; None: all.

    Example:
        >>> from torch import nn
        >>> from hrda_lib.distributed import average_buffers
        >>> average_buffers(nn.BatchNorm2d(3))  # one process: nothing to do
    """
    check_module("module", module)
    if _alone(group):
        return
    buffers = [(name, x) for name, x in _tensors(module) if not isinstance(x, nn.Parameter)]
    _same_everywhere("module", [(name, tuple(x.shape), str(x.dtype)) for name, x in buffers], group)
    for bucket in _buckets(x for _, x in buffers):
        flat = torch.cat([x.reshape(-1) for x in bucket])
        if flat.is_floating_point():
            dist.all_reduce(flat, group=group)
            flat = flat / dist.get_world_size(group)
        else:
            dist.broadcast(flat, src=dist.get_global_rank(group, 0) if group else 0, group=group)
        _spread(flat, bucket)


@overload
def mean(value: Tensor, group: "Group" = None) -> Tensor: ...
@overload
def mean(value: Mapping[str, float], group: "Group" = None) -> dict[str, float]: ...
@overload
def mean(value: float, group: "Group" = None) -> float: ...


@torch.no_grad()
def mean(value: Tensor | Mapping[str, float] | float, group: "Group" = None) -> Tensor | dict[str, float] | float:
    """The mean over processes of a number, of numbers by name, or of a tensor.

    Args:
        value: of the same shape, or with the same names, on each process; numbers are averaged in float64.
        group: the processes; None: all.

    Returns:
        What was given, averaged; a new tensor on the same device.

    Raises:
        ValueError: it is something else, or an integer tensor.

    Example:
        >>> from hrda_lib.distributed import mean
        >>> mean(0.5), mean({"loss": 1.0})
        (0.5, {'loss': 1.0})
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise ValueError(f"value must be floating point to have a mean, got {value.dtype}; convert with .double()")
        return value.clone() if _alone(group) else reduced(value, group) / dist.get_world_size(group)
    if isinstance(value, Mapping):
        numbers = torch.tensor([float(x) for x in value.values()], dtype=torch.float64)
        if not _alone(group):
            _same_everywhere("value", list(value), group)
            numbers = reduced(numbers, group) / dist.get_world_size(group)
        return dict(zip(value, numbers.tolist(), strict=True))
    if not isinstance(value, int | float):
        raise ValueError(f"value must be a number, numbers by name or a tensor, got {short(value)}")
    return float(mean(torch.tensor(float(value), dtype=torch.float64), group))


@torch.no_grad()
def check_equal(module: nn.Module, group: "Group" = None) -> None:
    """Find out whether all processes have the same parameters and buffers, to the bit: now and then, and it is cheap.

    Compared is a checksum a tensor, the wrapped sums of its bytes as integers, plain and weighted by their places.

    Args:
        module: student or teacher.
        group: the processes; None: all.

    Raises:
        ValueError: names the first that differs, on every process.
    """
    check_module("module", module)
    if _alone(group):
        return
    named = _tensors(module)
    _same_everywhere("module", [(name, tuple(x.shape), str(x.dtype)) for name, x in named], group)
    sums = torch.stack([_checksum(x).cpu() for _, x in named]) if named else torch.zeros(0, 2, dtype=torch.int64)
    low, high = (reduced(sums, group, kind) for kind in (dist.ReduceOp.MIN, dist.ReduceOp.MAX))
    for (name, _), equal in zip(named, (low == high).all(dim=1).tolist(), strict=True):
        if not equal:
            raise ValueError(
                f"module must be the same on all processes, but {name} differs; broadcast(module) at the start, "
                "all_reduce_gradients after the last backward, and average_buffers keep them equal"
            )


def _alone(group: "Group") -> bool:
    """Whether there are no other processes."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Lists of tensors of one kind and place, of about ``BUCKET`` bytes."""
    waiting: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for x in tensors:
        bucket = waiting.setdefault((x.dtype, x.device), [])
        bucket.append(x)
        if sum(y.nbytes for y in bucket) >= BUCKET:
            yield waiting.pop((x.dtype, x.device))
    yield from waiting.values()


def _spread(flat: Tensor, bucket: list[Tensor]) -> None:
    for x, part in zip(bucket, torch.split(flat, [x.numel() for x in bucket]), strict=True):
        x.copy_(part.view_as(x))


def _same_everywhere(name: str, what: Sequence[object], group: "Group") -> None:
    """Refuse, on all processes, what differs between them: a collective call would hang or mix it up."""
    digest = hashlib.sha256(repr(what).encode()).digest()[:7]
    if not alike([int.from_bytes(digest, "big"), len(what)], group):
        raise ValueError(
            f"{name} must be of the same names, shapes and types on all processes, got {len(what)} here and others "
            "elsewhere; build the same network with the same settings on each"
        )


def _checksum(x: Tensor) -> Tensor:
    """Two integers that change with any bit, but for rare accidents."""
    raw = x.detach().contiguous().reshape(-1).view(torch.uint8).long()
    places = torch.arange(1, len(raw) + 1, device=raw.device)
    return torch.stack([raw.sum(), (raw * places).sum()])
