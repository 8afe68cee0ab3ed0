"""The agent at run time, in the small world and on functions of one's own."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from small_world import Excluder, Guesser, Vaults, vault_player, vault_prompts

from retro import FunctionEnvironment, RetroAgent, RetrospectiveModel
from retro.config import ConfigError
from retro.memory import ReflectionWindow
from retro.memory.bank import fold_bank
from retro.rollout.attempts import Plan
from retro.rollout.collect import collect
from retro.rollout.runner import LocalRunner
from retro.types import (
    Episode,
    Recalled,
    Reflection,
    ReflectionRequest,
    Sampling,
    Split,
    Step,
    StopReason,
    Trajectory,
    derive_seed,
)
from tests.unit.memory.plays import memory_section, opening, play, task

TASKS = Vaults().tasks(Split.TEST, 40)
SAMPLING = Sampling(temperature=1.0, max_tokens=8)
PLAYED = Episode("e", TASKS[0], 1, Trajectory("?", (Step("try 1", "no"),)), 0.0, False, StopReason.HORIZON)


async def likes_large_digits(request: ReflectionRequest, reflections: Sequence[Reflection]) -> list[float]:
    return [float(reflection.text.removeprefix("not ")) for reflection in reflections]


@pytest.fixture
def prompts(tmp_path):
    return vault_prompts(tmp_path)


@pytest.fixture
def model(prompts):
    return RetrospectiveModel(Excluder(), prompts, likes_large_digits, ReflectionWindow(2))


def test_it_plays_reflects_by_best_of_n_and_remembers(model):
    agent = RetroAgent(Guesser(), Vaults(), model, sampling=SAMPLING, attempts=3, n=16)
    retried = 0
    for episodes in agent.run_all(TASKS):
        for failed, again in pairwise(episodes):
            guesses = [step.action.removeprefix("try ") for step in failed.trajectory.steps]
            assert again.parent == failed.id
            assert again.reflection.text == f"not {max(guesses)}"
            assert again.reflection.score == float(max(guesses))
            retried += 1
        assert episodes[-1].success or len(episodes) == 3
    assert retried > 20


def test_run_is_the_one_loop(model, prompts):
    agent = RetroAgent(Guesser(), Vaults(), model, sampling=SAMPLING, n=1, seed=5)
    played = agent.run_all(TASKS)
    assert played == [agent.run(task) for task in TASKS]
    runner = LocalRunner(replace(vault_player(prompts, Guesser()), sampling=SAMPLING))
    assert played == asyncio.run(collect(runner, TASKS, Plan((5, "agent"), 4), Excluder()))


def test_attempts_can_be_set_for_one_run_and_record_hears_of_each_episode(model):
    heard = []
    agent = RetroAgent(Guesser(), Vaults(), model, sampling=SAMPLING, attempts=4)
    episodes = [agent.run(task, attempts=1, record=heard.append) for task in TASKS[:5]]
    assert [len(trials) for trials in episodes] == [1] * 5
    assert heard == [trials[0] for trials in episodes]
    with pytest.raises(ValueError, match="attempts"):
        agent.run(TASKS[0], attempts=0)


def test_without_a_model_it_retries_plainly_with_given_prompts(prompts):
    agent = RetroAgent(Guesser(), Vaults(), prompts=prompts, sampling=SAMPLING)
    assert all(episode.reflection is None for episodes in agent.run_all(TASKS) for episode in episodes)
    with pytest.raises(ValueError, match="needs prompts"):
        RetroAgent(Guesser(), Vaults())


def test_it_also_runs_inside_an_event_loop(model):
    agent = RetroAgent(Guesser(), Vaults(), model, sampling=SAMPLING)

    async def notebook():
        return agent.run(TASKS[0]), (await agent.run_all_async([TASKS[0]]))[0]

    assert asyncio.run(notebook()) == (agent.run(TASKS[0]), agent.run(TASKS[0]))


@dataclass
class OwnVault:
    """A user's own world: state shared by its two functions, no class of ours."""

    secret: int = -1
    opened: list[str] = field(default_factory=list)

    def reset(self, task: str) -> str:
        self.opened.append(task)
        self.secret = derive_seed(task) % 8
        return "Open the vault."

    def step(self, action: str):
        right = action == f"try {self.secret}"
        return ("It opens." if right else "Nothing happens."), float(right), right, False, {}


