"""The bodies of /v1/embeddings, /v1/rerank and /v1/score: types and ranges of every field that has an effect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from api.openai.schemas import TokenIds, Urgency, prompt_kind

MAX_INPUTS = 2048
"""OpenAI's."""

MAX_DOCUMENTS = 10_000

Text = Annotated[str, Field(min_length=1)]
Input = Annotated[
    Annotated[Text, Tag("-text")]
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS), Tag("-texts")]
    | Annotated[TokenIds, Field(min_length=1), Tag("-tokens")]
    | Annotated[
        list[Annotated[TokenIds, Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS), Tag("-token_lists")
    ],
    Discriminator(prompt_kind),
]


def _text_or_object(value: Any) -> str:
    return "-text" if isinstance(value, str) else "-object"


def _text_or_list(value: Any) -> str:
    return "-text" if isinstance(value, str) else "-list"


class Shortening(Urgency):
    """What all three have in common: what becomes of an input that is too long."""

    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        description="Cut longer inputs to so many tokens; -1: to what the model takes. Default: refuse them.",
    )
    truncation_side: Literal["left", "right"] | None = Field(None, description="What is cut off; default right.")


class EmbeddingRequest(Shortening):
    """Body of POST /v1/embeddings."""

    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="Fewer numbers, of models that were trained for it.")


class TextDocument(BaseModel):
    """A document as an object."""

    model_config = ConfigDict(strict=True, extra="forbid")

    text: Text


Document = Annotated[
    Annotated[Text, Tag("-text")] | Annotated[TextDocument, Tag("-object")], Discriminator(_text_or_object)
]


class RerankRequest(Shortening):
    """Body of POST /v1/rerank."""

    query: Text
    documents: list[Document] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    top_n: int | None = Field(None, ge=1, description="How many of the best are told; default all.")
    return_documents: bool | None = Field(None, description="With their texts; default true.")
    max_tokens_per_doc: int | None = Field(None, ge=1, description="Of each document, the first so many tokens.")


Texts = Annotated[
    Annotated[Text, Tag("-text")] | Annotated[list[Text], Field(min_length=1, max_length=MAX_DOCUMENTS), Tag("-list")],
    Discriminator(_text_or_list),
]


class ScoreRequest(Shortening):
    """Body of POST /v1/score: one text against each of a list, or two lists of the same length pair by pair."""

    text_1: Texts
    text_2: Texts
