"""What a model process says to its node agent: lines on its standard output, a word and then JSON.

READY {facts}, LOADING [bytes read, bytes in all], HOLDS [jobs in hand, keep_alive in s or null], MEMORY bytes, REFUSED
"reason"; and PULSE (pulse.py). Of the process that looks at models' files: BUDGET [bytes for models, BLAS], MODEL {card
and needs}, NO_MODEL {reason}.
"""

from __future__ import annotations

import sys
from typing import Any

import orjson

READY = b"READY "
LOADING = b"LOADING "
HOLDS = b"HOLDS "
MEMORY = b"MEMORY "
REFUSED = b"REFUSED "

BUDGET = b"BUDGET "
MODEL = b"MODEL "
NO_MODEL = b"NO_MODEL "


def say(word: bytes, what: Any) -> None:
    """One line, at once; from any thread."""
    sys.stdout.write(f"{word.decode()}{orjson.dumps(what).decode()}\n")
    sys.stdout.flush()
