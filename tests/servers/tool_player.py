"""An OpenAI-compatible server whose model is a rule that plays the game of the examples, with the tools that it gets.

    python -m tests.servers.tool_player --port 8000

It goes to the places that the reflections in its messages name, and not to those where they say that nothing is. With
the tools ``reflect`` and ``report_outcome`` it asks for a reflection after a failed attempt, and reports the next one.
Without tools it answers a program of DSPy that names three places.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.servers.processes import live_with_stdin
from tests.servers.wire import Request, Response, listen

PLACE = re.compile(r"[a-z]+ \d+")


async def answer(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """A chat completion; 404 for anything else but ``/health``."""
    if request.path == "/v1/chat/completions":
        response = Response.of_json(completion(json.loads(request.body)))
    else:
        response = Response.of_json({"status": "ok"}, 200 if request.path == "/health" else 404)
    writer.write(response.encoded())
    await writer.drain()
    return True


def completion(body: Mapping[str, Any]) -> dict[str, Any]:
    tools = {tool["function"]["name"] for tool in body.get("tools", ())}
    said = next_message(body["messages"], tools) if tools else {"content": places_for_dspy(body["messages"])}
    message = {"role": "assistant", "content": None, **said}
    reason = "tool_calls" if "tool_calls" in message else "stop"
    return {
        **{"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": body["model"]},
        "choices": [{"index": 0, "finish_reason": reason, "logprobs": None, "message": message}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def next_message(messages: Sequence[Mapping[str, Any]], tools: set[str]) -> dict[str, Any]:
    """The next call of a tool, or the last words."""
    results = {message["tool_call_id"]: text_of(message) for message in messages if message["role"] == "tool"}
    called = [call for message in messages for call in message.get("tool_calls") or ()]
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]), results[call["id"]]) for call in called
    ]
    reflections = [json.loads(result) for name, _, result in calls if name == "reflect"]
    latest = max((index for index, (name, *_) in enumerate(calls) if name == "reflect"), default=-1)
    attempt = [(arguments["place"], result) for name, arguments, result in calls[latest + 1 :] if name == "go_to"]
    seen = attempt[-1][1] if attempt else ""
    unreported = len(reflections) - sum(name == "report_outcome" for name, *_ in calls)
    if "attempt has" in seen and unreported and "report_outcome" in tools:
        id = reflections[-1]["reflection_id"]
        return calling(len(calls), "report_outcome", {"reflection_id": id, "return": float("succeeded" in seen)})
    if "succeeded" in seen:
        return {"content": "I found it."}
    memory = [reflection["text"] for reflection in reflections]
    if "attempt has failed" in seen:
        if "reflect" not in tools or "No attempts are left" in seen:
            return {"content": "I did not find it."}
        steps = [{"action": f"go to {place}", "observation": result.partition(".")[0]} for place, result in attempt]
        trajectory = {"opening": opening_of(messages), "steps": steps, "return": 0, "memory": memory}
        return calling(len(calls), "reflect", {"trajectory": trajectory})
    system = "".join(text_of(message) for message in messages if message["role"] == "system")
    places = in_order(opening_of(messages), "\n".join([system, *memory]))
    return calling(len(calls), "go_to", {"place": next(place for place in places if place not in dict(attempt))})


def places_for_dspy(messages: Sequence[Mapping[str, Any]]) -> str:
    """Three places, in the only output field of DSPy's chat format."""
    instructions, inputs = text_of(messages[0]), text_of(messages[-1])
    *_, field, _ = re.findall(r"\[\[ ## (\w+) ## ]]", inputs)
    return f"[[ ## {field} ## ]]\n{', '.join(in_order(inputs, instructions)[:3])}\n\n[[ ## completed ## ]]"


def in_order(opening: str, advice: str) -> list[str]:
    """All places of the opening: first those that the advice names, last those where it says that nothing is."""
    places = PLACE.findall(opening.partition("places:")[2].partition("\n")[0])
    empty = PLACE.findall("".join(re.findall(r"nothing in ([^.]*)", advice)))
    named = [place for place in reversed(PLACE.findall(advice)) if place in places and place not in empty]
    return list(dict.fromkeys([*named, *(place for place in places if place not in empty), *places]))


def calling(count: int, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A message that calls a tool, after ``count`` others."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"tool_calls": [{"id": f"call-{count}", "type": "function", "function": function}]}


def opening_of(messages: Sequence[Mapping[str, Any]]) -> str:
    return next(text_of(message) for message in messages if message["role"] == "user")


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, which some clients send as a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


async def serve(port: int) -> None:
    server, _ = await listen(answer, port)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    live_with_stdin()
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
