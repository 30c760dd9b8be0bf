"""What the examples share. A script imports it first: from then on, Ctrl-C is one line and exit status 130."""

import os
import signal
import sys
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # a batch system's stop is a Ctrl-C


def handle(handler: Any) -> None:
    """Let both signals call a function; a Ctrl-C that is ignored, as a shell does behind an "&", stays so."""
    for number in SIGNALS:
        if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def leave(*_: Any) -> None:
    """At once: what is being imported would turn an exception into others."""
    os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode())
    os._exit(130)


script = os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or "")
if os.path.dirname(script) == os.path.dirname(os.path.dirname(os.path.realpath(__file__))):  # else it is imported
    handle(leave)
