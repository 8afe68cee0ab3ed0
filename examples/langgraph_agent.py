"""A LangGraph agent whose graph asks for the reflections: the nodes call a served model's tools by MCP.

    pip install langchain langchain-openai langchain-mcp-adapters   # in an environment of its own
    retro serve runs/quickstart/export --buffer runs/served         # in another shell
    python examples/langgraph_agent.py http://127.0.0.1:8080 MODEL

MODEL is the agent's own language model: any that calls tools, at OPENAI_BASE_URL (by default OpenAI's), with
OPENAI_API_KEY. RETRO_API_KEY is the key of `retro serve`, if it has one.

The agent searches places for a fork, three in an attempt. The graph is a loop: `play` is an attempt of an ordinary
agent, `report` says how the attempt after a reflection went, `reflect` sends the failed attempt's messages as they are.
No language model has to remember to call a tool, or to retell what it did. To use it for your own agent, replace what
`play` does. The program prints every attempt's return and every reflection.
"""

import asyncio
import os
import sys
from typing import Any, TypedDict

from langchain.agents import create_agent
from langchain_core.messages import convert_to_openai_messages
from langchain_core.tools import tool
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

TASK = "places: cabinet 1 countertop 1 desk 1 desk 2 drawer 4 shelf 2\ntask: put fork 1 in cabinet 1"
STEPS, ATTEMPTS = 3, 4


class State(TypedDict):
    attempt: int
    messages: list[dict[str, Any]]  # of the latest attempt, in OpenAI's format
    score: float
    reflections: list[dict[str, Any]]


async def main(server: str, model: str) -> None:
    headers = {"Authorization": f"Bearer {os.environ.get('RETRO_API_KEY', 'none')}"}
    connection = {"transport": "streamable_http", "url": f"{server}/mcp", "headers": headers}
    tools = {found.name: found for found in await MultiServerMCPClient({"retro": connection}).get_tools()}

    async def call(name: str, **arguments: Any) -> dict[str, Any]:
        message = await tools[name].ainvoke({"type": "tool_call", "id": name, "name": name, "args": arguments})
        if message.status == "error":
            raise RuntimeError(f"{name}: {message.text}")
        return message.artifact["structured_content"]

    async def play(state: State) -> dict[str, Any]:
        visited: list[str] = []

        @tool
        def go_to(place: str) -> str:
            """Go to a place and look there."""
            visited.append(place)
            if place == "desk 2":
                return "you see fork 1. The attempt has succeeded."
            return "you see nothing" if len(visited) < STEPS else "you see nothing. The attempt has failed."

        advice = "\n".join(["Find the fork.", *(reflection["text"] for reflection in state["reflections"])])
        agent = create_agent(ChatOpenAI(model=model), [go_to], system_prompt=advice)
        played = await agent.ainvoke({"messages": [("user", TASK)]})
        score = float("desk 2" in visited[:STEPS])
        print(f"attempt {state['attempt'] + 1}: {', '.join(visited)}: return {score:g}")
        messages = convert_to_openai_messages(played["messages"])
        return {"attempt": state["attempt"] + 1, "messages": messages, "score": score}

    async def report(state: State) -> None:
        if state["reflections"]:
            reflection_id = state["reflections"][-1]["reflection_id"]
            await call("report_outcome", reflection_id=reflection_id, **{"return": state["score"]})

    async def reflect(state: State) -> dict[str, Any]:
        memory = [reflection["text"] for reflection in state["reflections"]]
        trajectory = {"messages": state["messages"], "return": state["score"], "memory": memory}
        reflection = await call("reflect", trajectory=trajectory)
        print(f"  reflection: {reflection['text']}")
        return {"reflections": [*state["reflections"], reflection]}

    def whether_to_go_on(state: State) -> str:
        return END if state["score"] == 1 or state["attempt"] == ATTEMPTS else "reflect"

    graph = StateGraph(State)
    for node in (play, report, reflect):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "play")
    graph.add_edge("play", "report")
    graph.add_conditional_edges("report", whether_to_go_on, ["reflect", END])
    graph.add_edge("reflect", "play")
    await graph.compile().ainvoke({"attempt": 0, "reflections": []})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/langgraph_agent.py SERVER MODEL, for example http://127.0.0.1:8080 gpt-5-mini")
    asyncio.run(main(*sys.argv[1:]))
