"""The service as tools of the Model Context Protocol: ``reflect`` and ``report_outcome``."""

from __future__ import annotations

import json
import logging
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from retro import __version__
from retro.reading import UnreadableError, parse_json
from retro.serving.bodies import OutcomeBody, ReflectionBody, as_form
from retro.serving.failures import RequestError
from retro.serving.gate import RequestRecord
from retro.serving.service import Service, outcome_json

logger = logging.getLogger(__name__)

Context = ServerRequestContext[Any, Any]

_STEP = {
    "type": "object",
    "properties": {
        "action": {"type": "string", "description": "What you did."},
        "observation": {"type": "string", "description": "What you then saw."},
        "thought": {"type": "string", "description": "Why you did it."},
        "reward": {"type": "number", "description": "What it earned."},
    },
    "required": ["action", "observation"],
}
_STEPS = {
    "opening": {
        "type": "string",
        "description": "The task as it was given to you, and what you saw at first.",
    },
    "steps": {"type": "array", "items": _STEP, "description": "Everything that you did, in its order."},
}
_MESSAGES = {
    "type": "array",
    "items": {"type": "object"},
    "description": "Instead of opening and steps: the conversation in OpenAI's format, with its tool calls.",
}
_RETURN = {"type": "number", "minimum": 0, "maximum": 1}
_ID = {"type": ["string", "null"], "description": "For report_outcome; null if outcomes are not recorded."}

REFLECT = types.Tool(
    name="reflect",
    title="Reflect on a failed attempt",
    description=(
        "Call this after an attempt at a task has failed and before you try again. It returns a short reflection: what "
        "went wrong, and what to do differently. Use it in your next attempt."
    ),
    input_schema={
        "type": "object",
        "properties": {
            "trajectory": {
                "type": "object",
                "description": "The failed attempt.",
                "properties": {
                    **_STEPS,
                    "messages": _MESSAGES,
                    "return": {**_RETURN, "description": "How much of the task was achieved: 0 is nothing."},
                    "memory": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "Earlier reflections on the same task, oldest first.",
                    },
                    "task": {"type": "string", "description": "A name of the task, the same for all attempts at it."},
                },
                "required": ["return"],
            },
            "reflection_id": {
                "type": ["string", "null"],
                "description": (
                    "If the failed attempt used a reflection: its reflection_id, as reflect returned it. The attempt "
                    "is then also reported."
                ),
            },
            "n": {"type": "integer", "minimum": 1, "description": "Reflections that are drawn; the best is returned."},
            "seed": {"type": "integer", "minimum": 0, "description": "Another seed draws other reflections."},
        },
        "required": ["trajectory"],
        "additionalProperties": False,
    },
    output_schema={
        "type": "object",
        "properties": {"reflection_id": _ID, "text": {"type": "string"}, "score": {"type": ["number", "null"]}},
        "required": ["reflection_id", "text", "score"],
    },
    annotations=types.ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False),
)
REPORT = types.Tool(
    name="report_outcome",
    title="Report what came of a reflection",
    description=(
        "Call this once after an attempt that used a reflection, if it succeeded or was the last one. For an attempt "
        "on which you ask for another reflection, give reflect the reflection_id instead. Later reflections learn from "
        "reports, so say how it really went."
    ),
    input_schema={
        "type": "object",
        "properties": {
            "reflection_id": {"type": "string", "description": "As reflect returned it."},
            "return": {**_RETURN, "description": "How much of the task was achieved: 1 is all of it."},
            "success": {"type": "boolean", "description": "Whether the task was solved; give this, return, or both."},
            "trajectory": {
                "type": "object",
                "description": "The new attempt.",
                "properties": {**_STEPS, "messages": _MESSAGES},
            },
        },
        "required": ["reflection_id"],
        "additionalProperties": False,
    },
    output_schema={
        "type": "object",
        "properties": {"episode_id": {"type": "string"}, "return": _RETURN, "success": {"type": "boolean"}},
        "required": ["episode_id", "return", "success"],
    },
    annotations=types.ToolAnnotations(
        read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
    ),
)


def make_tools(service: Service) -> Server[Any]:
    """A server that has both tools, or ``reflect`` alone if ``service`` records nothing."""
    tools = [REFLECT, REPORT] if service.records else [REFLECT]

    async def list_tools(context: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name not in {tool.name for tool in tools}:
            raise MCPError(types.INVALID_PARAMS, "This server has no such tool.")
        record = RequestRecord() if context.request is None else context.request.state.record
        try:
            found = await _call(service, params.name, params.arguments or {}, record)
            return _result(found, json.dumps(found, ensure_ascii=False))
        except RequestError as error:
            record.code = error.code
            return _result(None, error.message)
        except Exception:
            record.code = "internal_error"
            logger.exception("failed", extra={"fields": {"id": record.id}})
            return _result(None, f"The server failed; its log names the error beside the id {record.id}.")

    return Server("retro", version=__version__, on_list_tools=list_tools, on_call_tool=call_tool)


async def _call(service: Service, name: str, arguments: dict[str, Any], record: RequestRecord) -> dict[str, Any]:
    try:  # the limits of every other body
        tree = parse_json(json.dumps(arguments, ensure_ascii=False), "the arguments", service.limits.body_bytes)
    except (UnreadableError, RecursionError) as error:
        raise RequestError(400, "unreadable_body", f"The arguments cannot be read: {error}.") from None
    if name == REPORT.name:
        return outcome_json(await service.report(as_form(tree, OutcomeBody)))
    body = as_form(tree, ReflectionBody)
    answer = await service.reflect(body.trajectory, body.n, body.seed, follows=body.reflection_id)
    record.usage = answer.usage
    return {"reflection_id": answer.id, "text": answer.reflected.text, "score": answer.reflected.score}


def _result(structured: dict[str, Any] | None, text: str) -> types.CallToolResult:
    """A result, or an error that the calling model reads."""
    return types.CallToolResult(
        content=[types.TextContent(text=text)], structured_content=structured, is_error=structured is None
    )
