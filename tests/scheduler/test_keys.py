"""Keys: their text, what is kept of it, their terms, and the ring that checks them."""

from __future__ import annotations

import string
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import InvalidKey, InvalidTerms, RecordUnavailable
from scheduler.jobs import Lane
from scheduler.key_ring import KeyRing
from scheduler.keys import (
    ApiKey,
    KeyState,
    KeyTerms,
    Role,
    key_id_of,
    mac_of,
    new_key_id,
    new_key_text,
    pepper_id_of,
)

PEPPER = b"p" * 32
TERMS = KeyTerms(name="app", tenant="acme", role=Role.CLIENT)


def make_key(version: int = 1, pepper: bytes = PEPPER, terms: KeyTerms = TERMS) -> tuple[ApiKey, str]:
    text = new_key_text(new_key_id())
    key = ApiKey(
        id=key_id_of(text) or "",
        version=version,
        terms=terms,
        pepper_id=pepper_id_of(pepper),
        mac=mac_of(pepper, text),
        created_ms=1,
    )
    return key, text


def ring_of(*keys: ApiKey) -> KeyRing:
    ring = KeyRing()
    ring.learn(keys, PEPPER)
    return ring


def test_a_text_names_its_id_and_nothing_else_does() -> None:
    key_id = new_key_id()
    text = new_key_text(key_id)
    assert key_id_of(text) == key_id
    others = [None, "", key_id, text[:-1], text + "a", text + "\n", text.upper(), "x" + text[1:], text[:-1] + "é"]
    assert [key_id_of(other) for other in others] == [None] * len(others)


@given(st.text(alphabet=string.printable + "é\0'\"", min_size=0, max_size=80))
def test_no_other_text_is_taken_for_a_key(text: str) -> None:
    with pytest.raises(InvalidKey):
        ring_of(make_key()[0]).check(text)


def test_the_right_text_opens_and_one_other_character_does_not() -> None:
    key, text = make_key()
    ring = ring_of(key)
    assert ring.check(text) is key
    for place in range(len(text)):
        wrong = text[:place] + ("a" if text[place] != "a" else "b") + text[place + 1 :]
        with pytest.raises(InvalidKey):
            ring.check(wrong)


def test_a_key_is_bound_to_its_id_and_to_the_pepper() -> None:
    (one, text), (other, _) = make_key(), make_key(2)
    swapped = ring_of(replace(other, mac=one.mac))
    for ring in (swapped, ring_of(make_key(pepper=b"q" * 32)[0])):
        with pytest.raises(InvalidKey):
            ring.check(text.replace(one.id, other.id))
    stranger, its_text = make_key(pepper=b"q" * 32)
    ring = ring_of(stranger)
    assert ring.strangers == [stranger.id]
    with pytest.raises(InvalidKey):
        ring.check(its_text)


def test_an_ended_key_says_so_to_who_has_its_text_only() -> None:
    key, text = make_key(terms=replace(TERMS, expires_ms=100))
    ring = ring_of(key)
    assert ring.check(text, now_ms=99) is key
    with pytest.raises(InvalidKey, match="expired"):
        ring.check(text, now_ms=100)
    ring.learn([replace(key, version=2, revoked_ms=50)], PEPPER)
    with pytest.raises(InvalidKey, match="revoked"):
        ring.check(text, now_ms=60)
    with pytest.raises(InvalidKey, match="Missing or wrong"):
        ring.check(new_key_text(key.id), now_ms=60)
    assert key.state(99) is KeyState.ACTIVE


def test_an_old_text_is_taken_until_its_grace_is_over() -> None:
    key, old = make_key()
    new = new_key_text(key.id)
    rotated = replace(key, version=2, mac=mac_of(PEPPER, new), previous_mac=key.mac, previous_until_ms=50)
    ring = ring_of(rotated)
    assert ring.check(new, now_ms=49) is ring.check(old, now_ms=49) is rotated
    assert ring.check(new, now_ms=50) is rotated
    with pytest.raises(InvalidKey):
        ring.check(old, now_ms=50)


def test_a_ring_knows_the_newest_change_and_stays_closed_for_ever() -> None:
    ring = KeyRing()
    assert not ring.is_required
    ring.learn([make_key(3)[0], make_key(7)[0]], PEPPER)
    assert (ring.version, ring.is_required) == (7, True)
    key, _ = make_key(9)
    ring.learn([replace(key, revoked_ms=1)], PEPPER)
    assert ring.is_required


def test_keys_that_cannot_be_read_open_nothing_where_there_must_be_some() -> None:
    ring, (_, text) = KeyRing(), make_key()
    ring.suspect(has_pepper=False)
    assert not ring.is_required
    ring.suspect(has_pepper=True)
    assert ring.is_required
    with pytest.raises(RecordUnavailable, match="not been read"):
        ring.check(text)
    ring.learn([], PEPPER)
    assert not ring.is_required


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("name", {"name": " "}),
        ("name", {"name": "n" * 101}),
        ("tenant", {"tenant": "a\nb"}),
        ("models", {"models": ("",)}),
        ("limits", {"limits": {"requests_per_minute": -1}}),
        ("limits", {"limits": {"cost_per_day": 1}}),
    ],
)
def test_terms_that_make_no_sense_are_refused_by_name(param: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidTerms) as refused:
        replace(TERMS, **changes)
    assert refused.value.param == param


def test_terms_survive_the_record() -> None:
    terms = replace(TERMS, models=("a/b",), lanes=(Lane.LOW,), limits={"tokens_per_day": 5})
    assert replace(TERMS, **KeyTerms.decoded(terms.encoded())) == terms
