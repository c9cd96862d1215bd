"""A request of the Responses API as a draft: its conversation and options in chat's words, rendered and bound there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from api.bodies import validated
from api.errors import ApiError, InvalidParameter
from api.images import Shown
from api.openai.chat import ChatDraft, chat_draft
from api.openai.parameters import UrgentDraft
from api.openai.responses.conversation import CallNames, Messages, messages_of
from api.openai.responses.fields import LOGPROBS, SEALED_THOUGHTS, without_effect
from api.openai.responses.schemas import Item, ResponseRequest
from api.openai.responses.tools import ToolBox, chosen, tool_box
from api.openai.schemas import ChatRequest
from api.outline import Outline
from api.rendering import RenderingNote
from scheduler.errors import ContextTooLong
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat
from scheduler.requests import JobRequest
from scheduler.routing.choice import Route

RESPONSE_KIND = "responses"

_RENAMED = {
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "tool_choice.function": "tool_choice",
}
"""Chat's paths, and what they are called here."""

_NOT_CHATS = frozenset(ResponseRequest.__annotations__) | {"n", "max_tokens", "stream_options"}
"""Fields that chat does not know, or knows in another form; all others go on as they are."""


@dataclass(frozen=True, slots=True)
class ResponseDraft(UrgentDraft):
    """Implements Draft. `earlier` are the items of the responses before, oldest first."""

    body: ResponseRequest
    earlier: Sequence[Item]
    box: ToolBox
    chat: ChatDraft
    paths: Sequence[str]
    own_ignored: list[str]
    kind: str = RESPONSE_KIND

    @property
    def ignored(self) -> list[str]:
        """What had no effect; more is known once there is a request."""
        paths = [_our_path(path, self.paths, self.box) for path in self.chat.ignored]
        return list(dict.fromkeys([*self.own_ignored, *paths]))[:20]

    def ignore(self, field: str) -> None:
        """It is listed as well."""
        self.own_ignored.append(field)

    @property
    def open_ended(self) -> bool:
        """Is the length left open?"""
        return self.body.max_output_tokens is None

    def outline(self, session: str) -> Outline:
        """Of the whole conversation, the responses before included."""
        return self.chat.outline(session)

    @property
    def input_items(self) -> list[dict[str, Any]]:
        """This request's own input, as it is kept."""
        return [item.model_dump(exclude_unset=True, by_alias=True) for item in _own_items(self.body)]

    @property
    def shown(self) -> Shown:
        """Its images, under the caller's names."""
        return self.chat.shown.renamed(lambda path: _our_path(path, self.paths, self.box))

    async def request(self, card: ModelCard, prompts: PromptFormat, route: Route) -> JobRequest:
        """Render, encode and bound; with `truncation: auto` without the first items that do not fit.

        Raises ApiError, ContextTooLong, TemplateRefused.
        """
        try:
            return await self._fitting(card, prompts, route)
        except ApiError as error:
            raise _in_our_words(error, self.paths, self.box) from error

    def hosted(self, card: ModelCard, route: Route, asked_tokens: int) -> JobRequest:
        """For a provider's model; `truncation` is left to the provider. Raises ApiError."""
        try:
            return self._as_response(self.chat.hosted(card, route, asked_tokens))
        except ApiError as error:
            raise _in_our_words(error, self.paths, self.box) from error

    async def input_tokens(self, card: ModelCard, prompts: PromptFormat, route: Route) -> int:
        """How many tokens the model would read, whether they fit or not. Raises ApiError, TemplateRefused."""
        try:
            return (await self.request(card, prompts, route)).prompt_tokens
        except ContextTooLong as error:
            return error.prompt_tokens

    async def _fitting(self, card: ModelCard, prompts: PromptFormat, route: Route) -> JobRequest:
        try:
            return self._as_response(await self.chat.request(card, prompts, route))
        except ContextTooLong:
            if self.body.truncation != "auto":
                raise
        cuts = _cuts(self.chat.body.messages)
        low, high = 0, len(cuts) - 1  # the shortest one must do; halve what is between
        while low < high:
            middle = (low + high) // 2
            try:
                await self._cut(cuts[middle]).request(card, prompts, route)
                high = middle
            except ContextTooLong:
                low = middle + 1
        if not cuts:
            return self._as_response(await self.chat.request(card, prompts, route))
        return self._as_response(await self._cut(cuts[low]).request(card, prompts, route))

    def _cut(self, messages: Sequence[int]) -> ChatDraft:
        """The chat without all but these messages."""
        kept = [self.chat.body.messages[index] for index in messages]
        return replace(self.chat, body=self.chat.body.model_copy(update={"messages": kept}))

    def _as_response(self, made: JobRequest) -> JobRequest:
        body = self.body
        includes = body.include or ()
        note = replace(
            RenderingNote.of(made.rendering),
            obfuscation=bool(body.stream_options and body.stream_options.include_obfuscation),
            extras={
                "echo": _echo(body, made, self.box),
                "tools": {
                    tool.flat_name: {"type": tool.type, "name": tool.name, "namespace": tool.namespace}
                    for tool in self.box.offered
                },
                "seals": SEALED_THOUGHTS in includes,
            },
        )
        return replace(made, kind=RESPONSE_KIND, rendering=note.as_dict())


