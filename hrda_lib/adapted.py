"""A module between what others return and what it takes, and between what it returns and others take."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from hrda_lib._checks import check_module, entries_of, short

Pick = str | int | slice | tuple[Any, ...] | list[Any] | Callable[[Any], Any]


class Adapted(nn.Module):
    r"""``module`` given a part of what comes in, and a part of its answer given on: no class written by hand.

    .. math::
        y = \mathrm{output}(\mathrm{module}(\mathrm{input}(x)))

    Args:
        module: any module; its entries in ``state_dict`` start with ``module.``.
        input: what of the value that comes in ``module`` is given. None: all of it, as it is.

            - a string: the entry of that name where the value is a dictionary that has it, else the attribute,
            - an int, a slice or a tuple of them: an index, such as ``slice(2, None)`` for a list without its first two,
            - a list of the above: the list of what each gives,
            - a function of the value; one that uses a module must itself be a module, to be trained and copied.
        output: what of ``module``'s answer is returned, said in the same way. None: all of it.

    Called with one value. Settings of a call go into the module's own configuration; those that belong to the step, as
    ``box`` and ``generator`` of :class:`hrda_lib.MultiResSegmenter`, do not pass: adapt its encoder, decoder and
    attention in place of the whole.

    Raises:
        ValueError: ``module`` is no module, ``input`` or ``output`` none of the above, or not in the value that came.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hrda_lib import Adapted
        >>> class Dictionary(nn.Module):
        ...     def forward(self, x):
        ...         return {"out": x + 1, "aux": x}
        >>> Adapted(Dictionary(), output="out")(torch.zeros(2))
        tensor([1., 1.])
        >>> Adapted(nn.Flatten(), input=slice(1, None))(torch.zeros(3, 2, 2)).shape
        torch.Size([2, 4])
        >>> len(Adapted(nn.Identity(), input=["high", "low"])({"low": 0, "other": 1, "high": 2}))
        2
    """

    def __init__(self, module: nn.Module, *, input: Pick | None = None, output: Pick | None = None) -> None:
        super().__init__()
        check_module("module", module)
        for name, how in (("input", input), ("output", output)):
            _check(name, how)
        self.module, self.input, self.output = module, input, output

    def forward(self, x: Any) -> Any:
        """What ``output`` picks of the module's answer to what ``input`` picks of ``x``.

        Args:
            x: any value that ``input`` can pick from.

        Returns:
            Of any type, as picked.

        Raises:
            ValueError: what is picked is not there; the message names what is.
        """
        return _picked("output", self.output, self.module(_picked("input", self.input, x)))

    def extra_repr(self) -> str:
        kept = (("input", self.input), ("output", self.output))
        return ", ".join(f"{name}={how!r}" for name, how in kept if how is not None and not isinstance(how, nn.Module))


def _check(name: str, how: object, *, within: bool = False) -> None:
    if isinstance(how, list) and how and not within:
        for part in how:
            _check(name, part, within=True)
        return
    is_index = isinstance(how, (str, int, slice, tuple)) and not isinstance(how, bool)
    is_none = how is None and not within
    if not (is_none or is_index or callable(how)) or (within and isinstance(how, nn.Module)):
        raise ValueError(
            f"{name} must be a key, an index, a slice, an attribute's name, a list of them or a function, got "
            f"{short(how)}"
        )


def _picked(name: str, how: Any, value: Any) -> Any:
    if how is None:
        return value
    if isinstance(how, list):
        return [_picked(name, part, value) for part in how]
    if callable(how):
        return how(value)
    if isinstance(how, str):
        found = value[how] if isinstance(value, Mapping) and how in value else getattr(value, how, None)
        if found is None or callable(found):  # an entry that was not asked for; a method, such as a dictionary's keys
            raise ValueError(_missing(name, how, value))
        return found
    try:
        return value[how]
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(_missing(name, how, value)) from error


def _missing(name: str, how: object, value: object) -> str:
    there = [repr(key) for key in entries_of(value)]
    remedy = f"has {', '.join(there)}: {name}={there[0]}" if there else f"has no entries: {name}=None"
    return f"{name}={how!r} is not in the {type(value).__name__} that came, which {remedy}, or a function of it"
