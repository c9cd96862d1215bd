"""Puts the topics together: conversations of one or more turns, with or without system prompt, tools and thinking."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from .arithmetic import arithmetic, chain
from .copying import counted, repeated, spelled
from .facts import capital, list_of_names, small_fact, translation
from .fallback import fallback
from .farm import farm
from .grammar import Exchange, roughened
from .json_answers import json_answer
from .small_talk import name_remembered, small_talk
from .stories import plain_text, poem, story
from .tool_kinds import JsonObject
from .tools import Message, missing_tool_turn, offers, tool_turn

_TOPICS = {
    small_talk: 17,
    farm: 24,
    arithmetic: 38,
    chain: 1,
    json_answer: 9,
    story: 6,
    poem: 1,
    repeated: 11,
    spelled: 3,
    counted: 6,
    capital: 5,
    translation: 5,
    list_of_names: 4,
    small_fact: 5,
    fallback: 13,
}
_EXACT = (repeated, spelled, json_answer)
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful, honest assistant.",
    "You are demo, a toy model.",
    "You are a friendly assistant. Answer briefly.",
    "Answer in one sentence.",
    "Be brief.",
    "Be concise and polite.",
    "You are an assistant for the users of mlx-farm.",
    "You are a coding assistant. Follow the rules of the project.",
    "Always answer in English.",
    "You are a test assistant. Today is a good day.",
    "You answer questions about the server. If you do not know an answer, say so.",
    "You are a careful assistant that uses tools when they help.",
)


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant's, the tools offered, and whether thinking is on; or a plain text."""

    messages: list[Message] = field(default_factory=list)
    tools: list[JsonObject] = field(default_factory=list)
    thinking: bool = False
    text: str = ""


def _exchange(rng: Random) -> list[Exchange]:
    if rng.random() < 0.03:
        return name_remembered(rng)
    topic = rng.choices(list(_TOPICS), list(_TOPICS.values()))[0]
    made = topic(rng)
    if topic not in _EXACT and rng.random() < 0.35:
        return [Exchange(roughened(rng, made.user), made.answer, made.thought)]
    return [made]


def _turns(exchanges: list[Exchange]) -> list[Message]:
    messages: list[Message] = []
    for made in exchanges:
        messages.append({"role": "user", "content": made.user})
        messages.append({"role": "assistant", "content": made.answer, "reasoning_content": made.thought})
    return messages


def _harmless_exchange(rng: Random) -> list[Exchange]:
    """Return an exchange that no offered tool could be meant for."""
    topic = rng.choice((small_talk, farm, farm, story, translation, capital, small_talk))
    return [topic(rng)]


def conversation(rng: Random) -> Conversation:
    """Return one conversation."""
    if rng.random() < 0.02:
        return Conversation(text=plain_text(rng))
    messages: list[Message] = []
    if rng.random() < 0.4:
        role = "developer" if rng.random() < 0.05 else "system"
        messages.append({"role": role, "content": rng.choice(_SYSTEM_PROMPTS)})
    thinking = rng.random() < 0.25
    turns = rng.choices((1, 2, 3, 4, 6, 9), (70, 17, 8, 3, 1.5, 0.5))[0]
    if rng.random() < 0.19:
        offered = offers(rng)
        for turn in range(min(turns, 4)):
            kind = rng.random()
            if kind < 0.72:
                messages += tool_turn(rng, offered)
                if messages[-1].get("tool_calls") and turn + 1 < turns:
                    break
            elif kind < 0.8:
                messages += missing_tool_turn(rng, offered)
            else:
                messages += _turns(_harmless_exchange(rng))
        return Conversation(messages, [offer.schema(rng) for offer in offered], thinking)
    for _ in range(turns):
        messages += _turns(_exchange(rng))
    return Conversation(messages, [], thinking)
