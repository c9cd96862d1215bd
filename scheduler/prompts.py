"""From messages to token ids: a model's chat template in Jinja's sandbox and its tokenizer. No MLX, no transformers.

Templates are data from model folders: they run in an immutable sandbox, with the globals that the model hub's
templates expect (raise_exception, strftime_now, tojson).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from scheduler.errors import ContextTooLong, ImagesMisplaced, TemplateRefused
from scheduler.models import ModelCard

Message = Mapping[str, Any]

_TEMPLATE_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class Cut:
    """What becomes of an input of more than `max_tokens`: its end goes (direction right), or its beginning (left)."""

    max_tokens: int
    direction: str = "right"


class EncodedInput(NamedTuple):
    """Token ids, and where the second text of a pair begins (behind the last token: nowhere)."""

    token_ids: tuple[int, ...]
    second_at: int


class PromptFormat:
    """One model's way of turning messages or text into token ids."""

    def __init__(self, card: ModelCard, tokenizer_json: str) -> None:
        self.card = card
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._template: Template | None = None
        content = json.loads(tokenizer_json)
        self._is_byte_level = "ByteLevel" in _decoders(content.get("decoder"))
        self._special: dict[str, int] = {
            token["content"]: token["id"] for token in content.get("added_tokens") or () if _is_special(token)
        }
        self._any_special = re.compile(f"({'|'.join(sorted(map(re.escape, self._special), key=len, reverse=True))})")
        self._added = {token["id"]: token["content"] for token in content.get("added_tokens") or ()}

    def render(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None, **extra: Any) -> str:
        """Apply the chat template; `extra` are template variables such as enable_thinking.

        Raises TemplateRefused when the model has no template, or the template does not compile or raises.
        """
        if self.card.chat_template is None:
            raise TemplateRefused("this model has no chat template; use /v1/completions")
        if self._template is None:
            self._template = _compile(self.card.chat_template)
        context = {
            "messages": [dict(message) for message in messages],
            "tools": list(tools) if tools else None,
            "add_generation_prompt": True,
            "bos_token": self.card.bos_token or "",
            "eos_token": self.card.eos_token or "",
            **extra,
        }
        try:
            return self._template.render(context)
        except (TemplateError, *_TEMPLATE_ERRORS) as error:
            raise TemplateRefused(str(error) or type(error).__name__) from error

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Text to token ids. Templates bring their own special tokens; plain text wants the tokenizer's (BOS)."""
        # The fast one leaves out where each token stands in the text.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(encoding.ids)

    def encode_shown(self, text: str, sizes: Sequence[tuple[int, int]]) -> tuple[str, tuple[int, ...]]:
        """A rendered conversation and its tokens, each image (width, height in pixels) written as the model counts it.

        Raises ImagesMisplaced, and ImageRefused for a shape that the model does not take.
        """
        rule = self.card.images
        if rule is None:
            return text, self.encode(text, add_special_tokens=False)
        written = rule.written(text, sizes)
        if written is None:
            raise ImagesMisplaced(len(sizes), rule.marker)
        ids = self.encode(written, add_special_tokens=False)
        if ids.count(rule.token_id) != sum(rule.tokens_of(*size) for size in sizes):
            raise ImagesMisplaced(len(sizes), rule.token)
        return written, ids

    def encode_input(
        self, text: str, second: str | None = None, *, cut: Cut | None = None, second_tokens: int | None = None
    ) -> EncodedInput:
        """A text, or a pair of texts, with the tokenizer's special tokens, for a model of vectors.

        Of a pair's second text no more than `second_tokens` are taken. Where the whole is too long, `cut` shortens the
        text (of a pair the second one). Raises ContextTooLong where it may not, or cannot.
        """
        first = self._tokenizer.encode(text, add_special_tokens=False)
        other = None if second is None else self._tokenizer.encode(second, add_special_tokens=False)
        if other is not None and second_tokens is not None:
            other.truncate(second_tokens)
        special = self._tokenizer.num_special_tokens_to_add(other is not None)
        tokens = len(first) + (0 if other is None else len(other)) + special
        limit = self.card.context_tokens if cut is None else cut.max_tokens
        if tokens > limit:
            last = first if other is None else other
            room = limit - (tokens - len(last))
            if cut is None or room < 0:
                raise ContextTooLong(tokens, limit)
            last.truncate(room, direction=cut.direction)
        whole = self._tokenizer.post_process(first, other, True)
        seconds = [at for at, sequence in enumerate(whole.sequence_ids) if sequence == 1]
        return EncodedInput(tuple(whole.ids), seconds[0] if seconds else len(whole.ids))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids to text, special tokens included."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def special_id(self, text: str) -> int | None:
        """The id of the token that is written so and is no text for a grammar; None where there is no such token."""
        return self._special.get(text)

    def special_parts(self, text: str) -> list[str | int]:
        """A text taken apart: ids of the tokens that `special_id` knows, and the text between them."""
        if not self._special or not text:
            return [text] if text else []
        return [self._special.get(part, part) for part in self._any_special.split(text) if part]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for (what OpenAI's logprobs call `bytes`)."""
        if token_id in self._added:
            return str(self._added[token_id]).encode()
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if self._is_byte_level and all(char in _BYTE_OF_CHAR for char in piece):
            return bytes(_BYTE_OF_CHAR[char] for char in piece)
        if byte := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace("\u2581", " ").encode()

    def bound(self, prompt_tokens: int, max_tokens: int | None, min_room: int = 1) -> int:
        """How many tokens may be generated: what was asked for, or all that fit.

        Raises ContextTooLong when the prompt leaves no room, or less than was asked for explicitly.
        """
        room = self.card.context_tokens - prompt_tokens
        if room < min_room:
            raise ContextTooLong(prompt_tokens, self.card.context_tokens)
        if max_tokens is not None and max_tokens > room:
            raise ContextTooLong(prompt_tokens, self.card.context_tokens, max_tokens)
        return room if max_tokens is None else max_tokens


def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise TemplateRefused(f"it does not compile: {error}") from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _is_special(added_token: Mapping[str, Any]) -> bool:
    """As llguidance sees it: declared special, or in angle brackets."""
    content = added_token["content"]
    return bool(added_token.get("special")) or (content.startswith("<") and content.endswith(">"))


def _decoders(decoder: Mapping[str, Any] | None) -> set[str]:
    """The names of a tokenizer's decoding steps."""
    if decoder is None:
        return set()
    return {step["type"] for step in decoder.get("decoders", ())} | {decoder["type"]}


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now(UTC).strftime(pattern)


def _byte_of_char() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable bytes stand for themselves, the others for U+0100 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()
