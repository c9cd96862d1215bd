"""Guides: which tokens a row may draw next so that its text obeys a grammar.

The grammar is followed byte by byte by llguidance (Microsoft, MIT; Earley parser over a regex lexer), which turns its
state into a bit mask over the vocabulary. A mask depends only on the grammar and on the tokens so far, and a masked
draw only on the mask, so guided rows can be resumed, speculated on and batched like all others.
"""

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from numpy.typing import NDArray
from tokenizers import Tokenizer

from workers.engine.errors import EngineError

Mask = NDArray[np.uint32]

WORD_BITS = 32
OPEN = 0xFFFFFFFF
KEPT_GRAMMARS = 64
MOST_THREADS = 8
FEWEST_ROWS_FOR_THREADS = 4
# llguidance descends into a grammar recursively and does not check its stack: chains of rules or of references, as long
# as such a text can hold, need up to 32 MiB.
MOST_GRAMMAR_BYTES = 128 * 1024
COMPILER_STACK_BYTES = 256 * 1024 * 1024
# A model that may write any number of spaces sometimes does nothing else.
SPACE = r"[\x20\x0A\x0D\x09]{1,40}"
ASCII_CLASSES = "dw"
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)

_NAMES = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_VALUES = frozenset({"const", "default", "enum", "examples"})
_UNSUPPORTED_KEYS = re.compile(r"Unimplemented keys: (\[.*\])")
_REGEX_ERROR = re.compile(r"regex parse error:\n {4}(?P<regex>.*)\n {4}(?P<indent> *)\^+\nerror: (?P<reason>.*)")
_POSITION = re.compile(r"(?:at )?(?P<line>\d+)\((?P<column>\d+)\): ")


class InvalidGrammar(EngineError):
    """The grammar cannot be read, asks for what is not supported, or is too large. The message says where or what."""


class CannotGuide(EngineError):
    """The model's tokenizer cannot be mapped to bytes, or the model has no end-of-sequence token."""


class GuideFailed(EngineError):
    """A token does not fit the grammar, or following the grammar takes too much time or memory."""


class GrammarKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a text has to look like, all of it.

    `text`: a JSON Schema (draft 2020-12; properties come in the schema's order), nothing for any JSON object, a
    regular expression without look-around and back-references (`\\d` and `\\w` are ASCII, as in ECMAScript), or a Lark
    grammar with a rule `start`.
    """

    kind: GrammarKind
    text: str = ""


class Guide:
    """One row's place in its grammar. Made by `GuideCompiler.compile`; not thread-safe.

    A guide that can follow its grammar no further lets the text end, and `failure` says why.
    """

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer, vocab_size: int, eos_ids: tuple[int, ...]) -> None:
        self.failure: str | None = None
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._eos_bits = [(token // WORD_BITS, 1 << token % WORD_BITS) for token in eos_ids]
        self._tokens = 0
        self._has_ended = False

    @property
    def words(self) -> int:
        """The length of a mask: bit `i % 32` of word `i // 32` is set where token i is allowed."""
        return -(-self._vocab_size // WORD_BITS)

    @property
    def may_end(self) -> bool:
        """Whether the text so far is complete, so that an end-of-sequence token is allowed."""
        return self.failure is not None or self._matcher.is_accepting()

    @property
    def is_over(self) -> bool:
        """Whether nothing but an end-of-sequence token can follow, or one has been accepted."""
        return self._has_ended or self._matcher.is_stopped()

    def mask(self) -> Mask:
        """The tokens that may come next, (words,). Ids beyond the tokenizer's, which pad the logits, never may."""
        mask = np.zeros(self.words, np.uint32)
        self.fill(mask)
        return mask

    def fill(self, mask: Mask) -> None:
        """Write `mask()` into a contiguous array (words,)."""
        if not self._has_ended:
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self.settle(mask)

    def settle(self, mask: Mask) -> None:
        """Finish a mask that the matcher has computed: no end before the text is complete, but one after a failure."""
        if self._has_ended:
            self._only_end(mask)
        elif self._matcher.is_error():
            self._fail(_first_line(self._matcher.get_error()), mask)
        elif any(int(mask[word]) & bit for word, bit in self._eos_bits) and not self._matcher.is_accepting():
            for word, bit in self._eos_bits:  # the grammar names an end-of-sequence token where its text goes on
                mask[word] &= np.uint32(OPEN ^ bit)
            if not mask.any():
                self._fail("the grammar wants an end-of-sequence token inside the text", mask)
        elif np.count_nonzero(mask) == 1:
            self._spell_out(mask)

    def accept(self, token: int) -> None:
        """The row has drawn this token.

        Raises GuideFailed where the grammar does not allow it, without any effect, or cannot be followed any further.
        """
        if self._has_ended or not self._takes(token):
            reason = f"token {token} does not fit the grammar as token {self._tokens} of the text"
            raise GuideFailed(self.failure or reason)
        self._tokens += 1

    def rollback(self, tokens: int) -> None:
        """Undo the last `accept`s. Raises ValueError where there were fewer."""
        if not 0 <= tokens <= self._tokens:
            raise ValueError(f"cannot take back {tokens} of {self._tokens} tokens")
        self._tokens -= tokens
        if tokens and self._has_ended:
            self._has_ended = False
            tokens -= 1
        if tokens and self.failure is None:
            self._matcher.rollback(tokens)

    def restore(self, output_ids: Sequence[int]) -> None:
        """Begin again, behind these tokens of an earlier attempt. Raises GuideFailed where they do not fit."""
        self.rollback(self._tokens)
        for token in output_ids:
            self.accept(token)

    def valid_prefix(self, drafts: Sequence[int]) -> tuple[int, ...]:
        """The drafts up to the first that cannot come next, or that would end the text."""
        return () if self._has_ended else self._valid(self._matcher.deep_copy(), drafts)

    def draft_masks(self, drafts: Sequence[int]) -> Mask:
        """A mask for the next token and, for each draft, one for the token behind it: (1 + drafts, words).

        Behind the valid prefix everything is allowed: nothing that is drawn there counts.
        """
        masks = np.empty((1 + len(drafts), self.words), np.uint32)
        self.fill_drafts(masks, drafts)
        return masks

    def fill_drafts(self, masks: Mask, drafts: Sequence[int]) -> None:
        """Write `draft_masks(drafts)` into a contiguous array (1 + drafts, words)."""
        self.fill(masks[0])
        valid = 0
        if drafts and not self._has_ended:
            ahead = self.fork()  # what fails on a wrong guess must not fail here
            while valid < len(drafts) and drafts[valid] not in self._eos_ids and ahead._takes(drafts[valid]):
                valid += 1
                ahead.fill(masks[valid])
        masks[1 + valid :] = OPEN

    def forced_tokens(self) -> tuple[int, ...]:
        """Drafts for the only bytes that can follow, in the tokenizer's spelling, which need not be the model's."""
        if self.is_over:
            return ()
        return self._valid(self._matcher.deep_copy(), self._matcher.deep_copy().compute_ff_tokens())

    def fork(self) -> "Guide":
        """A guide at the same place that goes its own way."""
        guide = Guide(self._matcher.deep_copy(), self._tokenizer, self._vocab_size, self._eos_ids)
        guide.failure, guide._tokens, guide._has_ended = self.failure, self._tokens, self._has_ended
        return guide

    def _takes(self, token: int) -> bool:
        if token in self._eos_ids:
            self._has_ended = self.may_end
            return self._has_ended
        taken = 0 <= token < self._vocab_size and self._matcher.try_consume_tokens([token]) == 1
        if self._matcher.is_error() and self.failure is None:
            self.failure = _first_line(self._matcher.get_error())
        return taken

    def _valid(self, matcher: LLMatcher, drafts: Sequence[int]) -> tuple[int, ...]:
        """The drafts that a matcher, which they spoil, takes before the first end."""
        valid: list[int] = []
        for token in drafts:
            ordinary = token not in self._eos_ids and 0 <= token < self._vocab_size
            if not ordinary or matcher.try_consume_tokens([token]) == 0:
                break
            valid.append(token)
        return tuple(valid)

    def _spell_out(self, mask: Mask) -> None:
        """Text that must follow and is written like a special token is not that token, which the matcher would refuse
        although its mask has nothing else."""
        [word], bits = np.flatnonzero(mask), int(mask.max())
        token = int(word) * WORD_BITS + bits.bit_length() - 1
        if bits.bit_count() > 1 or token in self._eos_ids or not self._tokenizer.is_special_token(token):
            return
        text = self._matcher.compute_ff_bytes().decode(errors="ignore")
        if text and self._matcher.validate_tokens([token]) == 0:
            ordinary = self._tokenizer.greedy_tokenize(text)[0]
            mask[word] = 0
            mask[ordinary // WORD_BITS] = np.uint32(1 << ordinary % WORD_BITS)

    def _fail(self, reason: str, mask: Mask) -> None:
        self.failure = reason
        self._only_end(mask)

    def _only_end(self, mask: Mask) -> None:
        mask[:] = 0
        for word, bit in self._eos_bits:
            mask[word] |= np.uint32(bit)


class GuideCompiler:
    """Makes guides for one model. Takes about a second for a vocabulary of 151k tokens.

    `vocab_size` is the width of the model's logits; `threads` compute the masks of several rows, by default two fewer
    than there are cores. Raises CannotGuide.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Iterable[int], *, threads: int | None = None
    ) -> None:
        self._vocab_size = vocab_size
        self._eos_ids = tuple(sorted(token for token in eos_ids if tokenizer.id_to_token(token) is not None))
        if not self._eos_ids:
            raise CannotGuide("the model has no end-of-sequence token")
        try:
            self._tokenizer = LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=list(self._eos_ids))
        except ValueError as error:
            raise CannotGuide(f"the tokenizer cannot be guided: {error}") from error
        threads = min(MOST_THREADS, (os.cpu_count() or 1) - 2) if threads is None else threads
        self._executor = LLExecutor(threads) if threads > 1 else None
        self._matchers: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._worker = _start_worker()

    def compile(self, grammar: Grammar) -> Guide:
        """A guide at the beginning of a text; the latest grammars are kept. From any thread, and others run meanwhile.

        Takes a millisecond for most grammars, and seconds for a few that are hard. Raises InvalidGrammar.
        """
        return self.compile_later(grammar).result()

    def compile_later(self, grammar: Grammar) -> "Future[Guide]":
        """The same without waiting: grammars are compiled one after the other in a thread of their own."""
        return self._worker.submit(self._compile, grammar)

    def close(self) -> None:
        """Compile no more."""
        self._worker.shutdown(cancel_futures=True)

    def _compile(self, grammar: Grammar) -> Guide:
        matcher = self._matchers.pop(grammar, None)
        if matcher is None:
            matcher = LLMatcher(self._tokenizer, _source(grammar), log_level=0, limits=LIMITS)
            matcher.compute_bitmask()  # finds grammars that no text fits, and warms what the copies share
            if matcher.is_error():
                raise InvalidGrammar(f"{grammar.kind}: {_complaint(grammar, matcher.get_error())}")
        self._matchers[grammar] = matcher
        if len(self._matchers) > KEPT_GRAMMARS:
            self._matchers.popitem(last=False)
        return Guide(matcher.deep_copy(), self._tokenizer, self._vocab_size, self._eos_ids)

    def fill_masks(self, guides: Sequence[Guide], out: Mask, drafts: Sequence[Sequence[int]] | None = None) -> None:
        """Write the masks of several rows, below each other, into `out`, contiguous and (rows, words).

        With `drafts`, one sequence for each guide, a guide fills the 1 + len(drafts) rows of its `draft_masks`.
        Raises ValueError where `out` has another shape. Other Python threads run meanwhile.
        """
        ahead = [()] * len(guides) if drafts is None else drafts
        starts = [0]
        for tokens in ahead:
            starts.append(starts[-1] + 1 + len(tokens))
        shape = (starts[-1], -(-self._vocab_size // WORD_BITS))
        if out.shape != shape or out.dtype != np.uint32 or not out.flags.c_contiguous:
            raise ValueError(f"the masks are {shape} contiguous words of 32 bits, not {out.shape} of {out.dtype}")
        alone = list(zip(guides, starts, ahead, strict=False))
        if self._executor is not None and len(guides) >= FEWEST_ROWS_FOR_THREADS:
            together = [(guide, start) for guide, start, tokens in alone if not tokens and not guide.is_over]
            self._executor.unsafe_compute_mask_ptr(
                [(guide._matcher, start) for guide, start in together], out.ctypes.data, 4 * shape[1], shape[0]
            )
            for guide, start in together:
                guide.settle(out[start])
            alone = [(guide, start, tokens) for guide, start, tokens in alone if tokens or guide.is_over]
        for guide, start, tokens in alone:
            guide.fill_drafts(out[start : start + 1 + len(tokens)], tokens)


def _start_worker() -> ThreadPoolExecutor:
    """One thread with a large stack, of which only what is used takes memory."""
    before = threading.stack_size(COMPILER_STACK_BYTES)
    try:
        worker = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        worker.submit(threading.get_ident).result()
    finally:
        threading.stack_size(before)
    return worker


def _source(grammar: Grammar) -> str:
    """The grammar as llguidance reads it."""
    if len(grammar.text.encode()) > MOST_GRAMMAR_BYTES:
        raise InvalidGrammar(f"{grammar.kind}: longer than {MOST_GRAMMAR_BYTES} bytes")
    match grammar.kind:
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(grammar.text, ASCII_CLASSES)}/")
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(grammar.text)
        case GrammarKind.JSON_OBJECT:
            text = '{"type": "object"}'
        case GrammarKind.JSON_SCHEMA:
            text = grammar.text
    try:
        has_options = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError) as error:
        raise InvalidGrammar(f"{grammar.kind}: not JSON: {error}") from error
    return LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": SPACE} if has_options else None)


def _complaint(grammar: Grammar, error: str) -> str:
    """llguidance's message in one line, with the place of what it names where that can be found."""
    keys = _UNSUPPORTED_KEYS.search(error)
    if keys and grammar.kind is GrammarKind.JSON_SCHEMA:
        key = json.loads(keys[1])[0]
        return f"the keyword {key!r} is not supported (at {_place(json.loads(grammar.text), key)})"
    regex = _REGEX_ERROR.search(error)
    if regex:
        return f"{regex['reason']} (in /{regex['regex']}/ at character {len(regex['indent'])})"
    line = _first_line(error)
    if line in ("NoExtension", "NoExtensionBias"):
        return "no text fits the grammar"
    position = _POSITION.match(line)
    if position is None:
        return line
    reason = line[position.end() :]
    if grammar.kind is not GrammarKind.LARK:
        return reason
    return f"line {position['line']}, column {position['column']}: {reason}"


def _place(schema: object, key: str) -> str:
    """A JSON pointer (RFC 6901) to a subschema that uses the keyword."""
    rest: list[tuple[str, object]] = [("#", schema)]
    while rest:
        pointer, value = rest.pop()
        if isinstance(value, list):
            rest += [(f"{pointer}/{index}", item) for index, item in enumerate(value)]
        elif isinstance(value, dict):
            if key in value:
                return pointer
            for name, inner in value.items():
                if name in _NAMES and isinstance(inner, dict):
                    rest += [(f"{pointer}/{name}/{own}", subschema) for own, subschema in inner.items()]
                elif name not in _VALUES:
                    rest.append((f"{pointer}/{name}", inner))
    return "#"


def _first_line(error: str) -> str:
    return error.split("\n", 1)[0]
