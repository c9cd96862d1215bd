"""Every call format that mlx-lm has a parser for is read, whole and piece by piece, and like mlx-lm reads it."""

from __future__ import annotations

import importlib
import json
import pkgutil
from itertools import pairwise
from typing import Any

import mlx_lm.tool_parsers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.call_formats.known import call_format, known_formats
from api.call_formats.values import argument_types
from api.openai.chat_rendering import ChatRenderer
from api.rendering import RenderingNote
from scheduler.frames import Chunk, End
from scheduler.jobs import JobState
from tests.api.call_writing import WRITE

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "where": {"$ref": "#/$defs/place"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "$defs": {"place": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
PLAIN = st.text("abäö 7.-", min_size=1, max_size=8).map(str.strip).filter(bool)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "city": PLAIN.filter(lambda text: text != "null"),
        "days": st.integers(-99, 99),
        "exact": st.booleans(),
        "tags": st.lists(PLAIN, max_size=2),
        "where": st.fixed_dictionaries({"x": st.integers(0, 9)}),
        "note": st.none() | st.just("later"),
    },
)

FRAGMENTS = (
    *("START", "END", "weather", "x", "\n", "{", "}", '"', "[", "]", "(", ")", ",", ":", "=", ">", "\\", "'"),
    *("[ARGS]", "<function=", "<parameter=", "</parameter>", "</function>", "call:", '<invoke name="', "</invoke>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", '"name": "', '"arguments": '),
)


def note(name: str, **changes: Any) -> RenderingNote:
    """A chat whose calls are written so."""
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    fields: dict[str, Any] = {"created_s": 0, "model": "m", "choices": 1, "prompt_tokens": 1, "service_tier": "default"}
    fields |= {"call": (module.tool_call_start, module.tool_call_end), "call_format": name}
    fields |= {"argument_types": {"weather": argument_types(SCHEMA)}}
    return RenderingNote(**fields | changes)


def written(name: str, *calls: dict[str, Any]) -> str:
    """Sections of one call each, with their markers."""
    start, end = note(name).call or ("", "")
    return "\n".join(f"{start}{WRITE[name]('weather', call)}{end}" for call in calls)


def render(note: RenderingNote, parts: list[str], reason: str = "stop") -> tuple[dict[str, Any], int, list[Any]]:
    """The message of a text that comes in parts, the number of calls that could not be read, and the deltas."""
    renderer = ChatRenderer("0-JOB", note, lambda token: b"")
    deltas = []
    for index, part in enumerate(parts):
        [chunk] = renderer.step([Chunk(0, (1,), part, None, reason if index == len(parts) - 1 else None, None)])
        deltas.append(json.loads(json.dumps(chunk["choices"][0]["delta"])))
    choice = renderer.whole(End(JobState.FINISHED, {}))["choices"][0]
    return choice["message"], renderer.unparsed_calls, deltas


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    """Names and parsed arguments."""
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message.get("tool_calls", ())
    ]


def cut(text: str, places: list[int]) -> list[str]:
    """The text in parts."""
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def test_every_parser_of_mlx_lm_has_a_reader() -> None:
    theirs = {module.name for module in pkgutil.iter_modules(mlx_lm.tool_parsers.__path__)}
    assert set(known_formats()) == theirs == set(WRITE)


@pytest.mark.parametrize("name", known_formats())
@settings(max_examples=25)
@given(arguments=ARGUMENTS, places=st.lists(st.integers(0, 400), max_size=8))
def test_a_call_is_read_however_its_text_is_cut(name: str, arguments: dict[str, Any], places: list[int]) -> None:
    text = f"Sure.\n{written(name, arguments)}"
    message, unparsed, deltas = render(note(name), cut(text, places))
    assert calls_of(message) == [("weather", arguments)]
    assert (message["content"], unparsed) == ("Sure.", 0)
    told = [part for delta in deltas for part in delta.get("tool_calls", ())]
    assert [part["function"]["name"] for part in told if "id" in part] == ["weather"]
    whole = message["tool_calls"][0]["function"]["arguments"]
    assert "".join(part["function"]["arguments"] for part in told) == whole
    assert render(note(name), [text])[0] == message


@pytest.mark.parametrize("name", known_formats())
def test_a_call_is_read_as_mlx_lm_reads_it(name: str) -> None:
    arguments: dict[str, Any] = {"city": "Ulm", "days": 2, "exact": True}
    if name != "function_gemma":  # theirs knows no lists
        arguments["tags"] = ["a"]
    parser = importlib.import_module(f"mlx_lm.tool_parsers.{name}").parse_tool_call
    theirs = parser(WRITE[name]("weather", arguments), TOOLS)
    theirs = theirs[0] if isinstance(theirs, list) else theirs
    message, _, _ = render(note(name), [written(name, arguments)])
    assert calls_of(message) == [("weather", arguments)] == [(theirs["name"], theirs["arguments"])]


