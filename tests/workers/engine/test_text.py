"""Detokenization, stop strings and holding back, without any model."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from workers.engine.text import ByteDetokenizer, ClusterBuffer, StopMatcher, TextStream, WindowDetokenizer
from workers.engine.vocabulary import BYTE_LEVEL, Vocabulary

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SMALL_TEXT = st.text(alphabet="abc", max_size=30)
SMALL_STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)
EMOJI = "👩‍👩‍👧‍👦👍🏽❤️🇩🇪🇫🇷🏴󠁧󠁢󠁷󠁬󠁳󠁿😀"


def sentencepiece_like(*, strip: bool) -> Tokenizer:
    """A vocabulary with byte fallback and "▁" for space, decoded as Llama 2 (strip) or Gemma (no strip) do it."""
    pieces = ["▁", "▁the", "cat", "s", "é", "▁sat"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {p: 256 + i for i, p in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return tokenizer


def byte_level() -> Tokenizer:
    vocabulary = {char: index for index, char in enumerate(ALPHABET)} | {"ðŁĺ": 256, "Ġthe": 257, "€": 258}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def stream_text(stream: TextStream, ids: Sequence[int]) -> list[str]:
    return [*(stream.push(token) for token in ids), stream.flush()]


def ids_of(text: str) -> list[int]:
    ids = {BYTE_LEVEL[char]: index for index, char in enumerate(ALPHABET)}
    return [ids[byte] for byte in text.encode()]


@given(st.lists(st.integers(0, 258), max_size=40))
def test_byte_level_chunks_join_to_the_full_decode_of_any_ids(ids: list[int]) -> None:
    tokenizer = byte_level()
    chunks = stream_text(Vocabulary(tokenizer).start_text(), ids)
    assert "".join(chunks) == tokenizer.decode(ids, skip_special_tokens=False)


PIECES_AND_TEXTS = st.lists(st.one_of(st.sampled_from(range(256, 262)), st.text(min_size=1, max_size=3)), max_size=15)


@given(PIECES_AND_TEXTS, st.booleans())
def test_byte_fallback_chunks_join_to_the_full_decode_of_valid_text(parts: list[int | str], strip: bool) -> None:
    tokenizer = sentencepiece_like(strip=strip)
    ids = [token for part in parts for token in ([part] if isinstance(part, int) else list(part.encode()))]
    chunks = stream_text(Vocabulary(tokenizer).start_text(), ids)
    assert "".join(chunks) == tokenizer.decode(ids, skip_special_tokens=False)


@given(st.text(max_size=20))
def test_a_windowed_detokenizer_joins_to_the_full_decode_of_valid_text(text: str) -> None:
    tokenizer = byte_level()
    ids = ids_of(text)
    detokenizer = WindowDetokenizer(lambda some: tokenizer.decode(list(some), skip_special_tokens=False))
    assert "".join([*(detokenizer.push(token) for token in ids), detokenizer.flush()]) == text


def test_a_windowed_detokenizer_does_not_wait_for_ever_on_garbage() -> None:
    calls: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        calls.append(len(ids))
        return bytes(ids).decode(errors="replace")

    detokenizer = WindowDetokenizer(decode)
    text = "".join([*(detokenizer.push(0xFF) for _ in range(100)), detokenizer.flush()])
    assert text == "\ufffd" * 100
    assert max(calls) < 20


@given(st.text(max_size=12))
def test_no_chunk_splits_a_character(text: str) -> None:
    chunks = stream_text(Vocabulary(byte_level()).start_text(), ids_of(text))
    assert "".join(chunks) == text
    assert all("\ufffd" not in chunk for chunk in chunks) or "\ufffd" in text


def test_an_emoji_sequence_arrives_in_one_chunk() -> None:
    chunks = stream_text(Vocabulary(byte_level()).start_text(), ids_of(f"a{EMOJI}b"))
    whole = [chunk for chunk in chunks if chunk]
    assert "".join(whole) == f"a{EMOJI}b"
    assert whole == ["a", "👩‍👩‍👧‍👦", "👍🏽", "❤️", "🇩🇪", "🇫🇷", "🏴󠁧󠁢󠁷󠁬󠁳󠁿", "😀b"]


@given(st.lists(st.text(alphabet=EMOJI + "a", max_size=5), max_size=40))
def test_held_emoji_are_bounded_and_never_lost(pieces: list[str]) -> None:
    buffer, out = ClusterBuffer(), ""
    for index, piece in enumerate(pieces):
        out += buffer.push(piece)
        assert len("".join(pieces[: index + 1])) - len(out) <= 32
    assert out + buffer.flush() == "".join(pieces)


def first_completed(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The definition, character by character."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(SMALL_TEXT, SMALL_STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_the_stop_string_completed_first_ends_the_text_wherever_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    borders = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    matcher = StopMatcher(stops)
    out = "".join(matcher.push(text[a:b]) for a, b in itertools.pairwise(borders))
    expected, matched = first_completed(text, stops)
    assert (out + ("" if matcher.matched else matcher.flush()), matcher.matched) == (expected, matched)


@given(SMALL_TEXT, SMALL_STOPS)
def test_nothing_is_sent_that_could_still_become_a_stop_string(text: str, stops: list[str]) -> None:
    matcher, out = StopMatcher(stops), ""
    for index, char in enumerate(text):
        out += matcher.push(char)
        if matcher.matched is not None:
            break
        begun = [text[start : index + 1] for start in range(len(out))]
        assert not any(stop.startswith(part) for stop in stops for part in begun)
    assert text.startswith(out)


@pytest.mark.parametrize(
    ("text", "expected"), [("hello STOP there", "hello "), ("hello STO", "hello STO"), ("STOP", "")]
)
def test_a_stop_string_is_cut_and_a_false_alarm_is_sent(text: str, expected: str) -> None:
    stream = Vocabulary(byte_level()).start_text(("STOP",))
    assert "".join(stream_text(stream, ids_of(text))) == expected
    assert stream.stop_string == ("STOP" if expected != text else None)


def test_text_that_is_broken_off_drops_half_a_character_and_keeps_a_false_alarm() -> None:
    stream = Vocabulary(byte_level()).start_text(("STOP",))
    sent = [stream.push(token) for token in ids_of("ab ST😀"[:5]) + ids_of("😀")[:3]]
    assert "".join(sent) + stream.release() == "ab ST"


def test_text_pushed_without_searching_is_no_part_of_a_stop_string() -> None:
    stream = Vocabulary(byte_level()).start_text(("aa",))
    assert stream.push(ids_of("a")[0], searching=False) == "a"
    assert [stream.push(token) for token in ids_of("aba")] == ["", "ab", ""]
    assert stream.stop_string is None


@given(st.lists(st.integers(0, 258), max_size=30), st.integers(0, 30), SMALL_STOPS)
def test_a_stream_fed_again_continues_exactly(ids: list[int], cut: int, stops: list[str]) -> None:
    vocabulary = Vocabulary(byte_level())
    first, again = vocabulary.start_text(stops), vocabulary.start_text(stops)
    expected = [first.push(token) for token in ids][cut:]
    for token in ids[:cut]:
        again.push(token)
    assert [again.push(token) for token in ids[cut:]] == expected
    assert (again.flush(), again.stop_string) == (first.flush(), first.stop_string)


def test_special_tokens_are_hidden_and_marks_for_parsers_are_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|><think>hm</think><|tool_call_start|>x<|im_end|>").ids
    assert "".join(stream_text(Vocabulary(tokenizer).start_text(), ids)) == "<think>hm</think><|tool_call_start|>x"
    shown = Vocabulary(tokenizer, shown=["<|im_start|>"])
    assert "".join(stream_text(shown.start_text(), ids)).startswith("<|im_start|><think>")


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    assert Vocabulary(tokenizer).start_text().push(tokenizer.get_vocab_size() + 7) == ""


def test_one_leading_space_is_stripped_once() -> None:
    detokenizer = ByteDetokenizer(lambda token: b" " if token == 0 else b"x", strip_space=True)
    assert [detokenizer.push(token) for token in (0, 0, 1, 0)] == ["", " ", "x", " "]
