"""A draft: a validated request of any protocol, before a model and its tokenizer are known."""

from __future__ import annotations

from typing import Protocol

from scheduler.jobs import Lane
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat
from scheduler.requests import JobRequest


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

    async def request(self, card: ModelCard, prompts: PromptFormat, lane: Lane) -> JobRequest:
        """The job's body. Raises ApiError, ContextTooLong, TemplateRefused."""
