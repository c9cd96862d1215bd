"""An answer in items while it grows, with the event of each step; pure.

What the items say in the end is a function of the whole text: where it is cut into parts makes no difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from api.openai.responses.conversation import sealed
from api.openai.responses.names import item_id
from api.reading import Part, PartKind, call_digest

Step = dict[str, Any]
"""An event that has no number yet."""

_INPUT_HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How the caller wants the items: tools by their name in the chat ({type, name, namespace}); sealed thoughts."""

    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seals: bool = False


class Items:
    """The output of one response. `items` are those that are done; `close` ends the last one."""

    def __init__(self, job_id: str, manner: Manner) -> None:
        self._job_id = job_id
        self._manner = manner
        self._open: _Text | _Call | None = None
        self.items: list[dict[str, Any]] = []

    def take(self, part: Part, logprobs: list[Any]) -> list[Step]:
        """The events of one part; `logprobs` are of its tokens."""
        steps: list[Step] = []
        if not self._goes_on(part):
            steps += self.close()
            self._open = self._begun(part)
            steps += self._open.opening()
        assert self._open is not None
        return steps + self._open.grow(part.text, logprobs)

    def close(self, *, whole: bool = True) -> list[Step]:
        """The end of the item that grows, if there is one; not `whole` where the answer was cut off in it."""
        if self._open is None:
            return []
        steps = self._open.closing("completed" if whole else "incomplete")
        self.items.append(self._open.item)
        self._open = None
        return steps

    def say_nothing(self) -> list[Step]:
        """An empty message, for an answer without any item."""
        return self.take(Part(PartKind.CONTENT, ""), []) + self.close()

    def _goes_on(self, part: Part) -> bool:
        if self._open is None or self._open.kind is not part.kind:
            return False
        return part.kind is not PartKind.CALL or part.name is None

    def _begun(self, part: Part) -> _Text | _Call:
        index = len(self.items)
        if part.kind is not PartKind.CALL:
            return _Text(self._job_id, index, part.kind, seals=self._manner.seals)
        name = part.name or ""
        tool = self._manner.tools.get(name, {"type": "function", "name": name})
        call_id = part.call_id or f"call_{call_digest(f'{self._job_id}:0', part.call)}"
        return _Call(self._job_id, index, call_id, tool)


class _Text:
    """A message or a reasoning item: one content part."""

    def __init__(self, job_id: str, index: int, kind: PartKind, *, seals: bool) -> None:
        self.kind = kind
        self._index = index
        self._texts: list[str] = []
        self._logprobs: list[Any] = []
        self._seals = seals and kind is PartKind.REASONING
        if kind is PartKind.CONTENT:
            self._word = "output_text"
            shape: dict[str, Any] = {"type": "message", "role": "assistant", "content": []}
        else:
            self._word = "reasoning_text"
            shape = {"type": "reasoning", "summary": [], "content": []}
        self.item = {"id": item_id(shape["type"], job_id, index), "status": "in_progress", **shape}
        self._at = {"item_id": self.item["id"], "output_index": index, "content_index": 0}

    def opening(self) -> list[Step]:
        """The item, then its part, both empty."""
        return [
            _added(self._index, self.item),
            {"type": "response.content_part.added", **self._at, "part": self._part()},
        ]

    def grow(self, text: str, logprobs: list[Any]) -> list[Step]:
        """More of its text."""
        if not text:
            return []
        self._texts.append(text)
        self._logprobs += logprobs
        more = {"logprobs": logprobs} if self.kind is PartKind.CONTENT else {}
        return [{"type": f"response.{self._word}.delta", **self._at, "delta": text, **more}]

    def closing(self, status: str) -> list[Step]:
        """Text, part and item are done."""
        part = self._part()
        self.item["content"] = [part]
        self.item["status"] = status
        if self._seals:
            self.item["encrypted_content"] = sealed(part["text"])
        more = {"logprobs": self._logprobs} if self.kind is PartKind.CONTENT else {}
        return [
            {"type": f"response.{self._word}.done", **self._at, "text": part["text"], **more},
            {"type": "response.content_part.done", **self._at, "part": part},
            _done(self._index, self.item),
        ]

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self._word, "text": "".join(self._texts)}
        if self.kind is PartKind.CONTENT:
            part |= {"annotations": [], "logprobs": list(self._logprobs)}
        return part


class _Call:
    """A call of a function, or of a custom tool, whose input is told at its end: it comes wrapped in JSON."""

    kind = PartKind.CALL

    def __init__(self, job_id: str, index: int, call_id: str, tool: Mapping[str, Any]) -> None:
        self._index = index
        self._texts: list[str] = []
        self._is_custom = tool["type"] == "custom"
        kind = "custom_tool_call" if self._is_custom else "function_call"
        self._field = "input" if self._is_custom else "arguments"
        self._word = "custom_tool_call_input" if self._is_custom else "function_call_arguments"
        namespace = {"namespace": tool["namespace"]} if tool.get("namespace") else {}
        self.item: dict[str, Any] = {
            "id": item_id(kind, job_id, index),
            "type": kind,
            "status": "in_progress",
            "call_id": call_id,
            "name": tool["name"],
            **namespace,
            self._field: "",
        }
        self._at = {"item_id": self.item["id"], "output_index": index}

    def opening(self) -> list[Step]:
        """The call without arguments."""
        return [_added(self._index, self.item)]

    def grow(self, text: str, _logprobs: list[Any]) -> list[Step]:
        """More of its arguments."""
        self._texts.append(text)
        if self._is_custom or not text:
            return []
        return [{"type": f"response.{self._word}.delta", **self._at, "delta": text}]

    def closing(self, status: str) -> list[Step]:
        """Arguments and call are done."""
        text = "".join(self._texts)
        steps: list[Step] = []
        if self._is_custom:
            text = input_of(text)
            if text:
                steps.append({"type": f"response.{self._word}.delta", **self._at, "delta": text})
        self.item[self._field] = text
        self.item["status"] = "completed" if is_json("".join(self._texts)) else status
        return [
            *steps,
            {"type": f"response.{self._word}.done", **self._at, self._field: text},
            _done(self._index, self.item),
        ]


def is_json(text: str) -> bool:
    """Is it whole?"""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def input_of(arguments: str) -> str:
    """The text in a custom tool's arguments, `{"input": …}`; what came of it where they were cut off."""
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        head = _INPUT_HEAD.match(arguments)
        return _unescaped(arguments[head.end() :]) if head else ""
    if isinstance(parsed, dict) and isinstance(parsed.get("input"), str):
        return str(parsed["input"])
    return arguments


def _unescaped(text: str) -> str:
    """The beginning of a JSON string, up to a half-written escape."""
    for cut in range(len(text), max(-1, len(text) - 13), -1):
        try:
            return str(json.loads(f'"{text[:cut]}"', strict=False))
        except ValueError:
            continue
    return ""


def _added(index: int, item: Mapping[str, Any]) -> Step:
    return {"type": "response.output_item.added", "output_index": index, "item": dict(item)}


def _done(index: int, item: Mapping[str, Any]) -> Step:
    return {"type": "response.output_item.done", "output_index": index, "item": dict(item)}
