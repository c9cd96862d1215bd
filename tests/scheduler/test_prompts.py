"""Templates run in a sandbox, prompts are bounded, and tokens are the bytes of their text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from scheduler.errors import ContextTooLong, TemplateRefused
from scheduler.prompts import PromptFormat
from tests.scheduler.builders import make_card

HELLO = [{"role": "user", "content": "hello"}]


def byte_level() -> Tokenizer:
    """Every byte is a token; one merge; one special token with letters beyond ASCII."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)} | {"ab": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<e>", "<end▁é>"])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Letters, and bytes for everything else, as SentencePiece models have it."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "é", "▁hi"]
    tokenizer = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.add_special_tokens([AddedToken("<s>")])
    return tokenizer


def make_format(template: str | None = None, tokenizer: Tokenizer | None = None, **card: Any) -> PromptFormat:
    return PromptFormat(make_card(chat_template=template, **card), (tokenizer or byte_level()).to_str())


def render(template: str, **extra: Any) -> str:
    return make_format(template).render(HELLO, tools=None, **extra)


def test_a_template_sees_messages_tools_and_its_variables() -> None:
    template = "{% for m in messages %}{{ m.role }}:{{ m['content'] }}{% endfor %}|{{ tools | tojson }}|{{ eos_token }}"
    template += "|{{ bos_token }}|{{ add_generation_prompt }}|{{ enable_thinking }}"
    text = make_format(template).render(HELLO, tools=[{"name": "é"}], enable_thinking=False)
    assert text == 'user:hello|[{"name": "é"}]|<e>||True|False'


def test_the_globals_of_the_hubs_templates_are_there() -> None:
    assert render("{{ strftime_now('%Y') | length }}") == "4"
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1, separators=(',', ':'), sort_keys=true) }}") == (
        '{\n "a":2,\n "b":1\n}'
    )
    assert render("{% for m in messages %}{% break %}{% endfor %}x") == "x"
    assert render("{% if tools is none %}none{% endif %}") == "none"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content.x }}",
        "{{ nothing.at.all }}",
        "{{ 'a' + 1 }}",
        "{{ range(99999999999) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% if %}",
        "{{ messages | nofilter }}",
        "{% include 'x' %}",
        "{{ [][1:2][0].x }}",
    ],
)
def test_a_template_that_raises_is_a_refusal(template: str) -> None:
    with pytest.raises(TemplateRefused, match="chat template refused"):
        render(template)


@pytest.mark.parametrize("name", ["''.__class__", "messages.__class__", "raise_exception.__globals__", "self.__init__"])
def test_what_begins_with_underscores_is_nothing_to_a_template(name: str) -> None:
    assert render(f"{{{{ {name} }}}}") == ""


def test_the_reason_that_a_template_gives_is_told() -> None:
    with pytest.raises(TemplateRefused, match="Conversation roles must alternate"):
        render("{{ raise_exception('Conversation roles must alternate') }}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.values() }}",
        "{{ messages[0].update(role='system') }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(template: str) -> None:
    with pytest.raises(TemplateRefused):
        render(template)


def test_without_a_usable_template_plain_text_still_works() -> None:
    for template in (None, "{% if %}"):
        prompts = make_format(template)
        with pytest.raises(TemplateRefused):
            prompts.render(HELLO, tools=None)
        assert prompts.decode(prompts.encode("hi", add_special_tokens=False)) == "hi"


@pytest.mark.parametrize(("prompt", "asked", "bound"), [(60, None, 40), (60, 40, 40), (60, 1, 1), (99, None, 1)])
def test_what_fits_may_be_generated(prompt: int, asked: int | None, bound: int) -> None:
    assert make_format(context_tokens=100).bound(prompt, asked) == bound


@pytest.mark.parametrize(("prompt", "asked"), [(100, None), (250, None), (60, 41), (100, 1), (99, 2)])
def test_what_does_not_fit_is_refused_with_both_numbers(prompt: int, asked: int | None) -> None:
    with pytest.raises(ContextTooLong, match=rf"100 tokens, but the prompt has {prompt}") as caught:
        make_format(context_tokens=100).bound(prompt, asked)
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (prompt, 100)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_the_bytes_of_byte_level_tokens_are_the_text(text: str) -> None:
    assert joined_bytes(BYTE_LEVEL, text) == text.encode()


@given(st.text(st.sampled_from("hi é€😀ü"), max_size=40))
def test_the_bytes_of_sentencepiece_tokens_are_the_text(text: str) -> None:
    assert joined_bytes(SENTENCEPIECE, text) == text.encode()


@pytest.mark.parametrize("content", ["<e>", "<end▁é>"])
def test_the_bytes_of_a_special_token_are_its_name(content: str) -> None:
    (token,) = BYTE_LEVEL.encode(content, add_special_tokens=False)
    assert BYTE_LEVEL.token_bytes(token) == content.encode()


def test_an_id_beyond_the_vocabulary_has_no_bytes() -> None:
    assert BYTE_LEVEL.token_bytes(99_999) == b""


def joined_bytes(prompts: PromptFormat, text: str) -> bytes:
    return b"".join(prompts.token_bytes(token) for token in prompts.encode(text, add_special_tokens=False))


BYTE_LEVEL = make_format()
SENTENCEPIECE = make_format(tokenizer=sentencepiece())
