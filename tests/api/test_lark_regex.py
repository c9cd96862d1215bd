"""A Lark grammar as one expression: it fits the same texts as the grammar does."""

from __future__ import annotations

import random
import re

import pytest
from llguidance import LLMatcher, LLTokenizer

from api.openai.lark_grammar import NotEmbeddable
from api.openai.lark_regex import COMMON, as_regex

BYTES = LLTokenizer("byte")

PATCH = r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""
"""What agents send for a tool that edits files."""

GRAMMARS = {
    PATCH: [
        "*** Begin Patch\n*** Delete File: a\n*** End Patch",
        "*** Begin Patch\n*** Add File: b\n+x\n+\n*** End Patch\n",
    ],
    'start: "a"i WORD? ["!"] // a word\n%import common (WORD, LF)': ["A", "aword!", "a!"],
    'start: ("x" | "yy"){2,3} "." ~ 2': ["xyy..", "xxx.."],
    'start: /[0-9]+/ "-".."/" NAME\nNAME: "n" | /m{2}/s': ["12.n", "0/mm"],
    '?start: one\n!one: two*\ntwo: "(" ")" -> pair': ["", "()()"],
    'start: "\\n\\"" /\\//': ['\n"/'],
}


def fits(lark: str, text: str) -> bool:
    """Does llguidance take the text?"""
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(lark), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = BYTES.tokenize_bytes(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_the_expression_fits_what_the_grammar_fits(grammar: str) -> None:
    expression = as_regex(grammar)
    as_lark = f"start: /{expression}/"
    rng = random.Random(1)
    texts = list(GRAMMARS[grammar])
    for text in GRAMMARS[grammar]:
        for _ in range(20):
            at, letter = rng.randrange(len(text) + 1), rng.choice(["", "x", "\n", "!", "+", "(", text[:3]])
            texts.append(text[:at] + letter + text[at + rng.randrange(3) :])
    assert all(fits(grammar, text) for text in GRAMMARS[grammar])
    for text in texts:
        assert fits(as_lark, text) == fits(grammar, text), (text, expression)


SAMPLES = [
    *("", "a", "Z", "abc", "a1", "_x", "1", "42", "-7", "+7", "1.", ".5", "1.5", "1e5", "-1.5e-3", "1.e5", "f", "G"),
    *("\n", "\r", "\r\n", "\n\n", "\r\r", " ", "\t", " \t ", "\f", " \n", '"x"', '"a\\"b"', '"a"b"', '"', '""', "é"),
]


@pytest.mark.parametrize("name", COMMON)
def test_terminals_of_the_library_are_the_librarys(name: str) -> None:
    grammar = f"start: {name}\n%import common.{name}"
    expression = f"start: /{as_regex(grammar)}/"
    assert [fits(expression, text) for text in SAMPLES] == [fits(grammar, text) for text in SAMPLES]


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ('start: "(" start? ")"', "'start' contains itself"),
        ('start: a\na: b\nb: "x" a?', "'a' contains itself"),
        ("start: nobody", "'nobody' is not defined"),
        ('start: %json {"type": "string"}', "'%json"),
        ("start: <tool>", "'<tool>'"),
        ('start: "a"\n%ignore " "', "'%ignore"),
        ("start: WS_OTHER\n%import common.WS_OTHER", "common.WS_OTHER"),
        ("start: /a/x", "flags"),
        ('start: ("a"', "not closed"),
        ('start: "a" )', "not expected"),
        (
            "start: " + "aa " * 1 + "\naa: " + "ab " * 30 + "\nab: " + "ac " * 30 + "\nac: " + '"abcdefghij" ' * 30,
            "more than",
        ),
    ],
)
def test_what_has_no_expression_is_said(grammar: str, why: str) -> None:
    with pytest.raises(NotEmbeddable, match=re.escape(why)):
        as_regex(grammar)
