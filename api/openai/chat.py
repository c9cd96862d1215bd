"""A chat completion request as a draft: refuse what cannot be honoured, render the messages, bound the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.call_formats.known import call_format
from api.call_formats.values import argument_types
from api.errors import InvalidParameter, Unsupported
from api.formats import THREAD_CHARS
from api.images import Shown
from api.openai.call_grammar import CallChoice, call_binding, can_bind_calls, unbound_texts
from api.openai.guiding import Binding, asked_binding, behind_thinking, check, check_compatible, thinking_rules
from api.openai.hosting import hosted_request
from api.openai.messages import shown_images, template_messages, template_tools, text_of, without_effect
from api.openai.parameters import LANE_TIERS, PlainDraft, ignored_fields, sampling, stopping
from api.openai.schemas import ChatRequest
from api.openai.tool_choice import call_choice, with_allowed_tools
from api.rendering import RenderingNote
from scheduler.errors import TemplateRefused
from scheduler.jobs import Lane
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat
from scheduler.requests import JobRequest
from scheduler.routing.choice import Route

CHAT_KIND = "chat.completions"

RESERVED_VARIABLES = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")


@dataclass(frozen=True, slots=True)
class ChatDraft(PlainDraft):
    """Implements Draft."""

    body: ChatRequest
    tools: list[dict[str, Any]]
    ignored: list[str]
    binding: Binding | None
    calls: CallChoice | None
    shown: Shown
    kind: str = CHAT_KIND

    @property
    def max_tokens(self) -> int | None:
        """The longest answer asked for, None for as long as fits."""
        return self.body.max_completion_tokens or self.body.max_tokens

    @property
    def open_ended(self) -> bool:
        """Is the length left open?"""
        return self.max_tokens is None

    async def request(self, card: ModelCard, prompts: PromptFormat, route: Route) -> JobRequest:
        """Render, encode and bound. Raises ApiError, ContextTooLong, TemplateRefused."""
        text, ids = await self.prompt(card, prompts)
        images = shown_images(self.body.messages).named
        max_tokens = prompts.bound(len(ids), self.max_tokens)
        may_bind = self.binding or self.calls or self.body.thinking_token_budget is not None
        binding = await asyncio.to_thread(self._bind, card, prompts, text) if may_bind else None
        asked = JobRequest(
            kind=CHAT_KIND,
            model=card.name,
            prompts=(ids,),
            n=self.body.n or 1,
            sampling=sampling(self.body, card),
            stopping=stopping(self.body, card, max_tokens, *self._end_of_a_single_call(card)),
            logprobs=(self.body.top_logprobs or 0) if self.body.logprobs else None,
            grammar=binding.grammar if binding else None,
            images=tuple(self.shown.read[url].data for _, url in images),
            image_count=len(images),
            rendering=self._note(card, route.lane, text, len(ids)).as_dict(),
        )
        return route.overrides.on(asked)

    def hosted(
        self, card: ModelCard, route: Route, asked_tokens: int, thinking: dict[str, Any] | None = None
    ) -> JobRequest:
        """For a provider's model. Raises ApiError."""
        note = self._note(card, route.lane, "", asked_tokens)
        return hosted_request(CHAT_KIND, self.body, card, route, note, thinking)

    async def prompt(self, card: ModelCard, prompts: PromptFormat) -> tuple[str, tuple[int, ...]]:
        """The conversation as the model's template writes it, and its tokens; its images have been read.

        Raises ApiError, TemplateRefused.
        """
        if self.tools and not card.has_tool_calling:
            raise Unsupported("tools", f"The model {card.name!r} was not made for tool calls.")
        variables = self._variables(card)
        messages = template_messages(self.body.messages, card)
        chars = sum(len(text_of(message["content"])) for message in messages)
        if chars > THREAD_CHARS:
            return await asyncio.to_thread(self._encode, prompts, messages, variables)
        return self._encode(prompts, messages, variables)

    def _bind(self, card: ModelCard, prompts: PromptFormat, text: str) -> Binding | None:
        """What binds the answer's form. Raises ApiError."""
        if self.binding is not None:
            check(self.binding, card)
        calls = self.calls if self.calls is not None and self._binds_calls(self.calls, card, prompts) else None
        if calls is None:
            return behind_thinking(self.binding, card, prompts, text, self.body.thinking_token_budget)
        thinking = thinking_rules(card, prompts, text, self.body.thinking_token_budget)
        binding = call_binding(calls, self.binding, card, prompts, text, thinking)
        check_compatible(binding.param, self.body)
        return binding

    def _binds_calls(self, calls: CallChoice, card: ModelCard, prompts: PromptFormat) -> bool:
        """Must calls have a form? What was wished for and cannot be is said, not refused: agents always send it."""
        unbound = unbound_texts(calls, card, prompts)
        self.ignored.extend(unbound)
        if calls.forced or self.binding is not None:
            return True
        if calls.has_strict and not can_bind_calls(card):
            self.ignored.extend(f"{function.path}.strict" for function in calls.functions if function.definition.strict)
            return False
        return calls.has_strict or calls.texts > len(unbound)

    def _encode(
        self, prompts: PromptFormat, messages: list[dict[str, Any]], variables: Mapping[str, Any]
    ) -> tuple[str, tuple[int, ...]]:
        text = prompts.render(messages, tools=self.tools or None, **variables)
        if self.body.continue_final_message:
            text = _cut_after(text, messages[-1]["content"])
        sizes = [self.shown.read[url][1:] for _, url in shown_images(self.body.messages).named]
        return prompts.encode_shown(text, sizes)

    def _variables(self, card: ModelCard) -> dict[str, Any]:
        """Template variables besides the messages."""
        variables = dict(self.body.chat_template_kwargs or {})
        effort = self.body.reasoning_effort
        if effort is not None:
            template = card.chat_template or ""
            thinks = card.think_start is not None
            if effort != "none" and not thinks and "reasoning_effort" not in template:
                raise Unsupported("reasoning_effort", f"The model {card.name!r} does not reason.")
            variables["reasoning_effort"] = effort
            if thinks:
                variables["enable_thinking"] = effort != "none"
        if self.body.continue_final_message:
            variables["add_generation_prompt"] = False
        elif self.body.add_generation_prompt is not None:
            variables["add_generation_prompt"] = self.body.add_generation_prompt
        return variables

    def _call_markers(self, card: ModelCard) -> tuple[str, str] | None:
        """What stands around the model's calls, when it was offered tools; an empty end: the text's end."""
        if not self.tools or not card.tool_call_start or card.tool_call_end is None:
            return None
        return card.tool_call_start, card.tool_call_end

    def _end_of_a_single_call(self, card: ModelCard) -> tuple[str, ...]:
        """A stop string where one call is wanted at most; a forced one ends with its grammar."""
        markers = self._call_markers(card)
        if markers is None or not markers[1] or self.calls is None or self.calls.forced or not self.calls.single:
            return ()
        return markers[1:]

    def _argument_types(self, card: ModelCard) -> dict[str, dict[str, tuple[str, ...]]]:
        """The types of arguments that are written without quotes."""
        if not call_format(card.tool_format).needs_types:
            return {}
        return {tool["function"]["name"]: argument_types(tool["function"].get("parameters")) for tool in self.tools}

    def _note(self, card: ModelCard, lane: Lane, prompt: str, prompt_tokens: int) -> RenderingNote:
        body = self.body
        options = body.stream_options
        call = self._call_markers(card)
        think = (card.think_start, card.think_end) if card.think_start and card.think_end else None
        return RenderingNote(
            created_s=int(time.time()),
            model=body.model,
            choices=body.n or 1,
            prompt_tokens=prompt_tokens,
            service_tier=LANE_TIERS[lane],
            include_usage=bool(options.include_usage) if options else not body.stream,
            continuous_usage=bool(options and options.continuous_usage_stats),
            obfuscation=bool(options and options.include_obfuscation),
            logprobs=bool(body.logprobs),
            think=think,
            in_thinking=think is not None and prompt.rstrip().endswith(think[0]),
            call=call,
            call_format=card.tool_format if call else None,
            argument_types=self._argument_types(card) if call else {},
            single_call=call is not None and self.calls is not None and self.calls.single,
            user=body.user,
            metadata=body.metadata,
        )


