"""Grammars of a model's tool calls, in the format that it was taught; pure.

Only what mlx-lm reads with `json_tools` (Hermes, Qwen) has one: `{"name": …, "arguments": …}` between two markers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.errors import InvalidParameter, Unsupported
from api.openai.guiding import Binding, anything_but, in_regex, marker, schema_grammar
from api.openai.schemas import FunctionDefinition
from scheduler.grammars import Grammar, GrammarKind, complaint, rule_of
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat

BOUND_FORMATS = ("json_tools",)


@dataclass(frozen=True, slots=True)
class OfferedFunction:
    """A function that may be called, and the path of its definition in the body."""

    path: str
    definition: FunctionDefinition


@dataclass(frozen=True, slots=True)
class CallChoice:
    """What the caller wants of calls: `forced` is the field that wants one at least; `single`: one at most."""

    functions: Sequence[OfferedFunction]
    forced: bool
    single: bool

    @property
    def has_strict(self) -> bool:
        """Must the arguments of some function fit its schema?"""
        return any(function.definition.strict for function in self.functions)


def can_bind_calls(card: ModelCard) -> bool:
    """Is there a grammar for this model's calls, and an engine that obeys it?"""
    known = card.tool_format in BOUND_FORMATS and card.tool_call_start and card.tool_call_end
    return bool(known) and card.obeys_grammars


def call_binding(
    choice: CallChoice,
    answer: Binding | None,
    card: ModelCard,
    prompts: PromptFormat,
    prompt: str,
    lead: Sequence[str],
) -> Binding:
    """The grammar of an answer that calls, or may call; `answer` binds what it says instead. Raises ApiError.

    `lead` are the rules of thoughts that come first.
    """
    param = "tool_choice" if choice.forced else answer.param if answer else "tools"
    if not can_bind_calls(card):
        why = f"Calls of {card.name!r} ({card.engine}, format {card.tool_format}) cannot be bound to a form"
        raise Unsupported(param, f"{why}; {', '.join(BOUND_FORMATS)} can be, on the paged engine.")
    assert card.tool_call_start is not None
    thoughts = ["lead"] if lead else []
    if choice.forced:
        rules = [_start(*thoughts, "calls"), *lead]
    elif answer is None:
        is_open = card.think_start is not None and prompt.rstrip().endswith(card.think_start)
        before = ["lead"] if is_open else []  # thoughts that may come are text like other text
        rules = [_start(*before, *_between(choice.single, card.tool_call_start, prompts)), *(lead if is_open else [])]
        rules += _free_text(card.tool_call_start, prompts)
    elif answer.grammar.kind is GrammarKind.LARK:
        raise Unsupported(answer.param, "Not together with tools.")
    else:
        rules = [_start(*thoughts, "(calls | answer)"), *lead, f"answer: {rule_of(answer.grammar)}"]
    return Binding(param, Grammar(GrammarKind.LARK, "\n".join([*rules, *_calls(choice, card, prompts)])))


def _start(*parts: str) -> str:
    return f"start: {' '.join(parts)}"


def _between(single: bool, opening: str, prompts: PromptFormat) -> list[str]:
    """Free text with calls in it; where the opening marker is text, `before` ends with it."""
    body = "before? call" if prompts.special_id(opening) is not None else "before rest_of_call"
    return [f"({body}){'?' if single else '*'}", "after?"]


def _free_text(opening: str, prompts: PromptFormat) -> list[str]:
    """Rules for text in front of calls and behind them, in which no call begins."""
    if prompts.special_id(opening) is not None:
        return [f"{part}: {anything_but(opening, prompts)}" for part in ("before", "after")]
    literal = in_regex(opening)
    text = f"AFTER: /(?s:.+)/ & ~/(?s:.*){literal}(?s:.*)/"
    return [f"before[lazy]: /(?s:.*){literal}/", "after: AFTER", text]


def _calls(choice: CallChoice, card: ModelCard, prompts: PromptFormat) -> list[str]:
    """Rules `calls` (one after the other), `call` and `rest_of_call` (behind the opening marker)."""
    assert card.tool_call_start is not None
    assert card.tool_call_end is not None
    many = "" if choice.single else ' ("\\n" call)*'
    kinds = " | ".join(f"call_{index}" for index in range(len(choice.functions)))
    rules = [
        f"calls: call{many}",
        f"call: {marker(card.tool_call_start, prompts)} rest_of_call",
        f'rest_of_call: "\\n" ({kinds}) "\\n" {marker(card.tool_call_end, prompts)}',
    ]
    for index, function in enumerate(choice.functions):
        name = json.dumps(function.definition.name, ensure_ascii=False)
        head = json.dumps(f'{{"name": {name}, "arguments": ', ensure_ascii=False)
        rules.append(f'call_{index}: {head} arguments_{index} "}}"')
        rules.append(f"arguments_{index}: {rule_of(_arguments(function))}")
    return rules


def _arguments(function: OfferedFunction) -> Grammar:
    """The schema of a function's arguments; any object where it is not strict and cannot be followed."""
    schema: dict[str, Any] = function.definition.parameters or {"properties": {}, "additionalProperties": False}
    grammar = schema_grammar({"type": "object"} | schema)
    trouble = complaint(grammar)
    if trouble is None:
        return grammar
    if function.definition.strict:
        raise InvalidParameter(f"{function.path}.parameters", f"{trouble}.")
    return Grammar(GrammarKind.JSON_OBJECT)
