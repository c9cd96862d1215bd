"""Fields without an effect: which are refused by name, which are ignored and listed; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from api.anthropic.errors import THREAD_UNSUPPORTED
from api.anthropic.schemas import MessagesRequest, Prompting, Tool
from api.errors import InvalidParameter, Unsupported

REFUSED: Mapping[str, str] = {
    "mcp_servers": "Connect the MCP server in the client, and offer its tools as custom tools.",
    "container": "There are no containers here; run code in the client, behind a custom tool.",
    "fallbacks": "Routing rules of this server say which model takes over.",
}
"""What would be missed if it were ignored."""

SILENT = frozenset({"cache_control"})
"""Accepted, and needed nowhere: every prefix is cached, wherever the marks stand."""

TOOL_SILENT = frozenset({"cache_control", "eager_input_streaming"})

_MOST_LISTED = 20
_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def ignored_fields(body: Prompting) -> list[str]:
    """Fields that change nothing, to be listed. Raises Unsupported for those that ask for what is not here."""
    extra = body.model_extra or {}
    if extra.get("thread"):
        message = "Conversations are not held here: send all of it, without 'thread'."
        raise InvalidParameter("thread", message, code=THREAD_UNSUPPORTED)
    for name, hint in REFUSED.items():
        if extra.get(name):
            raise Unsupported(name, hint)
    found = [name for name, value in extra.items() if name not in SILENT and name not in REFUSED and value is not None]
    found += _inner("output_config", body.output_config) + _inner("thinking", body.thinking)
    if isinstance(body, MessagesRequest):
        found += _inner("metadata", body.metadata)
    for index, tool in enumerate(body.tools or []):
        found += [name for name in _inner(f"tools.{index}", tool) if name.rpartition(".")[2] not in TOOL_SILENT]
    return listed(found)


def listed(paths: list[str]) -> list[str]:
    """As many as a header takes."""
    return [path for path in paths if _HEADER_SAFE.fullmatch(path)][:_MOST_LISTED]


def check_tool(tool: Tool, path: str) -> None:
    """Raises Unsupported for Anthropic's own tools, InvalidParameter for one without a schema."""
    if tool.type not in (None, "custom"):
        raise Unsupported(
            f"{path}.type",
            f"{tool.type!r} is a tool of Anthropic's servers or models; offer a custom tool with an input_schema.",
        )
    if tool.input_schema is None:
        raise InvalidParameter(f"{path}.input_schema", "A custom tool needs an 'input_schema'.")


def _inner(path: str, part: BaseModel | None) -> list[str]:
    extra: dict[str, Any] = (part.model_extra or {}) if part is not None else {}
    return [f"{path}.{name}" for name, value in extra.items() if value is not None]
