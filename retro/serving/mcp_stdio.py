"""The Model Context Protocol on standard input and output, for the program that started this process."""

from __future__ import annotations

import asyncio

from mcp.server.stdio import stdio_server

from retro.serving.service import Service
from retro.serving.tools import make_tools


def run_on_stdio(service: Service) -> None:
    """Answer until standard input ends. What is printed meanwhile goes to standard error."""
    asyncio.run(_run(service))


async def _run(service: Service) -> None:
    server = make_tools(service)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())
