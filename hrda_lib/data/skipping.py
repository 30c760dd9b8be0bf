"""Images that cannot be read: an error, or left out, counted and logged."""

from collections.abc import Callable
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from hrda_lib.data.layout import log, plain

OnError = Literal["raise", "skip"]
"""Whether a file that cannot be read is an error, or left out and logged."""

TRIES = 100

_Read = TypeVar("_Read")


class Skipped:
    """Which of ``count`` images were left out; the workers of a loader share it with the process that started them.

    Raises:
        ValueError: ``on_error`` is neither "raise" nor "skip", or there is no image.
    """

    def __init__(self, count: int, on_error: OnError) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        if not count:
            raise ValueError("dataset must hold at least one image, got none")
        self._flags: Tensor | None = None
        if on_error == "skip":
            self._flags = torch.zeros(count, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    def add(self, index: int, error: Exception) -> None:
        """Note an image, and log it the first time; or raise its error, where none may be left out."""
        if self._flags is None:
            raise error
        if not self._flags[index]:
            self._flags[index] = True
            log.warning("left out: %s", plain(str(error)) or f"image {index} ({type(error).__name__})")

    def indices(self) -> list[int]:
        """Those noted so far."""
        return [] if self._flags is None else [int(index) for index in self._flags.nonzero()]


def first_readable(
    draw: Callable[[], tuple[int, int | None]], read: Callable[[int], _Read], skipped: Skipped
) -> tuple[_Read, int | None]:
    """Draw (index, class) until ``read(index)`` succeeds; what it gives, and the class.

    Raises:
        ValueError: a hundred in a row cannot be read; or the first error, where ``skipped`` lets none be left out.
    """
    error: Exception | None = None
    for _ in range(TRIES):
        index, label = draw()
        try:
            return read(index), label
        except (ValueError, OSError) as problem:
            skipped.add(index, problem)
            error = problem
    raise ValueError(f"{TRIES} images in a row cannot be read; the last: {error}")
