"""The body of a job comes back from its wire form, also from a newer writer's."""

from __future__ import annotations

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from scheduler.grammars import Grammar, GrammarKind
from scheduler.requests import JobRequest, Sampling, Stopping
from tests.scheduler.builders import make_request

ints = st.integers(0, 2**31)
reals = st.floats(0, 5)
text = st.text(st.characters(codec="utf-8"))
requests = st.builds(
    JobRequest,
    kind=text,
    model=text,
    prompts=st.lists(st.lists(ints, max_size=9).map(tuple), max_size=3).map(tuple),
    n=st.integers(1, 8),
    sampling=st.builds(
        Sampling,
        temperature=reals,
        logit_bias=st.lists(st.tuples(ints, reals), max_size=3).map(tuple),
        seed=st.integers(0, 2**64 - 1),
    ),
    stopping=st.builds(
        Stopping,
        max_tokens=ints,
        strings=st.lists(text, max_size=3).map(tuple),
        token_ids=st.lists(ints, max_size=3).map(tuple),
    ),
    logprobs=st.none() | st.integers(0, 20),
    adapter=st.none() | text,
    images=st.lists(st.binary(max_size=9), max_size=3).map(tuple),
    image_count=ints,
    grammar=st.none() | st.builds(Grammar, st.sampled_from(GrammarKind), text),
    rendering=st.dictionaries(text, text | ints | st.none()),
)


@given(requests)
def test_a_request_comes_back(request: JobRequest) -> None:
    assert JobRequest.decode(request.encode()) == request


def test_fields_of_newer_writers_are_ignored() -> None:
    request = make_request()
    raw = msgpack.unpackb(request.encode())
    raw["new"] = raw["sampling"]["new"] = raw["stopping"]["new"] = 1
    assert JobRequest.decode(msgpack.packb(raw)) == request


def test_choices_know_their_prompt_and_their_seed() -> None:
    request = make_request(prompts=((1,), (2, 3)), n=2, sampling=Sampling(seed=5))
    assert (request.choices, request.prompt_tokens) == (4, 3)
    assert [request.choice_prompt(i) for i in range(4)] == [(1,), (1,), (2, 3), (2, 3)]
    assert request.choice_seed(0) == 5
    assert len({request.choice_seed(i) for i in range(4)}) == 4


def test_the_record_of_parameters_holds_no_text_and_no_prompt() -> None:
    request = JobRequest(
        kind="chat",
        model="m",
        prompts=((77_777,),),
        stopping=Stopping(max_tokens=5, strings=("secret",), token_ids=(1,)),
        sampling=Sampling(logit_bias=((1, 2.0),)),
        adapter="poems",
        rendering={"secret": 1},
    )
    params = request.params()
    assert "secret" not in repr(params)
    assert "77777" not in repr(params)
    assert (params["stop"], params["logit_bias"], params["max_tokens"]) == (2, 1, 5)
    assert params["adapter"] == "poems"
