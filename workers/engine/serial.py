"""Rows generated one at a time by mlx-lm's `generate_step`: for models that cannot be batched. Correct, slow."""

import math
from collections.abc import Collection, Iterator
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.generate import generate_step

from workers.engine.adapters import Adapters
from workers.engine.batch import Float32Logits
from workers.engine.runner import NOT_FINITE, RowLine, RowToken, RunnerStats
from workers.engine.sampling import RowSampler, as_floats
from workers.engine.sequence import Sequence


class SerialRunner(RowLine):
    """One row after the other. A prompt is read whole in its first step."""

    capacity_tokens = None
    obeys_grammars = False

    def __init__(
        self, model: Module, *, vocab_size: int, prefill_step_tokens: int, adapters: Adapters | None = None
    ) -> None:
        super().__init__()
        self._vocab_size = vocab_size
        self._step_tokens = prefill_step_tokens
        self._adapters = adapters or Adapters()
        self._adapter: str | None = None  # of the running row
        self._model = Float32Logits(model)
        self._prefilling: dict[str, tuple[int, int]] = {}
        self._cache: list[object] = []
        self._row_id: str | None = None
        self._row: RowSampler | None = None
        self._tokens: Iterator[tuple[Any, mx.array]] = iter(())
        self._prompt_tokens = 0

    def stats(self) -> RunnerStats:
        return RunnerStats(
            backend="serial",
            waiting=len(self._line),
            prefilling=dict(self._prefilling),
            kv_bytes=sum(int(getattr(cache, "nbytes", 0)) for cache in self._cache),
            prompt_tokens_total=self._prompt_tokens,
        )

    def remove(self, row_ids: Collection[str]) -> None:
        """Drop rows at any stage; unknown ids are ignored."""
        for row_id in row_ids:
            self._line.pop(row_id, None)
        if self._row_id in row_ids:
            self._row_id, self._row, self._tokens, self._cache, self._prefilling = None, None, iter(()), [], {}

    def step(self) -> list[RowToken]:
        """The running row's next token; the next row begins where none is running."""
        if self._row_id is None and self._line:
            self._start(self._line.pop(next(iter(self._line))))
        if self._row_id is None or self._row is None:
            return []
        self._model.sums.clear()
        with self._adapters.of_rows([self._adapter]):
            token, logprobs = next(self._tokens)
        self._prefilling.clear()
        [chosen] = as_floats(logprobs[token : token + 1])
        failed = math.isnan(chosen)
        error = NOT_FINITE if failed else self._row.error
        logprob = None if error else self._row.take_logprob(int(token), logprobs)
        return [RowToken(self._row_id, int(token), logprob, error)]

    def close(self) -> None:
        self.remove([*self._line, *([] if self._row_id is None else [self._row_id])])

    def _start(self, sequence: Sequence) -> None:
        row = RowSampler(sequence.prompt, sequence.end_ids, self._vocab_size)
        self._row_id, self._row, self._adapter = sequence.prompt.id, row, sequence.prompt.adapter
        self._cache = self._model.make_cache()
        self._prefilling = {self._row_id: (0, len(sequence.input_ids))}
        self._prompt_tokens += len(sequence.input_ids)
        self._tokens = generate_step(
            mx.array(sequence.input_ids),
            self._model,
            max_tokens=-1,
            sampler=row.sampler,
            logits_processors=row.processors,
            prompt_cache=self._cache,
            prefill_step_size=self._step_tokens,
        )
