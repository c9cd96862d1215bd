"""The API application: composition, and one place where errors become responses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from api import audit, dead_letters, health, jobs, models
from api.admin import changes
from api.admin import gallery as admin_gallery
from api.admin import keys as admin_keys
from api.admin import models as admin_models
from api.admin import orders as admin_orders
from api.admin import providers as admin_providers
from api.admin import rules as admin_rules
from api.admin import tenants as admin_tenants
from api.anthropic import batches as message_batches
from api.anthropic import routes as anthropic_routes
from api.anthropic.errors import refusal
from api.authorization import Authorization
from api.bodies import invalid_body
from api.door import Door
from api.drain import Drain
from api.errors import SERVER_ERROR, ApiError, api_error
from api.metrics import Metrics
from api.middleware import Gate, RequestFrame
from api.node import admission_of, open_node
from api.openai import batches, files, routes, stored, tokenizing
from api.openai.responses import routes as responses
from api.vectors import routes as vector_routes
from scheduler.errors import FarmError
from scheduler.key_ring import KeyRing
from scheduler.settings import ApiSettings

FORM_BYTES = 64 * 1024
"""What a form may have around its file."""


def create_app(settings: ApiSettings, drain: Drain | None = None) -> FastAPI:
    """Build the application; its clients are opened when it starts. `drain` lets the process end it in order."""
    drain, metrics, ring = drain or Drain(), Metrics(), KeyRing()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_node(settings, metrics, drain, ring) as node:
            app.state.node = node
            yield

    app = FastAPI(
        title="mlx-farm",
        version=health.farm_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    authorization, limit_bytes = Authorization(admission_of(settings, ring)), settings.body_limit_bytes
    uploads = {
        "/v1/files": settings.file_limit_bytes + FORM_BYTES,
        "/v1/messages/batches": settings.batch_input_bytes,
    }
    app.add_middleware(
        Gate, authorization=authorization, drain=drain, door=Door(), body_limit_bytes=limit_bytes, uploads=uploads
    )
    app.add_middleware(RequestFrame, metrics=metrics)
    app.add_exception_handler(FarmError, _farm_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _bug)
    inference = (models, routes, stored, tokenizing, responses, anthropic_routes, vector_routes)
    farm = (dead_letters, jobs, audit, admin_models, admin_orders, admin_gallery, admin_rules, admin_tenants)
    secrets = (admin_keys, admin_providers, changes)
    for module in (health, *inference, files, batches, message_batches, *farm, *secrets):
        app.include_router(module.router)
    return app


async def _farm_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FarmError)
    return refusal(api_error(error), request.scope)


async def _http_error(request: Request, error: Exception) -> Response:
    """Our own refusals, and those of the framework (404, 405, 400 …) in the same shape."""
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return refusal(error, request.scope)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"Nothing is at {request.method} {request.url.path}; see /docs."
    if error.status_code == 405:
        message = f"{request.method} is not allowed at {request.url.path}."
    return refusal(ApiError(error.status_code, message, headers=error.headers), request.scope)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refusal(invalid_body(error.errors()), request.scope)


async def _bug(request: Request, _error: Exception) -> Response:
    """A defect of ours; the server's log gets the traceback."""
    message = "The server made a mistake; its log has the details."
    headers = {"x-request-id": str(getattr(request.state, "request_id", ""))}
    return refusal(ApiError(500, message, kind=SERVER_ERROR, code="internal_error", headers=headers), request.scope)
