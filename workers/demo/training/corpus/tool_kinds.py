"""The tools that conversations offer: names, parameters, the questions that want them, and what they answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .words import CITIES, PEOPLE, PLACES, THINGS, any_word, invented_word

Fill = Callable[[Random], object]
JsonObject = dict[str, object]


@dataclass(frozen=True)
class Parameter:
    """One parameter under its possible names; `{a}`, `{b}` in a question is its place."""

    names: tuple[str, ...]
    kind: str
    fill: Fill


@dataclass(frozen=True)
class ToolKind:
    """A family of tools that do the same under different names."""

    names: tuple[str, ...]
    description: str
    parameters: tuple[Parameter, ...]
    asked: tuple[str, ...]
    outcome: Callable[[Random, list[object]], tuple[object, str]]


def _city(rng: Random) -> object:
    city = rng.choice(CITIES) if rng.random() < 0.85 else invented_word(rng).capitalize()
    return f"{city}, {rng.choice(('CA', 'MA', 'TX', 'France', 'Japan'))}" if rng.random() < 0.08 else city


def _small(rng: Random) -> object:
    return rng.randint(1, 60)


def _words(rng: Random) -> object:
    return " ".join(any_word(rng) for _ in range(rng.choice((1, 1, 2, 2, 3))))


def _expression(rng: Random) -> object:
    return f"{rng.randint(0, 999)} {rng.choice('+-*/')} {rng.randint(1, 99)}"


def _weather(rng: Random, values: list[object]) -> tuple[object, str]:
    degrees = rng.randint(-9, 38)
    sky = rng.choice(("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy"))
    if rng.random() < 0.3:
        text = rng.choice((f"{degrees} degrees and {sky}", f"{sky}, {degrees} C", f"{degrees}°C, {sky}", sky))
        return text, f"The weather in {values[0]}: {text}."
    warmth = rng.choice(("temperature", "temperature", "temp", "temperature_c", "degrees", "celsius"))
    result: JsonObject = {warmth: degrees, rng.choice(("condition", "sky", "weather", "description", "forecast")): sky}
    if rng.random() < 0.3:
        result = dict(reversed(result.items()))
    if rng.random() < 0.3:
        result = {rng.choice(("city", "location")): values[0], **result}
    return result, f"In {values[0]} it is {degrees} degrees and {sky}."


def _clock(rng: Random, values: list[object]) -> tuple[object, str]:
    time = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    return rng.choice((time, {"time": time}, {"local_time": time})), f"In {values[0]} it is {time}."


def _number(rng: Random, values: list[object]) -> tuple[object, str]:
    number = rng.randint(0, 9999)
    return rng.choice((str(number), {"result": number}, {"value": number})), f"The result is {number}."


def _text(rng: Random, values: list[object]) -> tuple[object, str]:
    text = _words(rng)
    return rng.choice((text, {"result": text}, {"answer": text}, {"text": text})), f"The result is: {text}."


def _done(rng: Random, values: list[object]) -> tuple[object, str]:
    return rng.choice(("ok", "done", {"status": "ok"}, {"ok": True}, {"success": True})), "It is done."


TOOL_KINDS = (
    ToolKind(
        ("get_weather", "get_weather", "get_current_weather", "weather", "fetch_weather", "weather_lookup"),
        "[Get|Look up] the [current |]weather [in|for] a [city|place]",
        (Parameter(("city", "location", "place", "town", "city_name"), "string", _city),),
        (
            "what is the weather [in|like in] {a}", "what's the weather [in|like in] {a}[| today| now]",
            "how is the weather in {a}", "weather in {a}", "is it [raining|sunny|cold|warm|hot|snowing] in {a}",
            "what is the temperature in {a}", "[tell me|check|show me|look up] the weather [in|for] {a}",
            "do i need an umbrella in {a}", "what is the forecast for {a}", "will it rain in {a}",
            "how [warm|cold|hot] is it in {a}[| today| now]", "weather {a}", "get the weather [in|for] {a}",
        ),
        _weather,
    ),
    ToolKind(
        ("get_time", "get_time", "get_current_time", "current_time", "clock", "time_in"),
        "[Get|Tell] the [current |local |]time in a [city|place]",
        (Parameter(("city", "location", "place", "timezone", "zone"), "string", _city),),
        (
            "what time is it in {a}[| now]", "what is the time in {a}", "time in {a}", "how late is it in {a}",
            "[tell me|check|show me] the time in {a}", "what's the local time in {a}", "is it night in {a}",
        ),
        _clock,
    ),
    ToolKind(
        ("calculator", "calculator", "calculate", "calc", "evaluate", "compute"),
        "[Evaluate|Compute|Calculate] an [arithmetic |]expression",
        (Parameter(("expression", "expr", "formula", "input"), "string", _expression),),
        (
            "what is {a}", "how much is {a}", "[calculate|compute|evaluate|work out|solve] {a}", "{a}", "{a} =",
            "what does {a} make", "can you compute {a}", "use the calculator for {a}",
        ),
        _number,
    ),
    ToolKind(
        ("search", "search", "web_search", "search_web", "lookup", "find_online", "search_documents"),
        "Search the [web|internet|documents] [for a text|]",
        (Parameter(("query", "q", "text", "search_term", "keywords"), "string", _words),),
        (
            "search for {a}", "search the web for {a}", "look up {a}", "google {a}", "find information about {a}",
            "find something about {a}", "search {a}", "what does the web say about {a}", "look for {a} on the internet",
        ),
        _text,
    ),
    ToolKind(
        ("add", "add_numbers", "sum", "plus"),
        "Add two numbers",
        (
            Parameter(("a", "x", "first", "left"), "integer", _small),
            Parameter(("b", "y", "second", "right"), "integer", _small),
        ),
        ("add {a} and {b}", "what is {a} plus {b}", "what is {a} + {b}", "sum {a} and {b}", "{a} + {b}"),
        _number,
    ),
    ToolKind(
        ("send_email", "send_message", "send_mail", "message", "notify"),
        "Send a [message|mail] to [someone|a person]",
        (
            Parameter(("to", "recipient", "person", "name"), "string", lambda rng: rng.choice(PEOPLE)),
            Parameter(("text", "body", "message", "content"), "string", _words),
        ),
        (
            "send {a} the message {b}", "tell {a}: {b}", "write to {a}: {b}", "send an email to {a} saying {b}",
            "send a message to {a}: {b}", "message {a} that {b}", "email {a}: {b}",
        ),
        _done,
    ),
    ToolKind(
        ("set_timer", "timer", "start_timer", "set_alarm"),
        "[Start|Set] a timer",
        (Parameter(("minutes", "duration", "duration_minutes", "time_minutes"), "integer", _small),),
        (
            "set a timer for {a} minutes", "start a timer of {a} minutes", "timer {a} minutes",
            "wake me in {a} minutes", "remind me in {a} minutes", "{a} minutes timer", "set an alarm in {a} minutes",
        ),
        _done,
    ),
    ToolKind(
        ("play_music", "play_song", "play", "start_music"),
        "Play [a song|music]",
        (Parameter(("song", "title", "track", "name"), "string", _words),),
        ("play {a}", "play the song {a}", "i want to hear {a}", "put on {a}", "start the song {a}", "listen to {a}"),
        _done,
    ),
    ToolKind(
        ("turn_on_light", "light_on", "switch_light", "lights"),
        "Turn on the light in a room",
        (Parameter(("room", "place", "area", "where"), "string", lambda rng: rng.choice(PLACES)),),
        ("turn on the light in the {a}", "switch on the light in the {a}", "light in the {a}", "make light in the {a}"),
        _done,
    ),
    ToolKind(
        ("get_price", "price_of", "check_price", "get_stock_price"),
        "Get the price of a [product|stock]",
        (Parameter(("product", "item", "symbol", "name"), "string", lambda rng: rng.choice(THINGS)),),
        (
            "what is the price of {a}", "how much does {a} cost", "price of {a}", "what does a {a} cost",
            "check the price of {a}",
        ),
        _number,
    ),
    ToolKind(
        ("read_file", "open_file", "cat", "load_file"),
        "Read a file",
        (
            Parameter(
                ("path", "file", "filename", "file_path"),
                "string",
                lambda rng: f"{any_word(rng)}.{rng.choice(('txt', 'py', 'md', 'json', 'csv'))}",
            ),
        ),
        ("read {a}", "read the file {a}", "open {a}", "show me {a}", "what is in {a}", "print the file {a}", "cat {a}"),
        _text,
    ),
    ToolKind(
        ("book_table", "reserve", "book_room", "make_reservation"),
        "Book a table",
        (
            Parameter(("restaurant", "place", "name"), "string", lambda rng: rng.choice(THINGS).capitalize()),
            Parameter(("people", "guests", "persons", "party_size"), "integer", lambda rng: rng.randint(1, 12)),
        ),
        (
            "book a table at {a} for {b} people", "reserve {a} for {b}", "a table at {a} for {b} please",
            "book {a} for {b} persons", "we are {b} people, book a table at {a}",
        ),
        _done,
    ),
)  # fmt: skip

_VERBS = ("find", "get", "open", "delete", "show", "fetch", "start", "order", "check", "rent", "update", "create")
_NOUNS = (
    "book", "recipe", "ticket", "customer", "invoice", "flight", "movie", "product", "order", "room", "account", "car",
    "user", "page", "note", "task", "project", "train", "hotel", "contact", "device", "report", "photo", "document",
)  # fmt: skip


def free_kind(rng: Random) -> ToolKind:
    """Invent a tool from a verb and a noun, so that its schema must be read."""
    verb = rng.choice(_VERBS)
    noun = rng.choice(_NOUNS) if rng.random() < 0.8 else invented_word(rng)
    numeric = rng.random() < 0.4
    parameter = Parameter(
        ("id", "number", "code", f"{noun}_id") if numeric else ("name", "title", "key", noun, f"{noun}_name"),
        "integer" if numeric else "string",
        (lambda rng: rng.randint(1, 9999)) if numeric else _words,
    )
    asked = (f"{verb} the {noun} {{a}}", f"{verb} {noun} {{a}}", f"i want you to {verb} the {noun} {{a}}")
    name = rng.choice((f"{verb}_{noun}", f"{verb}_{noun}", f"{noun}_{verb}", f"{verb}{noun.capitalize()}"))
    return ToolKind((name,), f"{verb.capitalize()} a {noun}", (parameter,), asked, rng.choice((_done, _text)))


def rendered(result: object) -> str:
    """Return what a tool answered as the text of a tool message."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
