"""Whatever a guided row draws, its text fits the grammar; and its guide survives resuming, undoing and guessing."""

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from tests.workers.engine.guided_walks import (
    COMPILER,
    EOS,
    GRAMMARS,
    LOGITS,
    PERSON,
    SUMS,
    TOKENIZER,
    TOKENS,
    allowed,
    lark,
    regex,
    schema,
    text_of,
    token_of,
    walk,
    written,
)
from workers.engine.guided import (
    Grammar,
    GrammarKind,
    GuideCompiler,
    GuideFailed,
)


def is_place(value: Any) -> bool:
    return {"zip"} <= set(value) <= {"zip", "far"} and re.fullmatch("[0-9]{5}", value["zip"]) is not None


def test_text_of_a_schema_parses_and_obeys_it() -> None:
    finished = 0
    for seed in range(40):
        tokens, has_ended = written(schema(PERSON), seed)
        if not has_ended:
            continue
        finished += 1
        person = json.loads(text_of(tokens))
        assert {"name", "kind", "home", "age"} <= set(person) <= set(PERSON["properties"])  # type: ignore[call-overload]
        assert len(person["name"]) <= 6
        assert person["kind"] in ("alpha", "beta", 3, None)
        assert type(person["age"]) is int
        assert 0 <= person["age"] <= 130
        assert len(person.get("past", [])) <= 2
        assert all(is_place(place) for place in [person["home"], *person.get("past", [])])
        assert type(person["home"].get("far", True)) is bool
    assert finished >= 20


def test_text_of_any_object_is_an_object() -> None:
    ends = [written(Grammar(GrammarKind.JSON_OBJECT), seed) for seed in range(30)]
    texts = [text_of(tokens) for tokens, has_ended in ends if has_ended]
    assert len(texts) >= 5
    assert all(type(json.loads(text)) is dict for text in texts)


@pytest.mark.parametrize(
    "pattern", [r"[a-f]{2,5}(-\d{1,3}){0,4}\.?", r"(GET|POST) /[a-z/]{0,9}", r"\d{4}-\d\d", "[äßé]+z"]
)
def test_text_of_a_regular_expression_matches_it(pattern: str) -> None:
    for seed in range(15):
        tokens, has_ended = written(regex(pattern), seed)
        if has_ended:
            assert re.fullmatch(pattern, text_of(tokens))


def test_text_of_a_lark_grammar_is_in_its_language() -> None:
    finished = 0
    for seed in range(30):
        tokens, has_ended = written(lark(SUMS), seed)
        text = text_of(tokens)
        assert re.fullmatch(r"[0-9()+*-]*", text)
        if has_ended:
            finished += 1
            assert type(eval(text, {"__builtins__": {}})) is int
    assert finished >= 10


def test_strings_hold_any_unicode_text() -> None:
    value = '{"s": "naïve: 東京, 🙂 \\n \\u0001"}'
    guide = COMPILER.compile(schema({"type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"]}))
    tokens = TOKENIZER.encode(value, add_special_tokens=False).ids
    assert guide.valid_prefix(tokens) == tuple(tokens)
    guide.restore(tokens)
    assert guide.is_over
    assert guide.may_end


def test_a_text_ends_only_where_it_is_complete() -> None:
    guide = COMPILER.compile(regex("ab?"))
    assert not guide.may_end
    assert not set(allowed(guide.mask())) & set(EOS)
    with pytest.raises(GuideFailed):
        guide.accept(EOS[0])
    guide.accept(token_of("a"))
    assert guide.may_end
    assert not guide.is_over
    assert set(allowed(guide.mask())) == {token_of("b"), *EOS}
    guide.accept(token_of("b"))
    assert guide.is_over
    assert allowed(guide.mask()) == list(EOS)
    guide.accept(EOS[1])
    assert guide.is_over
    assert allowed(guide.mask()) == list(EOS)
    with pytest.raises(GuideFailed):
        guide.accept(EOS[0])


def test_a_refused_token_changes_nothing() -> None:
    guide = COMPILER.compile(regex("abc"))
    before = guide.mask()
    for token in (token_of("z"), TOKENS + 3, LOGITS + 1000, -1):
        with pytest.raises(GuideFailed, match="does not fit the grammar as token 0"):
            guide.accept(token)
        assert guide.valid_prefix([token]) == ()
    assert np.array_equal(guide.mask(), before)
    guide.accept(token_of("a"))


@given(st.sampled_from(GRAMMARS), st.integers(0, 50), st.data())
def test_a_guide_resumes_behind_any_prefix(grammar: Grammar, seed: int, data: st.DataObject) -> None:
    first = COMPILER.compile(grammar)
    tokens: list[int] = []
    masks = [first.mask()]
    for token in walk(first, seed, most_tokens=40):
        tokens.append(token)
        masks.append(first.mask())
    cut = data.draw(st.integers(0, len(tokens)))
    second = COMPILER.compile(grammar)
    second.restore(tokens[:cut])
    for token, mask in zip(tokens[cut:], masks[cut:], strict=False):
        assert np.array_equal(second.mask(), mask)
        second.accept(token)
    assert np.array_equal(second.mask(), masks[-1])
    assert (second.is_over, second.may_end) == (first.is_over, first.may_end)


