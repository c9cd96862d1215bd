"""Grammars that are refused, that fail on the way, and tokenizers of other kinds."""

import re
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from tests.workers.engine.guided_walks import (
    COMPILER,
    EOS,
    LOGITS,
    TOKENIZER,
    TOKENS,
    allowed,
    lark,
    regex,
    schema,
    text_of,
    token_of,
    walk,
)
from workers.engine.guided import (
    MOST_GRAMMAR_BYTES,
    CannotGuide,
    Grammar,
    GrammarKind,
    GuideCompiler,
    GuideFailed,
    InvalidGrammar,
)
from workers.engine.vocabulary import Vocabulary


@pytest.mark.parametrize(
    ("grammar", "complaint"),
    [
        (
            schema({"type": "object", "properties": {"not": {}, "a": {"not": {}}}}),
            "'not' is not supported .at #/properties/a",
        ),
        (schema({"items": [{}, {"uniqueItems": True}]}), "items"),
        (schema({"type": "array", "items": {"uniqueItems": True}}), "'uniqueItems' is not supported .at #/items"),
        (schema({"type": "string", "format": "palindrome"}), "Unknown format: palindrome"),
        (schema({"type": "colour"}), "Invalid type: colour"),
        (schema({"$ref": "#/$defs/none"}), "'/.defs/none' does not exist"),
        (schema({"$ref": "http://localhost/a"}), "http://localhost/a"),
        (schema({"type": "string", "pattern": "a(?=b)"}), "look-around.* at character 1"),
        (schema({"$ref": "#"}), "no text fits"),
        (schema({"minLength": 3, "maxLength": 1, "type": "string"}), "minLength"),
        (schema(3), "object or boolean"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"type": '), "not JSON: .*char 9"),
        (Grammar(GrammarKind.JSON_SCHEMA, "[" * 100_000), "not JSON"),
        (regex("abc[d"), "unclosed character class .in /abc.d/ at character 3"),
        (regex(r"(a)\1"), "backreferences are not supported"),
        (lark('start: "a" other'), "line 1, column 8: unknown name: .other"),
        (lark('begin: "a"'), "no start rule"),
        (lark('start: "a"\n@@'), "line 2, column 2"),
        (regex("a" * (MOST_GRAMMAR_BYTES + 1)), "longer than"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name_or_place(grammar: Grammar, complaint: str) -> None:
    with pytest.raises(InvalidGrammar, match=f"^{grammar.kind}: .*{complaint}"):
        COMPILER.compile(grammar)


def test_long_chains_of_references_do_not_end_the_process() -> None:
    links: dict[str, Any] = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}, "type": "array"} for i in range(1500)}
    chain = schema({"$ref": "#/$defs/d0", "$defs": {**links, "d1500": {"const": 1}}})
    rules = lark("start: r0\n" + "".join(f'r{i}: "a" r{i + 1}\n' for i in range(4000)) + 'r4000: "b"')
    assert allowed(COMPILER.compile(chain).mask())
    assert allowed(COMPILER.compile(rules).mask())


def test_a_grammar_that_wants_an_end_inside_the_text_fails_and_lets_it_end() -> None:
    guide = COMPILER.compile(lark('start: "a" <|im_end|> "b"'))
    guide.accept(token_of("a"))
    assert not guide.may_end
    assert allowed(guide.mask()) == list(EOS)
    assert guide.failure == "the grammar wants an end-of-sequence token inside the text"
    assert guide.may_end
    assert guide.fork().failure == guide.failure


def test_a_grammar_that_gets_too_complex_fails_and_lets_the_text_end() -> None:
    guide = COMPILER.compile(lark("start: x\nx: | x x x x x x " + "| x x " * 400 + '| "a"'))
    letter = token_of("a")
    assert guide.valid_prefix([letter] * 200) != (letter,) * 200
    assert guide.failure is None
    with pytest.raises(GuideFailed, match="items"):
        guide.restore([letter] * 200)
    assert guide.failure is not None
    assert allowed(guide.mask()) == list(EOS)
    guide.accept(EOS[0])
    assert guide.is_over
    guide.rollback(1)
    assert guide.may_end
    assert guide.failure is not None


def test_spaces_between_json_tokens_come_to_an_end() -> None:
    guide = COMPILER.compile(Grammar(GrammarKind.JSON_OBJECT))
    guide.accept(token_of("{"))
    newline = TOKENIZER.encode("\n", add_special_tokens=False).ids[0]
    for _ in range(40):
        guide.accept(newline)
    with pytest.raises(GuideFailed):
        guide.accept(newline)


def test_text_of_a_sentencepiece_tokenizer_matches_too() -> None:
    pieces = ["<unk>", "</s>", "▁", "a", "b", "c", "▁a", "▁b", "ab", "ca", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("c", "a")]
    model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    compiler = GuideCompiler(tokenizer, len(pieces), [1], threads=1)
    vocabulary = Vocabulary(tokenizer)
    for seed in range(20):
        tokens = list(walk(compiler.compile(regex("[abc]{1,4}( [abcé]{1,3}){0,3}")), seed, eos_ids=(1,)))
        assert tokens.pop() == 1
        assert re.fullmatch("[abc]{1,4}( [abcé]{1,3}){0,3}", text_of(tokens, vocabulary))
    compiler.close()


def test_a_model_that_cannot_be_guided_says_why() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    with pytest.raises(CannotGuide, match="tokenizer cannot be guided"):
        GuideCompiler(words, 3, [0])
    with pytest.raises(CannotGuide, match="no end-of-sequence token"):
        GuideCompiler(TOKENIZER, LOGITS, [TOKENS + 5])
    with pytest.raises(CannotGuide, match="vocab size too small"):
        GuideCompiler(TOKENIZER, 100, EOS)


def test_tokens_mean_the_same_text_to_the_guide_and_to_the_reader() -> None:
    """Every token that any text allows is shown to the reader as the bytes that the guide has followed."""
    free = COMPILER.compile(regex(r"(.|\n)*"))
    whole = [token for token in allowed(free.mask()) if token not in EOS and "\ufffd" not in text_of([token])]
    assert len(whole) > 1200
    for token in whole:
        guide = COMPILER.compile(regex(re.escape(text_of([token]))))
        assert guide.valid_prefix([token]) == (token,), token
