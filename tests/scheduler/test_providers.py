"""What a provider may be, where it may be, and what its answers cost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import InvalidProvider
from scheduler.providers import ProviderModel, TokenUse, check_address, read_provider


def described(**changes: Any) -> dict[str, Any]:
    said = {"name": "cloud", "kind": "openai", "base_url": "https://api.example.com/v1", "models": [{"name": "big"}]}
    return said | changes


def test_a_model_is_served_under_its_providers_name() -> None:
    provider = read_provider(described(models=[{"name": "org/big"}]))
    assert provider.served_name(provider.models[0]) == "cloud/org/big"
    assert provider.url("chat/completions") == "https://api.example.com/v1/chat/completions"
    assert (provider.timeout_s, provider.concurrency) == (600.0, 16)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": "a/b"}, "name"),
        ({"name": "Ä"}, "name"),
        ({"kind": "telnet"}, "kind"),
        ({"models": []}, "models"),
        ({"models": [{"name": "a"}, {"name": "a"}]}, ""),
        ({"models": [{"name": "a", "input_usd": -1}]}, "models.0.input_usd"),
        ({"models": [{"name": "a", "input": 1}]}, "models.0.input"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"proxy": "http://x"}, "proxy"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidProvider) as refused:
        read_provider(described(**change))
    assert refused.value.param == param


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",
        "https://api.example.com:8443/v1",
        "https://127.0.0.1/v1",
        "https://169.254.169.254/latest",
        "https://[::ffff:10.0.0.1]/v1",
        "https://user:pass@api.example.com/v1",
        "https://api.example.com\\@10.0.0.1/v1",
        "https://api.example.com/v1?x=y",
        "file:///etc/passwd",
    ],
)
def test_an_address_that_is_not_public_is_refused(url: str) -> None:
    with pytest.raises(InvalidProvider) as refused:
        check_address(read_provider(described(base_url=url)), frozenset())
    assert refused.value.param == "base_url"


def test_a_host_that_the_operator_trusts_may_be_anywhere() -> None:
    gateway = read_provider(described(base_url="http://10.0.0.7:4000/v1"))
    check_address(gateway, frozenset({"10.0.0.7:4000"}))
    with pytest.raises(InvalidProvider):
        check_address(gateway, frozenset({"10.0.0.7:4001"}))


def test_cached_tokens_have_their_own_price() -> None:
    model = ProviderModel(name="m", input_usd=3.0, output_usd=15.0, cached_usd=0.3, cache_written_usd=3.75)
    use = TokenUse(prompt_tokens=1000, cached_tokens=400, cache_written_tokens=100, output_tokens=200)
    assert model.cost_usd(use) == pytest.approx((500 * 3 + 400 * 0.3 + 100 * 3.75 + 200 * 15) / 1e6)


counts = st.integers(0, 10**7)
prices = st.floats(0, 1000)


@given(cached=counts, plain=counts, output=counts, input_usd=prices, output_usd=prices)
def test_without_a_price_of_their_own_cached_tokens_cost_what_others_do(
    cached: int, plain: int, output: int, input_usd: float, output_usd: float
) -> None:
    model = ProviderModel(name="m", input_usd=input_usd, output_usd=output_usd)
    some = TokenUse(prompt_tokens=plain + cached, cached_tokens=cached, output_tokens=output)
    none = TokenUse(prompt_tokens=plain + cached, output_tokens=output)
    assert model.cost_usd(some) == pytest.approx(model.cost_usd(none), abs=1e-8)
    assert model.cost_usd(some) >= 0
