"""From token ids to text that can be sent: detokenization, stop strings, and what must be held back meanwhile.

Pure: no MLX, no tokenizer; tokens arrive through a `Detokenizer`. Every class is a deterministic function of what it
was fed, so feeding the same ids again restores its state.
"""

import codecs
import re
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
ZERO_WIDTH_JOINER = "\u200d"
MAX_CLUSTER_CHARS = 32  # longest emoji sequence that is held together; the longest in Unicode 16 has 10 code points
MAX_UNDECIDED_TOKENS = 8


class Detokenizer(Protocol):
    """Turns ids into text, never splitting a character. The texts of `push` and `flush` join to the whole."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class ByteDetokenizer:
    """For vocabularies in which every token is a sequence of bytes (byte-level BPE, SentencePiece with byte fallback).

    `token_bytes(id)` is b"" for tokens without text. Invalid UTF-8 becomes U+FFFD, one for each maximal invalid part
    (Unicode 16, section 3.9.6). `strip_space` removes one space at the start of the text.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], *, strip_space: bool = False) -> None:
        self._token_bytes = token_bytes
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._stripped(self._decoder.decode(self._token_bytes(token)))

    def flush(self) -> str:
        text = self._stripped(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        return text

    def _stripped(self, text: str) -> str:
        if not text or not self._strip_space:
            return text
        self._strip_space = False
        return text.removeprefix(" ")


class WindowDetokenizer:
    """For any other vocabulary: decodes the last few ids again with each token and emits what was added.

    Relies on `decode` depending only on nearby tokens. Text ending in U+FFFD waits for its completion, but not longer
    than `MAX_UNDECIDED_TOKENS`, so that a model that emits garbage costs no more than others.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._settled: list[int] = []  # the tokens of the last text that was emitted: context for the next
        self._undecided: list[int] = []

    def push(self, token: int) -> str:
        self._undecided.append(token)
        added = self._added()
        if not added or (added.endswith(REPLACEMENT) and len(self._undecided) < MAX_UNDECIDED_TOKENS):
            return ""
        return self._settle(added)

    def flush(self) -> str:
        return self._settle(self._added()) if self._undecided else ""

    def _added(self) -> str:
        before = self._decode(self._settled) if self._settled else ""
        return self._decode([*self._settled, *self._undecided])[len(before) :]

    def _settle(self, text: str) -> str:
        self._settled, self._undecided = self._undecided, []
        return text


class StopMatcher:
    """Finds the first of several strings in a text that arrives in pieces.

    The string that is complete first wins; of several completed by the same character the one that began first. This
    does not depend on where the pieces are cut. `push` returns only text that can no longer become part of a match.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(dict.fromkeys(strings))
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that is now certain to come before any match. After a match nothing more is returned."""
        if self.matched is not None:
            return ""
        if not self._strings:
            return text
        text = self._held + text
        ends = [(start + len(s), start, s) for s in self._strings if (start := text.find(s)) >= 0]
        if ends:
            _, start, self.matched = min(ends)
            self._held = ""
            return text[:start]
        keep = max(_overlap(text, s) for s in self._strings)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text held back as a possible beginning; it will not be completed."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, short of the whole."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class ClusterBuffer:
    """Keeps an emoji and its modifiers together: the last emoji waits until the next character shows where it ends."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        text = self._held + text
        cut = _last_emoji_start(text)
        if len(text) - cut > MAX_CLUSTER_CHARS:
            cut = len(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _is_regional_indicator(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


_SYMBOL_EMOJI = re.compile(
    "[\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u24c2\u25aa-\u27bf\u2934\u2935\u2b05-\u2b55\u3030\u303d]"
)


def _is_emoji(char: str) -> bool:
    return "\U0001f000" <= char <= "\U0001faff" or _SYMBOL_EMOJI.match(char) is not None


def _is_extender(char: str) -> bool:
    """Joiner, variation selector, keycap, skin tone or tag (Unicode Technical Standard 51)."""
    return (
        char in (ZERO_WIDTH_JOINER, "\ufe0f", "\ufe0e", "\u20e3")
        or "\U0001f3fb" <= char <= "\U0001f3ff"
        or "\U000e0020" <= char <= "\U000e007f"
    )


def _last_emoji_start(text: str) -> int:
    """Index of the emoji sequence at the end of `text` that the next character may extend; len(text) if there is none.

    Only the end of the text is looked at, at most `MAX_CLUSTER_CHARS` + 1 characters.
    """
    at = len(text) - 1
    first = max(0, len(text) - MAX_CLUSTER_CHARS - 1)
    while at > first and (_is_extender(text[at]) or text[at - 1] == ZERO_WIDTH_JOINER):
        at -= 1
    if at < 0 or not (_is_emoji(text[at]) or _is_extender(text[at])):
        return len(text)
    if _is_regional_indicator(text[at]):
        run = at
        while run > first and _is_regional_indicator(text[run - 1]):
            run -= 1
        return at if (at - run) % 2 == 0 and at == len(text) - 1 else len(text)
    return at


class TextStream:
    """One sequence's text: ids in, text out that may be sent at once and is never taken back."""

    def __init__(self, detokenizer: Detokenizer, stop_strings: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._stops = StopMatcher(stop_strings)
        self._cluster = ClusterBuffer()

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stops.matched

    def push(self, token: int, *, searching: bool = True) -> str:
        """Text that is certain after this token. Text pushed with `searching` off is no part of a stop string."""
        text = self._detokenizer.push(token)
        text = self._stops.push(text) if searching else text
        text = self._cluster.push(text)
        return text + self._cluster.flush() if self._stops.matched is not None else text

    def release(self) -> str:
        """What is held back of whole characters, when the text is broken off; half a character is dropped."""
        return self._cluster.push(self._stops.flush()) + self._cluster.flush()

    def flush(self) -> str:
        """The rest of the text, when no further token comes; half a character becomes U+FFFD."""
        rest = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        return self._cluster.push(rest) + self._cluster.flush()
