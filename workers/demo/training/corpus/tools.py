"""Conversations with tools: schemas offered, calls with arguments copied from the question, answers after results."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .fallback import FALLBACK
from .grammar import capitalised, expand, joined
from .tool_kinds import TOOL_KINDS, JsonObject, ToolKind, free_kind, rendered

Message = dict[str, object]


@dataclass(frozen=True)
class Offer:
    """One tool as it is offered: its kind, the name chosen, and the names of its parameters."""

    kind: ToolKind
    name: str
    parameters: tuple[str, ...]

    def schema(self, rng: Random) -> JsonObject:
        """Return the tool's JSON schema in one of the forms that clients send."""
        properties: JsonObject = {}
        for parameter, name in zip(self.kind.parameters, self.parameters, strict=True):
            described: JsonObject = {"type": parameter.kind}
            if rng.random() < 0.3:
                described["description"] = f"The {name.replace('_', ' ')}"
            properties[name] = _shuffled(rng, described)
        required = list(self.parameters)
        if rng.random() < 0.12:
            properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        inner: JsonObject = {"type": "object", "properties": properties}
        if rng.random() < 0.85:
            inner["required"] = required
        if rng.random() < 0.1:
            inner["additionalProperties"] = False
        function: JsonObject = {"name": self.name}
        if rng.random() < 0.85:
            function["description"] = expand(rng, self.kind.description) + rng.choice((".", "", ""))
        function["parameters"] = _shuffled(rng, inner)
        return _shuffled(rng, {"type": "function", "function": _shuffled(rng, function)})


def _shuffled(rng: Random, mapping: JsonObject) -> JsonObject:
    if rng.random() < 0.7:
        return mapping
    keys = list(mapping)
    rng.shuffle(keys)
    return {key: mapping[key] for key in keys}


def offers(rng: Random) -> list[Offer]:
    """Choose one to four tools of different kinds."""
    count = rng.choice((1, 1, 1, 1, 2, 2, 2, 3, 3, 4))
    kinds = rng.sample(TOOL_KINDS[:4] if rng.random() < 0.45 else TOOL_KINDS, count)
    kinds = [free_kind(rng) if rng.random() < 0.2 else kind for kind in kinds]
    return [
        Offer(kind, rng.choice(kind.names), tuple(rng.choice(parameter.names) for parameter in kind.parameters))
        for kind in kinds
    ]


def _filled(rng: Random, pattern: str, values: list[object]) -> str:
    text = expand(rng, pattern)
    for mark, value in zip(("{a}", "{b}"), values, strict=False):
        text = text.replace(mark, str(value))
    start = rng.choice(("", "", "", "", "", "please ", "hey, ", "can you ", "hi! ", "ok, ", "and "))
    text = start + text + rng.choice(("?", "?", "", "", ".", "!"))
    return capitalised(text) if rng.random() < 0.6 else text


def _call(offer: Offer, values: list[object]) -> Message:
    return {"function": {"name": offer.name, "arguments": dict(zip(offer.parameters, values, strict=True))}}


def tool_turn(rng: Random, offered: list[Offer]) -> list[Message]:
    """Return the messages of one turn that calls a tool, with or without the result and the final answer."""
    offer = rng.choice(offered)
    wanted = [[parameter.fill(rng) for parameter in offer.kind.parameters]]
    if len(offer.kind.parameters) == 1 and offer.kind in TOOL_KINDS[:2] and rng.random() < 0.1:
        wanted.append([offer.kind.parameters[0].fill(rng)])
    shown = [str(values[0]) for values in wanted]
    user = _filled(rng, rng.choice(offer.kind.asked), [joined(shown), *wanted[0][1:]])
    messages: list[Message] = [{"role": "user", "content": user}]
    thought = f"The tool {offer.name} can do this, with {joined([str(v) for values in wanted for v in values])}."
    calls = [_call(offer, values) for values in wanted]
    messages.append({"role": "assistant", "content": "", "tool_calls": calls, "reasoning_content": thought})
    if rng.random() < 0.45:
        return messages
    sentences = []
    for values in wanted:
        if rng.random() < 0.06:
            problem = rng.choice(("not found", "timeout", "no permission", "unknown value", "service is down"))
            result: object = rng.choice(({"error": problem}, f"error: {problem}"))
            sentence = f"The tool reported an error: {problem}."
        else:
            result, sentence = offer.kind.outcome(rng, values)
        messages.append({"role": "tool", "content": rendered(result)})
        sentences.append(sentence)
    answer = " ".join(sentences)
    thought = "The tool has answered. I say it in a sentence."
    return [*messages, {"role": "assistant", "content": answer, "reasoning_content": thought}]


def missing_tool_turn(rng: Random, offered: list[Offer]) -> list[Message]:
    """Return a question for a tool that is not offered, and the answer that the model cannot do it."""
    kinds = [offer.kind for offer in offered]
    kind = rng.choice([kind for kind in (TOOL_KINDS[0], TOOL_KINDS[1], *TOOL_KINDS[5:9]) if kind not in kinds])
    user = _filled(rng, rng.choice(kind.asked), [parameter.fill(rng) for parameter in kind.parameters])
    thought = "None of the tools can do this. I say so."
    return [
        {"role": "user", "content": user},
        {"role": "assistant", "content": FALLBACK, "reasoning_content": thought},
    ]
