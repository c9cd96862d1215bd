"""The engine: prompts in, chunks of text out, all sequences advanced together, step by step.

`step` reads: plan, forward, sample, detokenize. The first three are a runner's; this file owns which sequences there
are and what becomes of their tokens. One thread calls everything, from load to close.
"""

import time
from dataclasses import dataclass, fields
from typing import Protocol

import mlx.core as mx

from workers.engine.errors import EngineClosed, EngineFull, InvalidPrompt
from workers.engine.guided import Guide, GuideCompiler, GuideFailed, InvalidGrammar
from workers.engine.loading import LoadedModel
from workers.engine.runner import NOT_FINITE, RowToken, Runner, RunnerStats
from workers.engine.sequence import NO_PREFIX, Chunk, Fault, FinishReason, Limits, Prompt, Sequence, check_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats(RunnerStats):
    """What the engine holds now and has done so far.

    `running` sequences decode, `prefilling` ones have (read, total) prompt tokens, `waiting` ones have not begun.
    Totals count tokens that were read (resumed output included) and tokens that were emitted (resumed not included).
    `text_ms` is the time that tokens took to become text.
    """

    running: int
    active_memory_bytes: int = 0
    peak_memory_bytes: int = 0
    generated_tokens_total: int = 0
    steps_total: int = 0
    text_ms: float = 0.0
    text_ms_total: float = 0.0


_RUNNER_FIELDS = tuple(field.name for field in fields(RunnerStats))


