"""What lies inside a module of the user, the modes that its parts are in, and copies that share nothing with it."""

import contextlib
import copy
import dis
import functools
import inspect
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils.checkpoint import checkpoint

Held = tuple[str, Any]
Hooks = dict[int, Any]

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
LIBRARIES = ("torch", "torchvision", "timm", "transformers")  # a hook that these install is part of their network
WRAPPERS = {  # packages and classes that pass calls on to the one network inside
    ("torch", "DistributedDataParallel"),
    ("torch", "DataParallel"),
    ("torch", "OptimizedModule"),
    ("lightning", "_FabricModule"),
    ("lightning_fabric", "_FabricModule"),
    ("deepspeed", "DeepSpeedEngine"),
    ("peft", "PeftModel"),
}
# where wrappers keep it, those of WRAPPERS and others
INSIDE = (
    "_forward_module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "module",
    "base_model.model",
)
LEAVES = (str, bytes, int, float, complex, type(None), type, ModuleType, CodeType)
KNOWN_REASONS = (  # torch's words, what they mean, what to do
    (
        "graph leaves",
        "it holds a tensor with a graph, such as a kept activation or old weight_norm",
        "drop it, or use torch.nn.utils.parametrizations",
    ),
    ("FSDP", "fully_shard has sharded it", "copy it before fully_shard"),
)
# of each module, by id while a call holds it: how many calls are in eval mode, and the mode before the first. Not kept
# in the module, which could then be neither copied nor pickled
_MODES: dict[int, tuple[int, bool]] = {}
_LOCK = threading.Lock()


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside ``WRAPPERS``.

    What is unwrapped is known by its class, and holds no weights beside those of the network inside: any other module
    that has one in it, such as :class:`hrda_lib.Adapted`, may do work of its own around it.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"student must be a torch.nn.Module, got {type(module).__name__}")
    for inner in layers(module):
        kinds = {
            (_library(base.__module__), base.__name__) for base in type(module).__mro__ if _passes_on(module, base)
        }
        if kinds.isdisjoint(WRAPPERS) or _weights(inner) != _weights(module):
            break
        module = inner
    return module


def _passes_on(module: nn.Module, base: type) -> bool:
    """Whether the module is called as ``base`` is; PEFT has a subclass with a ``forward`` of its own for each task."""
    own = _library(base.__module__) != "torch"
    return own or type(module).forward is getattr(base, "forward", None)


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """What lies inside the module where wrappers keep their network, what lies inside that, and so on."""
    while True:
        inner: Any = module
        for path in INSIDE:
            inner = module
            for name in path.split("."):
                children = getattr(inner, "_modules", {})
                if not isinstance(children, dict):  # of TorchScript
                    children = dict(inner.named_children())
                inner = children.get(name)
            if isinstance(inner, nn.Module):
                break
        if not isinstance(inner, nn.Module):
            return
        module = inner
        yield module


def parameters_of_forward(student: nn.Module) -> set[str]:
    """The names of its arguments; those of the network inside where wrappers take anything and pass it on."""
    for module in (student, *layers(student)):
        try:
            parameters = dict(inspect.signature(module.forward).parameters)
        except ValueError:  # TorchScript
            break
        takes_any = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
        if {"box", "generator"} <= parameters.keys() or not takes_any:
            return set(parameters)
    return set()


def _weights(module: nn.Module) -> set[int]:
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}


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


def written_out() -> bool:
    """Whether plain operations are wanted: compilers, tracers and torch.func look into nothing else."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.compiler.is_compiling() or tracing or torch._C._are_functorch_transforms_active()


def recomputed(module: nn.Module, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``run(*inputs)``, of which nothing but the inputs is kept for backward: the rest is computed anew there.

    What ``run`` ends in, such as a convolution, is not: its own inputs are enough for its gradient. Batch norms and
    dropout of ``module``, which ``run`` is a part of, count once and drop the same. Code that wants to see every
    operation, or hooks that would be called twice, get the plain way.
    """
    if not torch.is_grad_enabled() or written_out() or hooked(module):
        return run(*inputs)
    drops = any(isinstance(part, _DropoutNd) and part.training and part.p > 0 for part in module.modules())
    out: Tensor = checkpoint(
        run,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=drops,
        context_fn=lambda: (contextlib.nullcontext(), _WithoutCounting(module)),
    )
    return out


