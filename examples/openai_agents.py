"""An agent of the OpenAI Agents SDK that reflects by itself: a served model's tools come to it by MCP.

    pip install openai-agents                                       # in an environment of its own
    retro serve runs/quickstart/export --buffer runs/served         # in another shell
    python examples/openai_agents.py http://127.0.0.1:8080 MODEL

MODEL is the agent's own language model: any that calls tools, at OPENAI_BASE_URL (by default OpenAI's), with
OPENAI_API_KEY. RETRO_API_KEY is the key of `retro serve`, if it has one.

The agent searches places for a fork, three in an attempt. Nothing here calls the served model: the language model finds
the tools `reflect` and `report_outcome` beside `go_to`, and the instructions say when to use them. The program prints
every call and its result. To use it for your own agent, replace `go_to` and TASK, and keep `mcp_servers` and what
INSTRUCTIONS says about `reflect` and `report_outcome`. `retro buffer stats runs/served` counts the reported attempts.
"""

import asyncio
import os
import sys

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from agents.mcp import MCPServerStreamableHttp
from openai import AsyncOpenAI

TASK = "places: cabinet 1 countertop 1 desk 1 desk 2 drawer 4 shelf 2\ntask: put fork 1 in cabinet 1"
STEPS, ATTEMPTS = 3, 4
INSTRUCTIONS = f"""Find the fork. An attempt is at most {STEPS} calls of go_to, whose results say when it is over.
After a failed attempt call reflect: opening is the task as it was given to you, steps are this attempt's calls of go_to
and what you saw, return is 0, and memory is the texts that reflect returned before. Use its text in the next attempt.
When that attempt is over, too, first call report_outcome with the reflection_id and the attempt's return."""
visited: list[str] = []


@function_tool
def go_to(place: str) -> str:
    """Go to a place and look there."""
    visited.append(place)
    if place == "desk 2":
        return "you see fork 1. The attempt has succeeded: its return is 1."
    if len(visited) % STEPS:
        return "you see nothing"
    rest = "No attempts are left." if len(visited) == STEPS * ATTEMPTS else "The next call begins a new attempt."
    return f"you see nothing. The attempt has failed: its return is 0. {rest}"


async def main(server: str, model: str) -> None:
    set_tracing_disabled(True)  # otherwise the SDK sends traces to OpenAI
    headers = {"Authorization": f"Bearer {os.environ.get('RETRO_API_KEY', 'none')}"}
    reflector = MCPServerStreamableHttp(
        {"url": f"{server}/mcp", "headers": headers, "timeout": 300},  # a large model needs more than 5 s
        client_session_timeout_seconds=300,
    )
    async with reflector:
        agent = Agent(
            name="searcher",
            instructions=INSTRUCTIONS,
            model=OpenAIChatCompletionsModel(model, AsyncOpenAI()),
            tools=[go_to],
            mcp_servers=[reflector],
        )
        result = await Runner.run(agent, TASK, max_turns=ATTEMPTS * (STEPS + 2) + 1)
    for item in result.new_items:
        if item.type == "tool_call_item":
            print(f"{item.tool_name} {item.raw_item.arguments}")
        elif item.type == "tool_call_output_item":
            print(f"  {item.output['text'] if isinstance(item.output, dict) else item.output}")
    print(result.final_output)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/openai_agents.py SERVER MODEL, for example http://127.0.0.1:8080 gpt-5-mini")
    asyncio.run(main(*sys.argv[1:]))
