"""The bodies of /v1/messages and /v1/messages/count_tokens: types and ranges of every field that has an effect.

Fields that are not here are refused or ignored by name in parameters.py. Types are strict, as in api/openai/schemas.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from scheduler.parameters import KeepAlive, Temperature, TopK, TopP


class Body(BaseModel):
    """Strict types; unknown fields are kept apart in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow")


def _text_or_list(value: Any) -> str:
    return "-text" if isinstance(value, str) else "-list"


class Block(Body):
    """A content block of any type; which fields a type needs is checked where it is read (blocks.py)."""

    type: str = Field(min_length=1)
    text: str | None = None
    source: dict[str, Any] | str | None = None
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | list[Any] | None = None
    content: Content | None = None
    tool_use_id: str | None = None
    is_error: bool | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    thinking: str | None = None
    signature: str | None = None


Content = Annotated[Annotated[str, Tag("-text")] | Annotated[list[Block], Tag("-list")], Discriminator(_text_or_list)]


class Message(Body):
    """One turn; `system` may stand anywhere."""

    role: Literal["user", "assistant", "system"]
    content: Content


class Tool(Body):
    """A tool of the caller's. Other types than `custom` are Anthropic's own, and refused by name."""

    type: str | None = None
    name: str = Field(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(Body):
    """auto, any, tool (with `name`) or none."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = Field(None, description="At most one call per answer.")


class Thinking(Body):
    """Whether the model reasons first. `display: omitted` keeps the text out of the answer; its signature has it."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: int | None = Field(None, ge=1, description="The most tokens of reasoning.")
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Body):
    """A JSON Schema that binds the answer's text."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """`effort` goes to templates that know it."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Body):
    """`user_id` is shown with the job."""

    user_id: str | None = Field(None, max_length=512)


class Prompting(Body):
    """What makes the prompt: all that counting needs."""

    model: str = Field(min_length=1, max_length=256)
    messages: list[Message] = Field(min_length=1, max_length=100_000)
    system: Content | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(None, description="An older name of output_config.format.")
    speed: Literal["standard", "fast"] | None = Field(None, description="fast: lane high.")


class CountRequest(Prompting):
    """Body of POST /v1/messages/count_tokens."""


StopSequence = Annotated[str, Field(min_length=1)]


class MessagesRequest(Prompting):
    """Body of POST /v1/messages."""

    max_tokens: int = Field(ge=0, description="0 fills the prefix cache and answers nothing.")
    stream: bool | None = None
    stop_sequences: list[StopSequence] | None = Field(None, max_length=16)
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: int | None = Field(None, description="Not Anthropic's. A random one when absent.")
    keep_alive: KeepAlive | None = Field(None, description="Not Anthropic's. How long to keep the model; -1: for ever.")
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
