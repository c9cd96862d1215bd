"""How one row of a batch draws its tokens, from its own parameters and its own random numbers only.

A row's samplers and processors have the signatures of mlx-lm's; rows that are plain greedy share one sampler object,
which mlx-lm then calls once for the whole batch.
"""

from collections import deque
from collections.abc import Callable
from typing import cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx_lm.sample_utils import greedy_sampler

from workers.engine.adjusting import count_penalised, penalises_counts, penalises_repetition, repetition_penalised
from workers.engine.selection import draw_keys, kind_of, log_normaliser, select, truncation_of, uniforms
from workers.engine.sequence import Prompt, TokenLogprob

Sampler = Callable[[mx.array], mx.array]  # (rows, vocab) float32 log-probabilities -> (rows,) token ids
Processor = Callable[[mx.array, mx.array], mx.array]  # (context,) int, (1, vocab) float32 -> (1, vocab)

_SEED_MASK = (1 << 64) - 1
_ROW_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)


def as_floats(array: mx.array) -> list[float]:
    """All elements in order; waits for them."""
    return cast("list[float]", array.reshape(-1).tolist())


class RowSampler:
    """Sampling state of one sequence.

    `sampler` and `processors` go to mlx-lm, which calls each exactly once per token, one token ahead of what it has
    reported. An exception inside is kept in `error` and the row goes on greedily until its owner removes it, so that
    its neighbours are not disturbed.
    """

    def __init__(self, prompt: Prompt, end_ids: frozenset[int], vocab_size: int) -> None:
        self._prompt_tokens = len(prompt.token_ids)
        self._sampling = prompt.sampling
        self._top = None if prompt.logprobs is None else min(prompt.logprobs, vocab_size)
        self._vocab_size = vocab_size
        self._position = self._processed = len(prompt.resume_ids)
        self._seed = np.array([prompt.sampling.seed & _SEED_MASK], dtype=np.uint64)
        self._truncation = truncation_of([prompt.sampling], kind_of(prompt.sampling, vocab_size))
        self._min_tokens = prompt.stop.min_tokens
        self._end_ids = mx.array(sorted(end_ids), dtype=mx.int32) if end_ids else None
        self._bias = _bias_row(self._sampling.logit_bias, vocab_size)
        self._raw: deque[mx.array] = deque()  # (1, vocab) each: raw log-probabilities of tokens not yet reported
        self.error: str | None = None

    @property
    def sampler(self) -> Sampler:
        shared: Sampler = greedy_sampler
        return shared if self._sampling.temperature == 0 else self._sample

    @property
    def processors(self) -> list[Processor]:
        """Empty where the logits are used as they are, which spares the batch a loop."""
        s = self._sampling
        masks_ends = self._end_ids is not None and self._processed < self._min_tokens
        penalised = penalises_repetition(s) or penalises_counts(s)
        return [self._process] if masks_ends or penalised or self._bias is not None else []

    def take_logprob(self, token: int, logprobs: mx.array) -> TokenLogprob | None:
        """The next reported token's log-probability; `logprobs` (vocab,) is what mlx-lm reports with the token.

        Has to be called once for each reported token, in order. None where no log-probabilities were asked for.
        """
        if self._top is None:
            return None
        raw = self._raw.popleft() if self._raw else logprobs
        return token_logprob(token, np.asarray(raw).reshape(-1), self._top)

    def _process(self, context: mx.array, logits: mx.array) -> mx.array:
        if self.error is None:
            try:
                logits = self._adjusted(context, logits)
            except _ROW_ERRORS as error:
                self.error = f"logits processing failed: {error!r}"
        self._processed += 1
        return logits

    def _adjusted(self, context: mx.array, logits: mx.array) -> mx.array:
        if self._top is not None:
            raw = logits - log_normaliser(logits)
            mx.async_eval(raw)  # type: ignore[no-untyped-call]
            self._raw.append(raw)
        if self._bias is not None:
            logits = logits + self._bias
        logits = self._penalised(context, logits)
        if self._end_ids is not None and self._processed < self._min_tokens:
            masked = mx.full((1, self._end_ids.size), -mx.inf)
            logits = mx.put_along_axis(logits, self._end_ids[None], masked, axis=-1)
        return logits

    def _penalised(self, context: mx.array, logits: mx.array) -> mx.array:
        s = self._sampling
        if penalises_repetition(s):
            factors = mx.ones((self._vocab_size,))
            factors[context] = s.repetition_penalty
            logits = repetition_penalised(logits, factors, s.repetition_penalty > 1)
        if penalises_counts(s):
            output = context[self._prompt_tokens :]
            counts = mx.zeros((self._vocab_size,)).at[output].add(1.0)
            logits = count_penalised(logits, counts, mx.array(s.frequency_penalty), mx.array(s.presence_penalty))
        return logits

    def _sample(self, logprobs: mx.array) -> mx.array:
        if self.error is not None:
            return mx.argmax(logprobs, axis=-1)
        try:
            token = self._drawn(logprobs)
        except _ROW_ERRORS as error:
            self.error = f"sampling failed: {error!r}"
            return mx.argmax(logprobs, axis=-1)
        self._position += 1
        return token

    def _drawn(self, logprobs: mx.array) -> mx.array:
        keys = draw_keys(self._seed, np.array([self._position], dtype=np.int64))
        tokens = select(logprobs, self._truncation, uniforms(keys, self._truncation.kind.draws))
        return tokens.astype(mx.uint32)  # like the greedy rows' of the same batch


def token_logprob(token: int, raw: npt.NDArray[np.float32], top: int, normaliser: float = 0.0) -> TokenLogprob:
    """On the host; `raw` (vocab,) are logits, whose `normaliser` makes them log-probabilities."""
    best = np.argpartition(raw, raw.size - top)[raw.size - top :] if top else ()
    pairs = sorted(((int(i), float(raw[i]) - normaliser) for i in best), key=lambda pair: (-pair[1], pair[0]))
    return TokenLogprob(token, float(raw[token]) - normaliser, tuple(pairs))


def _bias_row(logit_bias: tuple[tuple[int, float], ...], vocab_size: int) -> mx.array | None:
    """The bias as a (1, vocab) row; a token named twice gets the sum."""
    if not logit_bias:
        return None
    ids = mx.array([token for token, _ in logit_bias], dtype=mx.int32)
    values = mx.array([bias for _, bias in logit_bias], dtype=mx.float32)
    return mx.zeros((1, vocab_size)).at[:, ids].add(values)
