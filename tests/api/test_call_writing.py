"""Calls of every format that has a grammar: a model may write what its template writes and its reader reads."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jsonschema_rs
import pytest
from tokenizers import Tokenizer

from api.call_formats.known import known_formats
from api.call_formats.values import argument_types, types_of
from api.errors import ApiError
from api.openai.argument_grammar import OfferedFunction
from api.openai.call_grammar import CallChoice, call_binding
from api.openai.call_writing import BOUND_FORMATS
from api.openai.lark_grammar import LARK
from api.openai.schemas import FunctionDefinition
from scheduler.grammars import Grammar, complaint
from scheduler.prompts import PromptFormat
from tests.api.call_writing import WRITE
from tests.api.scripted_farm import make_card
from tests.api.test_call_formats import calls_of, note, render
from tests.workers.engine.guided_walks import EOS, LOGITS, TOKENIZER, walk
from workers.engine import Grammar as EngineGrammar
from workers.engine import GrammarKind as EngineGrammarKind
from workers.engine.guided import GuideCompiler, GuideFailed

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/city"},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string", "description": "A town."}},
}
RIGHT: Sequence[dict[str, Any]] = (
    {"city": "Ulm", "days": 2},
    {"city": "Ulm", "unit": "C", "days": 12},
    {"city": "Ulm < 1", "unit": "F", "days": 2, "note": None, "tags": ["a", "b"]},
    {"city": "[Ulm]", "days": 2, "note": "x\ny"},
)
WRONG: Sequence[dict[str, Any]] = (
    {"city": "Ulm"},
    {"city": "Ulm", "unit": "K", "days": 2},
    {"city": "Ulm", "days": "two"},
    {"city": "Ulm", "days": 0},
    {"city": "Ulm", "days": 2, "more": 1},
    {"town": "Ulm", "days": 2},
    {"city": "Ulm", "days": 2, "tags": "a"},
)
CLOSED_VALUES = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["C", "F", "a b"]},
        "days": {"type": "integer", "minimum": -5, "maximum": 900},
        "exact": {"type": "boolean"},
        "which": {"anyOf": [{"enum": ["x"]}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"enum": ["u", "vw"]}},
        "where": {"$ref": "#/$defs/place"},
    },
    "required": ["days", "where"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}, "far": {"type": "boolean"}},
            "required": ["far"],
            "additionalProperties": False,
        }
    },
}
"""No value of it is text that only chance would end."""

INNER_MARKERS = (
    *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>", "[ARGS]", '<|"|>', "<escape>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<longcat_arg_key>", "</longcat_arg_key>"),
    *("<longcat_arg_value>", "</longcat_arg_value>", "</param>"),
)


class Speller(NamedTuple):
    """A tokenizer, and what it makes of prompts and grammars."""

    tokenizer: Tokenizer
    prompts: PromptFormat
    compiler: GuideCompiler

    def fits(self, grammar: Grammar, text: str) -> bool:
        """May an answer be this text?"""
        guide = self.compiler.compile(EngineGrammar(EngineGrammarKind(grammar.kind), grammar.text))
        try:
            guide.restore(self.tokenizer.encode(text, add_special_tokens=False).ids)
        except GuideFailed:
            return False
        return guide.may_end


def speller(tokenizer: Tokenizer) -> Speller:
    return Speller(
        tokenizer, PromptFormat(make_card(), tokenizer.to_str()), GuideCompiler(tokenizer, LOGITS, EOS, threads=1)
    )


def with_tokens_for_markers() -> Tokenizer:
    """The demo model's tokenizer, with a special token for each marker of every format."""
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    outer = {text for name in BOUND_FORMATS for text in markers(name) if text}
    tokenizer.add_special_tokens(sorted(outer.union(INNER_MARKERS)))
    return tokenizer


def markers(name: str) -> tuple[str, str]:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    return module.tool_call_start, module.tool_call_end


SPELLERS = {"text": speller(TOKENIZER), "tokens": speller(with_tokens_for_markers())}


def offered(schema: dict[str, Any], *, strict: bool = True) -> OfferedFunction:
    return OfferedFunction("tools.0.function", FunctionDefinition(name="weather", parameters=schema, strict=strict))


