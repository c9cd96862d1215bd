"""Answers that are read off the question: repeating a phrase, spelling a word, counting between two numbers."""

from __future__ import annotations

from random import Random

from .grammar import Exchange, capitalised, expand, request
from .words import ANIMALS, CITIES, PEOPLE, PLACES, THINGS, any_word

_REPEAT_ASKED = (
    "repeat after me: {x}",
    "repeat after me, {x}",
    "[repeat|echo|copy] this: {x}",
    "[repeat|echo|copy]: {x}",
    "repeat: {x}",
    "[please |]repeat {q}",
    "[please |]say {q}",
    "say this: {x}",
    "say: {x}",
    "[reply|answer|respond] with {q}",
    "[reply|answer|respond] [only|just] with {q}",
    "[reply|answer|respond] with exactly: {x}",
    "[reply|answer|respond] with [exactly|only|just] {q}",
    "[reply|answer|respond] with the [word|words|text] {q}",
    "[say|write|type|print|output] [exactly|only|just|the words|the word|the text] {q}",
    "[write|type|print|output]: {x}",
    "[write|type|print] {q}",
    "can you say {q}?",
    "can you repeat {q}?",
    "[repeat|echo] the [phrase|words|text|sentence] {q}",
    "[repeat|say] {q} [please|for me|back to me]",
)
_FIXED_PHRASES = (
    "hello", "hello world", "this is a test", "this is a test.", "pong", "PONG", "ok", "OK", "yes", "Hello!", "foo",
    "foo bar", "ready", "done", "I am a teapot", "it works", "hi", "banana", "42", "1 2 3", "success", "a b c",
)  # fmt: skip
_COUNT_ASKED = (
    "count from {a} to {b}",
    "count from {a} to {b}",
    "count from {a} up to {b}",
    "count up from {a} to {b}",
    "count [the numbers |]from {a} [to|until|through] {b}",
    "[write|list|say|give me|print] the numbers from {a} to {b}",
    "[write|list|say|give me] [all numbers|all the numbers|numbers] from {a} to {b}",
    "[write|list|say] the numbers {a} to {b}",
    "count {a} to {b}",
    "numbers from {a} to {b}",
)
_COUNT_TO_ASKED = ("count to {b}", "count up to {b}", "[say|write|list] the numbers up to {b}", "can you count to {b}")
_COUNT_DOWN_ASKED = (
    "count [down|backwards|back] from {b} to {a}",
    "count from {b} down to {a}",
    "[write|say|list] the numbers from {b} down to {a}",
    "countdown from {b} to {a}",
)
_SPELL_ASKED = (
    "spell {x}",
    "spell the word {x}",
    "how do you spell {x}",
    "how is {x} spelled",
    "how do i spell {x}",
    "spell {x} for me",
    "what are the letters [of|in] {x}",
    "spell out {x}",
)


def repeated(rng: Random) -> Exchange:
    """Return a request to repeat a phrase exactly."""
    if rng.random() < 0.2:
        phrase = rng.choice(_FIXED_PHRASES)
    else:
        words = [any_word(rng) for _ in range(rng.choice((1, 1, 2, 3, 3, 4, 5, 6, 7, 9, 12)))]
        if rng.random() < 0.2:
            words[rng.randrange(len(words))] = str(rng.randint(0, 999))
        if rng.random() < 0.2:
            words[rng.randrange(len(words))] = rng.choice(rng.choice((PEOPLE, CITIES)))
        phrase = " ".join(words)
    style = rng.random()
    if style < 0.25:
        phrase = capitalised(phrase)
    elif style < 0.3:
        phrase = phrase.upper()
    if rng.random() < 0.15:
        phrase += rng.choice((".", "!", "?"))
    pattern = expand(rng, rng.choice(_REPEAT_ASKED))
    if rng.random() < 0.5:
        pattern = capitalised(pattern)
    quoted = rng.choice((f'"{phrase}"', f'"{phrase}"', f"'{phrase}'", phrase, f"`{phrase}`"))
    user = pattern.replace("{x}", phrase).replace("{q}", quoted)
    return Exchange(user, phrase, "The user wants me to repeat something. I copy it.")


def spelled(rng: Random) -> Exchange:
    """Return a request to spell a word."""
    word = rng.choice(rng.choice((ANIMALS, THINGS, PLACES)))
    shown = rng.choice((word, word, f'"{word}"', f"'{word}'"))
    letters = "-".join(word)
    return Exchange(request(rng, _SPELL_ASKED).replace("{x}", shown), letters, f"The word is {word}.")


def counted(rng: Random) -> Exchange:
    """Return a request to count, upwards or down."""
    span = rng.choice((2, 3, 4, 5, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9, 10, 11, 12, 14, 15, 19, 19, 20, 29, 49))
    start = rng.choice((0, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 20, 30, 40, 50, rng.randint(0, 80)))
    end = start + span
    if rng.random() < 0.02:
        start, end = 1, 100
    kind = rng.random()
    numbers = list(range(start, end + 1))
    patterns: tuple[str, ...] = _COUNT_ASKED
    if kind < 0.17 and span <= 20:
        patterns = _COUNT_DOWN_ASKED
        numbers.reverse()
    elif kind < 0.35:
        patterns = _COUNT_TO_ASKED
        numbers = list(range(1, end + 1)) if end <= 60 or end == 100 else list(range(1, 11))
        start, end = 1, numbers[-1]
    user = request(rng, patterns).replace("{a}", str(start)).replace("{b}", str(end))
    thought = f"I start at {numbers[0]} and stop at {numbers[-1]}."
    return Exchange(user, ", ".join(map(str, numbers)), thought)
