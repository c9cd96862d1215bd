"""What each endpoint needs, in one table: a route that is not in it is not served, whoever asks.

tests/api/test_access.py compares the table with the router's own list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from starlette.routing import compile_path

from api.errors import ApiError
from scheduler.errors import Forbidden
from scheduler.keys import Role


class Need(StrEnum):
    """What a caller must be allowed to do; the words are those of a refusal."""

    NOTHING = "ask for nothing"
    KEY = "have a key"
    USE = "use models"
    LOOK = "look at the farm"
    RUN = "run the farm"
    GRANT = "make keys, or give those of providers"


GRANTED: Mapping[Role, frozenset[Need]] = {
    Role.CLIENT: frozenset({Need.NOTHING, Need.KEY, Need.USE}),
    Role.VIEWER: frozenset({Need.NOTHING, Need.KEY, Need.LOOK}),
    Role.OPERATOR: frozenset({Need.NOTHING, Need.KEY, Need.USE, Need.LOOK, Need.RUN}),
    Role.ADMIN: frozenset(Need),
}

ENDPOINTS: Mapping[Need, Sequence[str]] = {
    Need.NOTHING: ("GET,HEAD /", "GET /livez", "GET /readyz", "GET /health", "GET /version"),
    Need.KEY: (
        *("GET,HEAD /docs", "GET,HEAD /docs/oauth2-redirect", "GET,HEAD /redoc", "GET,HEAD /openapi.json"),
        *("GET /v1/models", "GET /v1/models/{model_id:path}"),
        "GET /v1/audit/requests",
    ),
    Need.USE: (
        *("GET,POST /v1/chat/completions", "GET,POST,DELETE /v1/chat/completions/{completion}"),
        "GET /v1/chat/completions/{completion}/messages",
        *("POST /v1/completions", "POST /v1/moderations", "POST /tokenize", "POST /detokenize"),
        *("POST /v1/responses", "POST /v1/responses/input_tokens", "POST /v1/responses/compact"),
        *("GET,DELETE /v1/responses/{response}", "POST /v1/responses/{response}/cancel"),
        "GET /v1/responses/{response}/input_items",
        *("GET,POST /v1/conversations", "GET,POST,DELETE /v1/conversations/{_path:path}"),
        *("POST /v1/messages", "POST /v1/messages/count_tokens"),
        *("POST /v1/embeddings", "POST /v1/rerank", "POST /v2/rerank", "POST /v1/score"),
        *("GET,POST /v1/files", "GET,DELETE /v1/files/{file_id}", "GET /v1/files/{file_id}/content"),
        *("GET,POST /v1/batches", "GET /v1/batches/{batch_id}", "POST /v1/batches/{batch_id}/cancel"),
        *("GET,POST /v1/messages/batches", "GET,DELETE /v1/messages/batches/{batch_id}"),
        *("POST /v1/messages/batches/{batch_id}/cancel", "GET /v1/messages/batches/{batch_id}/results"),
        *("GET,POST /v1/jobs", "GET /v1/jobs/{job_id}", "GET /v1/jobs/{job_id}/events"),
        *("POST /v1/jobs/{job_id}/cancel", "POST /v1/jobs/{job_id}/retry", "POST /v1/jobs/{job_id}/discard"),
        *("GET /v1/jobs/dead", "POST /v1/jobs/dead/retry", "POST /v1/jobs/dead/discard"),
    ),
    Need.LOOK: (
        *("GET /metrics", "GET /admin/models/status", "GET /admin/workers", "GET /admin/tenants"),
        *("GET /admin/rules", "GET /admin/rules/current", "GET /admin/rules/{version}"),
        "GET /admin/rules/drafts/{draft_id}",
        *("GET /admin/models/events", "GET /admin/models/agents", "GET /v1/audit/models"),
        *(f"GET /admin/gallery/{what}" for what in ("nodes", "models", "recommend", "pulls", "pulls/{pull_id}")),
    ),
    Need.RUN: (
        "POST /admin/tenants/{name}",
        *(f"POST /admin/models/{action}" for action in ("load", "unload", "pin", "unpin")),
        *("GET /admin/gallery/search", "POST /admin/gallery/pulls", "POST /admin/gallery/pulls/{pull_id}/cancel"),
        *("POST /admin/rules/drafts", "DELETE /admin/rules/drafts/{draft_id}", "POST /admin/rules/dry-run"),
        *("POST /admin/rules/apply", "POST /admin/rules/rollback"),
    ),
    Need.GRANT: (
        *("GET,POST /admin/keys", "GET /admin/keys/{key_id}", "POST /admin/keys/{key_id}/rotate"),
        *("POST /admin/keys/{key_id}/revoke", "GET /admin/changes"),
        *("GET,POST /admin/providers", "GET,POST /admin/providers/{name}"),
        *(f"POST /admin/providers/{{name}}/{action}" for action in ("rotate", "enable", "disable")),
    ),
}


class Access:
    """What requests need, by method and path."""

    def __init__(self, endpoints: Mapping[Need, Sequence[str]] = ENDPOINTS) -> None:
        self._exact: dict[str, dict[str, set[Need]]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, set[Need]]]] = []
        for template, methods in _by_template(endpoints).items():
            if "{" in template:
                self._patterns.append((compile_path(template)[0], methods))
            else:
                self._exact[template] = methods
        self._open = {
            (method, path)
            for path, methods in self._exact.items()
            for method in methods
            if self.needs(method, path) == {Need.NOTHING}
        }

    def is_open(self, method: str, path: str) -> bool:
        """Does a request need no key?"""
        return (method, path) in self._open

    def needs(self, method: str, path: str) -> set[Need]:
        """All that a request needs: of every template that its path fits. Raises ApiError 404 and 405 for no endpoint.

        Which of several templates the router prefers does not matter then.
        """
        fitting = [self._exact[path]] if path in self._exact else []
        fitting += [methods for pattern, methods in self._patterns if pattern.match(path)]
        if not fitting:
            raise ApiError(404, f"Nothing is at {method} {path}; see /docs.")
        needs = set().union(*(methods.get(method, ()) for methods in fitting))
        if not needs:
            allowed = sorted(set().union(*fitting))
            raise ApiError(405, f"{method} is not allowed at {path}.", headers={"allow": ", ".join(allowed)})
        return needs


def require(role: Role, needs: set[Need]) -> None:
    """Raises Forbidden where the role lacks one of the needs."""
    missing = needs - GRANTED[role]
    if missing:
        able = [other.value for other in Role if needs <= GRANTED[other]]
        raise Forbidden(f"A key of role {role.value!r} may not {min(missing)}; this takes {' or '.join(able)}.")


def _by_template(endpoints: Mapping[Need, Sequence[str]]) -> dict[str, dict[str, set[Need]]]:
    templates: dict[str, dict[str, set[Need]]] = {}
    for need, template, method in _listed(endpoints):
        templates.setdefault(template, {}).setdefault(method, set()).add(need)
    return templates


def _listed(endpoints: Mapping[Need, Sequence[str]]) -> Iterator[tuple[Need, str, str]]:
    for need, lines in endpoints.items():
        for line in lines:
            methods, _, template = line.partition(" ")
            for method in methods.split(","):
                yield need, template, method
