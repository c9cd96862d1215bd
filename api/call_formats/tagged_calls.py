"""Calls whose arguments stand between tags, each as text of its own: Qwen3-Coder, GLM, MiniMax and their kin; pure."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from api.call_formats.json_calls import parsed
from api.call_formats.parts import ArgumentTypes, CallPart, as_json_text
from api.call_formats.values import as_json

_CDATA = re.compile(r"\s*<!\[CDATA\[(.*?)\]\]>\s*", re.DOTALL)
_NAME = r"""["']?(?P<name>[^\s"'<>]+)["']?"""


@dataclass(frozen=True, slots=True)
class Tags:
    """How one format writes calls.

    `call` matches what begins one, `argument` what stands in front of a value (with a group `type` where the format
    tells it), `value_end` closes the value and `call_end` the call (None: the section's end does). `value_start` is
    a part of what `argument` matches. `trims`: white space around a value is not its own; else one line break is not.
    `may_quote`: a text may be written as JSON.
    """

    call: re.Pattern[str]
    argument: re.Pattern[str]
    value_start: str
    value_end: str
    call_end: re.Pattern[str] | None
    trims: bool = True
    may_quote: bool = False

    def in_value(self, text: str, at: int) -> bool | None:
        """Is a place inside a value? None: in one that has not been closed so far."""
        if text.rfind(self.value_start, 0, at) <= text.rfind(self.value_end, 0, at):
            return False
        closed, begun = text.find(self.value_end, at), text.find(self.value_start, at)
        if closed < 0 and begun < 0:
            return None
        return closed >= 0 and (begun < 0 or closed < begun)


def _keyed(prefix: str) -> Tags:
    """GLM's way, `name<arg_key>k</arg_key><arg_value>v</arg_value>`."""
    key = rf"\s*<{prefix}arg_key>\s*(?P<name>[^<]*?)\s*</{prefix}arg_key>(?:\\n|\s)*<{prefix}arg_value>"
    call = re.compile(rf"\s*(?P<name>[\w.:-]+)\s*(?=<{prefix}arg_key>|\Z)")
    return Tags(call, re.compile(key), f"<{prefix}arg_value>", f"</{prefix}arg_value>", None)


QWEN_CODER = Tags(
    re.compile(r"\s*<function=\s*(?P<name>[^\s<>]+)\s*>"),
    re.compile(r"\s*<parameter=\s*(?P<name>[^\s<>]+)\s*>"),
    "<parameter=",
    "</parameter>",
    re.compile(r"\s*</function>"),
    trims=False,
)
GLM = _keyed("")
LONGCAT = _keyed("longcat_")
MINIMAX = Tags(
    re.compile(rf"\s*<invoke\s+name={_NAME}\s*>"),
    re.compile(rf"\s*<parameter\s+name={_NAME}\s*>"),
    "<parameter name=",
    "</parameter>",
    re.compile(r"\s*</invoke>"),
)
MINICPM = Tags(
    re.compile(rf"\s*{_NAME}\s*>"),
    re.compile(rf"\s*<param\s+name\s*=\s*{_NAME}\s*>"),
    "<param name=",
    "</param>",
    None,
)
MUSE_SPARK = Tags(
    re.compile(r"\s*<atem:invoke\b[^>]*?\bname=\"(?P<name>[^\"]+)\"[^>]*>"),
    re.compile(r"\s*<atem:parameter\b[^>]*?\bname=\"(?P<name>[^\"]+)\"[^>]*>"),
    "<atem:parameter",
    "</atem:parameter>",
    re.compile(r"\s*</atem:invoke>"),
    may_quote=True,
)
KIMI_K3 = Tags(
    re.compile(r"\s*<\|open\|>call\s[^<]*?tool=\"(?P<name>[^\"]+)\"[^<]*<\|sep\|>"),
    re.compile(
        r"\s*<\|open\|>(?:argument\s[^<]*?key=\"(?P<name>[^\"]*)\"(?:[^<]*?type=\"(?P<type>\w+)\")?|json)[^<]*<\|sep\|>"
    ),
    "<|open|>argument",
    "<|close|>argument<|sep|>",
    re.compile(r"\s*<\|close\|>call<\|sep\|>"),
)
_JSON_END = "<|close|>json<|sep|>"


class TaggedCalls:
    """Implements CallReader: a call is told when its name is known, an argument when it is complete."""

    def __init__(self, tags: Tags, types: ArgumentTypes) -> None:
        self._tags = tags
        self._types = types
        self._at = 0
        self._sought = 0
        self._name: str | None = None
        self._arguments = 0
        self._calls = 0
        self.is_broken = False

    def read(self, inside: str, *, whole: bool) -> list[CallPart]:
        """See CallReader."""
        parts: list[CallPart] = []
        while part := self._begin(inside, whole) if self._name is None else self._go_on(inside):
            parts.append(part)
        if whole:
            rest = inside[self._at :].strip()
            if self._name is not None:
                self.is_broken = bool(rest) or self._tags.call_end is not None
                parts.append(self._end())
            self.is_broken = self.is_broken or bool(rest) or not self._calls
        return parts

    def _begin(self, inside: str, whole: bool) -> CallPart | None:
        head = self._tags.call.match(inside, self._at)
        if head is None or (head.end() == len(inside) and not whole and self._tags.call_end is None):
            return None  # a name at the end of the text may go on
        self._at, self._name = head.end(), html.unescape(head["name"])
        self._calls += 1
        self._arguments = 0
        return CallPart("{", self._name)

    def _go_on(self, inside: str) -> CallPart | None:
        """The next argument, or the end of the call; None: it has not come yet."""
        tags = self._tags
        head = tags.argument.match(inside, self._at)
        if head is None:
            end = tags.call_end.match(inside, self._at) if tags.call_end else None
            if end is None:
                return None
            self._at = end.end()
            return self._end()
        closing = tags.value_end if head["name"] is not None else _JSON_END
        at = inside.find(closing, max(head.end(), self._sought))
        if at < 0:
            self._sought = len(inside) - len(closing) + 1
            return None
        self._at = at + len(closing)
        return self._argument(head, inside[head.end() : at])

    def _argument(self, head: re.Match[str], text: str) -> CallPart:
        self._arguments += 1
        if head["name"] is None:  # all arguments as one object
            fields = parsed(text)
            self.is_broken = self.is_broken or not isinstance(fields, dict)
            written = as_json_text(fields if isinstance(fields, dict) else {})[1:-1]
            return CallPart(written if self._arguments == 1 or not written else f", {written}")
        name, told = html.unescape(head["name"]), head.groupdict().get("type")
        types = (told,) if told else self._types.get(self._name or "", {}).get(name, ())
        comma = ", " if self._arguments > 1 else ""
        value = as_json(self._text(text), types)
        return CallPart(f"{comma}{as_json_text(name)}: {value}")

    def _text(self, text: str) -> str:
        cdata = _CDATA.fullmatch(text)
        if cdata is not None:
            return cdata[1]
        text = text.strip() if self._tags.trims else text.removeprefix("\n").removesuffix("\n")
        quoted = parsed(text) if self._tags.may_quote else None
        return quoted if isinstance(quoted, str) else text

    def _end(self) -> CallPart:
        self._name = None
        return CallPart("}")
