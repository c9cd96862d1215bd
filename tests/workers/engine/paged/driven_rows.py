"""A paged runner with the sequences that it has, driven as an engine would drive it."""

import random
from typing import Any

from mlx_lm.generate import generate_step

from workers.engine import LoadedModel, Prompt
from workers.engine.paged.blocks import root_hash
from workers.engine.paged.cache import PagedModel
from workers.engine.paged.chunks import PlanLimits
from workers.engine.paged.runner import PagedRunner
from workers.engine.sequence import Limits, Sequence, TokenLogprob

import mlx.core as mx  # isort: skip

Said = dict[str, list[int]]


class Rows:
    """A runner with the sequences that it has, as an engine would keep them."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        blocks: int = 60,
        block_tokens: int = 8,
        limits: PlanLimits | None = None,
        **options: Any,
    ) -> None:
        limits = limits or PlanLimits(rows=6, step_tokens=64)
        self.loaded = loaded
        self.model = PagedModel(loaded.model, blocks=blocks, block_tokens=block_tokens)
        self.runner = PagedRunner(
            self.model, vocab_size=loaded.info.vocab_size, limits=limits, root=root_hash("tiny"), **options
        )
        self.sequences: dict[str, Sequence] = {}
        self.said: Said = {}
        self.scores: dict[str, tuple[TokenLogprob, ...]] = {}
        self.errors: dict[str, str] = {}
        self.limits = Limits(loaded.info.vocab_size, self.runner.capacity_tokens, frozenset(loaded.info.eos_token_ids))

    def insert(self, *prompts: Prompt, guide: Any = None) -> None:
        for prompt in prompts:
            sequence = Sequence(prompt, self.limits, self.loaded.vocabulary.start_text, guide)
            self.sequences[prompt.id] = sequence
            self.said[prompt.id] = []
            self.runner.insert(sequence)

    def remove(self, id: str) -> None:
        del self.sequences[id]
        self.runner.remove([id])

    def step(self) -> None:
        for token in self.runner.step():
            sequence = self.sequences.get(token.row_id)
            if sequence is None:
                continue  # behind the end, guessed ahead
            if token.prompt_logprobs is not None:
                assert token.row_id not in self.scores, "a prompt was scored twice"
                self.scores[token.row_id] = token.prompt_logprobs
            if token.error is None:
                sequence.advance(token.token)
                self.said[token.row_id].append(token.token)
            else:
                self.errors[token.row_id] = token.error
            if token.error or sequence.finish_reason:
                self.remove(token.row_id)
        self.runner._pool.check([row.table for row in self.runner._rows.values()])

    def run(self) -> Said:
        while self.sequences:
            self.step()
        return self.said


def alone(loaded: LoadedModel, prompt: Prompt) -> list[int]:
    steps = generate_step(mx.array(prompt.token_ids), loaded.model, max_tokens=prompt.stop.max_tokens)
    return [int(token) for token, _ in steps]


def ids(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(260) for _ in range(count))
