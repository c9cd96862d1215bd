"""A random reader of guided rows: draws uniformly among what a guide allows."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import workers.demo
from workers.engine.guided import Grammar, GrammarKind, Guide, GuideCompiler, Mask
from workers.engine.vocabulary import Vocabulary

TOKENIZER = Tokenizer.from_file(str(Path(workers.demo.__file__).parent / "tokenizer.json"))
VOCABULARY = Vocabulary(TOKENIZER)
TOKENS = TOKENIZER.get_vocab_size()
LOGITS = TOKENS + 77  # wider than the tokenizer, and no multiple of 32
EOS = (1527, 1529)
COMPILER = GuideCompiler(TOKENIZER, LOGITS, EOS)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["alpha", "beta", 3, None]},
        "home": {"$ref": "#/$defs/place"},
        "past": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "note": {"type": "string", "maxLength": 3},
    },
    "required": ["name", "kind", "home", "age"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "far": {"type": "boolean"}},
            "required": ["zip"],
            "additionalProperties": False,
        }
    },
}
SUMS = r"""
start: sum
sum: product (("+" | "-") product)*
product: atom ("*" atom)*
atom: NUMBER | "(" sum ")"
NUMBER: /[1-9][0-9]{0,2}/
"""


def schema(content: object) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(content))


def regex(text: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, text)


def lark(text: str) -> Grammar:
    return Grammar(GrammarKind.LARK, text)


GRAMMARS = [schema(PERSON), Grammar(GrammarKind.JSON_OBJECT), regex(r"[a-f]{2,5}(-\d{1,3}){0,4}\.?"), lark(SUMS)]


def token_of(text: str) -> int:
    """The id of a token that the tokenizer has."""
    token = TOKENIZER.token_to_id(text)
    assert token is not None
    return token


def allowed(mask: Mask, vocab_tokens: int = TOKENS) -> list[int]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[vocab_tokens:].any()
    return [int(token) for token in np.flatnonzero(bits)]


def text_of(tokens: list[int], vocabulary: Vocabulary = VOCABULARY) -> str:
    detokenizer = vocabulary.detokenizer()
    return "".join(detokenizer.push(token) for token in tokens) + detokenizer.flush()


def walk(
    guide: Guide, seed: int, most_tokens: int = 250, eos_ids: tuple[int, ...] = EOS, vocab_tokens: int = TOKENS
) -> Iterator[int]:
    """Draw uniformly among the allowed tokens, but end as soon as that is allowed in one of two cases."""
    chaos = np.random.default_rng(seed)
    for _ in range(most_tokens):
        tokens = allowed(guide.mask(), vocab_tokens)
        assert bool(set(tokens) & set(eos_ids)) == guide.may_end
        ends = guide.is_over or (guide.may_end and chaos.random() < 0.5)
        token = int(chaos.choice(eos_ids if ends else [token for token in tokens if token not in eos_ids]))
        guide.accept(token)
        yield token
        if token in eos_ids:
            return


def written(grammar: Grammar, seed: int) -> tuple[list[int], bool]:
    """The tokens of a walk, and whether it came to an end."""
    tokens = list(walk(COMPILER.compile(grammar), seed))
    return [token for token in tokens if token not in EOS], tokens[-1] in EOS
