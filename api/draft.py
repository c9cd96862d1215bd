"""A draft: a validated request of any protocol, before a model and its tokenizer are known."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Protocol

import orjson

from api.errors import InvalidParameter
from api.images import Shown
from api.outline import Outline, outline_of
from scheduler.jobs import Lane
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat
from scheduler.requests import JobRequest
from scheduler.routing.choice import Route

DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ms|s|m|h)")
UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def keep_alive_s(given: float | str | None) -> float | None:
    """Ollama's: seconds, or a text such as 10m; what is negative means for ever (-1). Raises InvalidParameter."""
    if given is None:
        return None
    if isinstance(given, str):
        found = DURATION.fullmatch(given)
        if found is None:
            raise InvalidParameter("keep_alive", "It is a number of seconds, or a text such as '10m', '24h' or '-1s'.")
        given = float(found[1]) * UNIT_S[found[2]]
    return -1.0 if given < 0 else float(given)


class Draft(Protocol):
    """What submission needs of a request."""

    @property
    def kind(self) -> str:
        """The job's kind, such as chat.completions."""

    @property
    def model(self) -> str:
        """The model asked for."""

    @property
    def lane(self) -> Lane:
        """The lane asked for."""

    @property
    def streamed(self) -> bool:
        """Does the caller want server-sent events?"""

    @property
    def open_ended(self) -> bool:
        """Did the caller leave the answer's length open?"""

    @property
    def ignored(self) -> list[str]:
        """Fields that had no effect, for farm-ignored-params."""

    @property
    def body_hash(self) -> str:
        """The same for the same body, whatever the order of its keys."""

    @property
    def shown(self) -> Shown:
        """Its images, which have to be read before `request`."""

    @property
    def keep_alive_s(self) -> float | None:
        """How long to keep the model after this (-1: for ever); None: as usual. Raises InvalidParameter."""

    def ignore(self, field: str) -> None:
        """A field turned out to have no effect: it is listed as well."""

    def outline(self, session: str) -> Outline:
        """What routing rules look at; `session` is what a header said."""

    async def request(self, card: ModelCard, prompts: PromptFormat, route: Route) -> JobRequest:
        """The job's body, with the parameters that the route sets. Raises ApiError, ContextTooLong, TemplateRefused."""

    def hosted(self, card: ModelCard, route: Route, asked_tokens: int) -> JobRequest:
        """The same for a provider's model; `asked_tokens` is an estimate. Raises ApiError for what it cannot honour."""


class AskedBody(Protocol):
    """A validated body, whatever its protocol."""

    model: str

    def model_dump(self, *, exclude_unset: bool) -> dict[str, Any]:
        """The fields as plain values."""


class BodyDraft:
    """What drafts of all protocols read from their `body`; the base of classes that implement Draft."""

    __slots__ = ()
    kind: str
    body: AskedBody

    @property
    def model(self) -> str:
        """The model asked for."""
        return self.body.model

    @property
    def streamed(self) -> bool:
        """`stream`, where there is such a field."""
        return bool(getattr(self.body, "stream", False))

    @property
    def shown(self) -> Shown:
        """None, unless a protocol has images."""
        return Shown()

    def outline(self, session: str) -> Outline:
        """Of the whole body."""
        return outline_of(self.body, session)

    def hosted(self, card: ModelCard, route: Route, asked_tokens: int) -> JobRequest:
        """Only conversations go to providers: check_task has refused the others. Raises InvalidParameter."""
        raise InvalidParameter("model", f"{card.name!r} is a provider's model, which is asked in conversations only.")

    @property
    def keep_alive_s(self) -> float | None:
        """`keep_alive`, where there is such a field. Raises InvalidParameter."""
        return keep_alive_s(getattr(self.body, "keep_alive", None))

    @property
    def body_hash(self) -> str:
        """SHA-256 over the kind and the body with its keys in order."""
        content = {"kind": self.kind, "body": self.body.model_dump(exclude_unset=True)}
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