def hooked(module: nn.Module) -> bool:
    """Whether anything is called with what the module or one of its parts gets or gives."""
    return any(getattr(part, hooks) for part in module.modules() for hooks in HOOKS)


class _WithoutCounting:
    """Batch norms write their running statistics into copies. It can be entered again, as checkpoint does."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own: list[tuple[nn.Module, dict[str, Tensor | None]]] = []

    def __enter__(self) -> None:
        for part in self.module.modules():
            if isinstance(part, _BatchNorm) and part.training:
                self.own.append((part, part._buffers))
                part._buffers = {name: None if x is None else x.clone() for name, x in part._buffers.items()}

    def __exit__(self, *_: object) -> None:
        while self.own:
            part, buffers = self.own.pop()
            part._buffers = buffers


def copied(module: nn.Module, name: str, way_out: str, shared: Iterable[nn.Parameter] = ()) -> nn.Module:
    """A frozen deep copy that holds all its weights itself.

    Of the forward and backward hooks come along: methods of what is copied, and those of ``LIBRARIES``.

    Args:
        module: what to copy.
        name: of the argument, for errors.
        way_out: what to do in place of a copy, for errors.
        shared: parameters that the copy has in common with the original.

    Raises:
        ValueError: it cannot be copied, or the copy would reach weights that are not its own.
    """
    check_not_lazy(module, f"{name} cannot be copied: it", way_out)
    shared = list(shared)
    memo: dict[int, Any] = {id(parameter): parameter for parameter in shared}
    kept = _hooks_to_keep(module, name, way_out)
    memo.update({id(old): OrderedDict() for old, _ in kept})
    try:
        own: nn.Module = copy.deepcopy(module, memo).requires_grad_(False)  # TorchScript cannot
        for old, hooks in kept:
            memo[id(old)].update(copy.deepcopy(hooks, memo))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{name} cannot be copied: {_why(module, error)}, or {way_out}") from error
    check_own(own, module, f"{name} cannot be copied: the copy", way_out, shared)
    return own


def check_not_lazy(module: nn.Module, name: str, way_out: str) -> None:
    """Raise ValueError where a parameter or buffer has no shape yet."""
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{name} has lazy layers, {path} has no shape yet; run one batch through it first, or {way_out}"
            )


def check_own(own: nn.Module, original: nn.Module, name: str, way_out: str, shared: Iterable[nn.Parameter]) -> None:
    """Raise ValueError where ``own`` reaches modules or parameters of ``original``, or trainable ones that aren't its.

    A closure, for example, is not copied with the module that holds it: it still sees the original's weights.
    """
    ours = {id(part) for part in (*own.modules(), *own.parameters())}
    theirs = {id(part) for part in (*original.modules(), *original.parameters())} - {id(part) for part in shared}
    for path, value in _reachable(own):
        if id(value) in theirs or (id(value) not in ours and _is_trainable(value)):
            raise ValueError(
                f"{name} reaches a {type(value).__name__} that is not its own, by {path.lstrip('.') or 'itself'}; "
                f"make it a submodule of the module that uses it, or {way_out}"
            )


def _hooks_to_keep(module: nn.Module, name: str, way_out: str) -> list[tuple[Hooks, Hooks]]:
    """Each dictionary of hooks, and what of it is part of the network."""
    found = [(part, vars(part)[kind]) for part in module.modules() for kind in HOOKS if vars(part).get(kind)]
    inside = {id(value): value for _, value in _reachable(module, hooks=False)} if found else {}
    theirs = {id(part) for part in (*module.modules(), *module.parameters())}
    kept = []
    for part, hooks in found:
        kept.append((hooks, {key: hook for key, hook in hooks.items() if _is_part(hook, inside)}))
        for hook in (hook for key, hook in hooks.items() if key not in kept[-1][1]):
            if any(id(value) in theirs for _, value in _reachable(hook)):
                raise ValueError(
                    f"{name} cannot be copied: the hook {getattr(hook, '__qualname__', hook)} of its "
                    f"{type(part).__name__} reaches modules of the {name}, and would in the copy too; make it a "
                    f"method of the module, remove it before, or {way_out}"
                )
    return kept


def _is_part(hook: Any, inside: dict[int, Any]) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    if isinstance(hook, FunctionType):
        return _library(hook.__module__) in LIBRARIES
    owner = hook.__self__ if isinstance(hook, MethodType) else hook
    kinds = [base.__module__ for base in type(owner).__mro__]
    pruning = any(kind.startswith("torch.nn.utils.") for kind in kinds)  # a method of one's own
    return id(owner) in inside or pruning or _library(kinds[0]) in LIBRARIES


def _library(module: str | None) -> str:
    return str(module).split(".")[0]


def _why(module: nn.Module, error: Exception) -> str:
    for words, meaning, remedy in KNOWN_REASONS:
        if words in str(error):
            return f"{meaning}; {remedy}"
    return f"{_culprit(module)}{type(error).__name__} {error}; drop it before"


def _culprit(module: nn.Module) -> str:
    """The attribute that cannot be copied, if it is a single one."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in ("_modules", "_parameters", *HOOKS):
                try:
                    copy.deepcopy(value, memo)
                except Exception:
                    return f"its {f'{path}.' if path else ''}{key} raises "
    return ""


