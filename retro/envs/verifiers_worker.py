"""A process that plays a verifiers environment with the messages that it reads as lines of JSON.

:mod:`retro.envs.verifiers` starts it as a script, with an interpreter that may have no more than verifiers: it imports
nothing of ours. The first line says what to load. Requests: ``{"play": 1, "do": "start", "row": 7}``, ``{"play": 1,
"do": "step", "action": "…"}``, ``{"play": 1, "do": "close"}``. The first two are answered with an ``observation``, and
at the end of a play also with a ``total`` of the rewards, or with an ``error``.

An environment of verifiers lets a harness play, which sends its requests to a model by way of a server of verifiers.
Here the harness sends the conversation as it is, and the model is an endpoint of this process, which answers with the
actor's messages. It ends when its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import httpx
import verifiers.v1 as vf
from aiohttp import web

_HARNESS = "retro_harness"
_MOST_BYTES = 2**30
"""The longest request to the model."""
_client = httpx.AsyncClient(timeout=None, trust_env=False)


class Harness(vf.Harness[vf.HarnessConfig]):  # type: ignore[misc]  # of a package that mypy does not see
    """Sends the conversation to the model, and takes the first reply."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: Mapping[str, str],
        data: Any,
    ) -> Any:
        system, prompt = self.resolve_prompt(data)
        if isinstance(prompt, str):
            prompt = [vf.UserMessage(content=prompt)]
        messages = [*([vf.SystemMessage(content=system)] if system else []), *(prompt or [])]
        body = {
            "model": ctx.model,
            "messages": [one.model_dump(mode="json", include={"role", "content"}) for one in messages],
        }
        headers = {"Authorization": f"Bearer {secret}"}
        reply = await _client.post(f"{endpoint}/chat/completions", json=body, headers=headers)
        refused = reply.status_code != httpx.codes.OK  # for example because the play is over
        return vf.ProgramResult(exit_code=int(refused), stdout="", stderr=reply.text if refused else "")


class Play:
    """A play of one task."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.actions: asyncio.Queue[str] = asyncio.Queue()
        self.running: asyncio.Task[None] | None = None
        self._seen = 0

    async def reply_to(self, request: Mapping[str, Any]) -> str:
        """The actor's reply to a conversation, of which it has read the beginning before."""
        messages = request["messages"]
        new, self._seen = messages[self._seen :], len(messages) + 1
        _say({"play": self.number, "observation": _text(new)})
        return await self.actions.get()


