"""Past tool calls as chat templates print them; pure."""

from __future__ import annotations

from typing import Any

from api.call_formats.json_calls import parsed


def arguments_for_template(arguments: str) -> Any:
    """A past call's arguments as the object that chat templates print; the text itself when it is no JSON."""
    value = parsed(arguments)
    return arguments if value is None else value
