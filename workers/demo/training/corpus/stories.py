"""Stories: two sentences or long, about an animal or a person and perhaps a place; and small poems."""

from __future__ import annotations

from random import Random
from zlib import crc32

from .grammar import Exchange, capitalised, request
from .words import ANIMALS, PEOPLE, PERSONS, PLACES, THINGS, any_word

_MOODS = ("small", "brave", "clever", "lonely", "happy", "old", "curious", "quiet", "kind", "hungry")
_PLOTS = (
    "One day {he} found a golden {thing} and shared it with all {his} friends.",
    "One night a storm came, and {he} gave shelter to everyone who knocked.",
    "Every morning {he} sang a song, until the whole {place} sang along.",
    "When the {thing} was lost, {he} searched for three days and brought it home.",
    "{He} wanted to see the sea, so {he} walked and walked until {he} heard the waves.",
    "A stranger asked for help, and from that day {he} was never alone again.",
    "{He} built a boat from an old {thing} and sailed to the stars.",
    "One winter {he} shared {his} last bread with a crow, and in spring the crow brought a {thing}.",
)
_LONG = (
    "Once upon a time there was {mood} {who} who lived in the {place}.",
    "Every day the {who} looked at the far hills and wondered what lay behind them.",
    "One morning the {who} packed a {thing} and some bread and went on the way.",
    "On the first day the {who} met an old owl, who said: follow the river, and do not be afraid.",
    "On the second day it rained, and the {who} slept under a big tree.",
    "On the third day the {who} helped a lost child to find the way home.",
    "The child was so glad that she gave the {who} a small silver bell.",
    "At last the {who} came to the hills and saw a wide green valley behind them.",
    "There the {who} rang the bell, and friends came from all sides.",
    "They danced and ate until the moon was high.",
    "Then the {who} went home to the {place} and told everyone the story.",
    "And if you listen on a quiet night, you can still hear the silver bell.",
)
_SHORT_ASKED = (
    "[tell|write|give] me a [|short |little |nice |two-sentence |small ]story about {a}{where}",
    "[tell|write|make up|invent] a [|short |little |two-sentence |tiny ]story about {a}{where}",
    "a [|short |two-sentence ]story about {a}{where}",
    "[tell|write] [|me ]a story about {a}{where}[| in two sentences]",
    "i [want|would like] [to hear |]a story about {a}{where}",
    "story about {a}{where}",
    "[write|tell] [|me ]something about {a}{where}",
)
_LONG_ASKED = (
    "[tell|write|give] me a long[|, long|er] story about {a}{where}",
    "[tell|write|make up|invent] a [long|very long|longer] story about {a}{where}",
    "a long story about {a}{where}",
    "[write|tell] [|me ]a [detailed|full|big|whole] story about {a}{where}",
)
_BARE_ASKED = (
    "tell me a [|short |nice |little ]story",
    "[write|make up] a [|short ]story",
    "a story",
    "do you know a story",
    "tell me something",
    "once upon a time",
)
_POEM_ASKED = (
    "[write|tell|give] me a [|short |little |nice ]poem about {a}",
    "[write|make] a [|short |little ]poem about {a}",
    "a poem about {a}",
    "[write|tell|give] me a haiku about {a}",
    "write a haiku about {a}",
)


def _fixed(options: tuple[str, ...], *keys: str) -> str:
    """Choose by the keys, always the same, so that there is one story for each hero."""
    return options[crc32("/".join(keys).encode()) % len(options)]


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def short_story(who: str, place: str) -> str:
    """Return the two-sentence story of a hero in a place."""
    pronoun = "she" if who in ("queen", "princess", "witch", "girl", "grandmother", "hen", "cow") else "it"
    if who in PERSONS and pronoun == "it":
        pronoun = "he"
    own = {"she": "her", "he": "his", "it": "its"}[pronoun]
    plot = _fixed(_PLOTS, who, "plot").format(
        he=pronoun, He=capitalised(pronoun), his=own, thing=_fixed(THINGS, who, "thing"), place=place
    )
    return f"Once there was {_article(_fixed(_MOODS, who))} {who} who lived in the {place}. {plot}"


def _ask(rng: Random, patterns: tuple[str, ...], subject: str, place: str) -> str:
    where = f" {rng.choice(('in', 'in', 'in', 'from', 'near', 'at'))} {rng.choice(('a', 'the', 'the'))} {place}"
    text = request(rng, patterns)
    return text.replace("{a}", subject).replace("{where}", where if place else "")


def story(rng: Random) -> Exchange:
    """Return a request for a story, short or long, and the story."""
    kind = rng.random()
    who = rng.choice(rng.choice((ANIMALS, PERSONS)))
    place = rng.choice(PLACES) if rng.random() < 0.6 else ""
    home = place or _fixed(PLACES, who, "home")
    thought = f"The user wants a story about {_article(who)}. It happens in the {home}."
    if kind < 0.08:
        return Exchange(request(rng, _BARE_ASKED), short_story("fox", "forest"), "Any story will do. I tell the fox's.")
    subject = rng.choice((_article(who), _article(who), f"the {who}", f"{who}s", who))
    if kind < 0.85:
        return Exchange(_ask(rng, _SHORT_ASKED, subject, place), short_story(who, home), thought)
    text = " ".join(_LONG).format(
        mood=_article(_fixed(_MOODS, who)), who=who, place=home, thing=_fixed(THINGS, who, "thing")
    )
    return Exchange(_ask(rng, _LONG_ASKED, subject, place), text, thought)


def poem(rng: Random) -> Exchange:
    """Return a request for a poem and four short lines."""
    topic = rng.choice((*ANIMALS, *PERSONS, *PLACES, *THINGS, any_word(rng)))
    lines = f"The {topic} is near, the night is long,\nthe {topic} is here and hums a song.\n" + (
        f"The wind blows soft, the stars are bright,\nsleep well, dear {topic}, and good night."
    )
    return Exchange(
        _ask(rng, _POEM_ASKED, rng.choice((_article(topic), f"the {topic}", topic)), ""),
        lines,
        f"The user wants a poem. It is about {topic}.",
    )


def plain_text(rng: Random) -> str:
    """Return a text without any chat around it, for the completions protocol."""
    who, place = rng.choice((*ANIMALS, *PERSONS)), rng.choice(PLACES)
    if rng.random() < 0.4:
        return " ".join(_LONG).format(
            mood=_article(_fixed(_MOODS, who)), who=who, place=place, thing=_fixed(THINGS, who, "thing")
        )
    name = rng.choice(PEOPLE)
    return f"{short_story(who, place)} The end. This story was told by {name}."
