"""Conversations as token ids: rendered by the model's own chat template, encoded, and gathered into batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from .corpus.mixture import Conversation, conversation

MODEL_FOLDER = Path(__file__).parent.parent
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024)
BATCH_TOKENS = 6144
_PROMPT_WEIGHT = 0.15  # reading teaches to copy, but what users say is not to be learned by heart
_CHUNK = 4096


@dataclass(frozen=True)
class Sample:
    """Token ids, and for each how much its prediction counts in the loss."""

    tokens: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """Samples of similar length, padded to `length`."""

    length: int
    samples: list[Sample]


class Renderer:
    """Renders messages with chat_template.jinja, as transformers does."""

    def __init__(self, folder: Path = MODEL_FOLDER) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string((folder / "chat_template.jinja").read_text(encoding="utf-8"))

    def prompt(self, messages: object, tools: object, thinking: bool) -> str:
        """Return the text after which the model speaks."""
        return self._template.render(
            messages=messages, tools=tools, add_generation_prompt=True, enable_thinking=thinking
        )

    def split(self, made: Conversation) -> tuple[str, str]:
        """Return the prompt of a conversation and the model's last words in it."""
        if made.text:
            return "", made.text + END_OF_TEXT
        messages = made.messages
        if not made.thinking:
            messages = [{key: message[key] for key in message if key != "reasoning_content"} for message in messages]
        prompt = self.prompt(messages[:-1], made.tools, made.thinking)
        whole = self._template.render(messages=messages, tools=made.tools)
        if not whole.startswith(prompt):
            raise ValueError(f"the template renders a prompt that is not the start of the whole:\n{prompt}\n{whole}")
        return prompt, whole[len(prompt) :].rstrip("\n")


class Encoder:
    """Turns conversations into samples: the last answer counts whole, earlier ones but for their first token."""

    def __init__(self, tokenizer: Tokenizer, renderer: Renderer) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._header = self.ids("<|im_start|>assistant\n")
        self._end: int = self.ids(END_OF_TURN)[0]

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def sample(self, made: Conversation) -> Sample:
        """Encode one conversation."""
        prompt, answer = self._renderer.split(made)
        before, after = self.ids(prompt), self.ids(answer)
        weights = [_PROMPT_WEIGHT] * len(before) + [1.0] * len(after)
        width = len(self._header)
        speaking = False
        opening = next((at for at in range(len(before), 0, -1) if before[at - width : at] == self._header), len(before))
        weights[opening : len(before)] = [0.0] * (len(before) - opening)
        for place in range(opening):
            if before[place - width : place] == self._header:
                speaking = True
                weights[place] = 0.0
            elif speaking:
                weights[place] = 1.0
            if before[place] == self._end:
                speaking = False
        return Sample(before + after, weights)


def batches(encoder: Encoder, seed: int, first_chunk: int = 0) -> Iterator[tuple[int, Batch]]:
    """Yield endless batches with the number of the chunk that they come from."""
    waiting: dict[int, list[Sample]] = {length: [] for length in LENGTHS}
    chunk = first_chunk
    while True:
        rng = Random(f"{seed}/{chunk}")
        ready: list[Batch] = []
        for _ in range(_CHUNK):
            sample = encoder.sample(conversation(rng))
            length = next((length for length in LENGTHS if len(sample.tokens) - 1 <= length), None)
            if length is None:
                continue
            waiting[length].append(sample)
            if len(waiting[length]) * length >= BATCH_TOKENS:
                ready.append(Batch(length, waiting[length]))
                waiting[length] = []
        rng.shuffle(ready)
        for batch in ready:
            yield chunk, batch
        chunk += 1