def _is_trainable(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return any(parameter.requires_grad for parameter in value.parameters())
    return isinstance(value, nn.Parameter) and value.requires_grad


def _reachable(start: Any, *, hooks: bool = True) -> Iterator[Held]:
    """All that ``start`` holds, nearest first, each once, with the way to it."""
    seen: dict[int, Any] = {}  # the objects too, so that no number is given twice
    queue: deque[Held] = deque([("", start)])
    while queue:
        path, value = queue.popleft()
        if id(value) in seen or isinstance(value, LEAVES):
            continue
        seen[id(value)] = value
        yield path, value
        queue.extend((path + step, held) for step, held in _held(value, hooks))


def _held(value: Any, hooks: bool) -> Iterable[Held]:
    if isinstance(value, nn.Module):
        return _held_by_module(value, hooks)
    if isinstance(value, FunctionType):
        return _held_by_function(value)
    if isinstance(value, MethodType):
        return ("", value.__self__), ("", value.__func__)
    if isinstance(value, functools.partial):
        return ("", value.func), ("", value.args), ("", value.keywords), ("", vars(value))
    if isinstance(value, weakref.ref):
        return (("", value()),)
    if isinstance(value, Tensor) or _library(type(value).__module__) == "torch":
        return ()
    return (*_held_by_container(value), *_held_by_object(value))


def _held_by_module(module: nn.Module, hooks: bool) -> Iterator[Held]:
    for key, value in list(vars(module).items()):
        if key in ("_modules", "_parameters", "_buffers"):
            yield from ((f".{name}", part) for name, part in value.items())
        elif hooks or key not in HOOKS:
            yield f".{key}", value
    yield ".forward", type(module).forward


def _held_by_function(function: FunctionType) -> Iterator[Held]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f" -> {name}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from ((" -> default", values) for values in (function.__defaults__, function.__kwdefaults__))
    yield "", vars(function)
    if _library(function.__module__) != "torch":
        names = _globals_of(function.__code__) & function.__globals__.keys()
        yield from ((f" -> {name}", function.__globals__[name]) for name in sorted(names))


def _globals_of(code: CodeType) -> set[str]:
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return names.union(*(_globals_of(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def _held_by_container(value: Any) -> Iterator[Held]:
    if isinstance(value, dict):
        for key, held in list(value.items()):
            yield "[key]", key
            yield f"[{key!r}]" if isinstance(key, str | int) else "[...]", held
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from ((f"[{index}]", held) for index, held in enumerate(list(value)))


def _held_by_object(value: Any) -> Iterator[Held]:
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from ((f".{key}", held) for key, held in list(attributes.items()))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, slot):
                yield f".{slot}", getattr(value, slot)
