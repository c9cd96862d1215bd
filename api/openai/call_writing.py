"""How models of each call format write calls, as Lark rules; what api/call_formats reads again; pure.

Formats are named as mlx-lm names its parsers. One is missing: Kimi K3's markers are several tokens each, of which
every other part of its answers is made as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from api.errors import InvalidParameter
from api.openai.argument_grammar import (
    RAW,
    Inexpressible,
    OfferedFunction,
    Value,
    bare_value,
    json_value,
    listed,
    parameters_of,
    whole_arguments,
)
from api.openai.gemma_grammar import QUOTE, anything_in_gemma, gemma_value
from api.openai.guiding import in_regex, marker
from scheduler.prompts import PromptFormat

LINE = "/\\n?/"
"""A line break that some templates of a format write and others do not."""

_WORD = "/[A-Za-z0-9_.-]+/"
_PLAIN_NAME = re.compile(r"[\w.-]+")

Parts = tuple[str, ...]
"""Text (with `{name}` or `{key}` in it) and LINEs."""

WriteCall = Callable[[OfferedFunction, str, PromptFormat], list[str]]
"""The rules of one function's calls, of which the first has the given name."""


@dataclass(frozen=True, slots=True)
class CallWriting:
    """What stands between a section's markers: `begin`, calls, `end`.

    `between` two calls of a section; None: a section holds one call, and `gap` stands between two sections.
    `shared` are rules that the calls use. `has_plain_text`: strings are written without JSON's quotes and escapes.
    """

    write: WriteCall
    begin: Parts = ()
    end: Parts = ()
    between: Parts | None = None
    gap: Parts = ()
    shared: Callable[[PromptFormat], list[str]] = lambda _: []
    has_plain_text: bool = False


@dataclass(frozen=True, slots=True)
class KeyedCall:
    """A call whose arguments are written one by one: `key` stands in front of a value, `close` behind it."""

    head: Parts
    key: Parts
    close: Parts
    tail: Parts
    value: Value
    separator: str = ""

    def write(self, function: OfferedFunction, rule: str, prompts: PromptFormat) -> list[str]:
        """See WriteCall."""
        name = _plain_name(function)
        try:
            arguments = self._arguments(function, f"{rule}_arguments", prompts)
        except Inexpressible as error:
            if function.definition.strict or function.texts:
                raise InvalidParameter(f"{function.path}.parameters", f"{error}.") from error
            arguments = self._any(f"{rule}_arguments", prompts)
        whole = (spelled(self.head, prompts, name=name), f"{rule}_arguments", spelled(self.tail, prompts))
        return [f"{rule}: {' '.join(filter(None, whole))}", *arguments]

    def _arguments(self, function: OfferedFunction, rule: str, prompts: PromptFormat) -> list[str]:
        items, rules = [], []
        for index, parameter in enumerate(parameters_of(function)):
            value, more = self.value(parameter.schema, parameter.root, f"{rule}_{index}")
            close = () if value == RAW else self.close
            key = spelled(self.key, prompts, key=parameter.name)
            items.append((f"{key} {value} {spelled(close, prompts)}", parameter.is_required))
            rules += more
        return [*listed(items, rule, self.separator), *rules]

    def _any(self, rule: str, prompts: PromptFormat) -> list[str]:
        """Any arguments: the schema cannot be followed, and need not be."""
        value, more = self.value({}, {}, f"{rule}_any")
        one = f"{spelled(self.key, prompts)} {value} {spelled(() if value == RAW else self.close, prompts)}"
        between = f"{marker(self.separator, prompts)} " if self.separator else ""
        return [f"{rule}: ({rule}_one ({between}{rule}_one)*)?", f"{rule}_one: {one}", *more]


def spelled(parts: Parts, prompts: PromptFormat, *, name: str = "", key: str | None = None) -> str:
    """Parts in Lark; no `key`: any word."""
    spelt = []
    for part in parts:
        text = part.replace("{name}", name)
        if part == LINE or not text:
            spelt += [part] if part else []
        elif "{key}" in text and key is None:
            before, _, after = text.partition("{key}")
            spelt += [marker(before, prompts), _WORD, marker(after, prompts)]
        else:
            spelt.append(marker(text.replace("{key}", key or ""), prompts))
    return " ".join(filter(None, spelt))


def _plain_name(function: OfferedFunction) -> str:
    name = function.definition.name
    if not _PLAIN_NAME.fullmatch(name):
        raise InvalidParameter(f"{function.path}.name", "This model's calls take letters, digits and any of _.- only.")
    return name


def _named_call(function: OfferedFunction, rule: str, prompts: PromptFormat) -> list[str]:
    """`{"name": …, "arguments": …}`."""
    name = json.dumps(function.definition.name, ensure_ascii=False)
    head = json.dumps(f'{{"name": {name}, "arguments": ', ensure_ascii=False)
    return [f'{rule}: {head} {rule}_arguments "}}"', f"{rule}_arguments: {whole_arguments(function)}"]