@given(st.sampled_from(GRAMMARS), st.integers(0, 50), st.data())
def test_undoing_tokens_brings_the_masks_back(grammar: Grammar, seed: int, data: st.DataObject) -> None:
    guide = COMPILER.compile(grammar)
    tokens: list[int] = []
    masks = [guide.mask()]
    for token in walk(guide, seed, most_tokens=30):
        tokens.append(token)
        masks.append(guide.mask())
    kept = data.draw(st.integers(0, len(tokens)))
    guide.rollback(len(tokens) - kept)
    assert np.array_equal(guide.mask(), masks[kept])
    with pytest.raises(ValueError, match="cannot take back"):
        guide.rollback(kept + 1)
    for token, mask in zip(tokens[kept:], masks[kept + 1 :], strict=True):
        guide.accept(token)
        assert np.array_equal(guide.mask(), mask)


@given(st.sampled_from(GRAMMARS), st.integers(0, 50), st.lists(st.integers(0, LOGITS - 1), max_size=3))
def test_draft_masks_are_those_that_drawing_would_meet(grammar: Grammar, seed: int, wrong: list[int]) -> None:
    guide = COMPILER.compile(grammar)
    tokens = list(walk(guide.fork(), seed, most_tokens=12))
    start = len(tokens) // 2
    guide.restore(tokens[:start])
    drafts = tokens[start:] + wrong
    before = guide.mask()
    masks = guide.draft_masks(drafts)
    valid = guide.valid_prefix(drafts)
    assert np.array_equal(guide.mask(), before)
    assert len(masks) == len(drafts) + 1
    assert drafts[: len(valid)] == list(valid)
    assert not set(valid) & set(EOS)
    assert set(tokens[start : start + len(valid) + 1]) - set(valid) <= set(EOS)
    for index, token in enumerate(valid):
        assert np.array_equal(masks[index], guide.mask())
        guide.accept(token)
    assert np.array_equal(masks[len(valid)], guide.mask())
    assert (masks[len(valid) + 1 :] == 0xFFFFFFFF).all()


def test_guesses_that_would_end_the_text_are_not_checked() -> None:
    guide = COMPILER.compile(regex("ab?"))
    a, b = token_of("a"), token_of("b")
    assert guide.valid_prefix([a, EOS[0], b]) == (a,)
    assert guide.valid_prefix([a, b, b]) == (a, b)
    guide.restore([a, EOS[0]])
    assert guide.valid_prefix([b]) == ()


def test_what_can_only_follow_is_forced() -> None:
    guide = COMPILER.compile(
        schema({"type": "object", "properties": {"colour": {"const": "red"}}, "required": ["colour"]})
    )
    guide.accept(token_of("{"))
    guide.accept(token_of('"'))
    forced = guide.forced_tokens()
    assert "colour".startswith(text_of(list(forced))[:6])
    assert guide.valid_prefix(forced) == forced != ()
    free = COMPILER.compile(regex("[a-z]*"))
    assert free.forced_tokens() == ()


@pytest.mark.parametrize("threads", [1, 3])
def test_masks_of_many_rows_are_those_of_each(threads: int) -> None:
    compiler = GuideCompiler(TOKENIZER, LOGITS, EOS, threads=threads)
    guides = [compiler.compile(grammar) for grammar in GRAMMARS * 2] + [compiler.compile(regex("a"))]
    for seed, guide in enumerate(guides):
        list(walk(guide, seed, most_tokens=seed))
    over = guides[-1]
    assert over.is_over
    masks = np.zeros((len(guides), over.words), np.uint32)
    compiler.fill_masks(guides, masks)
    assert all(np.array_equal(mask, guide.mask()) for mask, guide in zip(masks, guides, strict=True))

    drafts = [[5] if g.is_over else list(walk(g.fork(), 7, most_tokens=seed % 3)) for seed, g in enumerate(guides)]
    masks = np.zeros((len(guides) + sum(map(len, drafts)), over.words), np.uint32)
    compiler.fill_masks(guides, masks, drafts)
    assert np.array_equal(masks, np.concatenate([g.draft_masks(d) for g, d in zip(guides, drafts, strict=True)]))
    compiler.close()


def test_masks_need_an_array_of_their_shape() -> None:
    guide = COMPILER.compile(regex("a"))
    for wrong in (np.zeros((2, guide.words), np.uint32), np.zeros((1, guide.words), np.int64)):
        with pytest.raises(ValueError, match="contiguous words"):
            COMPILER.fill_masks([guide], wrong)  # type: ignore[arg-type]


def test_a_fork_goes_its_own_way() -> None:
    guide = COMPILER.compile(regex("a(b|c)"))
    guide.accept(token_of("a"))
    fork = guide.fork()
    fork.accept(token_of("b"))
    assert fork.is_over
    assert not guide.is_over
    guide.accept(token_of("c"))
    fork.rollback(2)
    assert not fork.may_end
    assert guide.may_end


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (lark('start: "<mark>" /[a-z]{2}/ "<mark>"'), r"<mark>[a-z]{2}<mark>"),
        (lark("start: /<mark>(ab|cd)/"), "<mark>(ab|cd)"),
        (regex("x<mark>"), "x<mark>"),
        (schema({"const": "<mark>"}), '"<mark>"'),
    ],
)
def test_text_that_must_follow_may_be_written_like_a_special_token(grammar: Grammar, text: str, special: bool) -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_tokens([AddedToken("<mark>", special=special, normalized=False)])
    compiler = GuideCompiler(tokenizer, LOGITS, EOS, threads=1)
    for seed in range(5):
        tokens = list(walk(compiler.compile(grammar), seed, vocab_tokens=TOKENS + 1))
        assert tokens.pop() in EOS
        assert tokenizer.token_to_id("<mark>") not in tokens
        assert re.fullmatch(text, text_of(tokens))
    compiler.close()
