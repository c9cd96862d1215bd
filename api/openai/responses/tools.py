"""Tools and tool choices of the Responses API in chat's words: custom tools and namespaces become functions; pure.

A custom tool is a function with one text, `input`. A regex binds it as a JSON Schema pattern does, a Lark grammar as
our `x-lark` does: the model sees it, and obeys it where its calls write text without JSON's quotes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.errors import InvalidParameter, Unsupported
from api.openai.lark_grammar import LARK
from api.openai.responses.schemas import ToolDefinition
from scheduler.grammars import Grammar, GrammarKind, complaint, rule_of

SENT_BY_DEFAULT = frozenset({"web_search", "web_search_preview", "tool_search", "image_generation", "local_shell"})
"""Hosted tools that agents offer unasked: left out and listed, so that they can work at all."""

HOSTED = frozenset(
    {
        "file_search",
        "computer",
        "computer_use_preview",
        "code_interpreter",
        "mcp",
        "shell",
        "apply_patch",
        "programmatic_tool_calling",
    }
)


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool as the model sees it: `function` in the words of chat, its path in the body, what the caller calls it."""

    path: str
    type: str
    name: str
    namespace: str | None
    function: Mapping[str, Any]

    @property
    def flat_name(self) -> str:
        """Its name in the chat."""
        return str(self.function["name"])


@dataclass(slots=True)
class ToolBox:
    """The tools of a request, and the paths of those without effect."""

    offered: list[Offered] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def chat_tools(self) -> list[dict[str, Any]]:
        """For a chat's `tools`."""
        return [{"type": "function", "function": dict(tool.function)} for tool in self.offered]


def tool_box(tools: Sequence[ToolDefinition], path: str = "tools", namespace: str | None = None) -> ToolBox:
    """Read tools. Raises ApiError by path for hosted ones that somebody must have wanted."""
    box = ToolBox()
    for index, tool in enumerate(tools):
        at = f"{path}.{index}"
        match tool.type:
            case "function" | "custom":
                box.offered.append(_offered(tool, at, namespace))
            case "namespace" if namespace is None:
                if not tool.name:
                    raise InvalidParameter(f"{at}.name", "A namespace needs a name.")
                inner = tool_box(tool.tools or [], f"{at}.tools", tool.name)
                box.offered += inner.offered
                box.ignored += inner.ignored
            case kind if kind in HOSTED:
                raise Unsupported(f"{at}.type", f"There is no hosted tool {kind!r} here; offer a function of your own.")
            case _:
                box.ignored.append(at)
    return box


def _offered(tool: ToolDefinition, path: str, namespace: str | None) -> Offered:
    if not tool.name:
        raise InvalidParameter(f"{path}.name", f"A {tool.type} tool needs a name.")
    function: dict[str, Any] = {"name": f"{namespace}__{tool.name}" if namespace else tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.type == "custom":
        function |= _custom(tool, path)
    else:
        function |= {"parameters": tool.parameters} if tool.parameters is not None else {}
        function |= {"strict": tool.strict} if tool.strict is not None else {}
    return Offered(path, tool.type, tool.name, namespace, function)


def _custom(tool: ToolDefinition, path: str) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string", "description": "The whole input, as plain text."}
    made: dict[str, Any] = {}
    asked = tool.format
    if asked is not None and asked.type == "grammar":
        if not asked.definition or asked.syntax is None:
            raise InvalidParameter(f"{path}.format", "A grammar needs a syntax (lark, regex) and a definition.")
        grammar = Grammar(GrammarKind(asked.syntax), asked.definition)
        trouble = complaint(grammar)
        if trouble is not None:
            raise InvalidParameter(f"{path}.format.definition", f"{trouble}.")
        if grammar.kind is GrammarKind.REGEX:
            made["strict"] = True
            text |= {"pattern": f"^({grammar.text})$", LARK: f"start: {rule_of(grammar)}"}
        else:
            text |= {"description": "The whole input, as plain text of a Lark grammar.", LARK: grammar.text}
    schema = {"type": "object", "properties": {"input": text}, "required": ["input"], "additionalProperties": False}
    return {**made, "parameters": schema}


def chosen(choice: str | Mapping[str, Any] | None, box: ToolBox) -> tuple[Any, list[Offered]]:
    """Chat's `tool_choice`, and the tools that may be called. Raises ApiError by path."""
    if choice is None or isinstance(choice, str):
        return choice, box.offered
    match choice.get("type"):
        case "function" | "custom":
            tool = _named(choice, "tool_choice", box)
            return {"type": "function", "function": {"name": tool.flat_name}}, box.offered
        case "allowed_tools":
            return _allowed(choice, box)
        case kind:
            raise Unsupported(
                "tool_choice.type", f"{kind!r} is no tool of yours; known: function, custom, allowed_tools."
            )


def _allowed(choice: Mapping[str, Any], box: ToolBox) -> tuple[Any, list[Offered]]:
    mode, tools = choice.get("mode"), choice.get("tools")
    if mode not in ("auto", "required"):
        raise InvalidParameter("tool_choice.mode", "It is auto or required.")
    if not isinstance(tools, list) or not tools or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidParameter("tool_choice.tools", "It is a list of tools, such as {type: function, name: …}.")
    return mode, [_named(tool, f"tool_choice.tools.{index}", box) for index, tool in enumerate(tools)]


def _named(wanted: Mapping[str, Any], path: str, box: ToolBox) -> Offered:
    """The tool that a choice names."""
    named = [tool for tool in box.offered if (tool.type, tool.name) == (wanted.get("type"), wanted.get("name"))]
    if not named:
        raise InvalidParameter(f"{path}.name", f"No {wanted.get('type')} {wanted.get('name')!r} is among the tools.")
    return named[0]
