"""What the examples share. A script imports it first: from then on, Ctrl-C is one line and exit status 130."""

import os
import signal
import sys
from typing import Any

# a batch system's stop and a terminal that closes are a Ctrl-C
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


def handle(handler: Any) -> None:
    """Let the signals call a function; one that is ignored, as behind an "&" or by nohup, stays so."""
    for number in SIGNALS:
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def leave(*_: Any) -> None:
    """At once: what is being imported would turn an exception into others."""
    os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode())
    os._exit(130)


script = os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or "")
if os.path.dirname(script) == os.path.dirname(os.path.dirname(os.path.realpath(__file__))):  # else it is imported
    handle(leave)
