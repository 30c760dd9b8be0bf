"""How a script ends: with one line and an exit status."""

import difflib
import functools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

from support import SIGNALS, handle

P = ParamSpec("P")


class Stopped(Exception):
    """Something ended a run whose work was kept; the cause is the error."""


def run_main(main: Callable[P, int]) -> Callable[P, int]:
    """A script's main, with exit status 1 after a fault that left something, 2 if refused, 130 if interrupted."""

    @functools.wraps(main)
    def run(*arguments: P.args, **named: P.kwargs) -> int:
        before = {number: signal.getsignal(number) for number in SIGNALS}
        problem, status = "interrupted", 130
        try:
            handle(_raise_once())
            status, problem = _attempt(lambda: main(*arguments, **named))
        except KeyboardInterrupt:
            pass
        finally:  # a script has nothing left that could be interrupted
            if distributed := sys.modules.get("hrda_lib.distributed"):
                distributed.stop()
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if main.__module__ == "__main__" else handler)
        if problem:
            print(f"{Path(main.__code__.co_filename).name}: {printable(problem)}", file=sys.stderr)
        return status

    return run


def _attempt(main: Callable[[], int]) -> tuple[int, str]:
    """Exit status, and what went wrong."""
    try:
        return main(), ""
    except Stopped as stop:
        return 130 if isinstance(stop.__cause__, KeyboardInterrupt) else 1, str(stop)
    except (ValueError, OSError, RuntimeError, AssertionError, OverflowError, MemoryError) as error:
        return 2, reason(error)


def reason(error: BaseException) -> str:
    """The line of an error that says what is wrong; one from a loader's worker ends with it."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if "weights_only" in str(error):  # torch advises to run the code in the file
        return "it holds more than weights, or is none of torch.save"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].removeprefix(f"{type(error).__name__}: ") if lines[0].startswith("Caught ") else lines[0]


def printable(text: str) -> str:
    """Text of others, such as a file's name, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def similar(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not among those known: which are close to it."""
    found = difflib.get_close_matches(name, list(known))
    return f"; did you mean {' or '.join(found)}?" if found else ""


@contextmanager
def held() -> Iterator[None]:
    """Signals wait for the end of this block, in which a file is written; if the block fails, they are dropped."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets them
        yield
        return
    waiting, before = list[int](), dict[signal.Signals, Any]()
    try:
        for number in SIGNALS:
            before[number] = signal.signal(number, lambda number, _: waiting.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(waiting[0])


@contextmanager
def asked() -> Iterator[Callable[[], bool]]:
    """Signals only ask: what is yielded says whether one came. A second one, more than a second later, interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = list[float]()

    def handler(*_: Any) -> None:
        came.append(time.monotonic())
        if came[-1] - came[0] > 1:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        handle(handler)
        yield lambda: bool(came)
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _raise_once() -> Callable[..., None]:
    """A handler of signals; one within a second is the same key pressed twice, while the first is being handled."""
    last = float("-inf")

    def handler(*_: Any) -> None:
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            raise KeyboardInterrupt

    return handler