def _headed_call(
    parts: Parts, tail: Parts, number: str, function: OfferedFunction, rule: str, prompts: PromptFormat
) -> list[str]:
    """A name, perhaps a call's number, and an object; `parts` are what stands before and behind the number."""
    before, after = (spelled((part,), prompts, name=_plain_name(function)) for part in parts)
    whole = (before, number, after, f"{rule}_arguments", spelled(tail, prompts))
    return [f"{rule}: {' '.join(filter(None, whole))}", f"{rule}_arguments: {whole_arguments(function)}"]


def _raw(close: str, behind: Parts, prompts: PromptFormat) -> list[str]:
    """Text without quotes, up to `close`; `behind` is what follows that."""
    rest = spelled(behind, prompts)
    if prompts.special_id(close) is not None:
        return [f"{RAW}: /(?s:.*)/ {marker(close, prompts)} {rest}"]
    return [f"{RAW}: raw_text {rest}", f"raw_text[lazy]: /(?s:.*){in_regex(close)}/"]


def _bare(head: Parts, key: Parts, close: Parts, behind: Parts, tail: Parts) -> CallWriting:
    """Arguments without quotes; `close` (with white space around it that is not the value's) ends a value."""
    tag = close[-1]
    call = KeyedCall(head, key, (*close, *behind), tail, partial(bare_value, tag))
    return CallWriting(call.write, shared=partial(_raw, tag, behind), has_plain_text=True)


def _keyed(prefix: str) -> CallWriting:
    """GLM's way."""
    key = ("<" + prefix + "arg_key>{key}</" + prefix + "arg_key>", LINE, f"<{prefix}arg_value>")
    writing = _bare(("{name}", LINE), key, (f"</{prefix}arg_value>",), (LINE,), ())
    return replace(writing, gap=(LINE,))


def _gemma(quote: str) -> CallWriting:
    call = KeyedCall(("call:{name}{",), ("{key}:",), (), ("}",), gemma_value, separator=",")

    def shared(prompts: PromptFormat) -> list[str]:
        return [f"{QUOTE}: {marker(quote, prompts)}", *_raw(quote, (), prompts), *anything_in_gemma()]

    return CallWriting(call.write, shared=shared, has_plain_text=True)


_HERMES = CallWriting(_named_call, ("\n",), ("\n",), gap=("\n",))
_MISTRAL = CallWriting(partial(_headed_call, ("{name}", "[ARGS]"), (), ""), between=("[TOOL_CALLS]",))
_MISTRAL_LIST = CallWriting(_named_call, ("[",), ("]",), between=(", ",))
_KIMI = partial(
    _headed_call,
    ("<|tool_call_begin|>functions.{name}:", "<|tool_call_argument_begin|>"),
    ("<|tool_call_end|>",),
    "/[0-9]{1,3}/",
)
_PYTHON = KeyedCall(("{name}(",), ("{key}=",), (), (")",), json_value, separator=", ")
_MUSE = KeyedCall(
    ('<atem:invoke name="{name}">\n',),
    ('<atem:parameter name="{key}">',),
    ("</atem:parameter>\n",),
    ("</atem:invoke>\n",),
    json_value,
)
_QWEN = _bare(("<function={name}>\n",), ("<parameter={key}>\n",), ("\n", "</parameter>"), ("\n",), ("</function>",))
_MINIMAX = _bare(
    ('<invoke name="{name}">\n',), ('<parameter name="{key}">',), ("</parameter>",), ("\n",), ("</invoke>\n",)
)
_MINICPM = _bare(('"{name}">',), ('<param name="{key}">',), ("</param>",), (), ())
_GLM = _keyed("")
_WRITINGS: Mapping[str, CallWriting] = {
    "json_tools": _HERMES,
    "kimi_k2": CallWriting(_KIMI, between=()),
    "qwen3_coder": replace(_QWEN, begin=("\n",), end=("\n",), gap=("\n",)),
    "glm47": _GLM,
    "laguna": _GLM,
    "longcat": _keyed("longcat_"),
    "minimax_m2": replace(_MINIMAX, begin=("\n",), between=()),
    "minicpm5": replace(_MINICPM, gap=(LINE,)),
    "muse_spark": CallWriting(_MUSE.write, begin=("\n",), between=()),
    "pythonic": CallWriting(_PYTHON.write, begin=("[",), end=("]",), between=(", ",)),
    "gemma4": _gemma('<|"|>'),
    "function_gemma": _gemma("<escape>"),
}
BOUND_FORMATS = (*_WRITINGS, "mistral")


def call_writing(name: str, prompts: PromptFormat) -> CallWriting:
    """How a format of BOUND_FORMATS writes; Mistral's models before [ARGS] write lists."""
    if name == "mistral":
        return _MISTRAL if prompts.special_id("[ARGS]") is not None else _MISTRAL_LIST
    return _WRITINGS[name]