class Worker:
    """The environment, and its plays by number."""

    def __init__(self, env: Any, tasks: Sequence[Any]) -> None:
        self._env = env
        self._tasks = tasks
        self._plays: dict[int, Play] = {}
        self._by_trace: dict[str, Play] = {}

    async def serve(self) -> None:
        """Answer requests until standard input ends."""
        app = web.Application(client_max_size=_MOST_BYTES)
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = vf.EvalClientConfig(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1", api_key_var="")
        self._context = vf.ModelContext(model="actor", client=client)
        loop = asyncio.get_running_loop()
        async with self._env.serving():
            _say({"rows": len(self._tasks)})
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                self._do(json.loads(line))
            running = [play.running for play in self._plays.values() if play.running is not None]
            for play in running:
                play.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _do(self, request: Mapping[str, Any]) -> None:
        number = request["play"]
        if request["do"] == "start":
            play = self._plays[number] = Play(number)
            play.running = asyncio.create_task(self._run(play, self._tasks[request["row"]]))
        elif number in self._plays and request["do"] == "step":
            self._plays[number].actions.put_nowait(request["action"])
        elif number in self._plays:
            running = self._plays.pop(number).running
            if running is not None:
                running.cancel()

    async def _run(self, play: Play, task: Any) -> None:
        traces: list[str] = []

        def begun(trace: Any) -> None:
            traces.append(trace.id)
            self._by_trace[trace.id] = play

        try:
            answer = _outcome(await self._env.run_episode(task, self._context, on_trace=begun))
        except Exception as error:
            answer = {"error": _said(error)}
        finally:
            for trace in traces:
                del self._by_trace[trace]
        _say({"play": play.number, **answer})

    async def _complete(self, request: web.Request) -> web.Response:
        """Be the model."""
        play = self._by_trace[request.headers["X-Session-ID"]]
        try:
            text = await play.reply_to(await request.json())
        except ValueError as error:  # the environment is told, and so the play fails with this message
            return web.json_response({"error": {"message": str(error)}}, status=400)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        reply = {"id": "actor", "object": "chat.completion", "created": 0, "model": "actor"}
        return web.json_response({**reply, "choices": [choice], "usage": usage})


def load(request: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """The environment and its tasks.

    Raises:
        ValueError: for an environment that is not played by texts alone, or has no tasks.
    """
    config: dict[str, Any] = {**request["config"], "interception": {"type": "server"}}
    config["taskset"] = {**config.get("taskset", {}), "id": request["id"]}
    agents = [name for name, value in vf.resolve_env_config(dict(config)) if isinstance(value, vf.AgentConfig)]
    if len(agents) != 1:
        raise ValueError(f"it has the agents {', '.join(agents)}, and retro plays one: choose another environment")
    seat = {"harness": {"id": _HARNESS}, "runtime": {"type": "subprocess"}, "max_turns": request["horizon"]}
    config[agents[0]] = {**config.get(agents[0], {}), **seat}
    env = vf.load_environment(vf.resolve_env_config(config))
    taskset = env.taskset
    if request["rows"] is not None:
        taskset = taskset.take(request["rows"])
    elif not taskset.bounded:
        raise ValueError("it has tasks without end: set rows to the number of first tasks to use")
    tasks = list(taskset)
    if not tasks:
        raise ValueError("it has no tasks: check config.taskset")
    tools = [*env.taskset.toolsets(env.taskset.config), *tasks[0].toolsets(tasks[0].config)]
    if tools:
        names = ", ".join(type(tool).__name__ for tool in tools)
        raise ValueError(f"its tasks need tools ({names}), which retro's actors do not call: choose one without tools")
    if tasks[0].NEEDS_CONTAINER or any(task.data.image for task in tasks):
        raise ValueError("its tasks need a container, which retro does not start: choose one that is played by texts")
    return env, tasks


def _outcome(episode: Any) -> dict[str, Any]:
    errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
    if errors:
        return {"error": f"{errors[-1].type}: {errors[-1].message}"}
    if len(episode.traces) != 1:
        return {"error": f"it played the task {len(episode.traces)} times in one episode, and retro plays once"}
    trace = episode.traces[0]
    rewards = {name: reward.value for name, reward in trace.rewards.items() if reward is not None}
    if not rewards:
        return {"error": "it gave no reward"}
    listed = ", ".join(f"{name} {value + 0.0:g}" for name, value in rewards.items())
    cut_short = trace.is_timeout or trace.stop_condition == "max_turns"
    return {"observation": f"the play is over; rewards: {listed}", "total": trace.reward, "truncated": cut_short}


def _text(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the actor reads. Roles are named only if an assistant has spoken among the messages."""
    roles = any(message["role"] == "assistant" for message in messages)
    texts = [_content(message["content"]) for message in messages]
    if roles:
        texts = [f"{message['role']}: {text}" for message, text in zip(messages, texts, strict=True)]
    return "\n\n".join(texts)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content or []
    other = [part["type"] for part in parts if part["type"] != "text"]
    if other:
        raise ValueError(f"a message has a part of the type {other[0]}, and retro's actors read texts")
    return "\n".join(part["text"] for part in parts)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _say(answer: Mapping[str, Any]) -> None:
    _answers.write(json.dumps(answer) + "\n")
    _answers.flush()


def main() -> None:
    """Load the environment, and play until standard input ends."""
    module = ModuleType(_HARNESS)
    module.__dict__.update(Harness=Harness, __all__=["Harness"])
    sys.modules[_HARNESS] = module
    sys.path.append(os.getcwd())
    try:
        worker = Worker(*load(json.loads(sys.stdin.readline())))
    except Exception as error:
        _say({"error": _said(error)})
        return
    asyncio.run(worker.serve())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    _answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an environment prints must not come between the answers
    main()
