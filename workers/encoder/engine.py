"""The engine of models that answer with numbers: token ids in, one vector each out, many inputs in one forward.

It has the generator's interface, so that the same consumer serves both. One thread calls everything.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from workers.encoder.networks import Encoder
from workers.encoder.turns import Turns, pack
from workers.engine import Chunk, EngineClosed, EngineFull, EngineStats, Fault, FinishReason, InvalidPrompt, Prompt

NOT_FINITE = "the model's numbers are not finite"


class EncoderEngine:
    """Implements `Engine` over an encoder. A step computes up to `step_tokens` tokens (a longer input comes alone)."""

    def __init__(self, encoder: Encoder, *, step_tokens: int, max_waiting: int = 65_536) -> None:
        self._encoder = encoder
        self._step_tokens = step_tokens
        self._max_waiting = max_waiting
        self._turns: Turns[Prompt] = Turns()
        self._ids: set[str] = set()
        self._cancelled: list[str] = []
        self._closed = False
        self._steps = self._prompt_tokens = 0
        self._forward_ms = self._forward_ms_total = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self._ids)

    @property
    def backend(self) -> str:
        return f"encoder: {self._encoder.description}; {self._step_tokens} tokens a step"

    @property
    def context_tokens(self) -> int | None:
        return self._encoder.context_tokens

    @property
    def obeys_grammars(self) -> bool:
        return False

    @property
    def scores_prompts(self) -> bool:
        return False

    def submit(self, prompt: Prompt) -> None:
        """Take an input in. Raises `InvalidPrompt`, `EngineFull`, `EngineClosed`."""
        if self._closed:
            raise EngineClosed("the engine is closed")
        if prompt.id in self._ids:
            raise InvalidPrompt(f"prompt {prompt.id!r}: the id is in use")
        if len(self._turns) >= self._max_waiting:
            raise EngineFull(f"prompt {prompt.id!r}: {self._max_waiting} inputs are waiting already")
        self._check(prompt)
        self._turns.add(prompt)
        self._ids.add(prompt.id)

    def cancel(self, prompt_id: str) -> None:
        """The next chunk of an input that waits says CANCELLED. Unknown ids are ignored."""
        if prompt_id in self._ids and self._turns.remove(prompt_id):
            self._cancelled.append(prompt_id)

    def step(self) -> list[Chunk]:
        """Compute the inputs whose turn it is."""
        if self._closed:
            raise EngineClosed("the engine is closed")
        chunks = [Chunk(prompt_id, (), "", finish_reason=FinishReason.CANCELLED) for prompt_id in self._cancelled]
        self._cancelled.clear()
        prompts = self._turns.take(self._step_tokens)
        if prompts:
            began_s = time.perf_counter()
            for part in pack([len(prompt.token_ids) for prompt in prompts]):
                chunks += self._compute([prompts[index] for index in part])
            self._forward_ms = 1000 * (time.perf_counter() - began_s)
            self._forward_ms_total += self._forward_ms
            self._steps += 1
        self._ids.difference_update(chunk.prompt_id for chunk in chunks)
        return chunks

    def stats(self) -> EngineStats:
        return EngineStats(
            running=0,
            waiting=len(self._turns),
            backend="encoder",
            prompt_tokens_total=self._prompt_tokens,
            steps_total=self._steps,
            forward_ms=self._forward_ms,
            forward_ms_total=self._forward_ms_total,
            active_memory_bytes=mx.get_active_memory(),
            peak_memory_bytes=mx.get_peak_memory(),
        )

    def close(self) -> None:
        self._closed = True
        self._turns = Turns()
        self._ids.clear()
        self._cancelled.clear()

    def _check(self, prompt: Prompt) -> None:
        encoder, tokens = self._encoder, len(prompt.token_ids)
        if not tokens:
            raise InvalidPrompt(f"prompt {prompt.id!r}: the input is empty")
        if tokens > encoder.context_tokens:
            limit = encoder.context_tokens
            raise InvalidPrompt(f"prompt {prompt.id!r}: {tokens} tokens are more than the model's {limit}")
        if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < encoder.vocab_size:
            raise InvalidPrompt(f"prompt {prompt.id!r}: token_ids leave the vocabulary")
        if prompt.dimensions is not None and not 1 <= prompt.dimensions <= encoder.dimensions:
            raise InvalidPrompt(f"prompt {prompt.id!r}: the model's vectors have {encoder.dimensions} dimensions")

    def _compute(self, prompts: Sequence[Prompt]) -> list[Chunk]:
        self._prompt_tokens += sum(len(prompt.token_ids) for prompt in prompts)
        ids = [prompt.token_ids for prompt in prompts]
        vectors = self._encoder.vectors(ids, [prompt.second_at for prompt in prompts])
        return [_chunk(prompt, vector) for prompt, vector in zip(prompts, vectors, strict=True)]


def _chunk(prompt: Prompt, vector: np.ndarray) -> Chunk:
    if not np.isfinite(vector).all():
        return Chunk(prompt.id, (), "", finish_reason=FinishReason.ERROR, error=NOT_FINITE, fault=Fault.PASSING)
    if prompt.dimensions is not None and prompt.dimensions < len(vector):
        vector = vector[: prompt.dimensions]
        vector = vector / max(float(np.linalg.norm(vector)), 1e-9)
    packed = vector.astype("<f4").tobytes()
    return Chunk(prompt.id, (), "", finish_reason=FinishReason.STOP, vector=packed)
