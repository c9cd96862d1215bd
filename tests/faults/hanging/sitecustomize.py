"""Imported first where its folder is in PYTHONPATH: engine steps hang while the file named by HANG_FILE is there.

The farm itself has no such switch; the process is the real one in all else.
"""

import builtins
import os
import sys
import time
from typing import Any

HANG_FILE = os.environ["HANG_FILE"]
import_as_usual = builtins.__import__


def hang_in_step(engine_thread: Any) -> None:
    """Put the pause in front of every step of the engine's thread."""
    step_as_usual = engine_thread._step

    def step(self: Any, engine: Any) -> Any:
        self._step_began_s = time.monotonic()
        while os.path.exists(HANG_FILE):
            time.sleep(0.01)
        return step_as_usual(self, engine)

    engine_thread._step = step
    builtins.__import__ = import_as_usual


def import_and_look(*arguments: Any, **options: Any) -> Any:
    """Import, and change the engine's thread once its module is complete."""
    imported = import_as_usual(*arguments, **options)
    module = sys.modules.get("workers.engine_thread")
    if module is not None and hasattr(module, "_submit"):  # its last definition
        hang_in_step(module.EngineThread)
    return imported


builtins.__import__ = import_and_look
