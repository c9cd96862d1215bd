"""From a request's head to its caller: its key, then what the endpoint needs of that key's role."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

from api.access import Access, require
from api.auth_failures import AuthFailures
from scheduler.admin_log import Actor
from scheduler.admission import Admission, Caller
from scheduler.errors import InvalidKey, TooManyFailures

log = structlog.get_logger()


class Authorization:
    """Every request passes here before its body is read."""

    def __init__(self, admission: Admission, clock: Callable[[], float] = time.monotonic) -> None:
        self._admission = admission
        self._access = Access()
        self._failures = AuthFailures()
        self._clock = clock

    def is_open(self, scope: Scope) -> bool:
        """Does the request need no key?"""
        return self._access.is_open(scope["method"], scope["path"])

    def caller(self, scope: Scope, headers: Headers) -> Caller:
        """Who asks, if he may. Raises InvalidKey, Forbidden, RecordUnavailable, and ApiError for no endpoint."""
        caller = self._authenticated(headers, client_address(scope))
        require(caller.role, self._access.needs(scope["method"], scope["path"]))
        return caller

    def _authenticated(self, headers: Headers, address: str) -> Caller:
        """Generated keys, which nobody can guess, are looked at even where wrong ones come from: others may be there.

        (A proxy that does not tell addresses is one address for all.)
        """
        presented, now_s = presented_key(headers), self._clock()
        wait_s = self._failures.wait_s(address, now_s)
        try:
            return self._admission.authenticate(presented, chosen=not wait_s)
        except InvalidKey as error:
            if presented is None:
                raise
            if wait_s:
                raise TooManyFailures(wait_s) from error
            self._failures.note(address, now_s)
            log.warning("wrong key", address=address)
            raise


def actor_of(request: Request) -> Actor:
    """Who asks for a change, for the log of changes."""
    caller: Caller = request.state.caller
    return Actor(id=caller.key_id, role=caller.role, address=client_address(request.scope))


def client_address(scope: Scope) -> str:
    """The address that a request comes from; empty for a Unix socket."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def presented_key(headers: Headers) -> str | None:
    """The key of `Authorization: Bearer` or `x-api-key`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or None
