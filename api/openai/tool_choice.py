"""Which tools a request lets the model call, and whether it has to; pure."""

from __future__ import annotations

from typing import Any

from api.errors import InvalidParameter, Unsupported
from api.openai.argument_grammar import OfferedFunction
from api.openai.call_grammar import CallChoice
from api.openai.schemas import ChatRequest


def with_allowed_tools(body: ChatRequest) -> ChatRequest:
    """`tool_choice: allowed_tools` in simpler words: only these tools are offered, one may or must be called.

    Raises InvalidParameter for a tool that is not among the body's.
    """
    choice = body.tool_choice
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return body
    path = "tool_choice.allowed_tools"
    allowed = choice.get("allowed_tools")
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list) or not allowed["tools"]:
        raise InvalidParameter(path, "It needs a list 'tools' of the functions that may be called.")
    mode = allowed.get("mode", "auto")
    if mode not in ("auto", "required"):
        raise InvalidParameter(f"{path}.mode", "Known: auto, required.")
    names = [_name_of(tool, f"{path}.tools.{index}") for index, tool in enumerate(allowed["tools"])]
    tools = [tool for tool in body.tools or [] if tool.function is not None and tool.function.name in names]
    missing = set(names) - {tool.function.name for tool in tools if tool.function is not None}
    if missing:
        raise InvalidParameter(f"{path}.tools", f"No function {min(missing)!r} is among the tools.")
    return body.model_copy(update={"tools": tools, "tool_choice": mode})


def _name_of(tool: Any, path: str) -> str:
    """The function that an entry of a choice names."""
    asked = tool.get("function") if isinstance(tool, dict) else None
    name = asked.get("name") if isinstance(asked, dict) else None
    if not isinstance(name, str):
        raise InvalidParameter(f"{path}.function.name", "The function to be called needs a name.")
    return name


def call_choice(body: ChatRequest) -> CallChoice | None:
    """The functions that may be called. Raises ApiError for a choice that cannot be met."""
    tools = body.tools or []
    choice = body.tool_choice or "auto"
    if body.tool_choice not in (None, "none") and not tools:
        raise InvalidParameter("tool_choice", f"tool_choice: {choice} needs tools.")
    functions = [
        OfferedFunction(f"tools.{index}.function", tool.function)
        for index, tool in enumerate(tools)
        if tool.type == "function" and tool.function is not None
    ]
    if isinstance(choice, dict):
        functions = _named(choice, functions)
    elif choice == "required" and not functions:
        raise InvalidParameter("tool_choice", "tool_choice: required needs a tool of type function.")
    if choice == "none" or not functions:
        return None
    return CallChoice(functions, choice != "auto", isinstance(choice, dict) or body.parallel_tool_calls is False)


def _named(choice: dict[str, Any], functions: list[OfferedFunction]) -> list[OfferedFunction]:
    """The one function that a choice names."""
    if choice.get("type") != "function":
        raise Unsupported("tool_choice.type", "Known: function, allowed_tools.")
    name = _name_of(choice, "tool_choice")
    named = [function for function in functions if function.definition.name == name]
    if not named:
        raise InvalidParameter("tool_choice.function.name", f"No function {name!r} is among the tools.")
    return named[:1]
