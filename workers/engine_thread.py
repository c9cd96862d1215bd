"""The one thread that owns MLX: it loads the model, steps the engine and closes it; everyone else sends commands.

Chunks leave through a callback, at most `MAX_PENDING_STEPS` steps ahead of whoever takes them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import structlog

from workers.engine import (
    Chunk,
    Engine,
    EngineFull,
    EngineStats,
    Fault,
    FinishReason,
    InvalidPrompt,
    LoadedEngine,
    ModelInfo,
    Prompt,
)

log = structlog.get_logger()

MAX_PENDING_STEPS = 64
IDLE_POLL_S = 0.5
ENGINE_NICE = 15
HANDOVER_S = 0.002
"""For so long the thread leaves the interpreter to whoever writes the chunks out; the device works on meanwhile."""


@dataclass(frozen=True, slots=True)
class _Submit:
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class _Cancel:
    prompt_id: str


class EngineThread:
    """Runs the engine that `load` returns. `load`, `on_chunks` and `on_failure` are called from the thread."""

    def __init__(
        self,
        load: Callable[[], LoadedEngine],
        *,
        on_chunks: Callable[[list[Chunk]], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._load = load
        self._on_chunks = on_chunks
        self._on_failure = on_failure
        self._commands: SimpleQueue[_Submit | _Cancel | None] = SimpleQueue()
        self._room = threading.Semaphore(MAX_PENDING_STEPS)
        self._delivered = threading.Event()
        self._loaded = threading.Event()
        self._info: ModelInfo | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.stats = EngineStats(running=0)
        self.description = ""  # of what computes, once the model is loaded
        self.context_tokens: int | None = None  # the most that a sequence may have; None: no bound is known
        self.obeys_grammars = self.scores_prompts = False
        self._step_began_s: float | None = None
        self._unread: dict[str, int] = {}  # prompts without a first chunk yet, and their tokens
        self.reading_tokens = 0  # of the longest one: what the current step may have to read

    def start(self) -> ModelInfo:
        """Load the model (blocks until it is loaded) and begin. Raises what loading raised (ModelError)."""
        self._thread.start()
        self._loaded.wait()
        if self._info is None:
            assert self._failure is not None
            raise self._failure
        return self._info

    @property
    def stalled_s(self) -> float:
        """For how long the current step has been running; 0 between steps."""
        began_s = self._step_began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    def submit(self, prompt: Prompt) -> None:
        """Take a prompt in; a refused one comes back as an ERROR chunk."""
        self._commands.put(_Submit(prompt))

    def cancel(self, prompt_id: str) -> None:
        """End a sequence at whatever stage; its last chunk says CANCELLED."""
        self._commands.put(_Cancel(prompt_id))

    def taken(self) -> None:
        """One batch of chunks has been written out: the engine may be a step further ahead."""
        self._delivered.set()
        self._room.release()

    def stop(self) -> None:
        """Close the engine and end the thread."""
        self._commands.put(None)
        self._room.release()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            step_back()
            loaded = self._load()
            self._info = loaded.info
            self.description, self.context_tokens = loaded.engine.backend, loaded.engine.context_tokens
            self.obeys_grammars = loaded.engine.obeys_grammars
            self.scores_prompts = loaded.engine.scores_prompts
            self.stats = loaded.engine.stats()
            let_compute_wait()
            self._loaded.set()
            self._loop(loaded.engine)
            loaded.engine.close()
        except BaseException as error:  # noqa: BLE001 - the process's one outermost loop: whatever ends it is reported
            self._failure = error
            if not self._loaded.is_set():
                self._loaded.set()
            else:
                self._on_failure(error)

    def _loop(self, engine: Engine) -> None:
        while True:
            refused = self._take_commands(engine)
            if refused is None:
                return
            chunks = refused + (self._step(engine) if engine.has_work else [])
            self.stats = engine.stats()
            for chunk in chunks:
                self._unread.pop(chunk.prompt_id, None)
            if chunks:
                self._room.acquire()
                self._delivered.clear()
                self._on_chunks(chunks)
                self._delivered.wait(HANDOVER_S)

    def _step(self, engine: Engine) -> list[Chunk]:
        self.reading_tokens = max(self._unread.values(), default=0)
        self._step_began_s = time.monotonic()
        try:
            return engine.step()
        finally:
            self._step_began_s = None

    def _take_commands(self, engine: Engine) -> list[Chunk] | None:
        """Carry out what is there (waiting while idle); refused prompts as chunks, None to stop."""
        refused: list[Chunk] = []
        while True:
            try:
                command = self._commands.get(block=not engine.has_work and not refused, timeout=IDLE_POLL_S)
            except Empty:
                return refused
            match command:
                case None:
                    return None
                case _Submit(prompt):
                    self._unread[prompt.id] = len(prompt.token_ids) + len(prompt.resume_ids)
                    refused += _submit(engine, prompt)
                case _Cancel(prompt_id):
                    engine.cancel(prompt_id)


def step_back() -> None:
    """On Linux, give way to those who bring work and carry chunks away: they need little, but at once.

    The priority is this thread's and is inherited by the threads that MLX starts from it.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), ENGINE_NICE)


def let_compute_wait() -> None:
    """On Linux, let MLX's own threads run only where nobody else wants to: a frame is on its way in microseconds.

    They never hold the interpreter, so that no Python thread can wait for one that waits for a processor; sched(7).
    """
    if sys.platform == "linux":
        python = {thread.native_id for thread in threading.enumerate()}
        for thread in map(int, os.listdir("/proc/self/task")):
            if thread not in python:
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def _submit(engine: Engine, prompt: Prompt) -> Sequence[Chunk]:
    try:
        engine.submit(prompt)
    except InvalidPrompt as error:
        return [Chunk(prompt.id, (), "", finish_reason=FinishReason.ERROR, error=str(error), fault=Fault.PROMPT)]
    except EngineFull as error:
        return [Chunk(prompt.id, (), "", finish_reason=FinishReason.ERROR, error=str(error), fault=Fault.PASSING)]
    return []
