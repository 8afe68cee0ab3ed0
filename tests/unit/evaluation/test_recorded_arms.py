"""Every arm's outcomes, compared with those recorded by the commit before arms became data."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_world import Guesser, Vaults, vault_prompts

from retro.artifacts import write_json
from retro.config import ActorSection, MemorySection, RunConfig, build
from retro.evaluation.arms import Arm, describe
from retro.evaluation.play import ArmPlayer, Candidates
from retro.evaluation.presets import selected_arms
from retro.evaluation.records import EpisodeRecords
from retro.evaluation.results import Draws, outcome_to_json, summarise
from retro.evaluation.stage import play_all
from retro.evaluation.statistics import Outcome
from retro.retrospective.samplers.best_of import BestOf
from retro.rollout.episode import Player
from retro.rollout.runner import LocalRunner
from retro.types import Reflection, ReflectionRequest, Reflector, Sampling, Split, Task, Usage, derive_seed
from tests.builders import run_config

RECORDED = Path(__file__).with_name("recorded_arms.json")
SAMPLED = {"name": "retry-sampled", "policy": "none", "actor": {"temperature": 1.0}}
"""What was called so then: today it is ``retry-all-sampled``."""
ARMS = (
    "one-shot", "retry", SAMPLED, "vague", "shuffled", "reflexion", "reflexion-bon4", "sft", "sft-bon4",
    "ppo-env", "ppo-env-bon4", "ppo-env-bon8", "oracle",
)  # fmt: skip


class VagueVaults(Vaults):
    def vague(self, task: Task) -> str:
        return "Try harder."


class Excluder:
    """Names ``words`` guesses of the trajectory that were wrong (seeded: which ones)."""

    def __init__(self, words: int) -> None:
        self.words = words

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        guesses = [step.action.removeprefix("try ") for step in request.episode.trajectory.steps]
        draws = [random.Random(derive_seed(request.seed, index)) for index in range(request.count)]
        texts = [" ".join(f"not {draw.choice(guesses)}" for _ in range(self.words)) for draw in draws]
        return [Reflection(text, "test", index, usage=Usage(9, self.words)) for index, text in enumerate(texts)]


async def by_variety(request: ReflectionRequest, reflections: Sequence[Reflection]) -> list[float]:
    """The more different guesses a reflection names, the better."""
    return [float(len(set(reflection.text.split()))) for reflection in reflections]


def reflector(arm: Arm) -> tuple[Reflector, Candidates | None]:
    excluder = Excluder(3 if "ppo" in arm.policy.name else 2 if "sft" in arm.policy.name else 1)
    if arm.takes_the_first:
        return excluder, None
    candidates = Candidates(by_variety)
    return BestOf(excluder, candidates, arm.sampler.n), candidates


def counted_then(arm: str, outcome: Outcome) -> dict[str, Any]:
    """The outcome without the tokens of Best-of-N, which did not include what the reward model read."""
    return outcome_to_json(replace(outcome, tokens=0) if "-bon" in arm else outcome)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run with every stage's adapters, one of them a checkpoint of another run."""
    model = tmp_path / "model"
    run = tmp_path / "run"
    for folder in (
        model,
        run / "sft/adapter",
        run / "ppo/best/adapter",
        run / "reward/adapter",
        tmp_path / "other/ppo",
    ):
        folder.mkdir(parents=True)
        (folder / ("config.json" if folder == model else "adapter_config.json")).write_text(
            f'{{"of": "{folder.parent.name}"}}'
        )
    (run / "reward" / "head.safetensors").write_bytes(b"head")
    for stage, outputs in (
        ("sft", {"adapter": {"path": "adapter"}}),
        ("ppo", {"best": {"path": "best"}}),
        ("reward", {}),
    ):
        write_json(run / stage / "stage.json", {"status": "complete", "outputs": outputs, "seconds": 1.0})
    return run_config(
        tmp_path,
        model,
        actor={"concurrency": 4},
        evaluate={"attempts": 4, "arms": list(ARMS), "checkpoints": {"other": str(tmp_path / "other/ppo")}},
    )


def test_every_arm_reaches_what_was_recorded(tmp_path: Path, config: RunConfig) -> None:
    world = tmp_path / "world"
    world.mkdir()
    prompts = vault_prompts(world)
    tasks = VagueVaults().tasks(Split.TEST, 12)

    def runner(actor: ActorSection, memory: MemorySection) -> LocalRunner:
        sampling = Sampling(actor.temperature, actor.top_p, actor.max_tokens)
        player = Player(VagueVaults(), Guesser(), prompts, build(memory), sampling)
        return LocalRunner(player, actor.concurrency)

    with EpisodeRecords(world / "episodes.jsonl") as records:
        player = ArmPlayer(
            taskset=VagueVaults(),
            tasks=tasks,
            seed=0,
            records=records,
            runner=runner,
            models=reflector,
        )
        arms = selected_arms(config)
        outcomes, notes = asyncio.run(play_all(config, arms, player))
    described = {arm.name: describe(arm, config) for arm in arms}
    by_seed = {name: {0: by_task} for name, by_task in outcomes.items()}
    results = summarise(described, by_seed, tasks, 4, Draws(bootstrap=200, permutations=1_000))
    found = {
        "notes": notes,
        "comparisons": [
            [c["a"], c["b"], c["test"], c["difference"], *c["ci95"], c["p_value"]] for c in results["comparisons"]
        ],
        "outcomes": {
            name: {task: counted_then(name, outcome) for task, outcome in by_task.items()}
            for name, by_task in outcomes.items()
        },
    }
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    for arm in recorded["outcomes"]:
        for outcome in recorded["outcomes"][arm].values() if "-bon" in arm else ():
            outcome["tokens"] = 0
    assert found == recorded
