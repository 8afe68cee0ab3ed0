"""The tools by the official client of the Model Context Protocol, over HTTP and with a process of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from contextlib import asynccontextmanager

import pytest

from retro.buffer import ReplayBuffer
from retro.serving.logs import JsonLines
from tests.unit.serving.conftest import KEY, about, recording, running, until

pytest.importorskip("mcp_types", reason="the package mcp is not installed: pip install 'retro[serve]'")

import httpx2
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

PATH = "/mcp"
SECRET = "content-that-must-not-be-logged"
ATTEMPT = about("You are in a room.", n=2, seed=5)
HEADERS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
PING = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}'


@asynccontextmanager
async def tools(client, mode):
    """A client of the protocol for the server of an HTTP client."""
    async with httpx2.AsyncClient(headers=dict(client.headers), trust_env=False, timeout=60) as http:
        transport = streamable_http_client(f"{client.base_url}{PATH}".replace("//mcp", "/mcp"), http_client=http)
        async with Client(transport, mode=mode) as found:
            yield found


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_both_tools_do_what_the_routes_do(model, tmp_path, mode):
    async def use():
        async with tools(client, mode) as agent:
            names = [tool.name for tool in (await agent.list_tools()).tools]
            reflected = await agent.call_tool("reflect", ATTEMPT)
            outcome = {"reflection_id": reflected.structured_content["reflection_id"], "return": 0.5}
            reported = await agent.call_tool("report_outcome", outcome)
            changed = await agent.call_tool("report_outcome", {**outcome, "return": 0.75})
            wrong = await agent.call_tool("reflect", {"trajectory": {"opening": 1}})
            first = await agent.call_tool("reflect", ATTEMPT)
            follows = first.structured_content["reflection_id"]
            await agent.call_tool("reflect", {**ATTEMPT, "reflection_id": follows})
            return names, reflected, outcome, reported, changed, wrong

    with (
        ReplayBuffer(f"sqlite:///{tmp_path}/buffer.sqlite") as buffer,
        running(recording(model, buffer), KEY) as client,
    ):
        names, reflected, outcome, reported, changed, wrong = asyncio.run(use())
        again = client.post("/v1/outcomes", json=outcome).raise_for_status().json()
        retry = buffer.get(again["episode_id"])
        retries = [episode for episode in buffer.episodes() if episode.parent is not None]
    assert names == ["reflect", "report_outcome"]
    assert reflected.structured_content["text"] == model.reflect(ATTEMPT["trajectory"], n=2, seed=5).text
    assert json.loads(reflected.content[0].text) == reflected.structured_content
    assert reported.structured_content == {"episode_id": again["episode_id"], "return": 0.5, "success": False}
    assert (retry.return_, retry.reflection.text) == (0.5, reflected.structured_content["text"])
    assert [len(one.trajectory.steps) for one in sorted(retries, key=lambda one: one.return_)] == [1, 0]
    assert changed.is_error and "Another outcome" in changed.content[0].text
    assert wrong.is_error and "opening" in wrong.content[0].text


@pytest.mark.parametrize(
    ("method", "content", "headers", "status"),
    [
        ("POST", PING, {"Authorization": "Bearer wrong"}, 401),
        ("GET", b"", {}, 405),
        ("DELETE", b"", {}, 405),
        ("POST", PING, {"Content-Type": "text/plain"}, 415),
        ("POST", b"{", {}, 400),
        ("POST", b'{"jsonrpc": "2.0", "id": NaN, "method": "ping"}', {}, 400),
        ("POST", b'{"jsonrpc": "2.0", "id": 1, "params": ' + b"[" * 50_000, {}, 400),
        ("POST", b'{"jsonrpc": "2.0", "id": 1}', {}, 400),
        ("POST", b"[]", {"MCP-Protocol-Version": "2026-07-28"}, 400),
        ("POST", PING + b" " * 100_000, {}, 413),
        ("POST", PING, {}, 200),
    ],
)
def test_the_key_and_the_limits_are_those_of_the_server(client, method, content, headers, status):
    answer = client.request(method, PATH, content=content, headers=HEADERS | headers)
    assert answer.status_code == status
    assert "Traceback" not in answer.text


def test_calls_are_logged_without_content(client, caplog):
    async def use():
        async with tools(client, "auto") as agent:
            await agent.call_tool("reflect", about(SECRET, n=1))
            await agent.call_tool("reflect", {"trajectory": SECRET})

    caplog.set_level(logging.INFO)
    logging.getLogger("mcp").setLevel(logging.CRITICAL)  # as log_as_json does
    asyncio.run(use())

    def logged():
        return [json.loads(JsonLines().format(one)) for one in list(caplog.records) if one.name.startswith("retro")]

    until(lambda: sum(line["event"] == "request" for line in logged()) >= 2)
    until(lambda: any(line.get("code") == "invalid_body" for line in logged()))
    assert any(line.get("completion_tokens") and line["route"] == PATH for line in logged())
    assert SECRET not in str(logged()) and KEY not in str(logged())


STDIO_SERVER = """
import sys
from retro import RetrospectiveModel
from retro.prompts import load_prompts
from retro.serving.limits import Limits
from retro.serving.logs import log_as_json
from retro.serving.mcp_stdio import run_on_stdio
from retro.serving.service import Service
from retro.types import Reflection

class Loud:
    async def reflect(self, request):
        print("not a message", flush=True)
        if request.episode.trajectory.opening == "break":
            raise RuntimeError(request.episode.trajectory.opening)
        return [Reflection("on " + request.episode.trajectory.opening, "loud")]

log_as_json()
service = Service(RetrospectiveModel(Loud(), load_prompts("household")), "loud", Limits())
run_on_stdio(service)
service.close()
assert "torch" not in sys.modules
"""


def test_standard_output_belongs_to_the_protocol():
    async def use():
        command = StdioServerParameters(command=sys.executable, args=["-c", STDIO_SERVER], env=dict(os.environ))
        async with Client(stdio_client(command)) as agent:
            names = [tool.name for tool in (await agent.list_tools()).tools]
            return names, [await agent.call_tool("reflect", about(text)) for text in ("it", "break", "ä\u2028")]

    names, (first, broken, last) = asyncio.run(use())
    assert names == ["reflect"]  # nothing is recorded
    assert first.structured_content == {"reflection_id": None, "text": "on it", "score": None}
    assert broken.is_error and "its log names the error" in broken.content[0].text
    assert last.structured_content["text"] == "on ä\u2028"
