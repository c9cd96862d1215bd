"""The engine: prompts in, chunks of text out, all sequences advanced together, step by step.

`step` reads: plan, forward, sample, detokenize. The forward and the drawing of tokens are a runner's; this file owns
which sequences take part and what becomes of their tokens. One thread calls everything, from load to close.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Protocol

import mlx.core as mx

from workers.engine.backend import Backend, installed_backend
from workers.engine.batch import BatchRunner, RowToken, is_batchable
from workers.engine.errors import EngineClosed, EngineFull, InvalidPrompt
from workers.engine.loading import LoadedModel, ModelInfo, load_model
from workers.engine.planner import PrefillLimits, plan_admissions
from workers.engine.sampling import RowSampler
from workers.engine.sequence import Chunk, FinishReason, Limits, Prompt, Sequence, check_prompt
from workers.engine.serial import SerialRunner

PREFILL_STEP_TOKENS = {Backend.CPU: 512, Backend.METAL: 2048, Backend.CUDA: 2048}
CPU_CACHE_LIMIT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What the engine holds now and has done so far.

    `running` sequences decode, `prefilling` ones have (read, total) prompt tokens, `waiting` ones are not admitted.
    Totals count tokens that were read (resumed output included) and tokens that were emitted (resumed not included).
    """

    running: int
    waiting: int
    prefilling: dict[str, tuple[int, int]] = field(default_factory=dict)
    kv_bytes: int = 0
    active_memory_bytes: int = 0
    peak_memory_bytes: int = 0
    generated_tokens_total: int = 0
    prompt_tokens_total: int = 0
    steps_total: int = 0


class Engine(Protocol):
    """Text generation with continuous batching. All calls come from the thread that loaded the model."""

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do or to report."""
        ...

    def submit(self, prompt: Prompt) -> None:
        """Take a prompt in. Raises `InvalidPrompt`, `EngineFull`, `EngineClosed`."""
        ...

    def cancel(self, prompt_id: str) -> None:
        """End a sequence at any stage: its next chunk is its last. Unknown and finished ids are ignored."""
        ...

    def step(self) -> list[Chunk]:
        """One round for every sequence; [] when idle or while prompts are only being read.

        An exception from here (out of memory, a fault in the model's code) leaves the engine unusable.
        """
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """Drop all sequences, without chunks. The model goes with the last reference. May be called twice."""
        ...


class Runner(Protocol):
    """What computes rows: `BatchRunner`, `SerialRunner`."""

    @property
    def capacity(self) -> int: ...

    @property
    def prefill(self) -> PrefillLimits: ...

    @property
    def prefilling(self) -> dict[str, tuple[int, int]]: ...

    @property
    def kv_bytes(self) -> int: ...

    def insert(self, row_id: str, input_ids: list[int], row: RowSampler) -> None: ...

    def remove(self, row_ids: Collection[str]) -> None: ...

    def step(self) -> list[RowToken]: ...

    def close(self) -> None: ...


class SequenceEngine:
    """An `Engine` over one runner: first come, first served up to the runner's capacity and prefill limits."""

    def __init__(self, loaded: LoadedModel, runner: Runner, *, max_waiting: int) -> None:
        info = loaded.info
        self._limits = Limits(info.vocab_size, info.context_tokens, frozenset(info.eos_token_ids))
        self._start_text = loaded.vocabulary.start_text
        self._runner = runner
        self._max_waiting = max_waiting
        self._waiting: deque[Sequence] = deque()
        self._active: dict[str, Sequence] = {}
        self._ids: set[str] = set()  # of everything whose last chunk is still to come
        self._cancelled: set[str] = set()
        self._closed = False
        self._generated_tokens = self._prompt_tokens = self._steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._ids)

    def submit(self, prompt: Prompt) -> None:
        self._require_open()
        if prompt.id in self._ids:
            raise InvalidPrompt(f"prompt {prompt.id!r}: the id is in use")
        if len(self._waiting) >= self._max_waiting:
            raise EngineFull(f"prompt {prompt.id!r}: {self._max_waiting} prompts are waiting already")
        check_prompt(prompt, self._limits)
        self._waiting.append(Sequence(prompt, self._limits, self._start_text))
        self._ids.add(prompt.id)

    def cancel(self, prompt_id: str) -> None:
        if prompt_id in self._ids:
            self._cancelled.add(prompt_id)

    def step(self) -> list[Chunk]:
        self._require_open()
        chunks = self._end_cancelled() + self._admit()
        if self._active:
            tokens = self._runner.step()
            self._steps += 1
            chunks += [self._advance(token) for token in tokens]
        self._retire(chunks)
        return chunks

    def stats(self) -> EngineStats:
        prefilling = dict(self._runner.prefilling)
        return EngineStats(
            running=len(self._active) - len(prefilling),
            waiting=len(self._waiting),
            prefilling=prefilling,
            kv_bytes=self._runner.kv_bytes,
            active_memory_bytes=mx.get_active_memory(),
            peak_memory_bytes=mx.get_peak_memory(),
            generated_tokens_total=self._generated_tokens,
            prompt_tokens_total=self._prompt_tokens,
            steps_total=self._steps,
        )

    def close(self) -> None:
        self._closed = True
        self._runner.close()
        self._waiting.clear()
        self._active.clear()
        self._ids.clear()
        self._cancelled.clear()

    def _require_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine is closed")

    def _end_cancelled(self) -> list[Chunk]:
        if not self._cancelled:
            return []
        ended = [s for s in (*self._active.values(), *self._waiting) if s.prompt.id in self._cancelled]
        if any(s.prompt.id not in self._active for s in ended):
            self._waiting = deque(s for s in self._waiting if s.prompt.id not in self._cancelled)
        self._runner.remove([s.prompt.id for s in ended])
        for sequence in ended:
            self._active.pop(sequence.prompt.id, None)
        self._cancelled.clear()
        return [_last_chunk(s, s.abandon(FinishReason.CANCELLED)) for s in ended]

    def _admit(self) -> list[Chunk]:
        """Give free rows to waiting sequences; those that an earlier attempt had completed end at once."""
        complete = [s for s in self._waiting if s.finish_reason is not None]
        if complete:
            self._waiting = deque(s for s in self._waiting if s.finish_reason is None)
        free = self._runner.capacity - len(self._active)
        if self._waiting and free > 0:
            reading = [total - done for done, total in self._runner.prefilling.values()]
            waiting = (len(s.input_ids) for s in islice(self._waiting, free))
            for _ in range(plan_admissions(reading, waiting, self._runner.prefill)):
                self._start(self._waiting.popleft())
        return [_last_chunk(s, "") for s in complete]  # their text went out with their last token

    def _start(self, sequence: Sequence) -> None:
        prompt = sequence.prompt
        self._active[prompt.id] = sequence
        row = RowSampler(prompt, sequence.end_ids, self._limits.vocab_size)
        self._runner.insert(prompt.id, sequence.input_ids, row)
        self._prompt_tokens += len(sequence.input_ids)

    def _advance(self, row: RowToken) -> Chunk:
        sequence = self._active[row.row_id]
        if row.error is not None:
            return _last_chunk(sequence, sequence.abandon(FinishReason.ERROR), error=row.error)
        before = sequence.output_tokens
        text = sequence.advance(row.token)
        counted = sequence.output_tokens > before
        self._generated_tokens += counted
        wanted = sequence.prompt.logprobs is not None
        return Chunk(
            row.row_id,
            (row.token,) if counted else (),
            text,
            logprobs=((row.logprob,) if counted and row.logprob else ()) if wanted else None,
            finish_reason=sequence.finish_reason,
            stop_string=sequence.stop_string,
        )

    def _retire(self, chunks: list[Chunk]) -> None:
        ended = [chunk.prompt_id for chunk in chunks if chunk.finish_reason is not None]
        if not ended:
            return
        self._runner.remove(ended)
        for prompt_id in ended:
            self._active.pop(prompt_id, None)
            self._ids.discard(prompt_id)
            self._cancelled.discard(prompt_id)


