"""A request for a message as a draft: said in a chat's words, so that both protocols mean the same by them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from api.anthropic.conversation import Conversation, Turn, field_of
from api.anthropic.note import MESSAGES_KIND, Display, MessagesNote
from api.anthropic.parameters import check_tool, ignored_fields, listed
from api.anthropic.schemas import MessagesRequest, OutputFormat
from api.anthropic.systems import placed
from api.draft import BodyDraft
from api.errors import ApiError, InvalidParameter
from api.images import Shown
from api.openai.chat import ChatDraft, chat_draft
from api.openai.schemas import ChatRequest
from api.openai.schemas import Message as ChatMessage
from scheduler.errors import ContextTooLong
from scheduler.jobs import Lane
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat
from scheduler.requests import JobRequest
from scheduler.routing.choice import Route

_FIELDS = (
    ("response_format", "output_config.format.schema"),
    ("tool_choice.function.name", "tool_choice.name"),
    ("continue_final_message", "messages"),
    ("reasoning_effort", "output_config.effort"),
    ("stop", "stop_sequences"),
)
"""The chat's fields, and whose words they are."""

_EFFORTS = {"xhigh": "high", "max": "high"}
"""Templates know three."""


@dataclass(frozen=True, slots=True)
class MessagesDraft(BodyDraft):
    """Implements Draft."""

    body: MessagesRequest
    conversation: Conversation
    chat: ChatDraft
    own_ignored: list[str]
    kind: str = MESSAGES_KIND
    open_ended: bool = False  # `max_tokens` is required

    @property
    def lane(self) -> Lane:
        """`speed: fast` asks for the high one."""
        return Lane.HIGH if self.body.speed == "fast" else Lane.NORMAL

    @property
    def ignored(self) -> list[str]:
        """What had no effect; more is known once there is a request."""
        return listed([*self.own_ignored, *(_own_field(path, ()) for path in self.chat.ignored)])

    def ignore(self, field: str) -> None:
        """It is listed as well."""
        self.own_ignored.append(field)

    @property
    def shown(self) -> Shown:
        """Its images, under the caller's names."""
        return self.chat.shown.renamed(lambda path: _own_field(path, self.conversation.turns))

    async def request(self, card: ModelCard, prompts: PromptFormat, route: Route) -> JobRequest:
        """Render, encode and bound. Raises ApiError, TemplateRefused."""
        try:
            return await self.job(card, prompts, route)
        except ContextTooLong as error:
            raise prompt_too_long(error) from error

    def hosted(self, card: ModelCard, route: Route, asked_tokens: int) -> JobRequest:
        """For a provider's model; what is said of thinking goes on as it is. Raises ApiError."""
        effort = self.body.output_config.effort if self.body.output_config else None
        update: dict[str, Any] = {"max_completion_tokens": self.body.max_tokens or 1, "reasoning_effort": effort}
        thinking = None
        if self.body.thinking is not None and self.thinks and card.provider == "anthropic":
            thinking = self.body.thinking.model_dump(include={"type", "budget_tokens"}, exclude_none=True)
        elif self.thinks and effort is None:
            self.own_ignored.append("thinking")
        chat = replace(self.chat, body=self.chat.body.model_copy(update=update))
        try:
            job = chat.hosted(card, route, asked_tokens, thinking or {"type": "disabled"})
        except ApiError as error:
            raise _in_own_words(error, self.conversation.turns) from error
        note = MessagesNote(display=self._display(), silent=not self.body.max_tokens)
        return replace(job, kind=MESSAGES_KIND, rendering=job.rendering | {"extras": note.as_dict()})

    async def job(self, card: ModelCard, prompts: PromptFormat, route: Route) -> JobRequest:
        """The job's body; `max_tokens` is what the context has room for. Raises ApiError, TemplateRefused,
        ContextTooLong for a prompt that leaves no room.
        """
        turns = placed(self.conversation.turns, prompts)
        messages = [ChatMessage.model_validate(turn.message()) for turn in turns]
        update: dict[str, Any] = {"messages": messages, "chat_template_kwargs": self._variables(card)}
        update["thinking_token_budget"] = self._budget(card, prompts)
        chat = replace(self.chat, body=self.chat.body.model_copy(update=update))
        try:
            job = await chat.request(card, prompts, route)
        except ApiError as error:
            raise _in_own_words(error, turns) from error
        room = job.stopping.max_tokens
        max_tokens = min(self.body.max_tokens or 1, room)
        by_context = max_tokens < self.body.max_tokens and max_tokens != route.overrides.max_tokens
        note = MessagesNote(display=self._display(), context_bound=by_context, silent=not self.body.max_tokens)
        return replace(
            job,
            kind=MESSAGES_KIND,
            stopping=replace(job.stopping, max_tokens=max_tokens),
            rendering=job.rendering | {"extras": note.as_dict()},
        )

    @property
    def thinks(self) -> bool:
        """Is the model asked to reason first?"""
        thinking = self.body.thinking
        if thinking is None or thinking.type == "disabled":
            return False
        return thinking.type != "between_tools" or self.conversation.turns[-1].role == "tool"

    def _variables(self, card: ModelCard) -> dict[str, Any]:
        """Template variables; what the template has no use for is listed as ignored."""
        template = card.chat_template or ""
        effort = self.body.output_config.effort if self.body.output_config else None
        takes_effort = "reasoning_effort" in template
        variables: dict[str, Any] = {}
        if card.think_start is not None:
            variables["enable_thinking"] = self.thinks
        elif self.thinks and not takes_effort:
            self.own_ignored.append("thinking")
        if effort is not None and takes_effort:
            variables["reasoning_effort"] = _EFFORTS.get(effort, effort)
        elif effort is not None:
            self.own_ignored.append("output_config.effort")
        return variables

    def _budget(self, card: ModelCard, prompts: PromptFormat) -> int | None:
        """The most tokens of reasoning; listed as ignored where they cannot be bounded, or calls must stay free."""
        budget = self.body.thinking.budget_tokens if self.body.thinking and self.thinks else None
        if budget is None:
            return None
        can_end = card.obeys_grammars and card.think_end is not None and prompts.special_id(card.think_end) is not None
        if not can_end or (self.chat.calls is not None and not self.chat.calls.forced):
            self.own_ignored.append("thinking.budget_tokens")
            return None
        return budget

    def _display(self) -> Display:
        if not self.thinks or self.body.thinking is None:
            return Display.HIDDEN
        return Display.OMITTED if self.body.thinking.display == "omitted" else Display.SHOWN


