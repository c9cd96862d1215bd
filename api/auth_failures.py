"""Wrong keys by the address that they come from: after a few an address has to wait, longer each time. Pure."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

FREE = 10
"""So many wrong keys are a mistake in somebody's settings."""

FORGIVEN_S = 6.0
"""One wrong key is forgotten after so long."""

LONGEST_S = 60.0

ADDRESSES = 10_000
"""Whoever failed longest ago is forgotten beyond that."""


@dataclass(slots=True)
class _Record:
    count: float
    at_s: float
    until_s: float = 0.0


class AuthFailures:
    """Counts failures; `now_s` is a clock that only goes forward."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def wait_s(self, address: str, now_s: float) -> float:
        """For how long the address still has to wait; 0: not at all."""
        record = self._records.get(_network(address))
        return max(0.0, record.until_s - now_s) if record else 0.0

    def note(self, address: str, now_s: float) -> None:
        """A wrong key came from there."""
        network = _network(address)
        record = self._records.pop(network, None) or _Record(0.0, now_s)
        record.count = max(0.0, record.count - (now_s - record.at_s) / FORGIVEN_S) + 1
        record.at_s = now_s
        if record.count > FREE:
            record.until_s = now_s + min(LONGEST_S, 2.0 ** min(10.0, record.count - FREE))
        self._records[network] = record
        if len(self._records) > ADDRESSES:
            self._records.popitem(last=False)


def _network(address: str) -> str:
    """An address that one caller has: of IPv6 the first 64 bits."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
