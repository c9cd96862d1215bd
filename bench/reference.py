"""What mlx-lm alone says to a prompt: the oracle of the equality tests and of the survey of architectures.

mlx-lm computes one sequence at a time, over a contiguous cache and with its own loop (`generate_step`). A batch adds
the same numbers in another order, so that two tokens whose scores differ by almost nothing may change places. Such a
tie is proven, not tolerated: raising the other token's logit by `TIE` makes the reference itself choose it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from workers.engine import LoadedModel, Prompt  # first, because it loads the BLAS that MLX is to use

import mlx.core as mx  # isort: skip
from mlx.nn.layers.base import Module  # isort: skip
from mlx_lm.generate import generate_step  # isort: skip
from mlx_lm.models.cache import make_prompt_cache  # isort: skip
from workers.engine.sampling import RowSampler  # isort: skip

TIE: Final = 1e-3  # of the standard deviation of the position's logits; rounding of float32 moves them by about 1e-5


class Reference:
    """What `generate_step` says to prompts, one by one, over caches that `make_caches` makes; it remembers.

    `tie` is what a logit may lack, in standard deviations of its position's logits.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        make_caches: Callable[[Module], list[Any]] = make_prompt_cache,
        *,
        tie: float = TIE,
    ) -> None:
        self._model = loaded.model
        self._tie = tie
        self._make_caches = make_caches
        self._vocab_size = loaded.info.vocab_size
        self._said: dict[Prompt, list[int]] = {}
        self.ties = 0  # proven so far

    def tokens(self, prompt: Prompt) -> list[int]:
        """All `max_tokens` output tokens; those of `resume_ids` are given, and the first ones."""
        key = replace(prompt, id="", priority=0)
        if key not in self._said:
            self._said[key] = [*prompt.resume_ids, *self._continuation(prompt)]
        return self._said[key]

    def differences(self, prompt: Prompt, said: Sequence[int]) -> list[str]:
        """Why `said` is not (the beginning of) what the reference says; empty where it is, proven ties aside."""
        given = prompt.resume_ids
        while True:
            expected = self.tokens(replace(prompt, resume_ids=given))
            at = next((i for i, token in enumerate(said) if expected[i : i + 1] != [token]), None)
            if at is None:
                return []
            context = tuple(said[:at])
            if len(expected) <= at or not self.is_tie(prompt, context, said[at]):
                return [f"{prompt.id}: output token {at} is {said[at]}, the reference says {expected[at : at + 1]}"]
            self.ties += 1
            given = (*context, said[at])

    def is_tie(self, prompt: Prompt, output: tuple[int, ...], token: int) -> bool:
        """Whether the reference says `token` behind `output` when the token's logit is raised by a tie."""
        logits = self._model(mx.array([[*prompt.token_ids, *output]]), cache=self._make_caches(self._model))
        last = logits[:, -1, :].astype(mx.float32)
        finite = last[0][mx.array([i for i, x in enumerate(last[0].tolist()) if abs(x) < 1e30])]
        raised = last + self._tie * mx.std(finite) * (mx.arange(last.shape[-1]) == token)
        row = self._row(replace(prompt, resume_ids=output))
        for process in row.processors:
            raised = process(mx.array([*prompt.token_ids, *output]), raised)
        return bool((row.sampler(raised - mx.logsumexp(raised, axis=-1, keepdims=True)) == token).item())

    def _row(self, prompt: Prompt) -> RowSampler:
        return RowSampler(prompt, frozenset(), self._vocab_size)

    def _continuation(self, prompt: Prompt) -> list[int]:
        row = self._row(prompt)
        steps = generate_step(
            mx.array([*prompt.token_ids, *prompt.resume_ids]),
            self._model,
            max_tokens=prompt.stop.max_tokens - len(prompt.resume_ids),
            sampler=row.sampler,
            logits_processors=row.processors,
            prompt_cache=self._make_caches(self._model),
        )
        return [int(token) for token, _ in steps]
