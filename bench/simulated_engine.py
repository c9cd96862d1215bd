"""An engine that sleeps instead of computing, behind the same interface as the real ones.

For benches of everything around the engine: hundreds of workers, thousands of streams. No setting selects it; it runs
only in `bench/simulated_workers.py`. A step takes `step_s` however many rows there are, reading a prompt takes time by
its length, and the text of each token is the moment it was made (CLOCK_MONOTONIC, which all processes of a machine
share, in µs), so that whoever reads it knows how long it was on its way.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from workers.engine import (
    Chunk,
    EngineFull,
    EngineStats,
    FinishReason,
    InvalidPrompt,
    LoadedEngine,
    ModelInfo,
    Prompt,
)

CONTEXT_TOKENS = 32_768
VOCABULARY = 256
PREFILL_TOKENS_PER_S = 20_000.0
MAX_WAITING = 1024


@dataclass(slots=True)
class Row:
    """A prompt being answered. It says its first token at `ready_s`."""

    prompt: Prompt
    ready_s: float
    said: int
    cancelled: bool = False

    @property
    def last(self) -> FinishReason | None:
        """Why the row ends now, if it does."""
        if self.cancelled:
            return FinishReason.CANCELLED
        return FinishReason.LENGTH if self.said >= self.prompt.stop.max_tokens else None


class SimulatedEngine:
    """An `Engine` of `max_sequences` rows; more prompts wait. Steps end every `step_s`, from a random moment on."""

    def __init__(self, *, max_sequences: int, step_s: float) -> None:
        self._max_sequences = max_sequences
        self._step_s = step_s
        self._rows: dict[str, Row] = {}
        self._waiting: dict[str, Row] = {}
        self._next_s = time.monotonic() + random.random() * step_s
        self._steps = self._generated = self._read = 0

    @property
    def has_work(self) -> bool:
        return bool(self._rows or self._waiting)

    @property
    def backend(self) -> str:
        return "simulated: it sleeps"

    @property
    def context_tokens(self) -> int | None:
        return CONTEXT_TOKENS

    @property
    def obeys_grammars(self) -> bool:
        return False

    @property
    def scores_prompts(self) -> bool:
        return False

    def submit(self, prompt: Prompt) -> None:
        if prompt.grammar is not None:
            raise InvalidPrompt(f"prompt {prompt.id!r}: a simulated engine cannot follow a grammar")
        if len(self._waiting) >= MAX_WAITING:
            raise EngineFull(f"prompt {prompt.id!r}: {MAX_WAITING} prompts are waiting already")
        self._waiting[prompt.id] = Row(prompt, 0.0, len(prompt.resume_ids))
        self._admit()

    def cancel(self, prompt_id: str) -> None:
        row = self._rows.get(prompt_id) or self._waiting.get(prompt_id)
        if row is not None:
            row.cancelled = True

    def step(self) -> list[Chunk]:
        now_s = time.monotonic()
        while self._next_s <= now_s:
            self._next_s += self._step_s
        time.sleep(self._next_s - now_s)
        self._steps += 1
        now_s = time.monotonic()
        chunks = [_last(row) for row in self._waiting.values() if row.cancelled]
        chunks += [self._say(row, now_s) for row in self._rows.values() if row.cancelled or row.ready_s <= now_s]
        for chunk in chunks:
            if chunk.finish_reason is not None:
                self._rows.pop(chunk.prompt_id, None)
                self._waiting.pop(chunk.prompt_id, None)
        self._admit()
        return chunks

    def stats(self) -> EngineStats:
        return EngineStats(
            backend="simulated",
            running=len(self._rows),
            waiting=len(self._waiting),
            prompt_tokens_total=self._read,
            generated_tokens_total=self._generated,
            steps_total=self._steps,
        )

    def close(self) -> None:
        self._rows.clear()
        self._waiting.clear()

    def _admit(self) -> None:
        while self._waiting and len(self._rows) < self._max_sequences:
            row = self._waiting.pop(next(iter(self._waiting)))
            tokens = len(row.prompt.token_ids) + row.said
            row.ready_s = time.monotonic() + tokens / PREFILL_TOKENS_PER_S
            self._read += tokens
            self._rows[row.prompt.id] = row

    def _say(self, row: Row, now_s: float) -> Chunk:
        if row.last is not None:  # cancelled, or complete before it was resumed
            return _last(row)
        row.said += 1
        self._generated += 1
        token = row.said % VOCABULARY
        return Chunk(row.prompt.id, (token,), f"{now_s * 1e6:.0f} ", finish_reason=row.last)


def _last(row: Row) -> Chunk:
    return Chunk(row.prompt.id, (), "", finish_reason=row.last)


def simulated_model(*, max_sequences: int, step_s: float) -> LoadedEngine:
    """What `load_engine` returns, without a model: prompts are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    info = ModelInfo(
        path=Path("simulated"),
        model_type="simulated",
        context_tokens=CONTEXT_TOKENS,
        vocab_size=VOCABULARY,
        parameters=0,
        weight_bytes=0,
        eos_token_ids=(),
        tokenizer_json=str(tokenizer.to_str()),
        chat_template="{% for message in messages %}{{ message.content }}{% endfor %}",
        special_tokens={},
        think_start=None,
        think_end=None,
        has_tool_calling=False,
        tool_format=None,
        tool_call_start=None,
        tool_call_end=None,
    )
    return LoadedEngine(SimulatedEngine(max_sequences=max_sequences, step_s=step_s), info)