def chat_draft(body: ChatRequest) -> ChatDraft:
    """Check a body against what this server can do. Raises ApiError by path."""
    body = with_allowed_tools(body)
    ignored = ignored_fields(body)
    _check_options(body)
    offered, more = template_tools(body.tools or [])
    calls = call_choice(body)
    binding = asked_binding(body, body.response_format)
    bound = binding.param if binding else "tool_choice" if calls and calls.forced else None
    if bound and body.continue_final_message:
        raise InvalidParameter("continue_final_message", f"Not together with {bound!r}, which binds a whole text.")
    ignored += more + without_effect(body.messages)
    shown = shown_images(body.messages)
    return ChatDraft(body, [] if body.tool_choice == "none" else offered, ignored, binding, calls, shown)


def _check_options(body: ChatRequest) -> None:
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise InvalidParameter("max_tokens", "max_tokens and max_completion_tokens differ; send one of them.")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidParameter("top_logprobs", "top_logprobs needs logprobs: true.")
    for name in RESERVED_VARIABLES:
        if name in (body.chat_template_kwargs or {}):
            raise InvalidParameter(f"chat_template_kwargs.{name}", "The server sets this variable itself.")
    _check_continuation(body)


def _check_continuation(body: ChatRequest) -> None:
    if body.continue_final_message and body.add_generation_prompt:
        raise InvalidParameter("continue_final_message", "It cannot be combined with add_generation_prompt.")
    if body.continue_final_message and (body.messages[-1].role != "assistant" or not body.messages[-1].content):
        raise InvalidParameter("continue_final_message", "The last message must be an assistant's, with content.")


def _cut_after(text: str, content: str) -> str:
    """The rendered conversation up to the end of its last message's content."""
    at = text.rfind(content.rstrip())
    if at < 0:
        raise TemplateRefused("it changes the last message, so that it cannot be continued")
    return text[: at + len(content.rstrip())]
