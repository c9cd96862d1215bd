"""How one row of a batch draws its tokens, from its own parameters and its own random numbers only.

A row's samplers and processors have the signatures of mlx-lm's; rows that are plain greedy share one sampler object,
which mlx-lm then calls once for the whole batch.
"""

from collections import deque
from collections.abc import Callable
from typing import cast

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import greedy_sampler

from workers.engine.sequence import Prompt, TokenLogprob

Sampler = Callable[[mx.array], mx.array]  # (rows, vocab) float32 log-probabilities -> (rows,) token ids
Processor = Callable[[mx.array, mx.array], mx.array]  # (context,) int, (1, vocab) float32 -> (1, vocab)

_MASK_64 = (1 << 64) - 1
_ROW_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)


def draw_key(seed: int, position: int) -> int:
    """64 bits that depend on the seed and the output token's index only (SplitMix64, Steele et al. 2014)."""
    bits = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK_64
    for _ in range(2):  # twice, so that nearby seeds do not meet on nearby positions
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK_64
        bits = (bits ^ (bits >> 31) ^ (seed & _MASK_64)) & _MASK_64
    return bits


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
        penalised = s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0
        return [self._process] if masks_ends or penalised or self._bias is not None else []

    def take_logprob(self, token: int, logprobs: mx.array) -> TokenLogprob | None:
        """The next reported token's log-probability; `logprobs` (vocab,) is what mlx-lm reports with the token.

        Has to be called once for each reported token, in order. None where no log-probabilities were asked for.
        """
        if self._top is None:
            return None
        raw = self._raw.popleft() if self._raw else logprobs
        return _token_logprob(token, np.asarray(raw).reshape(-1), self._top)

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
            raw = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
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
        if s.repetition_penalty != 1:
            seen = mx.zeros((self._vocab_size,), dtype=mx.bool_)
            seen[context] = True
            scaled = mx.where(logits < 0, logits * s.repetition_penalty, logits / s.repetition_penalty)
            logits = mx.where(seen, scaled, logits)
        if self._processed > 0 and (s.presence_penalty != 0 or s.frequency_penalty != 0):
            output = context[self._prompt_tokens :]
            counts = mx.zeros((self._vocab_size,)).at[output].add(1.0)
            logits = logits - s.frequency_penalty * counts - s.presence_penalty * (counts > 0)
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
        """Gumbel-max: argmax(logits / temperature + noise) has the softmax's distribution (Gumbel 1954)."""
        key = mx.random.key(draw_key(self._sampling.seed, self._position))
        scores = (logprobs - mx.max(logprobs, axis=-1, keepdims=True)) * (1.0 / self._sampling.temperature)
        scores = _truncated(scores, self._sampling.top_k, self._sampling.top_p, self._sampling.min_p)
        return mx.argmax(scores + mx.random.gumbel(scores.shape, key=key), axis=-1)


def _token_logprob(token: int, raw: "np.ndarray[tuple[int], np.dtype[np.float32]]", top: int) -> TokenLogprob:
    """On the host, where the next step is not in the way; `raw` is (vocab,)."""
    best = np.argpartition(raw, raw.size - top)[raw.size - top :] if top else ()
    pairs = sorted(((int(i), float(raw[i])) for i in best), key=lambda pair: (-pair[1], pair[0]))
    return TokenLogprob(token, float(raw[token]), tuple(pairs))


def _bias_row(logit_bias: tuple[tuple[int, float], ...], vocab_size: int) -> mx.array | None:
    """The bias as a (1, vocab) row; a token named twice gets the sum."""
    if not logit_bias:
        return None
    ids = mx.array([token for token, _ in logit_bias], dtype=mx.int32)
    values = mx.array([bias for _, bias in logit_bias], dtype=mx.float32)
    return mx.zeros((1, vocab_size)).at[:, ids].add(values)


def _truncated(scores: mx.array, top_k: int, top_p: float, min_p: float) -> mx.array:
    """Scores (1, vocab) with their maximum at 0; what top-k, top-p and min-p exclude becomes -inf.

    Top-p keeps the smallest set of most likely tokens whose mass within top-k reaches `top_p` (Holtzman et al. 2020),
    min-p what has at least `min_p` of the most likely token's probability (Nguyen et al. 2024). Ties at the border
    stay in.
    """
    floor = mx.log(mx.array(min_p)) if min_p > 0 else None
    if 0 < top_k < scores.shape[-1] or top_p < 1:
        some = mx.topk(scores, top_k, axis=-1) if 0 < top_k < scores.shape[-1] else scores
        some = mx.sort(some, axis=-1)
        if top_p < 1:
            mass = mx.exp(some)
            above = mx.cumsum(mass, axis=-1, reverse=True, inclusive=False)
            outside = mx.sum(above >= top_p * mx.sum(mass, axis=-1, keepdims=True), axis=-1, keepdims=True)
            border = mx.take_along_axis(some, mx.minimum(outside, some.shape[-1] - 1), axis=-1)
        else:
            border = some[:, :1]
        floor = border if floor is None else mx.maximum(border, floor)
    return scores if floor is None else mx.where(scores < floor, -mx.inf, scores)
