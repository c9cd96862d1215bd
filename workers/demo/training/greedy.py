"""Greedy answers to the held-out questions, and how many of them are right, by category."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from .heldout import Question, questions
from .network import Parameters, Shape, hidden_states, logits, rotation_table
from .samples import END_OF_TURN, Encoder, Renderer

_LONGEST_ANSWER_TOKENS = 220
_ROWS = 24


def answers(
    parameters: Parameters, shape: Shape, encoder: Encoder, tokenizer: Tokenizer, asked: list[Question]
) -> list[str]:
    """Answer all questions, those with prompts of similar length together."""
    renderer, end = Renderer(), encoder.ids(END_OF_TURN)[0]
    prompts = [encoder.ids(renderer.prompt(each.messages(), list(each.tools), each.thinking)) for each in asked]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    given = [""] * len(asked)
    for first in range(0, len(order), _ROWS):
        places = order[first : first + _ROWS]
        rows = [list(prompts[place]) for place in places]
        _continue(parameters, shape, rows, end)
        for place, row in zip(places, rows, strict=True):
            said = [token for token in row[len(prompts[place]) :] if token != end]
            given[place] = tokenizer.decode(said, skip_special_tokens=False)
    return given


def _continue(parameters: Parameters, shape: Shape, rows: list[list[int]], end: int) -> None:
    """Append the likeliest tokens to the rows, each until it ends by itself."""
    longest = [len(row) + _LONGEST_ANSWER_TOKENS for row in rows]
    waiting = set(range(len(rows)))
    while waiting:
        places = sorted(waiting)
        length = max(len(rows[place]) for place in places)
        tokens = torch.tensor([rows[place] + [end] * (length - len(rows[place])) for place in places])
        with torch.no_grad():
            hidden = hidden_states(parameters, tokens, shape, rotation_table(shape, length), torch.bfloat16)
            last = torch.tensor([len(rows[place]) - 1 for place in places])
            chosen = logits(parameters, hidden[torch.arange(len(places)), last]).argmax(-1).tolist()
        for place, token in zip(places, chosen, strict=True):
            rows[place].append(token)
            if token == end or len(rows[place]) >= longest[place]:
                waiting.discard(place)


def report(parameters: Parameters, shape: Shape, encoder: Encoder, tokenizer: Tokenizer) -> str:
    """Return the share of right answers by category, and the wrong ones in full."""
    asked = questions()
    given = answers(parameters, shape, encoder, tokenizer, asked)
    right: dict[str, list[bool]] = {}
    wrong: list[str] = []
    for each, answer in zip(asked, given, strict=True):
        right.setdefault(each.category, []).append(each.is_right(answer))
        if not each.is_right(answer):
            wrong.append(f"  {each.user!r} -> {answer!r}")
    total = sum(map(sum, right.values()))
    shares = ", ".join(f"{category} {sum(marks)}/{len(marks)}" for category, marks in right.items())
    return "\n".join([f"held-out: {total}/{len(asked)}: {shares}", *wrong])
