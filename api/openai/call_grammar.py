"""Grammars of answers that call tools, or may, in the format that the model was taught; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from api.errors import Unsupported
from api.openai.argument_grammar import OfferedFunction
from api.openai.call_writing import BOUND_FORMATS, call_writing, spelled
from api.openai.guiding import Binding, anything_but, in_regex, marker
from api.openai.lark_grammar import LARK
from scheduler.grammars import Grammar, GrammarKind, rule_of
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat


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

    @property
    def texts(self) -> int:
        """How many arguments are text of a Lark grammar."""
        return sum(len(function.texts) for function in self.functions)


def can_bind_calls(card: ModelCard) -> bool:
    """Is there a grammar for this model's calls, and an engine that obeys it?"""
    known = card.tool_format in BOUND_FORMATS and card.tool_call_start and card.tool_call_end is not None
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
        rules = [_start(*before, *_between(choice.single, card, prompts)), *(lead if is_open else [])]
        rules += _free_text(card.tool_call_start, prompts)
    elif answer.grammar.kind is GrammarKind.LARK:
        raise Unsupported(answer.param, "Not together with tools.")
    else:
        rules = [_start(*thoughts, "(calls | answer)"), *lead, f"answer: {rule_of(answer.grammar)}"]
    return Binding(param, Grammar(GrammarKind.LARK, "\n".join([*rules, *_calls(choice, card, prompts)])))


def _start(*parts: str) -> str:
    return f"start: {' '.join(parts)}"


def _between(single: bool, card: ModelCard, prompts: PromptFormat) -> list[str]:
    """Free text with calls in it; where the opening marker is text, `before` ends with it."""
    opening = card.tool_call_start or ""
    body = "before? call" if prompts.special_id(opening) is not None else "before rest_of_call"
    if not card.tool_call_end:  # what begins with a call ends with the text
        return [f"(after | {body})?"]
    return [f"({body}){'?' if single else '*'}", "after?"]


def _free_text(opening: str, prompts: PromptFormat) -> list[str]:
    """Rules for text in front of calls and behind them, in which no call begins."""
    if prompts.special_id(opening) is not None:
        return [f"{part}: {anything_but(opening, prompts)}" for part in ("before", "after")]
    literal = in_regex(opening)
    text = f"AFTER: /(?s:.+)/ & ~/(?s:.*){literal}(?s:.*)/"
    return [f"before[lazy]: /(?s:.*){literal}/", "after: AFTER", text]


def _calls(choice: CallChoice, card: ModelCard, prompts: PromptFormat) -> list[str]:
    """Rules `calls` (one after the other), `call` (a section) and `rest_of_call` (behind the opening marker)."""
    writing = call_writing(card.tool_format or "", prompts)
    kinds = [f"call_{index}" for index in range(len(choice.functions))]
    gap, between = spelled(writing.gap, prompts), spelled(writing.between or (), prompts)
    inside = "one" if choice.single or writing.between is None else f"one ({between} one)*"
    more = "" if choice.single or writing.between is not None else f" ({gap} call)*"
    opening, closing = (marker(text or "", prompts) for text in (card.tool_call_start, card.tool_call_end))
    rules = [
        f"calls: call{more}",
        f"call: {opening} rest_of_call",
        f"rest_of_call: {spelled(writing.begin, prompts)} {inside} {spelled(writing.end, prompts)} {closing}",
        f"one: {' | '.join(kinds)}",
        *writing.shared(prompts),
    ]
    for name, function in zip(kinds, choice.functions, strict=True):
        rules += writing.write(function, name, prompts)
    return list(dict.fromkeys(rules))  # several functions may import the same


def unbound_texts(choice: CallChoice, card: ModelCard, prompts: PromptFormat) -> list[str]:
    """Paths of texts whose grammar this model's calls cannot be bound to."""
    binds = can_bind_calls(card)
    if binds and call_writing(card.tool_format or "", prompts).has_plain_text:
        return []
    return [
        f"{function.path}.parameters.properties.{name}.{LARK}"
        for function in choice.functions
        for name in (function.unquotable_texts if binds else function.texts)
    ]
