"""Checks of arguments: a mistake of the caller is a ValueError that says what was expected, and what came."""

import inspect
import math
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

LABEL_TYPES = "uint8 or int64"


def expect(
    name: str,
    value: object,
    *shapes: Sequence[str | int],
    kind: str | torch.dtype = "",
    like: str = "",
    hint: str = "",
) -> None:
    """Refuse what is no tensor of one of the shapes and of the kind.

    A letter in a shape stands for any size but 0: ``expect("images", images, "BKHW", kind="float")``. ``kind`` is
    "float", ``LABEL_TYPES``, a dtype, or empty for any; ``like`` names where a shape comes from, ``hint`` what to do.
    """
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    fits = False
    for shape in shapes:  # no any(): the compiler of older torch stops at it
        fits = fits or _has_shape(value, shape)
    if fits and _is_kind(value, kind):
        return
    hint = _likely(name, value, shapes, kind) or hint
    wanted = " or ".join(f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})" for shape in shapes)
    full = "and not empty" if 0 in value.shape else ""
    words = [str(kind).removeprefix("torch."), wanted, f"like {like}" if like else "", full]
    got = f"{value.dtype} {tuple(value.shape)}" if kind else f"{tuple(value.shape)}"
    raise ValueError(f"{name} must be {' '.join(filter(None, words))}, got {got}{f'; {hint}' if hint else ''}")


def _likely(name: str, value: Tensor, shapes: Sequence[Sequence[str | int]], kind: str | torch.dtype) -> str:
    """What to do about a tensor that does not fit, where it is plain what it is; empty where it is not."""
    shape, dims = tuple(value.shape), {len(shape) for shape in shapes}
    if dims == {3} and len(shape) == 4 and shape[1] == 1:
        return "drop the channel by squeeze(1)"
    if dims == {3} and len(shape) == 4 and (kind == LABEL_TYPES or name == "target"):
        return "one class id a pixel is wanted: of one-hot labels, argmax over the classes"
    if name not in ("image", "images") or dims != {4}:
        return ""
    if len(shape) == 3:
        return "a batch of one is image.permute(2, 0, 1)[None]" if seem_last(shape) else "a batch of one is image[None]"
    if kind == "float" and value.dtype == torch.uint8:
        return "convert with .float() / 255 and normalise, as hrda_lib.data.normalize does"
    return seem_last(shape) if shapes[0][1] == shape[-1] else ""


def seem_last(shape: Sequence[int]) -> str:
    """What to do about images (B, H, W, K), or (H, W, K), of a few channels in place of (B, K, H, W)."""
    shape = plain(shape)
    return "these look like channels last: permute(0, 3, 1, 2)" if shape[-1] <= 4 < min(shape[-3:-1]) else ""


def _has_shape(value: Tensor, shape: Sequence[str | int]) -> bool:
    if value.dim() != len(shape):
        return False
    for size, wanted in zip(plain(value.shape), shape, strict=True):
        if size == 0 if isinstance(wanted, str) else size != plain((wanted,))[0]:
            return False
    return True


def plain(size: Sequence[int]) -> tuple[int, ...]:
    """Sizes as ints under ``torch.jit.trace`` too, where those that are read from a tensor are tensors."""
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return tuple(size)
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return tuple(int(side) for side in size)
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def _is_kind(value: Tensor, kind: str | torch.dtype) -> bool:
    if kind == "float":
        return value.is_floating_point()
    return value.dtype in (torch.uint8, torch.int64) if kind == LABEL_TYPES else kind in ("", value.dtype)


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor, with a hint at what was meant."""
    if not isinstance(value, Tensor):
        best = _best_of(entries_of(value))
        hint = "see torch.from_numpy" if best is None else f"pass its {best!r}, or {tensor_in(value)[2:]}"
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}; {hint}")


def check_module(name: str, value: object) -> None:
    """Refuse a function in place of a module."""
    if not isinstance(value, torch.nn.Module):
        raise ValueError(
            f"{name} must be a torch.nn.Module, got {type(value).__name__}: a function's weights would neither be "
            "trained nor copied for a teacher; put it into a module's forward"
        )


def entries_of(value: object) -> dict[str | int, object]:
    """What a model's answer holds, by what :class:`hrda_lib.Adapted` calls it: keys, attributes or numbers."""
    if isinstance(value, (Tensor, torch.nn.Module)):
        return {}
    if isinstance(value, Mapping):
        return {key: part for key, part in value.items() if part is not None}
    if isinstance(value, (tuple, list)) and not hasattr(value, "_asdict"):
        return dict(enumerate(value))
    named = value._asdict() if hasattr(value, "_asdict") else getattr(value, "__dict__", {})
    return {name: part for name, part in named.items() if part is not None and not name.startswith("_")}


