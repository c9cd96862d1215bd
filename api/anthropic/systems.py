"""Where a model's template takes system messages, and turns rearranged so that none of them is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from api.anthropic.conversation import Turn
from scheduler.errors import TemplateRefused
from scheduler.prompts import PromptFormat

_PROBE = [
    {"role": "system", "content": "probe-1"},
    {"role": "user", "content": "probe-2"},
    {"role": "assistant", "content": "probe-3"},
    {"role": "system", "content": "probe-4"},
    {"role": "user", "content": "probe-5"},
]


def placed(turns: Sequence[Turn], prompts: PromptFormat) -> list[Turn]:
    """The turns as the template takes them: a system message that it would refuse or drop becomes the user's."""
    late = any(turn.role == "system" for turn in turns[1:])
    if late and _keeps(prompts, len(_PROBE)):
        return list(turns)
    keeps_first = turns[0].role == "system" and _keeps(prompts, 2)
    out: list[Turn] = []
    for index, turn in enumerate(turns):
        spoken = turn
        if turn.role == "system" and not (index == 0 and keeps_first):
            spoken = replace(turn, role="user")
        if out and spoken.role == out[-1].role == "user":
            last = out[-1]
            out[-1] = replace(last, parts=last.parts + spoken.parts, paths=last.paths + spoken.paths)
        else:
            out.append(spoken)
    return out


def _keeps(prompts: PromptFormat, length: int) -> bool:
    """Does the template show the first messages of the probe, in their order?"""
    try:
        text = prompts.render(_PROBE[:length], tools=None)
    except TemplateRefused:
        return False
    places = [text.find(message["content"]) for message in _PROBE[:length]]
    return min(places) >= 0 and places == sorted(places)
