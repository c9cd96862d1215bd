"""Imported first where its folder is in PYTHONPATH: a model process that fails where the test says.

HANG_FILE: engine steps hang while that file is there. POISON_SEED: a prompt with this seed kills the process some
steps later, so that others are in the batch by then. DIE_FILE: the process kills itself, once, at the point that the
file names (`prefill`, `before finish`, `after finish`). The farm itself has no such switch; the process is the real one
in all else.
"""

import builtins
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

HANG_FILE = Path(os.environ.get("HANG_FILE", os.devnull + "/none"))
DIE_FILE = Path(os.environ.get("DIE_FILE", os.devnull + "/none"))
POISON_SEED = int(os.environ.get("POISON_SEED", "-1"))
STEPS_OF_POISON = 8
import_as_usual = builtins.__import__
patched: set[str] = set()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(point: str) -> None:
    """Die if this is the point; the next process does not."""
    if DIE_FILE.is_file() and DIE_FILE.read_text() == point:
        DIE_FILE.unlink()
        die()


def fail_in_engine_thread(module: Any) -> None:
    """Put the failures in front of every step of the engine's thread."""
    thread = module.EngineThread
    submit_as_usual, step_as_usual = thread.submit, thread._step
    left: list[int] = []

    def submit(self: Any, prompt: Any) -> None:
        if prompt.sampling.seed == POISON_SEED and not left:
            left.append(STEPS_OF_POISON)
        submit_as_usual(self, prompt)

    def step(self: Any, engine: Any) -> Any:
        self._step_began_s = time.monotonic()
        while HANG_FILE.exists():
            time.sleep(0.01)
        if left:
            left[0] -= 1
            if left[0] == 0:
                die()
        if self._unread:
            die_at("prefill")
        return step_as_usual(self, engine)

    thread.submit, thread._step = submit, step


def fail_in_consumer(module: Any) -> None:
    """Die around the call that ends a job."""
    finish_as_usual = module.Consumer._finish

    async def finish(self: Any, *arguments: Any) -> None:
        die_at("before finish")
        await finish_as_usual(self, *arguments)
        die_at("after finish")

    module.Consumer._finish = finish


# Module, its last definition (so that it is complete), and what is done to it.
PATCHES = (
    ("workers.engine_thread", "_submit", fail_in_engine_thread),
    ("workers.consumer", "_insist", fail_in_consumer),
)


def import_and_look(*arguments: Any, **options: Any) -> Any:
    """Import, and change our modules once they are complete."""
    imported = import_as_usual(*arguments, **options)
    for name, last, patch in PATCHES:
        module = sys.modules.get(name)
        if name not in patched and hasattr(module, last):
            patched.add(name)
            patch(module)
    if len(patched) == len(PATCHES):
        builtins.__import__ = import_as_usual
    return imported


builtins.__import__ = import_and_look