CLOCK = OfferedFunction("tools.1.function", FunctionDefinition(name="clock"))


def bound(name: str, kind: str, *functions: OfferedFunction, forced: bool = True, single: bool = False) -> Grammar:
    """The grammar of answers of a model whose format this is."""
    start, end = markers(name)
    card = make_card(tool_format=name, tool_call_start=start, tool_call_end=end, think_start=None, think_end=None)
    choice = CallChoice(functions, forced, single)
    grammar = call_binding(choice, None, card, SPELLERS[kind].prompts, "", []).grammar
    assert complaint(grammar) is None
    return grammar


def inside(name: str, kind: str, function: str, arguments: dict[str, Any]) -> str:
    """A call without its markers; Mistral's models without a token [ARGS] write lists."""
    if name == "mistral" and kind == "text":
        return f"[{WRITE['json_tools'](function, arguments).strip()}]"
    return WRITE[name](function, arguments)


def written(name: str, kind: str, arguments: dict[str, Any], function: str = "weather") -> str:
    start, end = markers(name)
    return f"{start}{inside(name, kind, function, arguments)}{end}"


def test_all_formats_but_one_have_a_grammar() -> None:
    assert set(known_formats()) - set(BOUND_FORMATS) == {"kimi_k3"}


@pytest.mark.parametrize("kind", SPELLERS)
@pytest.mark.parametrize("name", BOUND_FORMATS)
def test_a_forced_call_is_one_that_fits(name: str, kind: str) -> None:
    grammar, fits = bound(name, kind, offered(WEATHER), CLOCK), SPELLERS[kind].fits
    assert [call for call in RIGHT if not fits(grammar, written(name, kind, call))] == []
    assert [call for call in WRONG if fits(grammar, written(name, kind, call))] == []
    assert fits(grammar, written(name, kind, {}, "clock"))
    others = ("", "Sure.", f"Sure. {written(name, kind, RIGHT[0])}", written(name, kind, {}, "nobody"))
    assert not any(fits(grammar, text) for text in others)


@pytest.mark.parametrize("kind", SPELLERS)
@pytest.mark.parametrize("name", BOUND_FORMATS)
def test_strict_calls_that_come_unasked_fit_as_well(name: str, kind: str) -> None:
    grammar, fits = bound(name, kind, offered(WEATHER), CLOCK, forced=False), SPELLERS[kind].fits
    assert fits(grammar, "")
    assert fits(grammar, "It is 1 < 2 [or so].")
    assert [call for call in RIGHT if not fits(grammar, f"Sure.\n{written(name, kind, call)}")] == []
    assert [call for call in WRONG if fits(grammar, f"Sure.\n{written(name, kind, call)}")] == []


@pytest.mark.parametrize("kind", SPELLERS)
@pytest.mark.parametrize("name", BOUND_FORMATS)
def test_what_a_grammar_lets_a_model_write_is_read_and_fits_the_schema(name: str, kind: str) -> None:
    grammar = bound(name, kind, offered(CLOSED_VALUES))
    compiled = EngineGrammar(EngineGrammarKind(grammar.kind), grammar.text)
    heard = note(name, argument_types={"weather": argument_types(CLOSED_VALUES)})
    calls = 0
    for seed in range(8):
        size = SPELLERS[kind].tokenizer.get_vocab_size()
        tokens = list(walk(SPELLERS[kind].compiler.compile(compiled), seed, most_tokens=400, vocab_tokens=size))
        text = SPELLERS[kind].tokenizer.decode([t for t in tokens if t not in EOS], skip_special_tokens=False)
        if tokens[-1] not in EOS:
            continue  # a long list
        message, unparsed, _ = render(heard, [text])
        assert (message["content"], unparsed) == (None, 0), text
        for function, arguments in calls_of(message):
            jsonschema_rs.validate(CLOSED_VALUES, arguments)
            assert function == "weather"
            calls += 1
    assert calls > 0


