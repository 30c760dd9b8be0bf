"""Several processes of one script: the first alone does what may be done once, and all go by what it found."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def agreed(value: T, group: Any) -> T:
    """What the first process found; alone, the value itself."""
    if group is None:
        return value
    found: list[T] = [value]
    torch.distributed.broadcast_object_list(found, src=0, group=group)
    return found[0]


@contextmanager
def first_alone(group: Any) -> Iterator[None]:
    """A block that the first process runs before the others: what it writes, they find."""
    if group is not None and group.rank():
        torch.distributed.barrier(group)
    yield
    if group is not None and not group.rank():
        torch.distributed.barrier(group)


def together(items: list[T], group: Any) -> list[T]:
    """Those of every process."""
    if group is None:
        return items
    found: list[list[T]] = [[] for _ in range(group.size())]
    torch.distributed.all_gather_object(found, items, group=group)
    return [item for of_one in found for item in of_one]
