"""Rows generated one at a time by mlx-lm's `generate_step`: for models that cannot be batched. Correct, slow."""

import math
from collections.abc import Collection, Iterator
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.generate import generate_step

from workers.engine.batch import NOT_FINITE, Float32Logits, RowToken
from workers.engine.planner import PrefillLimits
from workers.engine.sampling import RowSampler, as_floats


class SerialRunner:
    """The interface of `BatchRunner` with a capacity of one. A prompt is read whole in its first step."""

    capacity = 1

    def __init__(self, model: Module, *, prefill_step_tokens: int) -> None:
        self.prefilling: dict[str, tuple[int, int]] = {}
        self._model = Float32Logits(model)
        self.prefill = PrefillLimits(rows=1, step_tokens=prefill_step_tokens)
        self._cache: list[object] = []
        self._row_id: str | None = None
        self._row: RowSampler | None = None
        self._tokens: Iterator[tuple[Any, mx.array]] = iter(())

    @property
    def kv_bytes(self) -> int:
        return sum(int(getattr(cache, "nbytes", 0)) for cache in self._cache)

    def insert(self, row_id: str, input_ids: list[int], row: RowSampler) -> None:
        self._row_id, self._row = row_id, row
        self._cache = self._model.make_cache()
        self.prefilling = {row_id: (0, len(input_ids))}
        self._tokens = generate_step(
            mx.array(input_ids),
            self._model,
            max_tokens=-1,
            sampler=row.sampler,
            logits_processors=row.processors,
            prompt_cache=self._cache,
            prefill_step_size=self.prefill.step_tokens,
        )

    def remove(self, row_ids: Collection[str]) -> None:
        if self._row_id in row_ids:
            self._row_id, self._row, self._tokens, self._cache, self.prefilling = None, None, iter(()), [], {}

    def step(self) -> list[RowToken]:
        if self._row_id is None or self._row is None:
            return []
        self._model.sums.clear()
        token, logprobs = next(self._tokens)
        self.prefilling.clear()
        [chosen] = as_floats(logprobs[token : token + 1])
        failed = math.isnan(chosen)
        error = NOT_FINITE if failed else self._row.error
        logprob = None if error else self._row.take_logprob(int(token), logprobs)
        return [RowToken(self._row_id, int(token), logprob, error)]

    def close(self) -> None:
        if self._row_id is not None:
            self.remove([self._row_id])
