"""The protocols that have batches."""

from __future__ import annotations

from collections.abc import Mapping

from api.anthropic.batch_lines import PROTOCOL as ANTHROPIC
from api.anthropic.batch_lines import MessageBatches
from api.batch_format import BatchFormat
from api.openai.batch_lines import PROTOCOL as OPENAI
from api.openai.batch_lines import OpenAIBatches

_FORMATS: Mapping[str, BatchFormat] = {OPENAI: OpenAIBatches(), ANTHROPIC: MessageBatches()}


def format_of(protocol: str) -> BatchFormat:
    """A batch's format. Raises KeyError for a protocol of another version of this server."""
    return _FORMATS[protocol]
