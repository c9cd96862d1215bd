"""The bodies of /v1/chat/completions and /v1/completions: types and ranges of every field that has an effect.

Fields that are not here are refused or ignored by name in parameters.py. Types are strict: "5" is no number.
Tags of unions begin with "-", so that they can be left out of an error's path.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from scheduler.parameters import KeepAlive, MaxTokens, MinP, Penalty, RepetitionPenalty, Temperature, TopK, TopP

INT64 = 2**63


class Body(BaseModel):
    """Strict types; unknown fields are kept apart in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow")


def _text_or_list(value: Any) -> str:
    return "-text" if isinstance(value, str) else "-list"


def prompt_kind(value: Any) -> str:
    """Which of a prompt's four forms this is."""
    if isinstance(value, str):
        return "-text"
    first = value[0] if isinstance(value, list) and value else ""
    if isinstance(first, list):
        return "-token_lists"
    return "-texts" if isinstance(first, str) else "-tokens"


def _choice_kind(value: Any) -> str:
    return "-name" if isinstance(value, str) else "-object"


class ImageUrl(Body):
    """Where an image is: `data:image/png;base64,…`, or https:// where the operator allows it."""

    url: str
    detail: str | None = Field(None, description="Without effect: images are scaled as the model wants them.")


class ContentPart(Body):
    """One part of a message: text, or an image for a model that sees."""

    type: str
    text: str | None = None
    image_url: ImageUrl | None = None
    refusal: str | None = None


class FunctionCall(Body):
    """The function of a past tool call; `arguments` is JSON as text."""

    name: str = Field(min_length=1)
    arguments: str = ""


class ToolCallParam(Body):
    """A past tool call of the assistant."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[str, Tag("-text")] | Annotated[list[ContentPart], Tag("-list")], Discriminator(_text_or_list)
        ]
        | None
    ) = None
    name: str | None = None
    tool_calls: list[ToolCallParam] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = Field(None, description="Past reasoning, given back to the template.")
    reasoning: str | None = Field(None, description="Another name of reasoning_content.")
    refusal: str | None = None


class FunctionDefinition(Body):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Arguments obey the schema, where the call format has a grammar.")


class Tool(Body):
    """A tool offered to the model; types other than `function` are left out and listed in farm-ignored-params."""

    type: str
    function: FunctionDefinition | None = None


class JsonSchemaFormat(Body):
    """A JSON Schema for the answer; it binds whether `strict` or not."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """text, json_object, or json_schema."""

    type: str
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Body):
    """vLLM's: one of them binds the answer's form."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = Field(None, min_length=1)
    choice: list[Annotated[str, Field(min_length=1)]] | None = Field(None, min_length=1)
    grammar: str | None = Field(None, min_length=1, description="Lark, with a rule `start`.")
    json_object: bool | None = None


class StreamOptions(Body):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="Pad every chunk with random characters.")
    continuous_usage_stats: bool | None = Field(None, description="Usage so far in every chunk.")


Stop = Annotated[
    Annotated[str, Field(min_length=1), Tag("-text")]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16), Tag("-list")],
    Discriminator(_text_or_list),
]
TokenIds = list[Annotated[int, Field(ge=0)]]


class Urgency(Body):
    """What all endpoints have in common: which model is asked, by whom, and how soon."""

    model: str = Field(min_length=1, max_length=256)
    user: str | None = Field(None, max_length=512, description="Shown with the job.")
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    priority: int | None = Field(None, description="Below 0: lane high, above 0: lane low.")
    keep_alive: KeepAlive | None = Field(None, description="How long to keep the model after this; -1: for ever.")


class Generation(Urgency):
    """What both endpoints have in common: sampling, stopping, streaming, and vLLM's extras."""

    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: int | None = Field(None, ge=1, le=16)
    stop: Stop | None = None
    seed: int | None = Field(None, ge=-INT64, lt=INT64, description="A random one when absent.")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0)
    stop_token_ids: TokenIds | None = Field(None, max_length=64)
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = Field(None, min_length=1)
    guided_choice: list[Annotated[str, Field(min_length=1)]] | None = Field(None, min_length=1)
    guided_grammar: str | None = Field(None, min_length=1, description="Lark, with a rule `start`.")


class ChatRequest(Generation):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("-name")] | Annotated[dict[str, Any], Tag("-object")],
            Discriminator(_choice_kind),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call per answer.")
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Shown with the job.")
    store: bool | None = Field(None, description="Keep it for GET /v1/chat/completions/{id}.")
    thinking_token_budget: int | None = Field(None, ge=1, description="Most tokens of reasoning; then it must answer.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(None, description="Go on with the last (assistant) message.")


Prompt = Annotated[
    Annotated[str, Tag("-text")]
    | Annotated[list[str], Field(min_length=1, max_length=128), Tag("-texts")]
    | Annotated[TokenIds, Field(min_length=1), Tag("-tokens")]
    | Annotated[
        list[Annotated[TokenIds, Field(min_length=1)]], Field(min_length=1, max_length=128), Tag("-token_lists")
    ],
    Discriminator(prompt_kind),
]


class CompletionRequest(Generation):
    """Body of POST /v1/completions."""

    prompt: Prompt
    echo: bool | None = Field(None, description="Put the prompt in front of each answer.")
    best_of: int | None = Field(None, ge=1, le=16, description="Only as many as n.")
    logprobs: int | None = Field(None, ge=0, le=5)
