"""A (legacy) completion request as a draft: one or many prompts, as text or as token ids."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from api.errors import InvalidParameter, Unsupported
from api.formats import THREAD_CHARS
from api.openai.guiding import Binding, asked_binding, check
from api.openai.parameters import LANE_TIERS, PlainDraft, check_prompt_tokens, ignored_fields, sampling, stopping
from api.openai.schemas import CompletionRequest
from api.rendering import RenderingNote
from scheduler.jobs import Lane
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat
from scheduler.requests import JobRequest
from scheduler.routing.choice import Route

COMPLETION_KIND = "completions"

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""

MAX_CHOICES = 128

MAX_SCORED_TOKENS = 16_384
"""Of all prompts of a request whose log-probabilities are told: they come in one frame of a choice."""


@dataclass(frozen=True, slots=True)
class CompletionDraft(PlainDraft):
    """Implements Draft."""

    body: CompletionRequest
    ignored: list[str]
    binding: Binding | None
    kind: str = COMPLETION_KIND
    open_ended: bool = False  # there is a default

    async def request(self, card: ModelCard, prompts: PromptFormat, route: Route) -> JobRequest:
        """Encode and bound. Raises ApiError, ContextTooLong."""
        listed = _listed(self.body.prompt)
        if sum(len(prompt) for prompt in listed) > THREAD_CHARS:
            encoded = await asyncio.to_thread(_encode, listed, card, prompts)
        else:
            encoded = _encode(listed, card, prompts)
        if self.binding is not None:
            await asyncio.to_thread(check, self.binding, card)
        if self._scores_prompts:
            _check_scored(encoded, self.body.n or 1, card)
        asked = self.body.max_tokens or DEFAULT_MAX_TOKENS
        longest = max(len(ids) for ids in encoded)
        max_tokens = prompts.bound(longest, asked)
        echo = [p if isinstance(p, str) else prompts.decode(p) for p in listed] if self.body.echo else []
        request = JobRequest(
            kind=COMPLETION_KIND,
            model=card.name,
            prompts=encoded,
            n=self.body.n or 1,
            sampling=sampling(self.body, card),
            stopping=stopping(self.body, card, max_tokens),
            logprobs=self.body.logprobs,
            prompt_logprobs=self._scores_prompts,
            grammar=self.binding.grammar if self.binding else None,
            rendering=self._note(route.lane, encoded, echo).as_dict(),
        )
        return route.overrides.on(request)

    @property
    def _scores_prompts(self) -> bool:
        """What is echoed has log-probabilities too, where they are asked for."""
        return bool(self.body.echo) and self.body.logprobs is not None

    def _note(self, lane: Lane, prompts: tuple[tuple[int, ...], ...], echo: list[str]) -> RenderingNote:
        body = self.body
        options = body.stream_options
        return RenderingNote(
            created_s=int(time.time()),
            model=body.model,
            choices=len(prompts) * (body.n or 1),
            prompt_tokens=sum(len(ids) for ids in prompts),
            service_tier=LANE_TIERS[lane],
            include_usage=bool(options.include_usage) if options else not body.stream,
            continuous_usage=bool(options and options.continuous_usage_stats),
            obfuscation=bool(options and options.include_obfuscation),
            logprobs=body.logprobs is not None,
            echo=tuple(echo),
            user=body.user,
        )


def completion_draft(body: CompletionRequest) -> CompletionDraft:
    """Check a body against what this server can do. Raises ApiError by path."""
    ignored = ignored_fields(body)
    n = body.n or 1
    if body.best_of is not None and body.best_of != n:
        raise Unsupported("best_of", "Only the value of n: answers are not ranked.")
    if len(_listed(body.prompt)) * n > MAX_CHOICES:
        raise InvalidParameter("prompt", f"Prompts times n may be {MAX_CHOICES} at most.")
    return CompletionDraft(body, ignored, asked_binding(body))


def _check_scored(prompts: tuple[tuple[int, ...], ...], n: int, card: ModelCard) -> None:
    """Raises ApiError for prompts whose log-probabilities cannot be told."""
    if not card.scores_prompts:
        text = f"Not together with logprobs: {card.name!r} does not tell those of a prompt ({card.engine} engine)."
        raise Unsupported("echo", text)
    tokens = n * sum(len(ids) for ids in prompts)
    if tokens > MAX_SCORED_TOKENS:
        text = f"Together with logprobs, prompts times n may have {MAX_SCORED_TOKENS} tokens; these have {tokens}."
        raise InvalidParameter("prompt", text)


def _listed(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """All four forms of `prompt` as a list of prompts."""
    if isinstance(prompt, str):
        return [prompt]
    token_ids = [item for item in prompt if isinstance(item, int)]
    if token_ids:
        return [token_ids]
    return [item for item in prompt if not isinstance(item, int)]


def _encode(listed: list[str | list[int]], card: ModelCard, prompts: PromptFormat) -> tuple[tuple[int, ...], ...]:
    encoded = []
    for prompt in listed:
        if isinstance(prompt, str):
            ids = prompts.encode(prompt, add_special_tokens=True)
        else:
            ids = check_prompt_tokens(prompt, card, "prompt")
        if not ids:
            raise InvalidParameter("prompt", "A prompt needs at least one token.")
        encoded.append(ids)
    return tuple(encoded)
