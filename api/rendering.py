"""Putting a job's frames into its caller's protocol: what all protocols share.

A rendering can be rebuilt on any node from the job's own note and its frames from the first on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from api.errors import ApiError
from scheduler.frames import Chunk, End

TokenBytes = Callable[[int], bytes]
"""What one token id stands for."""

Event = dict[str, Any]
"""The data of one server-sent event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderingNote:
    """What a renderer must know besides the frames; travels in `JobRequest.rendering`.

    `think` and `call` are the markers around reasoning and, where tools were offered, around calls.
    `call_format` names how calls are written, and `argument_types` the JSON types of each function's arguments, where
    those are written without quotes.
    `prompt_tokens` and `choices` are here because a stored result has no prompts any more. `extras` are one protocol's.
    """

    created_s: int
    model: str
    choices: int
    prompt_tokens: int
    service_tier: str
    include_usage: bool = False
    continuous_usage: bool = False
    obfuscation: bool = False
    logprobs: bool = False
    think: tuple[str, str] | None = None
    in_thinking: bool = False
    call: tuple[str, str] | None = None
    single_call: bool = False
    call_format: str | None = None
    argument_types: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    echo: tuple[str, ...] = ()
    user: str | None = None
    metadata: dict[str, str] | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JobRequest.rendering."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @staticmethod
    def of(rendering: Mapping[str, Any]) -> RenderingNote:
        """Inverse of `as_dict`; fields of newer writers are ignored."""
        known = {each.name for each in fields(RenderingNote)}
        return RenderingNote(**{key: value for key, value in rendering.items() if key in known})


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of an answer: the farm's own, or those that a provider counted."""

    prompt_tokens: int
    output_tokens: int
    reasoning_tokens: int


def counted(note: RenderingNote, output_tokens: int, reasoning_tokens: int, end: End | None) -> Counts:
    """What was counted here, in place of which stands what a provider says at the `end`."""
    if end is None or not end.data.get("provider"):
        return Counts(note.prompt_tokens, output_tokens, reasoning_tokens)
    data = end.data
    return Counts(
        int(data.get("prompt_tokens") or note.prompt_tokens),
        int(data.get("output_tokens") or 0),
        int(data.get("reasoning_tokens") or 0),
    )


class Renderer(Protocol):
    """One job in one protocol. Feed every frame, in order, once."""

    @property
    def unparsed_calls(self) -> int:
        """Tool calls that were shown as text because they could not be read."""

    @property
    def dialect(self) -> Dialect:
        """How its events look on the wire."""

    def opening(self) -> Sequence[Event]:
        """The events before the first frame."""

    def step(self, chunks: Sequence[Chunk]) -> Sequence[Event]:
        """The events of one frame."""

    def closing(self, end: End) -> Sequence[Event]:
        """The events after the last frame of a finished job."""

    def failure(self, error: ApiError) -> Sequence[Event]:
        """The events that end a stream otherwise."""

    def whole(self, end: End) -> dict[str, Any]:
        """The body of an answer that is not streamed."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a protocol writes server-sent events. `named`: each has an `event:` line with its data's `type`.

    `done` ends a stream; `keep_alive` breaks a long silence.
    """

    named: bool
    done: bytes
    keep_alive: bytes
