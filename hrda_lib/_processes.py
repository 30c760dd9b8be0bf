"""A batch that several processes share: which part is this one's, and means over all."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    Group = dist.ProcessGroup | None

T = TypeVar("T")


def own_part(count: int, group: "Group") -> tuple[int, slice]:
    """How many images there are where each process has ``count``, and which of them are this one's."""
    if group is None:
        return count, slice(0, count)
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    return world * count, slice(rank * count, (rank + 1) * count)


def reduced(value: Tensor, group: "Group", kind: Any = None) -> Tensor:
    """A copy, summed over processes where the backend can: nccl takes no tensor of the CPU, gloo takes those."""
    nccl = dist.get_backend(group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else value.device
    moved = value.detach().to(device, copy=True)
    dist.all_reduce(moved, op=dist.ReduceOp.SUM if kind is None else kind, group=group)
    return moved.to(value.device)


def mean_over(value: Tensor, group: "Group") -> Tensor:
    """The mean over processes, without a gradient; for no group the value itself."""
    return value if group is None else reduced(value, group) / dist.get_world_size(group)


def alike(numbers: list[int], group: "Group") -> bool:
    """Whether all processes have the same numbers."""
    mine = torch.tensor(numbers)
    high, low = reduced(torch.stack([mine, -mine]), group, dist.ReduceOp.MAX)
    return torch.equal(-low, high)


def one_seed(group: "Group") -> int:
    """A number that the first process draws, for all."""
    drawn = torch.randint(2**53, ())
    return int(reduced(drawn if dist.get_rank(group) == 0 else torch.zeros_like(drawn), group))


def all_or_none(work: Callable[[], T], group: "Group") -> T:
    """What ``work`` gives; an error of one process is raised by all, so that none waits for another."""
    if group is None:
        return work()
    result, error = list[T](), None
    try:
        result.append(work())
    except (ValueError, OSError) as problem:
        error = problem
    said = [""] * dist.get_world_size(group)
    dist.all_gather_object(said, "" if error is None else str(error) or type(error).__name__, group=group)
    if error is not None:
        raise error
    if any(said):
        raise ValueError(next(filter(None, said)))
    return result[0]
