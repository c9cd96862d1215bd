"""Imported first where its folder is in PYTHONPATH: a model process that fails where the test says.

FAIL_FILE names a file with the point at which the process fails, once, and which is gone from then on: `prefill`,
`before finish`, `after finish` (it kills itself there), or `SIGKILL 20`, `SIGSTOP 20` (it sends itself that signal in
its 20th engine step after the file was written), or `hang 20` (that step waits until FAIL_FILE.hangs is deleted), or
`memory 20` (that step finds no memory). POISON_SEED: a prompt with this seed kills the process some steps later, so
that others are in the batch by then. The farm itself has no such switch; the process is the real one in all else.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.faults.patching import patch_when_complete

FAIL_FILE = Path(os.environ.get("FAIL_FILE", os.devnull + "/none"))
HANGS = FAIL_FILE.with_suffix(".hangs")
POISON_SEED = int(os.environ.get("POISON_SEED", "-1"))
STEPS_OF_POISON = 8
steps = 0


def point() -> str:
    """Where to fail; empty: nowhere."""
    try:
        return FAIL_FILE.read_text()
    except OSError:
        return ""


def fail(signal_number: int) -> None:
    """Only here: the next process does not."""
    FAIL_FILE.unlink()
    os.kill(os.getpid(), signal_number)


def die_at(here: str) -> None:
    if point() == here:
        fail(signal.SIGKILL)


def fail_at_step() -> None:
    """Count the steps for as long as a point is named that is counted in steps."""
    global steps
    how, _, wanted = point().partition(" ")
    steps = steps + 1 if wanted.isdigit() else 0
    if steps == 0 or steps < int(wanted):
        return
    steps = 0
    if how == "hang":
        HANGS.touch()
        FAIL_FILE.unlink()
        while HANGS.exists():
            time.sleep(0.01)
    elif how == "memory":
        FAIL_FILE.unlink()
        raise RuntimeError("[malloc_or_wait] Unable to allocate 1073741824 bytes.")  # what MLX says
    else:
        fail(signal.Signals[how])


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
        fail_at_step()
        if left:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
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


# Module, its class that must be complete, and what is done to it.
PATCHES = (
    ("workers.engine_thread", "EngineThread", fail_in_engine_thread),
    ("workers.consumer", "Consumer", fail_in_consumer),
)


patch_when_complete(PATCHES)