def tensor_in(value: object) -> str:
    """What to do about an answer that holds the wanted tensor, and what else is there; empty where nothing is known."""
    entries = entries_of(value)
    best = _best_of(entries)
    return (
        ""
        if best is None
        else f"; put Adapted(..., output={best!r}) around the module that it is from (it has {_listed(entries)})"
    )


def levels_in(features: object, channels: Sequence[int]) -> str:
    """How a module gets levels of these channels out of features that hold them; empty where they do not."""
    entries, wanted, pick = entries_of(features), list(channels), ""
    if isinstance(features, Tensor):
        pick = "lambda x: [x]" if _channels_of(features) == wanted[0] and len(wanted) == 1 else ""
    elif 0 in entries:
        found = feature_channels(features)
        assert isinstance(found, list)
        starts = [k for k in range(len(found) - len(wanted) + 1) if found[k : k + len(wanted)] == wanted]
        if starts:
            stop = starts[-1] + len(wanted)
            pick = f"slice({starts[-1]}, {None if stop == len(found) else stop})"
    else:
        names = _one_each(entries, wanted)
        whole = next((name for name, part in entries.items() if feature_channels(part) == wanted), None)
        pick = repr(whole) if whole is not None else repr(names) if None not in names else ""
    has = f" (it is given {_listed(entries)})" if entries else ""
    return f"; put Adapted(..., input={pick}) around this module{has}" if pick else ""


def _best_of(entries: Mapping[str | int, object]) -> str | int | None:
    """Where the logits are likely to be."""
    tensors = [name for name, part in entries.items() if isinstance(part, Tensor)]
    return next((name for name in ("out", "logits", *tensors) if name in tensors), None)


def _one_each(entries: Mapping[str | int, object], channels: Sequence[int]) -> list[str | int | None]:
    """For each number of channels the first entry that has it and was not taken before."""
    rest, names = dict(entries), list[str | int | None]()
    for wanted in channels:
        name = next((name for name, part in rest.items() if _channels_of(part) == wanted), None)
        rest.pop(name, None)  # type: ignore[arg-type]
        names.append(name)
    return names


def _listed(entries: Mapping[str | int, object]) -> str:
    return f"{len(entries)} entries" if 0 in entries else ", ".join(map(str, entries))


def _channels_of(feature: object) -> object:
    """Of a (B, C, h, w) tensor; of another its shape; else what it is."""
    if not isinstance(feature, Tensor):
        return type(feature).__name__
    return plain(feature.shape)[1] if feature.dim() == 4 else tuple(feature.shape)


class SidesRefused(ValueError):
    """A network does not take images of these sides."""


def refuses_sides(error: Exception) -> bool:
    """Whether a network's own error is about the sides of its input, as far as its words tell."""
    text = str(error).lower()
    if isinstance(error, (torch.OutOfMemoryError, SidesRefused)) or "channels" in text:
        return False
    if isinstance(error, AssertionError) and not text:  # a bare assert, mostly of a side
        return True
    words = ("size", "shape", "divisible", "multiple", "height", "width", "resolution", " even")
    return any(word in text for word in words)


def takes(function: object, *args: object, **kwargs: object) -> bool:
    """Whether it can be called with these arguments, as far as its signature tells."""
    if not callable(function):
        return False
    try:
        inspect.signature(function.forward if isinstance(function, torch.nn.Module) else function).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def laid_out(shape: Sequence[int], channels: int) -> str:
    """What to do where (B, h, w, C) came in place of (B, C, h, w); empty where it did not."""
    if len(shape) != 4 or shape[1] == channels or shape[3] != channels:
        return ""
    return "; these are channels last: permute(0, 3, 1, 2), or an encoder such as hrda_lib.models.TimmEncoder"


