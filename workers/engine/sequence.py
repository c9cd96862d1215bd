"""What goes into the engine (prompts), what comes out (chunks), and the life of one sequence in between.

Pure: no MLX, no clock, no threads. A `Sequence` is advanced by token ids alone, so feeding it the ids that an earlier
attempt emitted restores its whole state: text, stop matching, counts and the position of the random generator.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from workers.engine.errors import InvalidPrompt
from workers.engine.guided import Grammar, Guide
from workers.engine.text import TextStream

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn.

    Order: logit bias and penalties on the logits, then temperature, top-k, top-p, min-p. `temperature` 0 is greedy and
    ignores the last three. The repetition penalty counts prompt and output (Keskar et al. 2019, CTRL); presence and
    frequency penalties count output only (OpenAI's definition). `seed` may be any integer; its low 64 bits count.
    """

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
class StopRule:
    """When a sequence ends. `token_ids` end it like the model's own end-of-sequence ids, which `ignore_eos` disables.

    Until `min_tokens` tokens exist, end ids cannot be drawn and stop strings are not looked for; text of those first
    tokens never counts as part of a stop string.
    """

    max_tokens: int
    min_tokens: int = 0
    strings: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A request for text.

    `logprobs`: None for none, k for the chosen token's log-probability and the k most likely alternatives.
    `prompt_logprobs`: the same of the prompt's own tokens, which are then all read, whatever of them is known.
    `resume_ids` are tokens that an earlier attempt has already emitted; generation continues behind them.
    `priority`: where memory runs out, sequences of a higher one keep their place. The text obeys the `grammar`.
    `adapter` names one of the adapters that were loaded with the model; None: the model as it is.
    `cache_salt` keeps what is computed for it from prompts with another one: nobody can tell whether it was there.
    For a model of vectors: `second_at` is where a pair's second text begins (None: one text), `dimensions` how many
    numbers are wanted (None: all).
    `images` are the files behind the image tokens, in order, for a model that sees.
    """

    id: str
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopRule
    logprobs: int | None = None
    prompt_logprobs: bool = False
    resume_ids: tuple[int, ...] = ()
    priority: int = 0
    grammar: Grammar | None = None
    adapter: str | None = None
    cache_salt: str = ""
    second_at: int | None = None
    dimensions: int | None = None
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-softmax of the model's raw logits: before bias, penalties, min-tokens masks and temperature."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class Fault(StrEnum):
    """Whose an error is, and so what to do: give it back to who asked, give up, or try again later or elsewhere."""

    PROMPT = "prompt"
    ENGINE = "engine"
    PASSING = "passing"


@dataclass(frozen=True, slots=True)
class PrefixUse:
    """Tokens of a prompt that came from a cache of prefixes, and of those that were read, how many it has now."""

    read_tokens: int = 0
    written_tokens: int = 0


NO_PREFIX = PrefixUse()


@dataclass(frozen=True, slots=True)
class Chunk:
    """News of one sequence from one step.

    `token_ids` are the generated tokens that count as output: all but the end-of-sequence or stop token that ended
    the sequence, so that a resumed sequence never continues behind its own end. Tokens of a stop string are counted
    although their text is not emitted. `text` may be empty (a character or a possible stop string is incomplete), and
    the last chunk may carry text of earlier tokens. The chunk with a `finish_reason` is the sequence's last; `fault`
    says whose an `error` is, `prefix` what a cache did for a sequence that came to its end. `vector`: little-endian
    float32, the whole answer of a model that does not generate. `prompt_logprobs` come with the first token, where they
    were asked for: of every token of the prompt but the first, which nothing predicts.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    error: str | None = None
    fault: Fault = Fault.ENGINE
    prefix: PrefixUse = field(default=NO_PREFIX, compare=False)  # that depends on the company
    vector: bytes | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the loaded model allows. `context_tokens` bounds prompt plus output; None: no bound is known.

    `adapters` are the names that prompts may ask for; a model that `sees` takes images. `scores_prompts`: it can tell
    the log-probabilities of a prompt's tokens.
    """

    vocab_size: int
    context_tokens: int | None
    eos_token_ids: frozenset[int]
    adapters: frozenset[str] = frozenset()
    sees: bool = False
    scores_prompts: bool = False


def _require(condition: bool, prompt: Prompt, message: str) -> None:
    if not condition:
        raise InvalidPrompt(f"prompt {prompt.id!r}: {message}")


def check_prompt(prompt: Prompt, limits: Limits) -> None:
    """Raise `InvalidPrompt` unless the model can serve the prompt."""
    _require(len(prompt.token_ids) > 0, prompt, "the prompt is empty")
    known = prompt.adapter is None or prompt.adapter in limits.adapters
    _require(known, prompt, f"no adapter {prompt.adapter!r} was loaded (there are: {sorted(limits.adapters)})")
    _require(limits.sees or not prompt.images, prompt, "this model takes no images")
    if limits.context_tokens is not None:
        _require(
            len(prompt.token_ids) < limits.context_tokens,
            prompt,
            f"{len(prompt.token_ids)} prompt tokens leave no room in a context of {limits.context_tokens} tokens",
        )
    for name, ids in (("token_ids", prompt.token_ids), ("resume_ids", prompt.resume_ids)):
        _require(all(0 <= token < limits.vocab_size for token in ids), prompt, f"{name} leave the vocabulary")
    top = prompt.logprobs
    _require(top is None or 0 <= top <= MAX_TOP_LOGPROBS, prompt, f"logprobs must be 0 to {MAX_TOP_LOGPROBS}")
    _require(limits.scores_prompts or not prompt.prompt_logprobs, prompt, "this model's engine scores no prompts")
    _require(top is not None or not prompt.prompt_logprobs, prompt, "prompt_logprobs need logprobs")
    _check_sampling(prompt, limits)
    _check_stop(prompt, limits)


def _check_sampling(prompt: Prompt, limits: Limits) -> None:
    sampling = prompt.sampling
    penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    biases = tuple(bias for _, bias in sampling.logit_bias)
    for value in (sampling.temperature, sampling.top_p, sampling.min_p, *penalties):
        _require(math.isfinite(value), prompt, "sampling parameters must be finite")
    _require(all(not math.isnan(bias) and bias != math.inf for bias in biases), prompt, "logit_bias must be finite")
    _require(sampling.temperature >= 0, prompt, "temperature must not be negative")
    _require(0 < sampling.top_p <= 1, prompt, "top_p must be above 0 and at most 1")
    _require(0 <= sampling.min_p <= 1, prompt, "min_p must be 0 to 1")
    _require(sampling.top_k >= 0, prompt, "top_k must not be negative (0 turns it off)")
    _require(sampling.repetition_penalty > 0, prompt, "repetition_penalty must be above 0")
    in_vocabulary = all(0 <= token < limits.vocab_size for token, _ in sampling.logit_bias)
    _require(in_vocabulary, prompt, f"logit_bias names tokens outside the vocabulary of {limits.vocab_size}")


def _check_stop(prompt: Prompt, limits: Limits) -> None:
    stop = prompt.stop
    _require(stop.max_tokens >= 0, prompt, "max_tokens must not be negative")
    _require(stop.min_tokens >= 0, prompt, "min_tokens must not be negative")
    _require(stop.min_tokens <= stop.max_tokens, prompt, "min_tokens must not exceed max_tokens")
    _require(not (stop.min_tokens and prompt.grammar), prompt, "min_tokens cannot be asked of a text with a grammar")
    _require(not (stop.ignore_eos and prompt.grammar), prompt, "a text with a grammar cannot ignore its end")
    _require(all(stop.strings), prompt, "a stop string must not be empty")
    in_vocabulary = all(0 <= token < limits.vocab_size for token in stop.token_ids)
    _require(in_vocabulary, prompt, f"stop token_ids leave the vocabulary of {limits.vocab_size}")


class Sequence:
    """A prompt being generated: how far it is, what text is out, and why it ended.

    `start_text(stop_strings)` makes the text stream; the ids of `prompt.resume_ids` are fed at construction and their
    text is dropped, because an earlier attempt has emitted it. `guide` stands behind them too, for whoever draws.
    """

    def __init__(
        self,
        prompt: Prompt,
        limits: Limits,
        start_text: Callable[[tuple[str, ...]], TextStream],
        guide: Guide | None = None,
    ) -> None:
        stop = prompt.stop
        self.prompt = prompt
        self.guide = guide
        self.end_ids = frozenset(stop.token_ids) | (frozenset() if stop.ignore_eos else limits.eos_token_ids)
        room = None if limits.context_tokens is None else limits.context_tokens - len(prompt.token_ids)
        self.max_tokens = stop.max_tokens if room is None else min(stop.max_tokens, room)
        self.output_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_string: str | None = None
        self._text = start_text(stop.strings)
        self._finish_if_full()
        for token in prompt.resume_ids:
            if self.finish_reason is None:
                self.advance(token)

    @property
    def input_ids(self) -> list[int]:
        """What the model has to read before the next token: the prompt and what is already emitted."""
        return [*self.prompt.token_ids, *self.prompt.resume_ids]

    @property
    def tokens_left(self) -> int:
        """How many more tokens may be drawn at most."""
        return self.max_tokens - self.output_tokens

    def advance(self, token: int) -> str:
        """Take the next token; returns the text that is now certain. Sets `finish_reason` where the token ends it."""
        if token in self.end_ids:
            self.finish_reason = FinishReason.STOP
            return self._text.flush()
        self.output_tokens += 1
        text = self._text.push(token, searching=self.output_tokens > self.prompt.stop.min_tokens)
        if self._text.stop_string is not None:
            self.finish_reason, self.stop_string = FinishReason.STOP, self._text.stop_string
            return text
        return text + self._finish_if_full()

    def abandon(self, reason: FinishReason) -> str:
        """End the sequence from outside (cancelled, error); returns the whole characters that were held back."""
        self.finish_reason = reason
        return self._text.release()

    def _finish_if_full(self) -> str:
        if self.output_tokens < self.max_tokens:
            return ""
        self.finish_reason = FinishReason.LENGTH
        return self._text.flush()
