"""Server processes: up when they are used, gone afterwards, and their log in the message when they fail."""

import json
import subprocess
import sys
import time
import urllib.error

import pytest

from retro.envs import make_taskset
from retro.prompts import load_prompts
from retro.types import Split, Step
from tests.servers.completion_server import next_action
from tests.servers.processes import PATIENCE_SECONDS, ROOT, ServerFailedError, get, server_process

COMPLETIONS = "tests.servers.completion_server"


def test_a_server_answers_while_it_is_used_and_is_gone_afterwards(tmp_path):
    with server_process(COMPLETIONS, [], tmp_path / "log", "/health") as url:
        assert json.loads(get(url + "/health")) == {"status": "ok", "completions": 0}
    with pytest.raises(urllib.error.URLError):
        get(url + "/health")


def test_it_is_gone_after_a_failure_too(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        server_process(COMPLETIONS, [], tmp_path / "log", "/health") as url,
    ):
        raise ZeroDivisionError
    with pytest.raises(urllib.error.URLError):
        get(url + "/health")


def test_it_is_gone_when_the_process_that_started_it_is_killed(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from tests.servers.processes import server_process\n"
        f"with server_process({COMPLETIONS!r}, [], Path({str(tmp_path / 'log')!r}), '/health') as url:\n"
        "    print(url, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        url = parent.stdout.readline().strip()
        get(url + "/health")
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            get(url + "/health")
        except (urllib.error.URLError, ConnectionError):
            break
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.05)


def test_a_server_that_does_not_come_up_says_why(tmp_path):
    with (
        pytest.raises(ServerFailedError, match=r"(?s)ended by 2; its log:.*unrecognized arguments: --nonsense"),
        server_process(COMPLETIONS, ["--nonsense"], tmp_path / "log", "/health"),
    ):
        raise AssertionError("it must not come up")


def test_a_server_that_stays_silent_is_given_up(tmp_path):
    with (
        pytest.raises(ServerFailedError, match=r"has not answered http://127\.0\.0\.1:\d+/nowhere within 1 s"),
        server_process(COMPLETIONS, [], tmp_path / "log", "/nowhere", seconds=1),
    ):
        raise AssertionError("it must not come up")


def test_the_scripted_player_plays_the_household():
    """Its actions do something: a play of it sees, opens and takes things, and differs by seed."""
    tasks, prompts = make_taskset("household"), load_prompts("household")
    seen: list[str] = []
    for task in tasks.tasks(Split.TRAIN, 20):
        plays = []
        for seed in (0, 1):
            room = tasks.make(task)
            opening, _ = room.reset()
            steps: list[Step] = []
            ended = False
            while not ended:
                action = next_action(prompts.actor(opening, steps, ("mug 1 is in shelf 2.",)), seed + len(steps))
                observation, _, terminated, truncated, _ = room.step(action)
                steps.append(Step(action, observation))
                ended = terminated or truncated
            plays.append([step.action for step in steps])
            seen += [step.observation.partition(" ")[0] + " " + step.observation.split()[1] for step in steps]
        assert plays[0] != plays[1]
    assert {"you see", "you take", "it is"} <= set(seen)
    assert seen.count("nothing happens") < len(seen) / 2
