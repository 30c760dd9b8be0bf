"""What lies inside a module of the user, and the modes that its parts are in."""

import contextlib
import threading
from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# of each module, by id while a call holds it: how many calls are in eval mode, and the mode before the first. Not kept
# in the module, which could then be neither copied nor pickled
_MODES: dict[int, tuple[int, bool]] = {}
_LOCK = threading.Lock()


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"student must be a torch.nn.Module, got {type(module).__name__}")
    while True:
        if isinstance(module, DistributedDataParallel | DataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and when the last of several threads leaves, in the mode that it was in."""
    modules = list(model.modules())
    with _LOCK:
        for module in modules:
            users, training = _MODES.get(id(module), (0, module.training))
            _MODES[id(module)] = users + 1, training
        model.eval()
    try:
        yield
    finally:
        with _LOCK:
            for module in modules:
                users, training = _MODES.pop(id(module))
                if users > 1:
                    _MODES[id(module)] = users - 1, training
                else:
                    module.training = training