@pytest.mark.parametrize("name", known_formats())
def test_what_is_no_call_is_text_and_counted(name: str) -> None:
    start, end = note(name).call or ("", "")
    text = f"{start} ?? {end}"
    for parts in ([text], list(text)):
        message, unparsed, _ = render(note(name), parts)
        assert (message["content"], unparsed, calls_of(message)) == (text, 1, [])


@pytest.mark.parametrize("name", known_formats())
@settings(max_examples=40)
@given(
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=14),
    places=st.lists(st.integers(0, 120), max_size=6),
    reason=st.sampled_from(["stop", "length"]),
)
def test_no_text_is_an_error_and_no_cut_makes_a_difference(
    name: str, text: list[str], places: list[int], reason: str
) -> None:
    start, end = note(name).call or ("", "")
    whole = "".join(text).replace("START", start).replace("END", end)
    message, unparsed, _ = render(note(name), [whole], reason)
    assert render(note(name), cut(whole, places), reason)[:2] == (message, unparsed)


@pytest.mark.parametrize("name", [name for name in known_formats() if name != "mistral"])
def test_an_end_marker_inside_a_value_ends_nothing(name: str) -> None:
    arguments = {"city": f"a{(note(name).call or ('', ''))[1]}b", "days": 2}
    text = f"{written(name, arguments, {'days': 1})}\nDone."
    for parts in ([text], list(text)):
        message, unparsed, _ = render(note(name), parts)
        assert (calls_of(message), unparsed) == ([("weather", arguments), ("weather", {"days": 1})], 0)
        assert message["content"] == "Done."


def test_a_string_that_is_never_closed_loses_only_its_own_call() -> None:
    text = f'<tool_call>{{"name": "f, "arguments": {{}}}}</tool_call>\n{written("json_tools", {"days": 1})}'
    for parts in ([text], list(text)):
        message, unparsed, _ = render(note("json_tools"), parts)
        assert (calls_of(message), unparsed) == ([("weather", {"days": 1})], 1)
        assert message["content"] == '<tool_call>{"name": "f, "arguments": {}}</tool_call>'


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        (
            "mistral",
            '[{"name": "weather", "arguments": {"days": 1}, "id": "a1"}, {"name": "weather", "arguments": {}}]',
        ),
        ("mistral", 'weather[ARGS]{"days": 1}[TOOL_CALLS]weather[ARGS]{}'),
        ("kimi_k2", "".join(WRITE["kimi_k2"]("weather", call) for call in ({"days": 1}, {}))),
        ("minimax_m2", "".join(WRITE["minimax_m2"]("weather", call) for call in ({"days": 1}, {}))),
        ("pythonic", "[weather(days=1), weather()]"),
        ("gemma4", "call:weather{days:1}call:weather{}"),
        ("json_tools", '[{"name": "weather", "arguments": {"days": 1}}, {"name": "weather", "arguments": {}}]'),
        ("json_tools", '[{"arguments": {"days": 1}, "name": "weather"}, {"name": "weather", "parameters": "{}"}]'),
    ],
)
def test_several_calls_in_one_section_are_several(name: str, inside: str) -> None:
    start, end = note(name).call or ("", "")
    for parts in ([f"{start}{inside}{end}"], list(f"{start}{inside}{end}")):
        message, unparsed, _ = render(note(name), parts)
        assert (calls_of(message), unparsed) == ([("weather", {"days": 1}), ("weather", {})], 0)
        only, _, _ = render(note(name, single_call=True), parts)
        assert calls_of(only) == [("weather", {"days": 1})]


def test_a_call_has_the_id_that_the_model_gave_it() -> None:
    message, _, _ = render(note("kimi_k2"), [written("kimi_k2", {})])
    assert [call["id"] for call in message["tool_calls"]] == ["functions.weather:0"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("city", "5", "5"),
        ("days", "5.0", 5),
        ("exact", "True", True),
        ("note", "null", None),
        ("other", "5", 5),
        ("other", "five", "five"),
        ("where", "{'x': None}", {"x": None}),
        ("tags", "not a list", "not a list"),
        ("other", "NaN", "NaN"),
    ],
)
def test_a_value_without_quotes_is_of_its_schemas_type(name: str, text: str, value: Any) -> None:
    reader = call_format("qwen3_coder").reader({"weather": argument_types(SCHEMA)})
    parts = reader.read(f"<function=weather><parameter={name}>{text}</parameter></function>", whole=True)
    assert json.loads("".join(part.arguments for part in parts)) == {name: value}


def test_a_file_with_line_breaks_at_its_ends_keeps_them() -> None:
    text = WRITE["qwen3_coder"]("weather", {"city": "\na\n\n"})
    message, _, _ = render(note("qwen3_coder"), [f"<tool_call>{text}</tool_call>"])
    assert calls_of(message) == [("weather", {"city": "\na\n\n"})]
