"""What every topic of the corpus uses: an exchange, patterns with alternatives, and the ways people type."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_LEAD_INS = (
    *("",) * 14,
    "please tell me ",
    "tell me ",
    "can you tell me ",
    "could you explain ",
    "i want to know ",
    "i would like to know ",
    "do you know ",
    "quick question: ",
    "hi, ",
    "hello! ",
    "hey, ",
    "ok, ",
    "so ",
    "and ",
    "now ",
    "i am new here. ",
    "one more thing: ",
    "sorry, but ",
)
_ENDINGS = (*("?",) * 10, *("",) * 4, " please?", " thanks", "??", "? thanks!", ", please")

_SAME_MEANING = (
    ("what is ", ("what's ", "what's ", "whats ", "what exactly is ", "what actually is ", "so what is ")),
    ("what does ", ("what exactly does ", "so what does ")),
    ("how do i ", ("how would i ", "how can i ", "how could i ", "how does one ", "how to ", "how do you ")),
    ("how can i ", ("how would i ", "how do i ", "how could i ", "how does one ", "how should i ", "how do we ")),
    ("how should i ", ("how would i ", "how do i ", "how to ")),
    ("how to ", ("how do you ", "how does one ", "how would i ", "how do i ")),
    ("what happens when ", ("what would happen if ", "what will happen if ", "what if ", "what happens in case ")),
    ("what happens if ", ("what would happen if ", "what will happen when ", "what if ", "and if ")),
    ("can i ", ("could i ", "may i ", "is it possible to ", "am i able to ", "is there a way to ")),
    ("are you ", ("would you say you are ", "are you really ", "is it true that you are ")),
    ("where is ", ("where's ", "where can i find ", "where do i find ", "where would i find ")),
    ("where are ", ("where can i find ", "where do i find ", "in which place are ")),
    ("which ", ("what ", "so which ")),
    ("who ", ("so who ", "and who ")),
    ("i am ", ("i'm ", "im ")),
    ("tell me ", ("please tell me ", "could you tell me ", "go on, tell me ", "would you tell me ")),
    ("list ", ("please list ", "can you list ", "could you please list ")),
    ("give me ", ("please give me ", "i would like ", "i'd like ", "i need ", "i want ", "let me have ")),
    ("write ", ("please write ", "could you write ", "i want you to write ", "write me ")),
    ("[start]", ("please ", "well, ", "ok so ", "just ", "excuse me, ", "my question: ", "question: ", "dear demo, ")),
)  # fmt: skip
_WHAT_IS = re.compile(r"^what is (?!the weather)(.+)$", re.IGNORECASE)
_WHAT_IS_FRAMES = (
    "could you explain what {x} is",
    "do you know what {x} is",
    "i do not understand what {x} is",
    "can you tell me what {x} is",
    "i wonder what {x} is",
    "explain what {x} is",
    "{x}: what is that",
    "what exactly is {x}",
    "what would {x} be",
    "what's {x} then",
)
_HOW_TO = re.compile(r"^(?:how (?:do|can|should) i|how to) (.+)$", re.IGNORECASE)
_HOW_TO_FRAMES = (
    "show me how to {x}",
    "explain how to {x}",
    "can you explain how to {x}",
    "i want to {x}",
    "i need to {x}",
    "i'd like to {x}, how do i do that",
    "i would like to {x}",
    "what is the command to {x}",
    "which command do i need to {x}",
    "what do i type to {x}",
    "is there a way to {x}",
    "i don't know how to {x}",
    "what do i need to do to {x}",
    "what is the best way to {x}",
    "teach me to {x}",
    "how is it possible to {x}",
)


@dataclass(frozen=True)
class Exchange:
    """A question, its answer, and the short reasoning that leads there."""

    user: str
    answer: str
    thought: str = ""


def expand(rng: Random, pattern: str) -> str:
    """Choose one alternative in every `[one|two|]`, innermost first."""
    while match := _ALTERNATIVES.search(pattern):
        choice = rng.choice(match.group(1).split("|"))
        pattern = pattern[: match.start()] + choice + pattern[match.end() :]
    return pattern


def capitalised(text: str) -> str:
    """Return `text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def reworded(rng: Random, text: str) -> str:
    """Say the same in other words: another frame around it, or another phrase in it."""
    for shape, frames in ((_WHAT_IS, _WHAT_IS_FRAMES), (_HOW_TO, _HOW_TO_FRAMES)):
        match = shape.match(text)
        if match and rng.random() < 0.6:
            return rng.choice(frames).replace("{x}", match.group(1))
    for phrase, others in _SAME_MEANING:
        if text.startswith(phrase):
            return rng.choice(others) + text.removeprefix(phrase)
    return rng.choice(_SAME_MEANING[-1][1]) + text


def question(rng: Random, patterns: Sequence[str]) -> str:
    """Say one of the patterns as a question, with the lead-ins and endings people use."""
    text = expand(rng, rng.choice(patterns))
    text = reworded(rng, text) if rng.random() < 0.4 else rng.choice(_LEAD_INS) + text
    return (capitalised(text) if rng.random() < 0.6 else text) + rng.choice(_ENDINGS)


def request(rng: Random, patterns: Sequence[str]) -> str:
    """Say one of the patterns as a request."""
    start = rng.choice(("", "", "", "", "please ", "can you ", "could you ", "hey, ", "ok, now ", "i need you to "))
    end = "?" if start.startswith(("can", "could")) else rng.choice((".", ".", "", "", "!", " please.", ", please"))
    body = expand(rng, rng.choice(patterns))
    text = (reworded(rng, body) if not start and rng.random() < 0.4 else start + body) + end
    return capitalised(text) if rng.random() < 0.6 else text


def joined(words: Sequence[str], last: str = "and") -> str:
    """Join words as prose does: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def roughened(rng: Random, text: str) -> str:
    """Return `text` as someone in a hurry types it: lower case, no punctuation, a slip of the finger."""
    if rng.random() < 0.5:
        text = text.lower()
    if rng.random() < 0.4:
        text = text.rstrip("?.! ")
    if rng.random() < 0.35:
        text = _with_slip(rng, text)
    return text


def _with_slip(rng: Random, text: str) -> str:
    words = text.split(" ")
    places = [place for place, word in enumerate(words) if len(word) > 3 and word.isalpha() and word.islower()]
    if not places:
        return text
    place = rng.choice(places)
    word = words[place]
    spot = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        word = word[:spot] + word[spot + 1 :]
    elif kind == 1:
        word = word[:spot] + word[spot] + word[spot:]
    else:
        word = word[:spot] + word[spot + 1] + word[spot] + word[spot + 2 :]
    return " ".join([*words[:place], word, *words[place + 1 :]])
