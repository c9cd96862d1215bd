"""Imported first where its folder is in PYTHONPATH: a prompt whose seed is POISON_SEED kills the process that runs it.

It dies some steps later, so that others are in the batch by then. The farm itself has no such switch; the process is
the real one in all else.
"""

import builtins
import os
import signal
import sys
from typing import Any

POISON_SEED = int(os.environ["POISON_SEED"])
STEPS = 8
import_as_usual = builtins.__import__


def poison(engine_thread: Any) -> None:
    """Count the steps since a poisonous prompt has come, and die."""
    submit_as_usual, step_as_usual = engine_thread.submit, engine_thread._step
    left: list[int] = []

    def submit(self: Any, prompt: Any) -> None:
        if prompt.sampling.seed == POISON_SEED and not left:
            left.append(STEPS)
        submit_as_usual(self, prompt)

    def step(self: Any, engine: Any) -> Any:
        if left:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return step_as_usual(self, engine)

    engine_thread.submit, engine_thread._step = submit, step
    builtins.__import__ = import_as_usual


def import_and_look(*arguments: Any, **options: Any) -> Any:
    """Import, and change the engine's thread once its module is complete."""
    imported = import_as_usual(*arguments, **options)
    module = sys.modules.get("workers.engine_thread")
    if module is not None and hasattr(module, "_submit"):  # its last definition
        poison(module.EngineThread)
    return imported


builtins.__import__ = import_and_look
