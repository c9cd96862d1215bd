"""Greedy answers to the held-out questions, and how many of them are right, by category."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from .heldout import Question, questions
from .network import Parameters, Shape, hidden_states, logits, rotation_table
from .samples import END_OF_TURN, Encoder, Renderer

_LONGEST_ANSWER_TOKENS = 300


def answers(
    parameters: Parameters, shape: Shape, encoder: Encoder, tokenizer: Tokenizer, asked: list[Question]
) -> list[str]:
    """Answer all questions in one batch, each row ending by itself."""
    renderer, end = Renderer(), encoder.ids(END_OF_TURN)[0]
    rows = [encoder.ids(renderer.prompt(each.messages(), list(each.tools), each.thinking)) for each in asked]
    starts = [len(row) for row in rows]
    waiting = set(range(len(rows)))
    with torch.no_grad():
        while waiting:
            places = sorted(waiting)
            length = max(len(rows[place]) for place in places)
            tokens = torch.tensor([rows[place] + [end] * (length - len(rows[place])) for place in places])
            hidden = hidden_states(parameters, tokens, shape, rotation_table(shape, length), torch.bfloat16)
            last = torch.tensor([len(rows[place]) - 1 for place in places])
            chosen = logits(parameters, hidden[torch.arange(len(places)), last]).argmax(-1).tolist()
            for place, token in zip(places, chosen, strict=True):
                rows[place].append(token)
                if token == end or len(rows[place]) - starts[place] >= _LONGEST_ANSWER_TOKENS:
                    waiting.discard(place)
    return [
        tokenizer.decode([token for token in row[start:] if token != end], skip_special_tokens=False)
        for row, start in zip(rows, starts, strict=True)
    ]


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