def test_functions_of_ones_own_are_played_one_at_a_time(model):
    world = OwnVault()
    environment = FunctionEnvironment(world.reset, world.step, horizon=3, name="own")
    agent = RetroAgent(Guesser(), environment, model, sampling=SAMPLING, attempts=4, n=4)
    names = [f"vault {number}" for number in range(10)]
    played = agent.run_all(names)
    assert world.opened == [name for name, episodes in zip(names, played, strict=True) for _ in episodes]
    stops = {episode.stop for episodes in played for episode in episodes}
    assert stops == {StopReason.SUCCESS, StopReason.HORIZON}
    assert all(len(episode.trajectory.steps) <= 3 for episodes in played for episode in episodes)
    assert played[0] == agent.run("vault 0")


def test_functions_say_their_own_success_and_must_return_the_tuple(model):
    environment = FunctionEnvironment(lambda task: "?", lambda action: ("ok", 0.5, True, False, {"success": True}))
    agent = RetroAgent(Guesser(), environment, model)
    assert agent.run("x")[0].success
    broken = FunctionEnvironment(lambda task: "?", lambda action: ("ok", 0.5, True), name="mine")
    with pytest.raises(ValueError, match=r"'mine' returned .* must return the tuple"):
        RetroAgent(Guesser(), broken, model).run("x")
    with pytest.raises(ValueError, match="lists no tasks"):
        environment.tasks(Split.TEST, 1)


def test_reflect_keeps_the_best_and_shows_all(model):
    document = {
        "opening": "Open the vault.",
        "steps": [{"action": f"try {digit}", "observation": "Nothing happens."} for digit in (3, 6, 1)],
    }
    reflected = model.reflect(document, n=32)
    assert (reflected.text, reflected.score) == ("not 6", 6.0)
    assert len(reflected.candidates) == 32
    assert model.reflect(document, n=32) == reflected
    assert model.reflect(document, n=32, seed=1).candidates != reflected.candidates


def test_reflect_passes_the_memory_window(prompts):
    reflector = Excluder()
    model = RetrospectiveModel(reflector, prompts, None, ReflectionWindow(2))
    document = {"opening": "?", "steps": [{"action": "try 1", "observation": "no"}], "memory": ["a", "b", "c"]}
    assert not model.has_reward_model
    reflected = model.reflect(document, n=8)
    assert (reflected.text, reflected.score, len(reflected.candidates)) == ("not 1", None, 1)
    model.reflect(document, memory=("d",))
    played = replace(PLAYED, recalled=Recalled(("x", "y", "z"), ("1", "2", "3")))
    model.reflect(played)
    model.reflect(played, memory=())
    recalled = [request.episode.recalled.entries for request in reflector.requests]
    assert recalled == [("b", "c"), ("d",), ("x", "y", "z"), ()]


def test_importing_retro_loads_no_torch():
    code = "import sys, retro; assert 'torch' not in sys.modules; assert 'RetroAgent' in dir(retro)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        __import__("retro").Nothing  # noqa: B018


def test_it_plays_with_the_bank_of_the_export(served_export: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(served_export, folder)
    section = memory_section("playbook")
    record = json.loads((folder / "retro.json").read_text())
    (folder / "retro.json").write_text(json.dumps(record | {"memory": section.model_dump(mode="json")}))
    fold_bank(section, [play(task("a"), "use the stove.")], folder / "memory")
    begun = opening("heat", "mug")
    environment = FunctionEnvironment(
        lambda task: begun, lambda action: ("done", 1.0, True, False, {"success": True}), horizon=2, name="household"
    )
    agent = RetroAgent(Guesser(), environment, RetrospectiveModel.load(folder, device="cpu", scores=False))
    (episode,) = agent.run("new")
    assert episode.recalled.entries == ("use the stove.",)
    (folder / "memory" / "content" / "entries.jsonl").write_text("")
    with pytest.raises(ConfigError, match="it was changed, or is damaged"):
        RetrospectiveModel.load(folder, device="cpu", scores=False)