def _last_chunk(sequence: Sequence, text: str, *, error: str | None = None) -> Chunk:
    return Chunk(
        sequence.prompt.id,
        (),
        text,
        logprobs=None if sequence.prompt.logprobs is None else (),
        finish_reason=sequence.finish_reason,
        stop_string=sequence.stop_string,
        error=error,
    )


class LoadedEngine(NamedTuple):
    engine: Engine
    info: ModelInfo


def load_engine(
    model: str,
    *,
    max_sequences: int = 32,
    max_waiting: int = 1024,
    prefill_step_tokens: int | None = None,
    shown_special_tokens: tuple[str, ...] = (),
) -> LoadedEngine:
    """Load a model (a folder or a Hugging Face id) and make an engine for it, in the thread that will run it.

    `max_sequences` decode together; one where the architecture cannot be batched. `prefill_step_tokens` bounds what
    one step reads of each prompt, and of all together twice that (default: 512 on CPU, 2048 on GPU).
    `shown_special_tokens` appear in the text in addition to the marks of thinking and tool calls.
    Raises `ModelError`.
    """
    backend = installed_backend()
    if backend is Backend.CPU:
        mx.set_cache_limit(CPU_CACHE_LIMIT_BYTES)
    loaded = load_model(model, shown_special_tokens=shown_special_tokens)
    return LoadedEngine(
        make_engine(
            loaded,
            max_sequences=max_sequences,
            max_waiting=max_waiting,
            prefill_step_tokens=prefill_step_tokens or PREFILL_STEP_TOKENS[backend],
        ),
        loaded.info,
    )


def make_engine(loaded: LoadedModel, *, max_sequences: int, max_waiting: int, prefill_step_tokens: int) -> Engine:
    """An engine over a loaded model: batched where the architecture allows it, else one sequence at a time."""
    runner: Runner
    if is_batchable(loaded.model, loaded.info.model_type):
        runner = BatchRunner(loaded.model, capacity=max_sequences, prefill_step_tokens=prefill_step_tokens)
    else:
        runner = SerialRunner(loaded.model, prefill_step_tokens=prefill_step_tokens)
    return SequenceEngine(loaded, runner, max_waiting=max_waiting)
