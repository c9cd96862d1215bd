"""A key opens the farm only where it is the right one; what its holder may ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.admission import DEFAULT_TENANT, Admission, Caller, cache_salt_of
from scheduler.backpressure import Limits
from scheduler.errors import Forbidden, InvalidKey, RecordUnavailable
from scheduler.jobs import Lane
from scheduler.key_ring import KeyRing
from scheduler.keys import KeyTerms, Role, new_key_text
from tests.scheduler.test_keys import PEPPER, make_key, ring_of


@pytest.mark.parametrize("presented", [None, "", "anything", new_key_text("fk_abcdefghijkl")])
def test_without_a_key_everybody_is_an_admin_of_the_default_tenant(presented: str | None) -> None:
    caller = Admission(None).authenticate(presented)
    assert (caller.tenant, caller.role) == (DEFAULT_TENANT, Role.ADMIN)


def test_the_right_key_opens() -> None:
    assert Admission("clé").authenticate("clé").key_id == "env"


@pytest.mark.parametrize("presented", [None, "", "cl", "clé ", "CLÉ"])
def test_any_other_key_does_not(presented: str | None) -> None:
    with pytest.raises(InvalidKey, match="Missing or wrong"):
        Admission("clé").authenticate(presented)


def test_an_address_that_others_reach_is_never_open() -> None:
    with pytest.raises(InvalidKey):
        Admission(None, never_open=True).authenticate(None)


def test_once_there_are_keys_they_are_needed_beside_that_of_the_settings() -> None:
    key, text = make_key()
    admission = Admission("sesame", Limits(requests_per_minute=9, concurrent_jobs=3), ring_of(key))
    caller = admission.authenticate(text)
    assert (caller.tenant, caller.key_id, caller.role, caller.budget) == ("acme", key.id, Role.CLIENT, key.id)
    assert admission.authenticate("sesame").role is Role.ADMIN
    for wrong in (None, "", "wrong"):
        with pytest.raises(InvalidKey):
            Admission(None, ring=ring_of(key)).authenticate(wrong)


def test_what_people_thought_of_is_not_looked_at_while_an_address_must_wait() -> None:
    key, text = make_key()
    admission = Admission("sesame", ring=ring_of(key))
    assert admission.authenticate(text, chosen=False).key_id == key.id
    with pytest.raises(InvalidKey):
        admission.authenticate("sesame", chosen=False)


def test_a_keys_own_limits_go_before_the_settings() -> None:
    terms = KeyTerms(name="n", tenant="t", role=Role.CLIENT, limits={"requests_per_minute": 0, "tokens_per_day": 7})
    key, text = make_key(terms=terms)
    settings = Limits(requests_per_minute=9, concurrent_jobs=3)
    limits = Admission(None, settings, ring_of(key)).authenticate(text).limits
    assert limits == Limits(tokens_per_day=7, concurrent_jobs=3)


def test_what_a_key_has_begun_goes_on_on_its_terms_after_its_end() -> None:
    key, _ = make_key(terms=KeyTerms(name="n", tenant="t", role=Role.CLIENT, models=("small",)))
    admission = Admission(None, ring=ring_of(replace(key, revoked_ms=1)))
    caller = admission.caller_known_as(key.id, "t")
    assert (caller.tenant, caller.models, bool(caller.limits)) == ("t", frozenset({"small"}), False)
    assert admission.caller_known_as("env", "t") == Caller("t", "env")
    with pytest.raises(RecordUnavailable):
        admission.caller_known_as("fk_unread", "t")


def test_a_model_that_a_key_may_not_use_is_refused_by_name() -> None:
    caller = Caller("t", "k", models=frozenset({"small", "tiny"}))
    caller.require_model("tiny")
    Caller("t", "k").require_model("large")
    with pytest.raises(Forbidden, match="'large', but: small, tiny"):
        caller.require_model("large")


@pytest.mark.parametrize(
    ("lanes", "named", "usual", "lane"),
    [
        ((), None, Lane.NORMAL, Lane.NORMAL),
        ((), Lane.HIGH, Lane.NORMAL, Lane.HIGH),
        ((Lane.LOW,), None, Lane.NORMAL, Lane.LOW),
        ((Lane.LOW,), Lane.LOW, Lane.NORMAL, Lane.LOW),
        ((Lane.HIGH, Lane.LOW), None, Lane.NORMAL, Lane.HIGH),
        ((Lane.HIGH, Lane.LOW), None, Lane.LOW, Lane.LOW),
        ((Lane.LOW,), Lane.NORMAL, Lane.NORMAL, None),
        ((Lane.NORMAL,), None, Lane.HIGH, None),
    ],
)
def test_the_lane_of_a_request(lanes: tuple[Lane, ...], named: Lane | None, usual: Lane, lane: Lane | None) -> None:
    caller = Caller("t", "k", lanes=lanes)
    if lane is None:
        with pytest.raises(Forbidden, match="lane"):
            caller.lane(named, usual)
    else:
        assert caller.lane(named, usual) is lane


def test_only_the_default_tenants_prefixes_have_no_salt() -> None:
    assert cache_salt_of(DEFAULT_TENANT, shared=False) == cache_salt_of("acme", shared=True) == ""
    assert cache_salt_of("acme", shared=False) != cache_salt_of("umbrella", shared=False) != ""


def test_a_ring_that_waits_for_the_record_lets_nobody_in() -> None:
    ring = KeyRing()
    ring.suspect(has_pepper=True)
    with pytest.raises(InvalidKey):
        Admission(None, ring=ring).authenticate(None)
    with pytest.raises(RecordUnavailable):
        Admission(None, ring=ring).authenticate(make_key(pepper=PEPPER)[1])
