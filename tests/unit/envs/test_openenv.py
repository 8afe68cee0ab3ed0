"""The client of OpenEnv servers, against a real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest

pytest.importorskip("openenv.core", reason="needs pip install 'retro[openenv]'")

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

from retro.config import ConfigError
from retro.envs import make_taskset
from retro.envs.base import EnvironmentFailedError
from retro.envs.testing import check_environment
from retro.serving.server import bind
from retro.types import Split


class Say(Action):
    text: str
    to: str = ""
    loudness: Literal["soft", "loud"] = "soft"


class Heard(Observation):
    text: str


class Door(Environment[Any, Any, Any]):
    """The door is on the left for an even seed. The right word pays 1, another one costs 0.25."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **more: Any) -> Heard:
        self.word = ("right", "left")[(seed or 0) % 2 == 0]
        return Heard(text=f"a door, left or right{more.get('hint', '')}")

    def step(self, action: Say, timeout_s: float | None = None, **_: Any) -> Heard:
        if action.text == "break":
            raise OSError("the door is broken")
        found = self.word in action.text
        return Heard(text="it opens" if found else "", reward=1.0 if found else -0.25, done=found)

    @property
    def state(self) -> State:
        return State()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    bound = bind("127.0.0.1", 0)
    app = create_fastapi_app(Door, Say, Heard, max_concurrent_envs=2)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_real_server_keeps_the_contract_of_environments(url: str) -> None:
    options = {"url": url, "horizon": 4, "action": "text", "return_range": [-1, 1], "reset": {"hint": "?"}}
    check_environment(make_taskset("openenv", options), actions=["left", "right", "up"])


def test_plays_have_seeds_returns_ends_and_sessions_of_their_own(url: str) -> None:
    world = make_taskset("openenv", {"url": url, "horizon": 3, "action": "text"})
    even, odd = world.tasks(Split.TEST, 2)
    first, second = world.make(even), world.make(odd)
    assert (first.reset()[0], second.reset()[0]) == ("a door, left or right",) * 2
    assert first.step(" left ") == ("it opens", 1.0, True, False, {"success": True})
    assert second.step("left") == ("nothing", 0.0, False, False, {"success": False})
    assert second.step("right")[1:3] == (0.75, True)
    assert second.step("right")[0] == "the play is over"
    third = world.make(even)
    with pytest.raises(EnvironmentFailedError, match=r"play fewer episodes at once \(actor\.concurrency\)"):
        third.reset()
    first.close()
    second.close()
    third.close()
    broken = world.make(odd)
    broken.reset()
    with pytest.raises(EnvironmentFailedError, match="the door is broken"):
        broken.step("break")
    broken.close()


def test_named_actions_and_those_that_the_server_refuses(url: str) -> None:
    actions = {"Go left": {"text": "left"}, "shout": {"text": "left", "loudness": "deafening"}}
    world = make_taskset("openenv", {"url": url, "horizon": 3, "actions": actions})
    play = world.make(world.tasks(Split.TRAIN, 1)[0])
    play.reset()
    assert play.step("dance")[0] == "'dance' is not an action; allowed: go left, shout"
    assert "is not possible here: " in play.step("shout")[0]
    assert play.step("go left")[2]
    play.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"action": "word"}, "action: the server's actions have no field 'word', but text, to, loudness"),
        ({}, "action: the server's actions have the fields text, to, loudness: name the one"),
        ({"action": "text", "observation": "seen"}, "observation: the server's observations have no field 'seen'"),
        ({"actions": {"left": "left"}}, "actions: must be a mapping of texts to actions as JSON objects"),
        ({"action": "text", "return_range": [1, 1]}, "return_range: 1 must be below 1"),
    ],
)
def test_wrong_options_are_refused_with_the_servers_fields(url: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_taskset("openenv", {"url": url, "horizon": 3, **options})


def test_a_server_that_is_not_there_and_a_password_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no OpenEnv server answers at http://127\.0\.0\.1:9/schema"):
        make_taskset("openenv", {"url": "http://127.0.0.1:9", "horizon": 3, "timeout": 2.0})
    with pytest.raises(ConfigError, match="holds a password"):
        make_taskset("openenv", {"url": "http://me:secret@127.0.0.1:9", "horizon": 3})
