"""From the fields that bind an answer's text (response_format, vLLM's structured outputs) to the job's grammar; pure.

A model that thinks first may do so: the grammar begins behind its thoughts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.errors import InvalidParameter, Unsupported
from api.openai.schemas import Generation, ResponseFormat
from scheduler.grammars import Grammar, GrammarKind, complaint, rule_of
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat

BREAKS = r"/\n{0,3}/"
"""Line breaks between thoughts and an answer."""

BUDGET = "thinking_token_budget"

_FIELDS = ("json_", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True, slots=True)
class Binding:
    """A grammar, and the path of the field that asked for it."""

    param: str
    grammar: Grammar


def asked_binding(body: Generation, response_format: ResponseFormat | None = None) -> Binding | None:
    """The one grammar that a body asks for. Raises ApiError where it asks for two, or for what nobody knows."""
    found = [*_format_bindings(response_format), *_structured_bindings(body), *_legacy_bindings(body)]
    if len(found) > 1:
        raise InvalidParameter(found[1].param, f"{found[0].param!r} asks for another form already; send one of them.")
    if found:
        check_compatible(found[0].param, body)
    return found[0] if found else None


def check_compatible(param: str, body: Generation) -> None:
    """Refuse what would drive a text out of its grammar. Raises InvalidParameter."""
    for name, value in (("min_tokens", body.min_tokens), ("ignore_eos", body.ignore_eos)):
        if value:
            raise InvalidParameter(name, f"Not together with {param!r}: the text ends where its form does.")


def check(binding: Binding, card: ModelCard) -> None:
    """Refuse what is known to be in vain; takes milliseconds. Raises Unsupported for the model, InvalidParameter."""
    if not card.obeys_grammars:
        raise Unsupported(binding.param, f"The engine of {card.name!r} ({card.engine}) cannot bind an answer's form.")
    trouble = complaint(binding.grammar)
    if trouble is not None:
        raise InvalidParameter(binding.param, f"{trouble}.")


def behind_thinking(
    binding: Binding | None, card: ModelCard, prompts: PromptFormat, prompt: str, budget: int | None = None
) -> Binding | None:
    """The grammar with the model's thoughts allowed in front, unless the prompt has closed them.

    A `budget` of tokens for the thoughts is a grammar of its own, with any answer behind them.
    """
    lead = thinking_rules(card, prompts, prompt, budget)
    if not lead:
        return binding
    if binding is None:
        rules = ["start: lead answer?", *lead, f"answer: {anything_but(card.think_start, prompts)}"]
        return Binding(BUDGET, Grammar(GrammarKind.LARK, "\n".join(rules))) if budget is not None else None
    if binding.grammar.kind is GrammarKind.LARK:
        raise Unsupported(binding.param, "Not while the model thinks: turn that off (reasoning_effort: none).")
    text = "\n".join(["start: lead answer", *lead, f"answer: {rule_of(binding.grammar)}"])
    return Binding(binding.param, Grammar(GrammarKind.LARK, text))


def thinking_rules(card: ModelCard, prompts: PromptFormat, prompt: str, budget: int | None = None) -> list[str]:
    """Lark rules of what may stand before an answer, in `lead`; none where the prompt has closed the thoughts.

    Raises Unsupported for a `budget` (tokens) that cannot be enforced.
    """
    if budget is not None:
        _check_budget(card, prompts)
    if card.think_start is None or card.think_end is None or prompt.rstrip().endswith(card.think_end):
        return []
    if prompts.special_id(card.think_end) is None:
        rules = [f"thoughts[lazy]: /(?s:.*){in_regex(card.think_end)}/"]
    else:
        rules = [f"thoughts: musing {marker(card.think_end, prompts)}"]
        rules += [f"musing{'' if budget is None else f'[max_tokens={budget}]'}: /(?s:.*)/"]
    if prompt.rstrip().endswith(card.think_start):
        return [*rules, f"lead: thoughts {BREAKS}"]
    return [*rules, "lead: thinking?", f"thinking: {marker(card.think_start, prompts)} thoughts {BREAKS}"]


def _check_budget(card: ModelCard, prompts: PromptFormat) -> None:
    if card.think_end is None:
        raise Unsupported(BUDGET, f"The model {card.name!r} does not reason.")
    if not card.obeys_grammars:
        raise Unsupported(BUDGET, f"The engine of {card.name!r} ({card.engine}) cannot end a model's thoughts.")
    if prompts.special_id(card.think_end) is None:
        raise Unsupported(BUDGET, f"The thoughts of {card.name!r} do not end with a token of their own.")


def marker(text: str, prompts: PromptFormat) -> str:
    """A model's marker in Lark, in which special tokens are not text; empty for no text."""
    return " ".join(
        json.dumps(part, ensure_ascii=False) if isinstance(part, str) else f"<[{part}]>"
        for part in prompts.special_parts(text)
    )


