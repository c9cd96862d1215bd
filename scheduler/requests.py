"""What a job asks for, in the farm's own words, and its wire form (msgpack): protocols are translated at the edge.

One request may hold several prompts (`/v1/completions` takes arrays) and ask for `n` answers to each: choice
`prompt_index * n + k` is the k-th answer to that prompt.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from typing import Any

import msgpack

from scheduler.grammars import Grammar, GrammarKind
from scheduler.prefixes import prefix_marks
from scheduler.wire import known_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn; the defaults change nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When a choice ends. `max_tokens` is already bounded by the context."""

    max_tokens: int
    min_tokens: int = 0
    strings: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """The body of a job.

    `prompts` are token ids. `logprobs`: None for none, k ≥ 0 for the chosen token's and the k most likely ones;
    `prompt_logprobs`: the same of the prompts' own tokens.
    `adapter` names one of the model's adapters, None for the model as it is.
    The text of every answer obeys the `grammar`. Cached prefixes are shared among jobs of one `cache_salt` only.
    `images` are the files that the one prompt shows, in order; `image_count` says how many there are also where only
    the rest of the body was read.
    For a model of vectors: `second_at` says of each prompt where a pair's second text begins (empty: no pairs),
    `dimensions` how many numbers are wanted (None: all).
    `keep_alive_s`: for how long the model is kept in memory without work after this (-1: for ever, None: as usual).
    `conversation` is what a provider is asked, as JSON in the words of OpenAI's chat completions (api/hosted.py); the
    job has no token ids then, and `asked_tokens` is an estimate. `fallbacks` are jobs, encoded, that take this one's
    place one after the other where it fails before it has said anything (`next_request`).
    `rendering` is the edge's own note on how to put the answer into the caller's protocol; the core never reads it.
    """

    kind: str
    model: str
    prompts: tuple[tuple[int, ...], ...]
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stopping: Stopping
    logprobs: int | None = None
    prompt_logprobs: bool = False
    adapter: str | None = None
    cache_salt: str = ""
    grammar: Grammar | None = None
    second_at: tuple[int, ...] = ()
    dimensions: int | None = None
    images: tuple[bytes, ...] = ()
    image_count: int = 0
    keep_alive_s: float | None = None
    conversation: bytes = b""
    asked_tokens: int = 0
    fallbacks: tuple[bytes, ...] = ()
    rendering: dict[str, Any] = field(default_factory=dict)

    @property
    def choices(self) -> int:
        """How many sequences the engine runs for this job."""
        return len(self.prompts) * self.n

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once; an estimate where a provider is asked."""
        return self.asked_tokens + sum(len(prompt) for prompt in self.prompts)

    def choice_prompt(self, index: int) -> tuple[int, ...]:
        """The prompt's token ids that choice `index` answers."""
        return self.prompts[index // self.n]

    def choice_second_at(self, index: int) -> int | None:
        """Where the second text of the pair begins that choice `index` is about."""
        return self.second_at[index // self.n] if self.second_at else None

    def choice_seed(self, index: int) -> int:
        """A seed of its own for each choice; choice 0 has the request's."""
        return (self.sampling.seed + index * 0x9E3779B97F4A7C15) % 2**64

    @property
    def lacks_images(self) -> bool:
        """Are its images elsewhere, or gone?"""
        return len(self.images) < self.image_count

    def without_images(self) -> JobRequest:
        """What is kept of a job for longer than it runs."""
        return replace(self, images=())

    def prefix_marks(self) -> list[str]:
        """Names of the beginnings that its prompt may share with other jobs', longest first (prefixes.py)."""
        if len(self.prompts) != 1 or self.image_count:
            return []
        return prefix_marks(self.prompts[0], root=f"{self.cache_salt}\n{self.adapter or ''}")

    def without_input(self) -> JobRequest:
        """What is kept of a job that has ended: nothing of what it was asked."""
        return replace(self, prompts=(), images=(), conversation=b"", fallbacks=())

    def next_request(self) -> JobRequest | None:
        """What takes this one's place when it fails; None: nothing does."""
        if not self.fallbacks:
            return None
        return replace(JobRequest.decode(self.fallbacks[0]), fallbacks=self.fallbacks[1:])

    def encode(self) -> bytes:
        """To msgpack; `decode` is its inverse (lists inside `rendering` come back as tuples)."""
        body = field_values(self)
        body |= {"sampling": field_values(self.sampling), "stopping": field_values(self.stopping)}
        if self.grammar is not None:
            body["grammar"] = {"kind": self.grammar.kind.value, "text": self.grammar.text}
        return bytes(msgpack.packb(body))

    @staticmethod
    def decode(data: bytes) -> JobRequest:
        """From msgpack. Unknown fields of newer writers are ignored."""
        raw = msgpack.unpackb(data, use_list=False)
        body = known_fields(JobRequest, raw)
        body["sampling"] = Sampling(**known_fields(Sampling, raw["sampling"]))
        body["stopping"] = Stopping(**known_fields(Stopping, raw["stopping"]))
        if grammar := raw.get("grammar"):
            body["grammar"] = Grammar(GrammarKind(grammar["kind"]), grammar["text"])
        return JobRequest(**body)

    def params(self) -> dict[str, Any]:
        """The parameters in effect, for the record (no prompt text, no token ids of the prompt)."""
        return {
            "n": self.n,
            "choices": self.choices,
            "logprobs": self.logprobs,
            "prompt_logprobs": self.prompt_logprobs,
            "adapter": self.adapter,
            **{key: value for key, value in field_values(self.sampling).items() if key != "logit_bias"},
            "logit_bias": len(self.sampling.logit_bias),
            "max_tokens": self.stopping.max_tokens,
            "min_tokens": self.stopping.min_tokens,
            "stop": len(self.stopping.strings) + len(self.stopping.token_ids),
            "ignore_eos": self.stopping.ignore_eos,
            "grammar": self.grammar.kind.value if self.grammar else None,
            "dimensions": self.dimensions,
            "images": self.image_count,
            "keep_alive_s": self.keep_alive_s,
        }


def image_digest(data: bytes) -> str:
    """The name of an image's content among its tenant's: SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def field_values(record: Sampling | Stopping | JobRequest) -> dict[str, Any]:
    """A record's fields by name, not copied: they are immutable."""
    return {field.name: getattr(record, field.name) for field in fields(record)}