def messages_draft(body: MessagesRequest) -> MessagesDraft:
    """Check a body against what this server can do. Raises ApiError by path."""
    ignored = ignored_fields(body)
    for index, tool in enumerate(body.tools or []):
        check_tool(tool, f"tools.{index}")
    conversation = Conversation(body.system, body.messages)
    turns = conversation.turns
    try:
        chat = chat_draft(ChatRequest.model_validate(_chat_body(body, conversation)))
    except ApiError as error:
        raise _in_own_words(error, turns) from error
    return MessagesDraft(body, conversation, chat, ignored + conversation.ignored)


def prompt_too_long(error: ContextTooLong) -> ApiError:
    """Agents compact their conversation when they read these words."""
    message = f"prompt is too long: {error.prompt_tokens} tokens > {error.context_tokens - 1} maximum"
    return ApiError(400, message, param="messages", code="context_length_exceeded")


def _chat_body(body: MessagesRequest, conversation: Conversation) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": body.model,
        "messages": [turn.message() for turn in conversation.turns],
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "seed": body.seed,
        "stream": body.stream,
        "user": body.metadata.user_id if body.metadata else None,
        "response_format": _format(body),
        "continue_final_message": conversation.prefilled or None,
        **_tools(body),
    }
    return {name: value for name, value in asked.items() if value is not None}


def _format(body: MessagesRequest) -> dict[str, Any] | None:
    config = body.output_config
    asked: OutputFormat | None = (config.format if config else None) or body.output_format
    if asked is None:
        return None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": asked.schema_}}


def _tools(body: MessagesRequest) -> dict[str, Any]:
    """Tools and the choice among them."""
    choice = body.tool_choice
    asked: dict[str, Any] = {}
    if body.tools:
        asked["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    **({} if tool.description is None else {"description": tool.description}),
                    "parameters": tool.input_schema,
                    "strict": tool.strict,
                },
            }
            for tool in body.tools
        ]
    if choice is None:
        return asked
    if choice.type == "tool" and not choice.name:
        raise InvalidParameter("tool_choice.name", "tool_choice of type 'tool' needs the name of a tool.")
    names: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
    named = {"type": "function", "function": {"name": choice.name}}
    asked["tool_choice"] = names.get(choice.type, named)
    if choice.type == "auto" and not body.tools:
        del asked["tool_choice"]
    if choice.disable_parallel_tool_use:
        asked["parallel_tool_calls"] = False
    return asked


def _in_own_words(error: ApiError, turns: list[Turn]) -> ApiError:
    """A chat's refusal with the caller's names of the fields."""
    if error.param is None:
        return error
    own = _own_field(error.param, turns)
    message = error.message.replace(repr(error.param), repr(own))
    return ApiError(error.status_code, message, kind=error.kind, param=own, code=error.code, headers=error.headers)


def _own_field(param: str, turns: list[Turn] | tuple[()]) -> str:
    if param.startswith("messages."):
        return field_of(turns, param)
    if param.startswith("tools."):
        return param.replace(".function", "", 1).replace(".parameters", ".input_schema", 1)
    return next((own for field, own in _FIELDS if param == field or param.startswith(f"{field}.")), param)
