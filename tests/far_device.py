"""A device that computes on the CPU, but refuses, as GPUs do, to mix its tensors with those of the CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# what takes tensors of two devices on a GPU, too: copies, and indices that live on the CPU
CROSSING = ("aten::_to_copy", "aten::copy_", "aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_")

LIBRARY = torch.library.Library("aten", "IMPL", "PrivateUse1")  # what torch makes there out of Python's sight


class _Backend:
    """What torch asks of the module of a device."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """It has no generator of its own."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def register() -> torch.device:
    """The device; this can be done once a process, before its first backward pass."""
    backend_registration._setup_privateuseone_for_python_backend("far", _Backend())
    LIBRARY.impl("empty.memory_format", lambda size, **kwargs: Far(torch.empty(size, dtype=kwargs.get("dtype"))))
    LIBRARY.impl(
        "empty_strided",
        lambda size, stride, **kwargs: Far(torch.empty_strided(size, stride, dtype=kwargs.get("dtype"))),
    )
    LIBRARY.impl("_copy_from", _copy)
    return torch.device("far:0")


class Far(Tensor):
    """A tensor of that device, around one of the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Far":
        strides, offset = inner.stride(), inner.storage_offset()
        made: Far = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=strides, storage_offset=offset, dtype=inner.dtype, device=torch.device("far:0")
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: None = None) -> str:
        return f"Far({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class FarMode(TorchDispatchMode):
    """While it lasts, tensors can be made on the device and moved to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, Far)]
    goes = bool(there)
    if kwargs.get("device") is not None:
        goes = torch.device(kwargs["device"]).type == "far"
        kwargs = kwargs | {"device": torch.device("cpu")}
        if goes and kwargs.get("generator") is not None:
            raise RuntimeError("a generator of the CPU cannot draw on another device")
    _refuse_two_devices(func.name(), args, tensors, there)
    answer = func(*_inside(args), **_inside(kwargs))
    if not goes:
        return answer
    given = {id(x.inner): x for x in there}  # what works in place gives back what it was given
    return tree_map(lambda x: given[id(x)] if id(x) in given else Far(x) if isinstance(x, Tensor) else x, answer)


def _refuse_two_devices(name: str, args: Any, tensors: list[Tensor], there: list[Far]) -> None:
    indexed = name.startswith(("aten::index.", "aten::index_put"))
    if there and indexed and not isinstance(args[0], Far):
        raise RuntimeError("a tensor of the CPU cannot be indexed by one of another device")
    here = [tuple(x.shape) for x in tensors if not isinstance(x, Far) and x.dim()]
    if there and here and name not in CROSSING:
        raise RuntimeError(f"{name}: all tensors must be on one device, these are on the CPU: {here}")


def _copy(given: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    _inside(to).copy_(_inside(given))
    return to


def _inside(given: Any) -> Any:
    return tree_map(lambda x: x.inner if isinstance(x, Far) else x, given)
