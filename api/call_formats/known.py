"""The formats by name; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from api.call_formats.json_calls import (
    HERMES_HEAD,
    KIMI_HEAD,
    MISTRAL_HEAD,
    MISTRAL_LIST_HEAD,
    STRING,
    JsonCalls,
    is_in_string,
)
from api.call_formats.literal_calls import (
    PYTHON_STRING,
    LiteralCalls,
    gemma_calls,
    in_gemma_string,
    python_calls,
)
from api.call_formats.parts import ArgumentTypes, CallReader
from api.call_formats.tagged_calls import (
    GLM,
    KIMI_K3,
    LONGCAT,
    MINICPM,
    MINIMAX,
    MUSE_SPARK,
    QWEN_CODER,
    TaggedCalls,
    Tags,
)


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One way of writing calls.

    `in_value(inside, at)`: is this place inside a value, so that a closing marker there is part of it? None: perhaps,
    what follows will tell.
    `needs_types`: its values have no quotes, the schema tells what they are.
    """

    reader: Callable[[ArgumentTypes], CallReader]
    in_value: Callable[[str, int], bool | None]
    needs_types: bool = False


def _tagged(tags: Tags) -> CallFormat:
    return CallFormat(lambda types: TaggedCalls(tags, types), tags.in_value, needs_types=True)


_in_json = partial(is_in_string, STRING)
_in_python = partial(is_in_string, PYTHON_STRING)
_HERMES = CallFormat(lambda _: JsonCalls(HERMES_HEAD), _in_json)
_FORMATS: Mapping[str, CallFormat] = {
    "json_tools": _HERMES,
    "kimi_k2": CallFormat(lambda _: JsonCalls(KIMI_HEAD), _in_json),
    "mistral": CallFormat(lambda _: JsonCalls(MISTRAL_HEAD, MISTRAL_LIST_HEAD), _in_json),
    "qwen3_coder": _tagged(QWEN_CODER),
    "glm47": _tagged(GLM),
    "laguna": _tagged(GLM),
    "longcat": _tagged(LONGCAT),
    "minimax_m2": _tagged(MINIMAX),
    "minicpm5": _tagged(MINICPM),
    "muse_spark": _tagged(MUSE_SPARK),
    "kimi_k3": _tagged(KIMI_K3),
    "pythonic": CallFormat(lambda _: LiteralCalls(python_calls), _in_python),
    "gemma4": CallFormat(lambda _: LiteralCalls(gemma_calls('<|"|>')), in_gemma_string('<|"|>')),
    "function_gemma": CallFormat(lambda _: LiteralCalls(gemma_calls("<escape>")), in_gemma_string("<escape>")),
}


def known_formats() -> tuple[str, ...]:
    """Names of all formats that are read."""
    return tuple(_FORMATS)


def call_format(name: str | None) -> CallFormat:
    """A format by the name of mlx-lm's parser; one that nobody knows is read as JSON, else it is text."""
    return _FORMATS.get(name or "", _HERMES)