def anything_but(text: str | None, prompts: PromptFormat) -> str:
    """Any tokens, special ones too (a call may begin with one), but the one that `text` is, if it is one."""
    token_id = prompts.special_id(text) if text else None
    return "<[*]>+" if token_id is None else f"<[^{token_id}]>+"


def in_regex(text: str) -> str:
    """Text to be matched literally between the slashes of a Lark regular expression."""
    return "".join(f"\\{char}" if char in r".^$*+?()[]{}|\/&~#-" else char for char in text)


def _format_bindings(response_format: ResponseFormat | None) -> list[Binding]:
    if response_format is None or response_format.type == "text":
        return []
    if response_format.type == "json_object":
        return [Binding("response_format", Grammar(GrammarKind.JSON_OBJECT))]
    if response_format.type != "json_schema":
        raise Unsupported("response_format.type", "Known types: text, json_object, json_schema.")
    if response_format.json_schema is None or response_format.json_schema.schema_ is None:
        raise InvalidParameter("response_format.json_schema", "type json_schema needs json_schema.schema.")
    return [Binding("response_format.json_schema.schema", schema_grammar(response_format.json_schema.schema_))]


def _structured_bindings(body: Generation) -> list[Binding]:
    asked = body.structured_outputs
    if asked is None:
        return []
    path = "structured_outputs"
    found = [
        _binding(f"{path}.{name.rstrip('_')}", name.rstrip("_"), value)
        for name in _FIELDS
        if (value := getattr(asked, name)) is not None and value is not False
    ]
    if (asked.model_extra or {}).get("structural_tag") is not None:
        raise Unsupported(f"{path}.structural_tag")
    if not found:
        raise InvalidParameter(path, "It needs one of json, regex, choice, grammar, json_object.")
    return found


def _legacy_bindings(body: Generation) -> list[Binding]:
    fields: Mapping[str, Any] = {
        "guided_json": body.guided_json,
        "guided_regex": body.guided_regex,
        "guided_choice": body.guided_choice,
        "guided_grammar": body.guided_grammar,
    }
    return [_binding(name, name.removeprefix("guided_"), value) for name, value in fields.items() if value is not None]


def _binding(param: str, form: str, value: Any) -> Binding:
    match form:
        case "json":
            return Binding(param, schema_grammar(_schema(param, value)))
        case "regex":
            return Binding(param, Grammar(GrammarKind.REGEX, value))
        case "choice":
            return Binding(param, choice_grammar(value))
        case "grammar":
            return Binding(param, Grammar(GrammarKind.LARK, value))
        case _:
            return Binding(param, Grammar(GrammarKind.JSON_OBJECT))


def _schema(param: str, value: Any) -> dict[str, Any]:
    """vLLM takes a schema as an object or as its text."""
    try:
        schema = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(param, f"It is not JSON: {error}.") from error
    if not isinstance(schema, dict):
        raise InvalidParameter(param, "A JSON Schema is an object.")
    return schema


def schema_grammar(schema: Mapping[str, Any]) -> Grammar:
    """JSON that fits a schema."""
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema, ensure_ascii=False))


def choice_grammar(choices: Sequence[str]) -> Grammar:
    """One of several texts."""
    return Grammar(GrammarKind.REGEX, "|".join(in_regex(choice) for choice in choices))
