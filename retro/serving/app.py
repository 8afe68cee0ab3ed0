"""The routes of ``retro serve``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from retro.config.extras import missing
from retro.serving.access import Access
from retro.serving.bodies import OutcomeBody, ReflectionBody, read_body
from retro.serving.chat import ChatBody, answer_chat, completion_json, events, models_json
from retro.serving.failures import RequestError
from retro.serving.gate import Gate, RequestRecord, refusal
from retro.serving.metrics import Metrics
from retro.serving.service import Answer, Service, outcome_json
from retro.types import Reflection

if TYPE_CHECKING:
    from retro.serving.mcp_http import McpEndpoint


def make_app(service: Service, key: str | None) -> ASGIApp:
    """The server's app.

    Args:
        key: The API key that requests must carry; None if none is needed.
    """
    metrics = Metrics(service.admission)
    tools = _mcp(service)
    lifespan = None if tools is None else lambda app: tools.run()
    app = FastAPI(openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.add_exception_handler(Exception, _failed)
    app.add_exception_handler(RequestError, _failed)
    app.add_exception_handler(HTTPException, _failed)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        return JSONResponse({"status": "ready" if service.ready else "stopped"}, 200 if service.ready else 503)

    @app.post("/v1/reflections")
    async def reflections(request: Request) -> dict[str, Any]:
        body = await read_body(request, ReflectionBody, service.limits.body_bytes)
        answer = await answered(
            request, service.reflect(body.trajectory, body.n, body.seed, follows=body.reflection_id)
        )
        return {"id": request.state.record.id, "model": service.name, **reflection_json(answer)}

    @app.post("/v1/outcomes")
    async def outcomes(request: Request) -> dict[str, Any]:
        body = await read_body(request, OutcomeBody, service.limits.body_bytes)
        return {"id": request.state.record.id, **outcome_json(await service.report(body))}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, ChatBody, service.limits.body_bytes)
        answer = await answered(request, answer_chat(body, service))
        id = request.state.record.id
        if body.stream:
            return Response("".join(events(id, service, answer, body)), media_type="text/event-stream")
        return JSONResponse(completion_json(id, service, answer))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return models_json(service)

    @app.get("/metrics")
    async def figures() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    if tools is not None:
        app.router.routes.append(Route("/mcp", tools, methods=["POST"]))
    paths = [route.path for route in app.routes if hasattr(route, "path")]
    return Gate(app, Access(key), paths, metrics.finished)


def _mcp(service: Service) -> McpEndpoint | None:
    """The endpoint for the Model Context Protocol; None without its SDK, whose version 1 has no ``mcp_types``."""
    if missing(["mcp_types"]):
        return None
    from retro.serving.mcp_http import McpEndpoint

    return McpEndpoint(service)


def reflection_json(answer: Answer) -> dict[str, Any]:
    """Text, score, candidates, usage, and the ids for outcomes."""
    reflected = answer.reflected
    ids = answer.ids or (None,) * len(reflected.candidates)
    return {
        "reflection_id": answer.id,
        "text": reflected.text,
        "score": reflected.score,
        "candidates": [_candidate_json(*pair) for pair in zip(ids, reflected.candidates, strict=True)],
        "usage": answer.usage_json,
    }


async def answered(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The result of ``work``, which is cancelled if the client goes away; its tokens are recorded.

    Raises:
        RequestError: if the client has gone; nobody reads it.
    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestError(499, "disconnected", "The client has gone.")
        answer = working.result()
        request.state.record.usage = answer.usage
        return answer
    finally:
        working.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    """Return once the client has gone. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _candidate_json(id: str | None, candidate: Reflection) -> dict[str, Any]:
    return {
        "reflection_id": id,
        "text": candidate.text,
        "score": candidate.score,
        "finish_reason": candidate.finish_reason,
        "completion_tokens": candidate.usage.completion_tokens,
    }


async def _failed(request: Request, error: Exception) -> Response:
    """The answer to any error: one sentence. What we do not know is in the log alone."""
    record: RequestRecord = request.state.record
    if isinstance(error, RequestError):
        refused = error
    elif isinstance(error, HTTPException) and error.status_code == 405:
        refused = RequestError(405, "wrong_method", "This route does not have this method.", error.headers)
    elif isinstance(error, HTTPException):
        refused = RequestError(error.status_code, "no_such_route", "This server has no such route.", error.headers)
    else:
        message = f"The server failed; its log names the error beside the id {record.id}."
        refused = RequestError(500, "internal_error", message)
    return refusal(refused, record)