def readable(x: Tensor) -> bool:
    """Whether its values may be looked at: elsewhere the host would wait for the device, or the compiler break off."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return not torch.compiler.is_compiling() and not tracing and x.device.type == "cpu"


def check_finite(name: str, x: Tensor) -> None:
    """Refuse nan and infinity where values are readable: 0 times either is nan, and so one spreads to others."""
    if not readable(x) or not x.is_floating_point():
        return
    low, high = torch.aminmax(x.detach())
    if not (-math.inf < low and high < math.inf):
        raise ValueError(f"{name} must be finite, got {low:.4g} to {high:.4g}; look at where they come from")


def check_scores(name: str, logits: Tensor) -> None:
    """Refuse logits (B, C, h, w) of which no class is the best one; -inf rules out a class, but not all."""
    if readable(logits):
        check_best(name, logits.detach().amax(dim=1))


def check_best(name: str, best: Tensor) -> None:
    """The same of the best class's logits (B, h, w)."""
    if not readable(best):
        return
    wrong = best.detach()[~best.isfinite()]
    if len(wrong):
        raise ValueError(
            f"{name} must be finite in the best class of every pixel, got {wrong[0]:.4g}; look at weights and images"
        )


def check_labels(name: str, labels: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Refuse labels of another type, and label values that are no class where they are readable."""
    if not _is_kind(labels, LABEL_TYPES):
        raise ValueError(f"{name} must be {LABEL_TYPES}, got {labels.dtype}; convert with .long()")
    if not readable(labels):
        return
    values = labels.int() if labels.dtype == torch.uint8 else labels  # uint8 would compare modulo 256
    outside = (values < 0) | (values >= num_classes)
    if ignore_index is not None:
        outside &= values != ignore_index
    if outside.any():
        value = int(values[outside][0])
        otherwise = "" if ignore_index is None else f" and not the ignore_index {ignore_index}"
        remedy = "map it to a class"
        if value == -100 and ignore_index is not None:
            remedy = "that is what torch ignores: choose ignore_index=-100, or write the other in its place"
        raise ValueError(f"{name} holds the label {value}, outside [0, {num_classes}){otherwise}; {remedy}")


def check_two_classes(name: str, num_classes: int) -> None:
    """Refuse one class where classes compete: a softmax over it is always 1, its argmax always 0."""
    if num_classes == 1:
        raise ValueError(
            f"{name} must have at least two classes, got one class, whose softmax is always 1; use two classes, "
            "the thing and what lies around it"
        )


def check_ignore_index(ignore_index: object, num_classes: int | None = None) -> None:
    """Refuse what is no label, and 255 where that is one of ``num_classes`` classes: it is mostly there unchosen."""
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool) or not -(2**31) <= ignore_index < 2**31:
        raise ValueError(f"ignore_index must be an int of 32 bits, got {short(ignore_index)}")
    if ignore_index == 255 and num_classes is not None and num_classes > 255:
        raise ValueError(
            f"ignore_index 255 is one of the {num_classes} classes, which would not be learned or measured; choose "
            f"another, -1 or a number from {num_classes} on, and write it where labels are to be ignored"
        )


def feature_channels(features: object) -> object:
    """The channels of each (B, C, h, w) tensor of a list, for comparison with what was expected; else what came."""
    if not isinstance(features, (list, tuple)):  # no union: the compiler of older torch stops at it
        return short(features) if isinstance(features, Tensor) else type(features).__name__
    return [_channels_of(feature) for feature in features]


def last_map(name: str, features: object) -> Tensor:
    """The tensor itself, or the last one of a sequence or dictionary: a (B, C, h, w) map."""
    entries = entries_of(features)
    found = list(entries.values())[-1] if entries else features
    if not isinstance(found, Tensor) or found.dim() != 4:
        got = f"a tensor of {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{name} must be a (B, C, h, w) tensor or end in one, got {got}")
    return found


def expect_levels(features: object, channels: Sequence[int]) -> None:
    """Refuse what is no list of (B, C_i, h_i, w_i) tensors with these channels."""
    got, wanted = feature_channels(features), list(channels)
    if got != wanted:
        shapes = (
            [tuple(f.shape) if isinstance(f, Tensor) else () for f in features]
            if isinstance(features, (list, tuple))
            else []
        )
        hints = [laid_out(shape, count) for shape, count in zip(shapes, wanted, strict=False)]
        hint = levels_in(features, wanted) or next(filter(None, hints), "")
        raise ValueError(f"features must be a list of (B, C, h, w) tensors with channels {wanted}, got {got}{hint}")


def is_count(value: object) -> bool:
    """Whether it is a positive int, or the symbol of one while a graph with dynamic sizes is captured."""
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool) and bool(value > 0)


def is_id(value: object) -> bool:
    """Whether it is an int from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_counts(**values: object) -> None:
    """Refuse what is no positive int: widths, classes, channels."""
    for name, value in values.items():
        if not is_count(value):
            raise ValueError(f"{name} must be a positive int, got {short(value)}")


def is_number(value: object) -> bool:
    """Whether it is an int or a float, and neither nan nor infinite: True is no number here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def check_rates(**values: object) -> None:
    """Refuse what is no probability below 1: dropout, stochastic depth."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= value < 1:  # type: ignore[operator]
            raise ValueError(f"{name} must be a number in [0, 1), got {short(value)}")


def check_up_to(limit: float, **values: object) -> None:
    """Refuse what is no number in [0, limit]: shares, thresholds; without a limit, rates and weights."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= value <= limit:  # type: ignore[operator]
            finite = " and finite" if isinstance(value, float) and value == math.inf else ""
            raise ValueError(f"{name} must be in [0, {limit}]{finite}, got {short(value)}")


def check_lora_scale(name: str, kept: object, scale: float) -> None:
    """Refuse adapters that were trained with another factor before them."""
    other = float(kept) if isinstance(kept, Tensor) and kept.numel() == 1 else math.nan
    if not math.isclose(other, scale, rel_tol=2**-8):  # a file may be in bfloat16
        raise ValueError(
            f"{name} must be {scale:g}, alpha / rank of the adapters here, got {other:g}: those in the state dict "
            f"would answer differently; load them after add_lora with alpha = {other:g} * rank"
        )


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def check_scale_and_stride(scale: float, output_stride: float) -> None:
    """Refuse a context finer than the detail, and logits finer than the image."""
    if not is_number(scale) or scale < 1:
        raise ValueError(f"scale must be at least 1 and finite, got {scale}")
    if not is_number(output_stride) or not 1 <= output_stride <= 4096:
        raise ValueError(f"output_stride must be a number in [1, 4096], got {short(output_stride)}")


def check_generator(generator: torch.Generator | None) -> None:
    """Boxes, classes and factors are drawn on the CPU, so that no draw waits for a device."""
    if generator is None:
        return
    if not hasattr(generator, "device"):
        raise ValueError(
            f"generator must be a torch.Generator, got {generator!r}; use torch.Generator().manual_seed(...)"
        )
    if generator.device.type != "cpu":
        raise ValueError(f"generator must be a CPU generator, got one on {generator.device}; use torch.Generator()")


def pair(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """``size`` as (height, width) of positive ints; an int stands for a square."""
    values = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(values) != 2 or not all(map(is_count, values)):
        raise ValueError(f"{name} must be a positive int or two of them (height, width), got {size!r}")
    return values


def as_counts(name: str, values: object) -> tuple[int, ...]:
    """``values`` as a tuple of positive ints, at least one."""
    found = tuple(values) if isinstance(values, (tuple, list)) else ()
    if not found or not all(map(is_count, found)):
        raise ValueError(f"{name} must be a list of positive ints, at least one, got {short(values)}")
    return found


def as_ids(labels: Sequence[object]) -> list[int]:
    """``labels`` as ints, also those of numpy; -1 for what is none."""
    return [-1 if isinstance(x, bool) or not hasattr(x, "__index__") else operator.index(x) for x in labels]


def as_classes(classes: Sequence[int], num_classes: int, ignore_index: int) -> list[int]:
    """``classes`` as a list of ids, at least one, and none of them ignored."""
    given = list(classes)
    chosen = as_ids(given)
    if not chosen or min(chosen) < 0 or max(chosen) >= num_classes:
        raise ValueError(f"classes must be ids in [0, {num_classes}), at least one, got {given}")
    if ignore_index in chosen:
        raise ValueError(f"classes must be without the ignore_index {ignore_index}, got {chosen}; leave it out")
    return chosen


def at_least_float32(x: Tensor) -> Tensor:
    """What sums are kept in: float16 and bfloat16 become float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def short(value: object) -> str:
    """How an error shows what came: of a tensor, its shape."""
    return f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
