"""Redis URLs taken apart, and what is wrong with those that are none."""

from __future__ import annotations

import pytest

from scheduler.addresses import Kind, read_address


@pytest.mark.parametrize("url", ["redis://host:1/2", "rediss://user:secret@host", "unix:///run/redis.sock?db=1"])
def test_one_server_is_left_to_redis_py(url: str) -> None:
    address = read_address(url)
    assert (address.kind, address.url) == (Kind.SERVER, url)


def test_sentinels_are_listed_with_the_name_of_their_primary() -> None:
    address = read_address(
        "redis+sentinel://me:p%40ss@a:1,b,[::1]:3/farm/5?sentinel_password=s&health_check_interval=7"
    )
    assert address.kind is Kind.SENTINEL
    assert address.nodes == (("a", 1), ("b", 26379), ("::1", 3))
    assert address.service == "farm"
    assert address.options == {"username": "me", "password": "p@ss", "db": 5, "health_check_interval": 7}
    assert address.sentinel_options == {"password": "s"}


def test_a_cluster_is_some_of_its_nodes() -> None:
    address = read_address("redis+cluster://:secret@a:7000,b")
    assert address.kind is Kind.CLUSTER
    assert address.nodes == (("a", 7000), ("b", 6379))
    assert address.options == {"password": "secret"}


def test_tls_holds_for_the_sentinels_too() -> None:
    address = read_address("rediss+sentinel://a/farm?ssl_ca_certs=ca.pem")
    asked = {"ssl": True, "ssl_check_hostname": True, "ssl_ca_certs": "ca.pem"}
    assert (address.options, address.sentinel_options) == (asked, asked)
    assert not read_address("rediss+cluster://a?ssl_check_hostname=false").options["ssl_check_hostname"]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://host", "must specify one of"),
        ("redis+http://host", "no Redis URL"),
        ("redis+sentinel://host", "name of their primary"),
        ("redis+sentinel://host/farm/x", "no number of a database"),
        ("redis+sentinel://a,,b/farm", "host is missing"),
        ("redis+cluster://host/1", "no databases but 0"),
        ("redis+cluster://host?sentinel_username=me", "no sentinels"),
    ],
)
def test_what_is_wrong_is_said(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_address(url)