@pytest.mark.parametrize("name", ["qwen3_coder", "gemma4"])
@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^x$"}}}, "'pattern'"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "minProperties": 1}, "'minProperties'"),
        ({"type": "object", "properties": {"a b": {"type": "string"}}}, "'a b'"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "not listed"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}}, "circ"),
    ],
)
def test_a_schema_that_a_format_cannot_be_bound_to_is_refused_where_it_is_strict(
    name: str, schema: dict[str, Any], why: str
) -> None:
    with pytest.raises(ApiError, match=why) as refused:
        bound(name, "text", offered(schema))
    assert refused.value.param == "tools.0.function.parameters"
    grammar = bound(name, "text", offered(schema, strict=False))
    assert SPELLERS["text"].fits(grammar, written(name, "text", {"any": "thing"}))


PATCH = """start: "*** Begin Patch" LF hunk+ "*** End Patch" LF?
hunk: "*** Update File: " filename LF change+ // in an editor's words
filename: /(.+)/
change: ("+" | "-" | " ") /(.*)/ LF -> line
%import common.LF
"""


@pytest.mark.parametrize("kind", SPELLERS)
@pytest.mark.parametrize("name", BOUND_FORMATS)
def test_text_follows_a_grammar_of_the_callers(name: str, kind: str) -> None:
    schema = {"type": "object", "properties": {"input": {"type": "string", LARK: PATCH}}, "required": ["input"]}
    grammar = bound(name, kind, offered(schema), forced=False)
    good = '*** Begin Patch\n*** Update File: a "b".py\n-x = "\\n"\n+ y\n*** End Patch\n'
    fits = SPELLERS[kind].fits
    assert fits(grammar, f"Sure.\n{written(name, kind, {'input': good})}")
    assert not any(fits(grammar, written(name, kind, {"input": text})) for text in ("", "x", good.replace("+", "?")))


def test_text_without_quotes_has_one_type() -> None:
    both = {"type": "object", "properties": {"a": {"type": ["string", "integer"]}}}
    with pytest.raises(ApiError, match="name one type"):
        bound("glm47", "text", offered(both))
    grammar = bound("gemma4", "text", offered(both))
    assert all(SPELLERS["text"].fits(grammar, written("gemma4", "text", {"a": value})) for value in ("x", 5))


def test_a_function_whose_name_cannot_be_written_is_refused() -> None:
    odd = OfferedFunction("tools.0.function", FunctionDefinition(name="what?"))
    with pytest.raises(ApiError) as refused:
        bound("pythonic", "text", odd)
    assert refused.value.param == "tools.0.function.name"


def test_values_inside_values_may_go_on_without_end() -> None:
    tree = {
        "type": "object",
        "properties": {"leaf": {"type": "integer"}, "twigs": {"type": "array", "items": {"$ref": "#"}}},
    }
    schema = {"type": "object", "properties": {"tree": {"$ref": "#/$defs/t"}}, "$defs": {"t": tree}}
    tree["properties"]["twigs"]["items"] = {"$ref": "#/$defs/t"}  # type: ignore[index]
    grammar = bound("gemma4", "text", offered(schema))
    deep: dict[str, Any] = {"leaf": 1}
    for _ in range(20):
        deep = {"twigs": [deep, {"leaf": 2}]}
    assert SPELLERS["text"].fits(grammar, written("gemma4", "text", {"tree": deep}))


def test_types_are_found_however_often_references_meet_again() -> None:
    many = [{"$ref": f"#/$defs/{name}"} for name in "abcdefghij" * 3]
    root = {"$defs": {name: {"anyOf": many} for name in "abcdefghi"} | {"j": {"type": "integer"}}}
    assert types_of({"anyOf": many}, root) == {"integer"}


def test_half_a_character_that_a_model_escapes_stays_an_escape() -> None:
    text = written("muse_spark", "text", {"city": "a\ud83db"})
    [(_, arguments)] = calls_of(render(note("muse_spark"), [text])[0])
    assert arguments == {"city": "a\ud83db"}
    message, _, _ = render(note("json_tools"), ['<tool_call>{"name": "\\ud83d", "arguments": {}}</tool_call>'])
    json.dumps(message, ensure_ascii=False).encode()
