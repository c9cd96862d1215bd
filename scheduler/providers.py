"""What a provider is: a cloud backend of OpenAI's or Anthropic's protocol, its models and their prices; pure.

A provider's model is served under `<provider>/<model>`, which is also the name of its pool in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scheduler.errors import InvalidProvider
from scheduler.outbound import ForbiddenAddress, check_url

PER_MILLION = 1_000_000
NAME_PATTERN = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"

ProviderName = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$", description="In front of its models' names.")]
Price = Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False, description="US dollars per million tokens.")]


class Kind(StrEnum):
    """The protocol it speaks: chat completions, or messages."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUse:
    """Tokens as a provider counts them. `cached_tokens` and `cache_written_tokens` are parts of `prompt_tokens`,
    `reasoning_tokens` of `output_tokens`.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_written_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class ProviderModel(BaseModel):
    """A model of a provider. `name` is what the provider calls it; prices that are left out are not known (0).

    Without a price of their own cached tokens cost what other input does, and those written to a cache as well.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=190, pattern=r"^[!-~]+$")
    context_tokens: int = Field(128_000, ge=1, le=2**31, description="Prompt and answer together.")
    max_output_tokens: int = Field(8_192, ge=1, le=2**31, description="Asked for where a request leaves it open.")
    input_usd: Price = 0.0
    output_usd: Price = 0.0
    cached_usd: Price | None = None
    cache_written_usd: Price | None = None

    def cost_usd(self, use: TokenUse) -> float:
        """What an answer costs, in US dollars."""
        cached = self.input_usd if self.cached_usd is None else self.cached_usd
        written = self.input_usd if self.cache_written_usd is None else self.cache_written_usd
        plain_tokens = max(0, use.prompt_tokens - use.cached_tokens - use.cache_written_tokens)
        total = plain_tokens * self.input_usd + use.cached_tokens * cached + use.cache_written_tokens * written
        return round((total + use.output_tokens * self.output_usd) / PER_MILLION, 9)


class LengthField(StrEnum):
    """What OpenAI's protocol calls the longest answer: newer servers know the first name, older ones the second."""

    COMPLETION = "max_completion_tokens"
    PLAIN = "max_tokens"


class Provider(BaseModel):
    """One provider, without its key.

    `timeout_s` bounds a whole answer, `silence_s` the wait for its next byte; `concurrency` its requests at once, of
    one provider worker and one model. `base_url` is what `/chat/completions` or `/messages` is put behind.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: ProviderName
    kind: Annotated[Kind, Field(strict=False)]
    base_url: str
    models: Annotated[tuple[ProviderModel, ...], Field(strict=False, min_length=1, max_length=200)]
    timeout_s: float = Field(600.0, gt=0, le=86_400)
    silence_s: float = Field(120.0, gt=0, le=86_400)
    concurrency: int = Field(16, ge=1, le=1024)
    length_field: Annotated[LengthField, Field(strict=False)] = LengthField.COMPLETION

    @model_validator(mode="after")
    def _models_differ(self) -> Provider:
        names = [model.name for model in self.models]
        if len(names) != len(set(names)):
            raise ValueError("a model is named twice")
        return self

    def served_name(self, model: ProviderModel) -> str:
        """What clients and rules call a model of it."""
        return f"{self.name}/{model.name}"

    def url(self, path: str) -> str:
        """An endpoint of it."""
        return f"{self.base_url.rstrip('/')}/{path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptProvider:
    """A provider as the record has it; a disabled one serves nothing. Times are ms since 1970."""

    provider: Provider
    version: int
    enabled: bool
    cipher: bytes | None = field(repr=False)
    created_ms: int
    changed_ms: int
    key_changed_ms: int

    @property
    def name(self) -> str:
        """The provider's."""
        return self.provider.name


def check_address(provider: Provider, trusted: frozenset[str]) -> None:
    """Raises InvalidProvider for a base URL that is not connected to, as far as no name has to be resolved."""
    try:
        check_url(provider.base_url, trusted)
    except ForbiddenAddress as error:
        hint = "FARM_PROVIDER_HOSTS names host:port that may be reached all the same"
        raise InvalidProvider("base_url", f"{error} {hint}") from error
    if "?" in provider.base_url:
        raise InvalidProvider("base_url", "It has no query.")


def read_provider(said: Any) -> Provider:
    """A provider from what was kept of it. Raises InvalidProvider."""
    try:
        return Provider.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidProvider(".".join(map(str, first["loc"])), first["msg"]) from error


def total_use(uses: Sequence[TokenUse]) -> TokenUse:
    """Of several answers to one request."""
    names = TokenUse.__dataclass_fields__
    return TokenUse(**{name: sum(getattr(use, name) for use in uses) for name in names})
