"""Takes the terminal for `serve` under `make`, so that Ctrl-C reaches `serve` alone and `make` ends with exit code 0.

An interactive shell does the same for every command that it starts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

UNDER_MAKE = "FARM_UNDER_MAKE"


@contextmanager
def foreground() -> Iterator[None]:
    """Own the terminal inside the block, if FARM_UNDER_MAKE is set and there is one to own; then give it back."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY) if os.environ.pop(UNDER_MAKE, "") else None
    except OSError:
        terminal = None
    if terminal is None:
        yield
        return
    before = os.getpgrp()
    if before == os.getpid() or os.tcgetpgrp(terminal) != before:
        os.close(terminal)
        yield
        return
    # Ctrl-Z would stop a group that nobody wakes; SIGTTOU is what taking the terminal from outside would cause.
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(terminal, before)
        os.close(terminal)
