"""One small collection at a server that is broken, and the same again at one that is not: the work of hostile_server.

Runs in a process of its own, which tells its peak memory. Everything that it writes lies in one folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import re
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import retro.retrospective.served
import retro.wire.retrying
from retro.actors.openai import OpenAIActor, OpenAIOptions
from retro.artifacts import write_json
from retro.buffer.store import ReplayBuffer
from retro.cli.errors import USER_ERROR, one_line_errors
from retro.envs import make_taskset
from retro.memory import ReflectionWindow
from retro.prompts import load_prompts
from retro.retrospective.served import served_client
from retro.rollout.attempts import Plan
from retro.rollout.collect import collect
from retro.rollout.episode import Player
from retro.rollout.runner import LocalRunner
from retro.types import Episode, Reflection, ReflectionRequest, Sampling, Split
from retro.wire.request import RequestSection

TIMEOUT_SECONDS = 1.0
"""Of one request to the broken server."""
MAX_RETRIES = 2
CONCURRENCY = 8
_MAX_TOKENS = 12
_ATTEMPTS = 2


class Oracle:
    """Reflects by telling what the room holds."""

    def __init__(self) -> None:
        self._taskset = make_taskset("household")

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        text = self._taskset.oracle(request.episode.task) or ""
        return [Reflection(text, "oracle", index) for index in range(request.count)]


def work(url: str, kind: str, percent: int, folder: Path, tasks: int, seed: int) -> None:
    """Collect at ``url``/KIND/PERCENT, ask a served reflector there once, and collect again with no faults.

    Leaves in ``folder`` a buffer, a cache, a ledger, ``collect.json``, ``log.txt`` (of everyone, from DEBUG on),
    ``stderr.txt`` (what a user sees) and ``outcome.json``.
    """
    folder.mkdir(parents=True)
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    logging.getLogger().addHandler(handler)
    begun = time.monotonic()
    stopped = _guarded(folder, lambda: _collect(f"{url}/{kind}/{percent}/v1", folder, tasks, seed, TIMEOUT_SECONDS))
    seconds = time.monotonic() - begun
    if percent == 100:
        _guarded(folder, lambda: asyncio.run(_reflect(f"{url}/{kind}/{percent}/v1", folder)))
    resumed = _guarded(folder, lambda: _collect(f"{url}/{kind}/0/v1", folder, tasks, seed, 60.0))
    logging.getLogger().removeHandler(handler)
    handler.close()
    report = {"stopped": stopped, "resumed": not resumed, "seconds": seconds, "peak_mib": _peak_mib()}
    write_json(folder / "outcome.json", report)


def _guarded(folder: Path, run: Callable[[], None]) -> bool:
    """Whether an error stopped it; a bug leaves its traceback in ``stderr.txt``."""
    with (folder / "stderr.txt").open("a", encoding="utf-8") as shown, contextlib.redirect_stderr(shown):
        try:
            with one_line_errors():
                run()
        except SystemExit as error:
            return error.code == USER_ERROR
        except Exception:
            traceback.print_exc(file=shown)
            return True
    return False


def _collect(url: str, folder: Path, count: int, seed: int, timeout_seconds: float) -> None:
    section = OpenAIOptions(
        model="scripted",
        base_url=url,
        max_tokens=_MAX_TOKENS,
        concurrency=CONCURRENCY,
        timeout_seconds=timeout_seconds,
        max_retries=MAX_RETRIES,
        cache=str(folder / "answers.sqlite"),
    )
    actor = OpenAIActor(section, folder / "actor_usage.jsonl")
    taskset = make_taskset("household")
    sampling = Sampling(0.0, 1.0, _MAX_TOKENS)
    player = Player(taskset, actor, load_prompts("household"), ReflectionWindow(3), sampling)
    with (
        closing(LocalRunner(player, CONCURRENCY)) as runner,
        ReplayBuffer(f"sqlite:///{folder / 'buffer.sqlite'}") as buffer,
    ):

        class Recorded:
            def get(self, id: str, /) -> Episode | None:
                return buffer.get(id)

            def add(self, episode: Episode, /) -> None:
                buffer.add(episode)
                with (folder / "recorded.txt").open("a", encoding="utf-8") as file:
                    file.write(episode.id + "\n")

        async def run() -> list[list[Episode]]:
            await actor.check()
            tasks = taskset.tasks(Split.TRAIN, count, seed)
            return await collect(runner, tasks, Plan(("hostile", seed), _ATTEMPTS), Oracle(), Recorded())

        episodes = [episode for tree in asyncio.run(run()) for episode in tree]
    broken = [episode.info["error"] for episode in episodes if episode.broken]
    write_json(folder / "collect.json", {"episodes": [episode.id for episode in episodes], "errors": broken})


async def _reflect(url: str, folder: Path) -> None:
    client = served_client(RequestSection(model="scripted", base_url=url), start="vllm serve")
    answer = await client.ask("What went wrong?", Sampling(1.0, 1.0, _MAX_TOKENS), count=2, retries=1)
    write_json(folder / "reflected.json", [choice.text for choice in answer.choices])


def _peak_mib() -> float:
    """Of this program: ``getrusage`` would count what the process held before it became this program."""
    [kib] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(kib) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--works", type=json.loads, required=True, help="JSON: [[kind, percent, folder], …]")
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.DEBUG)
    retro.wire.retrying.FIRST_PAUSE_SECONDS = 0.01
    retro.retrospective.served.TIMEOUT_SECONDS = TIMEOUT_SECONDS
    for kind, percent, folder in arguments.works:
        work(arguments.url, kind, percent, Path(folder), arguments.tasks, arguments.seed)


if __name__ == "__main__":
    main()
