"""How far a script is: a bar in a terminal, and where there is none a line every half minute."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")
PAUSE = 30.0  # seconds between lines


def bar(items: Iterable[T], title: str, *, leave: bool = True) -> Iterator[T]:
    """The items, with a bar of how many are done; of several processes, the first alone shows it."""
    return iter(Progress(items, title, leave=leave))


class Progress(Generic[T]):
    """The items, one after another, and what is known about them.

    Args:
        items: with a length, or ``total`` of them.
        title: what is done.
        total: of items; those before the first of these, as of a run that goes on, are done.
        later: how many more of them come after these, of the whole of which they are a part.
        leave: whether the bar stays when all is done; False: of a part of what another bar shows.
    """

    def __init__(
        self,
        items: Iterable[T],
        title: str,
        *,
        total: int | None = None,
        done: int = 0,
        later: int = 0,
        leave: bool = True,
    ) -> None:
        self.items, self.title, self.done, self.later, self.leave = items, title, done, later, leave
        self.total = total if total is not None else len(items) if isinstance(items, Sized) else None
        self.values: Mapping[str, str] = {}
        self.began = self.said = time.monotonic()
        self.first = int(os.environ.get("RANK", 0)) == 0  # of processes that torchrun started
        self.terminal = sys.stderr.isatty()

    def __iter__(self) -> Iterator[T]:
        hidden = not (self.first and self.terminal)
        shown = tqdm(total=self.total, initial=self.done, desc=self.title, leave=self.leave, disable=hidden)
        start = self.done
        with shown:
            for item in self.items:
                yield item
                self.done += 1
                if self.first and self.terminal:
                    shown.set_postfix({**self.values, **self._all_left(start)}, refresh=False)
                    shown.update()
                elif self.first and time.monotonic() - self.said > PAUSE:
                    self.said = time.monotonic()
                    print(self.line(start), file=sys.stderr, flush=True)

    def line(self, start: int) -> str:
        """What is known, in one line."""
        left = {"left": clock(self._seconds_left(start, 0))} if self.total else {}
        known = {**self.values, **left, **self._all_left(start)}
        of = f" of {self.total}" if self.total else ""
        return ", ".join([f"{self.title}: {self.done}{of}", *(f"{name} {value}" for name, value in known.items())])

    def _all_left(self, start: int) -> dict[str, str]:
        return {"all in": clock(self._seconds_left(start, self.later))} if self.later else {}

    def _seconds_left(self, start: int, later: int) -> float:
        if not self.total or self.done == start:
            return 0.0
        return (time.monotonic() - self.began) / (self.done - start) * (self.total - self.done + later)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
