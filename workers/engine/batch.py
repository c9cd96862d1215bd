"""Rows generated together by mlx-lm's `BatchGenerator`: they join and leave at any step. Knows no text.

mlx-lm is used through its public methods only. Two things are added around it: the model's logits become float32
before anything is drawn from them, and a row whose logits are not numbers is reported as failed, alone.
"""

import math
from collections.abc import Collection
from itertools import islice
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import ArraysCache, CacheList, make_prompt_cache

from workers.engine.errors import BatchOrderLost
from workers.engine.planner import PrefillLimits, plan_admissions
from workers.engine.runner import NOT_FINITE, RowLine, RowToken, RunnerStats
from workers.engine.sampling import RowSampler, as_floats
from workers.engine.sequence import Sequence

UNBOUNDED_TOKENS = 1 << 40  # the engine ends sequences, not the generator
PREFILL_ROWS = 8
# Architectures whose batched output differs from their single output; measured against `generate_step`.
WRONG_IN_BATCHES = frozenset(
    {
        *("afm7", "gemma2", "gpt_bigcode", "llama4", "llama4_text", "longcat_flash_ngram"),
        *("minimax_m3", "minimax_m3_vl", "phi3small"),
    }
)


class Float32Logits:
    """The model as the generator calls it, with logits (rows, tokens, vocab) in float32.

    `sums` collects, for each forward of one token per row since it was last cleared, the sum of each row's logits:
    it is finite, or minus infinity where the model masks tokens, unless the row's logits contain NaN or infinity.
    """

    def __init__(self, model: Module) -> None:
        self.model = model
        self.sums: list[mx.array] = []  # each (rows,) float32

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        logits: mx.array = self.model(tokens, cache=cache).astype(mx.float32)
        if tokens.shape[1] == 1:
            self.sums.append(mx.sum(logits[:, -1, :], axis=-1))
        return logits

    def make_cache(self) -> list[Any]:
        caches: list[Any] = make_prompt_cache(self.model)
        return caches


def _flat(caches: Collection[Any]) -> list[Any]:
    return [leaf for cache in caches for leaf in (_flat(cache.caches) if isinstance(cache, CacheList) else [cache])]


def is_batchable(model: Module, model_type: str) -> bool:
    """Whether `BatchGenerator` serves this model correctly, by its type and the caches that it makes."""
    return model_type not in WRONG_IN_BATCHES and all(hasattr(c, "merge") for c in _flat(make_prompt_cache(model)))


def _unwired(generator: Any) -> Any:
    """Give back the wired memory limit that the generator's constructor raises on Metal; it works on without."""
    generator.close()
    return generator


class BatchRunner(RowLine):
    """Rows of one model, each known by the id of its sequence. One step gives every decoding row one token.

    At most `capacity` rows have begun; the others wait, first come, first served. Everything happens in the calling
    thread.
    """

    capacity_tokens = None
    obeys_grammars = False

    def __init__(self, model: Module, *, vocab_size: int, capacity: int, prefill_step_tokens: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._vocab_size = vocab_size
        self._model = Float32Logits(model)
        # Recurrent state has no padding that could be masked in every architecture: such prompts are read one by one.
        stateful = any(isinstance(cache, ArraysCache) for cache in _flat(make_prompt_cache(model)))
        rows = 1 if stateful else min(PREFILL_ROWS, capacity)
        self._limits = PrefillLimits(rows=rows, step_tokens=prefill_step_tokens)
        self._generator = _unwired(
            BatchGenerator(
                self._model,
                completion_batch_size=capacity,
                prefill_batch_size=rows,
                prefill_step_size=prefill_step_tokens,
            )
        )
        self._prefilling: dict[str, tuple[int, int]] = {}
        self._ids: dict[int, str] = {}  # generator's uid -> row id
        self._uids: dict[str, int] = {}
        self._rows: dict[str, RowSampler] = {}
        self._checks: list[tuple[list[int], mx.array]] = []  # uids and logit sums behind the tokens reported next
        self._prompt_tokens = 0

    def stats(self) -> RunnerStats:
        return RunnerStats(
            backend="batch",
            waiting=len(self._line),
            prefilling=dict(self._prefilling),
            kv_bytes=int(self._generator.prompt_cache_nbytes),
            prompt_tokens_total=self._prompt_tokens,
        )

    def remove(self, row_ids: Collection[str]) -> None:
        """Drop rows at any stage; unknown ids are ignored."""
        known = [row_id for row_id in row_ids if row_id in self._uids]
        if known:
            self._generator.remove([self._uids[row_id] for row_id in known])
        for row_id in known:
            del self._ids[self._uids.pop(row_id)], self._rows[row_id]
            self._prefilling.pop(row_id, None)
        for row_id in row_ids:
            self._line.pop(row_id, None)

    def step(self) -> list[RowToken]:
        """One forward of all decoding rows and one chunk of the prompts; tokens in the rows' order."""
        self._admit()
        self._model.sums.clear()
        read, decoded = self._generator.next()
        failed = self._failed_rows()
        self._expect_checks([r.uid for r in decoded], [p.uid for p in read if p.end_of_prompt])
        for progress in read:
            row_id = self._ids[progress.uid]
            if progress.end_of_prompt:
                self._prefilling.pop(row_id, None)
            else:
                self._prefilling[row_id] = progress.progress
        return [self._row_token(r, failed) for r in decoded]

    def close(self) -> None:
        self.remove([*self._uids, *self._line])

    def _admit(self) -> None:
        """Let rows begin while there is room for them."""
        room = self._capacity - len(self._rows)
        if not self._line or room <= 0:
            return
        reading = [total - done for done, total in self._prefilling.values()]
        waiting = (len(sequence.input_ids) for sequence in islice(self._line.values(), room))
        for row_id in list(islice(self._line, plan_admissions(reading, waiting, self._limits))):
            self._start(self._line.pop(row_id))

    def _start(self, sequence: Sequence) -> None:
        row_id, input_ids = sequence.prompt.id, sequence.input_ids
        row = RowSampler(sequence.prompt, sequence.end_ids, self._vocab_size)
        [uid] = self._generator.insert(
            [input_ids],
            max_tokens=[UNBOUNDED_TOKENS],
            samplers=[row.sampler],
            logits_processors=[row.processors],
        )
        self._ids[uid], self._uids[row_id], self._rows[row_id] = row_id, uid, row
        self._prefilling[row_id] = (0, len(input_ids))
        self._prompt_tokens += len(input_ids)

    def _row_token(self, response: Any, failed: set[int]) -> RowToken:
        row_id = self._ids.get(response.uid)
        if row_id is None:
            raise BatchOrderLost(f"the batch generator reported row {response.uid}, which was removed")
        row = self._rows[row_id]
        error = NOT_FINITE if response.uid in failed else row.error
        logprob = None if error else row.take_logprob(response.token, response.logprobs)
        return RowToken(row_id, response.token, logprob, error)

    def _failed_rows(self) -> set[int]:
        return {
            uid
            for uids, sums in self._checks
            for uid, total in zip(uids, as_floats(sums), strict=True)
            if math.isnan(total) or total == math.inf
        }

    def _expect_checks(self, decoding: list[int], starting: list[int]) -> None:
        """Attribute this step's logit sums: the running batch is computed first, then the rows that start."""
        groups = [uids for uids in (decoding, starting) if uids]
        if len(self._model.sums) < len(groups):
            raise BatchOrderLost("the batch generator computed fewer forwards than it reported")
        self._checks = list(zip(groups, self._model.sums, strict=False))
        mx.async_eval([sums for _, sums in self._checks])  # type: ignore[no-untyped-call]
