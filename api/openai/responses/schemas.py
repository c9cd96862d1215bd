"""The body of /v1/responses: types and ranges of every field that has an effect; items and tools by their own types.

Fields that are not here are refused or ignored by name in `fields`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from api.openai.schemas import Body, Generation


def _text_or_list(value: Any) -> str:
    return "-text" if isinstance(value, str) else "-list"


def _name_or_object(value: Any) -> str:
    return "-name" if isinstance(value, str) else "-object"


class Part(Body):
    """A piece of a message's content or of a tool's output."""

    type: str
    text: str | None = None
    refusal: str | None = None


Content = Annotated[
    Annotated[str, Tag("-text")] | Annotated[list[Part], Tag("-list")],
    Discriminator(_text_or_list),
]


class Item(Body):
    """One item of a conversation; which fields it needs depends on its type (`message` where it has a role)."""

    type: str | None = None
    id: str | None = Field(None, max_length=256)
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    call_id: str | None = Field(None, max_length=256)
    name: str | None = Field(None, max_length=256)
    namespace: str | None = Field(None, max_length=256)
    arguments: str | None = None
    input: str | None = None
    output: Content | None = None
    summary: list[Part] | None = None
    encrypted_content: str | None = None
    status: str | None = None


class CustomFormat(Body):
    """What the input of a custom tool looks like: any text, or text of a grammar."""

    type: Literal["text", "grammar"]
    syntax: Literal["lark", "regex"] | None = None
    definition: str | None = None


class ToolDefinition(Body):
    """A tool of any type; `function`, `custom`, and `namespace` (a group of both) are offered to the model."""

    type: str
    name: str | None = Field(None, min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: CustomFormat | None = None
    tools: list[ToolDefinition] | None = None


class TextFormat(Body):
    """text, json_object, or json_schema with the fields of the schema."""

    type: str
    name: str | None = Field(None, min_length=1, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    """The form of the answer's text."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="Ignored, and listed.")


class Reasoning(Body):
    """How much the model thinks."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: str | None = Field(None, description="Ignored, and listed: thoughts are shown, not summed up.")


class ResponseRequest(Generation):
    """Body of POST /v1/responses; vLLM's extras are those of chat."""

    input: (
        Annotated[
            Annotated[str, Tag("-text")] | Annotated[list[Item], Tag("-list")],
            Discriminator(_text_or_list),
        ]
        | None
    ) = None
    instructions: str | None = None
    previous_response_id: str | None = Field(None, max_length=256)
    max_output_tokens: int | None = Field(None, ge=1)
    max_tool_calls: int | None = Field(None, ge=1, description="Counts hosted tools only: there are none.")
    tools: list[ToolDefinition] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("-name")] | Annotated[dict[str, Any], Tag("-object")],
            Discriminator(_name_or_object),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = Field(None, description="Default true: kept for as long as results are.")
    background: bool | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    prompt_cache_key: str | None = Field(None, max_length=1024, description="Ignored, and listed.")
    safety_identifier: str | None = Field(None, max_length=512, description="Repeated; no effect.")
    chat_template_kwargs: dict[str, Any] | None = None
