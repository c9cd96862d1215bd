"""Log-probabilities of the tokens of prompts, for rows that want them: computed chunk by chunk, told once."""

from collections.abc import Collection
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from workers.engine.paged.chunks import Chunk
from workers.engine.paged.rows import Row
from workers.engine.selection import log_normaliser, most_likely_ones
from workers.engine.sequence import TokenLogprob


class _Part(NamedTuple):
    """Of the tokens behind each token of a chunk: their log-probabilities (tokens, 1), and the most likely tokens and
    theirs, (tokens, alternatives) both."""

    start: int
    logprobs: mx.array
    best: mx.array
    tokens: mx.array


class PromptScores:
    """What was computed of the prompts of rows that want scores, and not told yet."""

    def __init__(self) -> None:
        self._parts: dict[str, list[_Part]] = {}

    def read(self, chunk: Chunk, logits: mx.array | None) -> list[mx.array]:
        """What has to be evaluated together with a chunk's forward, whose `logits` are (tokens, vocab)."""
        if logits is None:
            return []
        row, vocab_size = chunk.row, logits.shape[-1]
        following = mx.array(row.tokens[chunk.start + 1 : chunk.start + chunk.tokens + 1])
        logits = logits.astype(mx.float32)
        logits = logits - log_normaliser(logits)
        best, tokens = most_likely_ones(logits, max(1, min(row.prompt.logprobs or 0, vocab_size)))
        part = _Part(chunk.start, mx.take_along_axis(logits, following[:, None], axis=-1), best, tokens)
        self._parts.setdefault(row.id, []).append(part)
        return [part.logprobs, part.best, part.tokens]

    def forget(self, row_ids: Collection[str]) -> None:
        """The rows are gone, or will read their prompts again from the beginning."""
        for row_id in row_ids:
            self._parts.pop(row_id, None)

    def take(self, row: Row) -> tuple[TokenLogprob, ...] | None:
        """Of a row that has drawn a token: of each token of its prompt but the first; None where that was told or is
        not wanted."""
        if not row.wants_scores:
            return None
        row.wants_scores = False
        ids, found, top = row.prompt.token_ids, dict[int, TokenLogprob](), row.prompt.logprobs or 0
        for part in self._parts.pop(row.id, ()):
            if len(found) == len(ids) - 1:
                break  # what comes then is being read a second time
            columns = (np.asarray(array).tolist() for array in (part.logprobs, part.best, part.tokens))
            for place, ([logprob], best, tokens) in enumerate(zip(*columns, strict=True), part.start + 1):
                if place == len(ids):
                    break  # behind the prompt an earlier attempt's tokens were read
                pairs = sorted(zip(tokens[:top], best[:top], strict=True), key=lambda pair: (-pair[1], pair[0]))
                found[place] = TokenLogprob(ids[place], logprob, tuple(pairs))
        return tuple(found[place] for place in range(1, len(ids)))