class Engine(Protocol):
    """Text generation with continuous batching. All calls come from the thread that loaded the model."""

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do or to report."""
        ...

    @property
    def backend(self) -> str:
        """What computes the sequences, and why that: for a log."""
        ...

    @property
    def context_tokens(self) -> int | None:
        """The most tokens, prompt and output, that a sequence may have; None: no bound is known."""
        ...

    @property
    def obeys_grammars(self) -> bool:
        """Whether a prompt may have a grammar."""
        ...

    @property
    def scores_prompts(self) -> bool:
        """Whether a prompt may ask for `prompt_logprobs`."""
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


class SequenceEngine:
    """An `Engine` over one runner, which decides when a sequence begins."""

    def __init__(
        self,
        loaded: LoadedModel,
        runner: Runner,
        *,
        max_waiting: int,
        backend: str = "",
        guides: GuideCompiler | None = None,
    ) -> None:
        """`backend` describes the runner; without `guides`, prompts with a grammar are refused."""
        info = loaded.info
        bounds = [bound for bound in (info.context_tokens, runner.capacity_tokens) if bound is not None]
        self._limits = Limits(
            info.vocab_size,
            min(bounds, default=None),
            frozenset(info.eos_token_ids),
            frozenset(loaded.adapters.digests),
            loaded.info.image_rule is not None,
            runner.scores_prompts,
        )
        self._start_text = loaded.vocabulary.start_text
        self._runner = runner
        self._max_waiting = max_waiting
        self._backend = backend
        self._guides = guides if runner.obeys_grammars else None
        self._sequences: dict[str, Sequence] = {}  # that the runner has
        self._complete: list[Sequence] = []  # an earlier attempt had finished them: they end with the next step
        self._ids: set[str] = set()  # of everything whose last chunk is still to come
        self._cancelled: set[str] = set()
        self._closed = False
        self._generated_tokens = self._steps = 0
        self._text_ms = self._text_ms_total = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self._ids)

    @property
    def backend(self) -> str:
        return self._backend

    @property
    def context_tokens(self) -> int | None:
        return self._limits.context_tokens

    @property
    def obeys_grammars(self) -> bool:
        return self._guides is not None

    @property
    def scores_prompts(self) -> bool:
        return self._limits.scores_prompts

    def submit(self, prompt: Prompt) -> None:
        self._require_open()
        if prompt.id in self._ids:
            raise InvalidPrompt(f"prompt {prompt.id!r}: the id is in use")
        if self._runner.waiting >= self._max_waiting:
            raise EngineFull(f"prompt {prompt.id!r}: {self._max_waiting} prompts are waiting already")
        self._require_room(prompt)
        check_prompt(prompt, self._limits)
        sequence = Sequence(prompt, self._limits, self._start_text, self._guide(prompt))
        if sequence.finish_reason is None:
            self._sequences[prompt.id] = sequence
            self._runner.insert(sequence)
        else:
            self._complete.append(sequence)
        self._ids.add(prompt.id)

    def cancel(self, prompt_id: str) -> None:
        if prompt_id in self._ids:
            self._cancelled.add(prompt_id)

    def step(self) -> list[Chunk]:
        self._require_open()
        chunks = self._end_cancelled() + self._end_complete()
        if self._sequences:
            tokens = self._runner.step()
            self._steps += 1
            chunks += self._advance_all(tokens)
        self._retire(chunks)
        return chunks

    def stats(self) -> EngineStats:
        runner = self._runner.stats()
        return EngineStats(
            running=len(self._sequences) - runner.waiting - len(runner.prefilling),
            active_memory_bytes=mx.get_active_memory(),
            peak_memory_bytes=mx.get_peak_memory(),
            generated_tokens_total=self._generated_tokens,
            steps_total=self._steps,
            text_ms=self._text_ms,
            text_ms_total=self._text_ms_total,
            **{name: getattr(runner, name) for name in _RUNNER_FIELDS},
        )

    def close(self) -> None:
        self._closed = True
        self._runner.close()
        self._sequences.clear()
        self._complete.clear()
        self._ids.clear()
        self._cancelled.clear()

    def _require_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine is closed")

    def _require_room(self, prompt: Prompt) -> None:
        room, tokens = self._runner.capacity_tokens, len(prompt.token_ids)
        if room is not None and tokens >= room:
            raise InvalidPrompt(f"prompt {prompt.id!r}: {tokens} prompt tokens never fit a cache of {room} tokens")

    def _guide(self, prompt: Prompt) -> Guide | None:
        if prompt.grammar is None:
            return None
        if self._guides is None:
            raise InvalidPrompt(f"prompt {prompt.id!r}: this model cannot follow a grammar ({self._backend})")
        try:
            guide = self._guides.compile(prompt.grammar)
            guide.restore(prompt.resume_ids)
        except (InvalidGrammar, GuideFailed) as error:
            raise InvalidPrompt(f"prompt {prompt.id!r}: {error}") from error
        return guide

    def _end_cancelled(self) -> list[Chunk]:
        if not self._cancelled:
            return []
        ended = [sequence for id, sequence in self._sequences.items() if id in self._cancelled]
        ended += [sequence for sequence in self._complete if sequence.prompt.id in self._cancelled]
        self._complete = [sequence for sequence in self._complete if sequence.prompt.id not in self._cancelled]
        self._drop([sequence.prompt.id for sequence in ended])
        return [_last_chunk(sequence, sequence.abandon(FinishReason.CANCELLED)) for sequence in ended]

    def _end_complete(self) -> list[Chunk]:
        complete, self._complete = self._complete, []
        return [_last_chunk(sequence, "") for sequence in complete]  # their text went out with their last token

    def _advance_all(self, tokens: list[RowToken]) -> list[Chunk]:
        """What a runner reports of a row behind its end (it may guess several tokens ahead) is dropped."""
        began_s = time.perf_counter()
        chunks = []
        for token in tokens:
            sequence = self._sequences[token.row_id]
            if sequence.finish_reason is None:
                chunks.append(self._advance(sequence, token))
        self._text_ms = 1000 * (time.perf_counter() - began_s)
        self._text_ms_total += self._text_ms
        return chunks

    def _advance(self, sequence: Sequence, row: RowToken) -> Chunk:
        if row.error is not None:
            fault = row.fault or (Fault.PASSING if row.error == NOT_FINITE else Fault.ENGINE)
            return _last_chunk(sequence, sequence.abandon(FinishReason.ERROR), row.error, fault)
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
            prefix=self._runner.prefix_use(row.row_id) if sequence.finish_reason is not None else NO_PREFIX,
            prompt_logprobs=row.prompt_logprobs,
        )

    def _retire(self, chunks: list[Chunk]) -> None:
        ended = [chunk.prompt_id for chunk in chunks if chunk.finish_reason is not None]
        if ended:
            self._drop(ended)
            self._ids.difference_update(ended)
            self._cancelled.difference_update(ended)

    def _drop(self, ids: list[str]) -> None:
        self._runner.remove(ids)
        for prompt_id in ids:
            self._sequences.pop(prompt_id, None)


def _last_chunk(sequence: Sequence, text: str, error: str | None = None, fault: Fault = Fault.ENGINE) -> Chunk:
    return Chunk(
        sequence.prompt.id,
        (),
        text,
        logprobs=None if sequence.prompt.logprobs is None else (),
        finish_reason=sequence.finish_reason,
        stop_string=sequence.stop_string,
        error=error,
        fault=fault,
    )
