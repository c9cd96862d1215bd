"""Answers in JSON: objects with the fields that were asked for, with given or invented values, and lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from .grammar import Exchange, joined, request
from .words import ANIMALS, CITIES, PEOPLE, THINGS, any_word

_INVENTED: dict[str, object] = {
    "name": "Anna", "age": 30, "city": "Paris", "country": "France", "email": "anna@example.com", "job": "baker",
    "colour": "blue", "color": "blue", "price": 10, "quantity": 2, "title": "The Fox", "author": "Ben",
    "year": 2026, "animal": "fox", "id": 1, "active": True, "hobby": "music", "food": "bread", "phone": "555-0100",
    "height": 170, "weight": 60, "score": 7, "language": "English", "product": "lamp", "temperature": 20,
    "status": "ok", "message": "hello", "answer": 42, "date": "2026-11-20", "size": "small", "first_name": "Anna",
    "last_name": "Baker", "street": "Main Street", "number": 7, "count": 3, "pet": "cat", "tags": ["a", "b"],
    "happy": True, "description": "a small thing", "type": "toy", "model": "demo", "key": "value",
}  # fmt: skip
_GIVEN: dict[str, Callable[[Random], object]] = {
    "name": lambda rng: rng.choice(PEOPLE),
    "age": lambda rng: rng.randint(1, 99),
    "city": lambda rng: rng.choice(CITIES),
    "animal": lambda rng: rng.choice(ANIMALS),
    "pet": lambda rng: rng.choice(ANIMALS),
    "colour": lambda rng: rng.choice(("red", "green", "blue", "yellow", "black", "white")),
    "color": lambda rng: rng.choice(("red", "green", "blue", "yellow", "black", "white")),
    "product": lambda rng: rng.choice(THINGS),
    "title": any_word,
    "price": lambda rng: rng.randint(1, 99),
    "quantity": lambda rng: rng.randint(1, 20),
    "id": lambda rng: rng.randint(1, 999),
    "score": lambda rng: rng.randint(0, 100),
    "message": any_word,
    "status": lambda rng: rng.choice(("ok", "open", "done", "new")),
}
_FIELDS_ASKED = (
    "[give me|write|create|make|return|show me|generate|produce] [a JSON object|JSON|a json object|json|a JSON]"
    " with [|the fields |the keys |fields ]{f}",
    "[give me|write|make|return|generate|i need|i want] a {t} [as|in] [JSON|json] with {f}",
    "a [json|JSON] object with {f}",
    "[answer|reply|respond] [in|with|as] [JSON|json] with [|the keys |the fields ]{f}",
    "[json|JSON] with {f}",
    "[return|output] [|only ][JSON|json] with [the keys|the fields|keys] {f}",
)
_GIVEN_ASKED = (
    "[give me|write|create|make|return] [a JSON object|JSON|a json object|json] with {f}",
    "[convert|turn|put] this [to|into] [JSON|json]: {f}",
    "[as|to] [JSON|json]: {f}",
    "[write|return|format] {f} as [JSON|json|a JSON object]",
    "[extract|read] the fields as [JSON|json]: {f}",
)
_LISTS: dict[str, list[object]] = {
    "colours": ["red", "green", "blue", "yellow", "black"],
    "colors": ["red", "green", "blue", "yellow", "black"],
    "numbers": [1, 2, 3, 4, 5],
    "animals": ["cat", "dog", "fox", "owl", "bear"],
    "fruits": ["apple", "banana", "cherry", "lemon", "mango"],
    "cities": ["Paris", "London", "Berlin", "Rome", "Madrid"],
    "names": ["Anna", "Ben", "Carla", "David", "Emma"],
    "countries": ["France", "Germany", "Italy", "Spain", "Japan"],
    "words": ["sun", "moon", "star", "rain", "wind"],
}
_LIST_ASKED = (
    "[give me|write|return|make|show me] a [JSON|json] [list|array] [of|with] {n} {l}",
    "[list|name|give me] {n} {l} [as|in] [JSON|json|a JSON array|a JSON list]",
    "[json|JSON] [array|list] of {n} {l}",
    "{n} {l} as [JSON|json]",
)
_COUNT_WORDS = ("zero", "one", "two", "three", "four", "five")


def json_answer(rng: Random) -> Exchange:
    """Return a request for JSON and the JSON."""
    kind = rng.random()
    if kind < 0.5:
        fields = rng.sample(list(_INVENTED), rng.choice((1, 2, 2, 2, 3, 3, 4)))
        shown = [f'"{field}"' for field in fields] if rng.random() < 0.2 else fields
        listed = joined(shown) if rng.random() < 0.8 else ", ".join(shown)
        user = request(rng, _FIELDS_ASKED).replace("{f}", listed)
        user = user.replace("{t}", rng.choice(("person", "user", "product", "book", "record", "thing")))
        value: object = {field: _INVENTED[field] for field in fields}
        thought = f"The user wants JSON with {joined(fields)}."
    elif kind < 0.85:
        fields = rng.sample(list(_GIVEN), rng.choice((1, 2, 2, 2, 3)))
        value = given = {field: _GIVEN[field](rng) for field in fields}
        form = rng.choice(("{} {}", "{} {}", "{}: {}", "{} = {}", "the {} {}", '{} "{}"'))
        parts = [form.format(field, content) for field, content in given.items()]
        listed = joined(parts) if rng.random() < 0.7 else ", ".join(parts)
        user = request(rng, _GIVEN_ASKED).replace("{f}", listed)
        thought = f"The user gives values for {joined(fields)}. I copy them into JSON."
    else:
        name, values = rng.choice(list(_LISTS.items()))
        count = rng.randint(2, 5)
        value = values[:count]
        shown_count = _COUNT_WORDS[count] if rng.random() < 0.6 else str(count)
        user = request(rng, _LIST_ASKED).replace("{n}", shown_count).replace("{l}", name)
        thought = f"The user wants a JSON list of {count} {name}."
    return Exchange(user, json.dumps(value), thought)