def response_draft(body: ResponseRequest, earlier: Sequence[Item] = ()) -> ResponseDraft:
    """Check a body against what this server can do. Raises ApiError by path."""
    ignored = without_effect(body)
    box = tool_box(body.tools or [])
    choice, callable_tools = chosen(body.tool_choice, box)
    offered = ToolBox(callable_tools)
    names = CallNames({(tool.namespace, tool.name): tool.flat_name for tool in box.offered if tool.namespace})
    made = _messages(body, earlier, names)
    if not made.messages:
        raise InvalidParameter("input", "There is nothing to answer: send input.")
    fields: dict[str, Any] = {
        **body.model_dump(exclude_unset=True, by_alias=True, exclude={*_NOT_CHATS, *(body.model_extra or {})}),
        "messages": made.messages,
        "stream": False,
        "max_completion_tokens": body.max_output_tokens,
        "tools": offered.chat_tools or None,
        "tool_choice": choice if offered.offered or choice not in ("none", "auto") else None,
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _format(body),
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "metadata": body.metadata,
        "chat_template_kwargs": body.chat_template_kwargs,
        "logprobs": True if LOGPROBS in (body.include or ()) else None,
        "top_logprobs": body.top_logprobs if LOGPROBS in (body.include or ()) else None,
    }
    try:
        chat = chat_draft(validated(ChatRequest, fields, ""))
    except ApiError as error:
        raise _in_our_words(error, made.paths, offered) from error
    return ResponseDraft(body, earlier, offered, chat, made.paths, [*ignored, *box.ignored])


def _own_items(body: ResponseRequest) -> list[Item]:
    if isinstance(body.input, str):
        return [Item.model_validate({"type": "message", "role": "user", "content": body.input})]
    return body.input or []


def _messages(body: ResponseRequest, earlier: Sequence[Item], names: CallNames) -> Messages:
    items = [("previous_response_id", item) for item in earlier]
    path = "input" if isinstance(body.input, str) else None
    items += [(path or f"input.{index}", item) for index, item in enumerate(_own_items(body))]
    return messages_of(body.instructions, items, names)


def _format(body: ResponseRequest) -> dict[str, Any] | None:
    """`text.format` as chat's `response_format`."""
    asked = body.text.format if body.text else None
    if asked is None:
        return None
    if asked.type != "json_schema":
        return {"type": asked.type}
    if asked.name is None or asked.schema_ is None:
        raise InvalidParameter("text.format", "type json_schema needs name and schema.")
    schema = {"name": asked.name, "schema": asked.schema_, "strict": asked.strict, "description": asked.description}
    return {"type": "json_schema", "json_schema": schema}


def _cuts(messages: Sequence[Any]) -> list[list[int]]:
    """Shorter and shorter conversations, as indices: the leading system message, and a user's turn up to the end."""
    lead = [0] if messages[0].role in ("system", "developer") else []
    starts = [index for index, message in enumerate(messages) if message.role == "user" and index > len(lead)]
    return [[*lead, *range(start, len(messages))] for start in starts]


def _echo(body: ResponseRequest, made: JobRequest, box: ToolBox) -> dict[str, Any]:
    """What a response repeats of its request, with the defaults in effect."""
    sampling = made.sampling
    sent = body.model_dump(exclude_unset=True, by_alias=True)
    return {
        "background": bool(body.background),
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "store": body.store is not False,
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"}} | sent.get("text", {}),
        "tool_choice": body.tool_choice or "auto",
        "tools": sent.get("tools") or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _in_our_words(error: ApiError, paths: Sequence[str], box: ToolBox) -> ApiError:
    """A refusal of the chat, with the path that the caller wrote."""
    if error.param is None:
        return error
    param = _our_path(error.param, paths, box)
    message = error.message.replace(repr(error.param), repr(param))
    return ApiError(error.status_code, message, kind=error.kind, param=param, code=error.code, headers=error.headers)


def _our_path(path: str, paths: Sequence[str], box: ToolBox) -> str:
    head, _, rest = path.partition(".")
    number, _, behind = rest.partition(".")
    if head == "messages" and number.isdigit() and int(number) < len(paths):
        return ".".join(filter(None, [paths[int(number)], behind]))
    if head == "tools" and number.isdigit() and int(number) < len(box.offered):
        if box.offered[int(number)].type == "custom" and behind.startswith("function."):
            return f"{box.offered[int(number)].path}.format"
        return ".".join(filter(None, [box.offered[int(number)].path, behind.removeprefix("function").lstrip(".")]))
    for chats, ours in _RENAMED.items():
        if path == chats or path.startswith(f"{chats}."):
            return ours + path.removeprefix(chats)
    return path
