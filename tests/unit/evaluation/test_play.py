"""Arms played in a world small enough to count by hand: sharing, resuming, pairing, best arm."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_world import Excluder, Guesser, Vault, Vaults, vault_prompts

from retro.config import ActorSection, MemorySection, RunConfig, build
from retro.envs.base import EnvironmentFailedError
from retro.evaluation.arms import Arm
from retro.evaluation.play import ArmPlayer, Candidates
from retro.evaluation.presets import selected_arms
from retro.evaluation.records import EpisodeRecords, latest, read_records
from retro.evaluation.stage import best_arm, play_all
from retro.evaluation.statistics import Outcome
from retro.prompts import PromptTooLongError
from retro.retrospective.samplers.best_of import BestOf
from retro.rollout.advice import ASK
from retro.rollout.episode import Player
from retro.rollout.runner import LocalRunner
from retro.types import ActorError, Completion, Prompt, Reflection, ReflectionRequest, Reflector, Sampling, Split, Task
from tests.builders import run_config


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Names a model folder to digest; the actors of these tests are others."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return run_config(
        tmp_path,
        tmp_path / "model",
        actor={"concurrency": 4},
        evaluate={"attempts": 3, "bootstrap": 100, "permutations": 100},
    )


async def by_length(request: ReflectionRequest, reflections: Sequence[Reflection]) -> list[float]:
    return [float(reflection.text[-1]) for reflection in reflections]


class World:
    """One evaluation: its actor, its reflector, and how often each was asked."""

    def __init__(self, folder: Path, actor: Guesser | None = None, tasks: int = 12) -> None:
        folder.mkdir(exist_ok=True)
        self.guesser = actor or Guesser()
        self.excluder = Excluder()
        self.records = EpisodeRecords(folder / "episodes.jsonl")
        self.prompts = vault_prompts(folder)
        self.player = ArmPlayer(
            taskset=Vaults(),
            tasks=Vaults().tasks(Split.TEST, tasks),
            seed=0,
            records=self.records,
            runner=self.runner,
            models=self.reflector,
        )

    def runner(self, actor: ActorSection, memory: MemorySection) -> LocalRunner:
        sampling = Sampling(actor.temperature, actor.top_p, actor.max_tokens)
        player = Player(self.player.taskset, self.guesser, self.prompts, build(memory), sampling)
        return LocalRunner(player, actor.concurrency)

    def reflector(self, arm: Arm) -> tuple[Reflector, Candidates | None]:
        if arm.takes_the_first:
            return self.excluder, None
        candidates = Candidates(by_length)
        return BestOf(self.excluder, candidates, arm.sampler.n), candidates


def arms(config: RunConfig, *names: str) -> list[Arm]:
    return selected_arms(config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"arms": names})}))


def evaluate(world: World, config: RunConfig, *names: str) -> tuple[dict[str, dict[str, Outcome]], list[str]]:
    return asyncio.run(play_all(config, arms(config, *names), world.player))


def solved(outcomes: dict[str, Outcome], trial: int) -> int:
    return sum(outcome.success[trial] for outcome in outcomes.values())


def test_arms_do_what_they_say(tmp_path: Path, config: RunConfig) -> None:
    names = ("one-shot", "retry", "retry-sampled", "shuffled", "reflexion", "oracle")
    outcomes, notes = evaluate(World(tmp_path / "w"), config, *names)
    assert list(outcomes) == list(names)  # as asked for, though shuffled is played last
    assert len({solved(outcomes[name], 0) for name in names}) == 1
    assert solved(outcomes["retry-sampled"], 2) > solved(outcomes["retry"], 2)
    assert solved(outcomes["retry"], 2) == solved(outcomes["one-shot"], 2) == solved(outcomes["one-shot"], 0)
    assert solved(outcomes["reflexion"], 2) > solved(outcomes["retry"], 2)
    assert notes == ["shuffled: reflections that reflexion wrote for other tasks of the same kind and attempt."]


def test_first_plays_are_shared_and_exact(tmp_path: Path, config: RunConfig) -> None:
    shared, alone = World(tmp_path / "a"), World(tmp_path / "b")
    evaluate(shared, config, "retry", "reflexion")
    evaluate(alone, config, "reflexion")
    of_shared = {r.episode.id: r.episode for r in shared.records.of("reflexion", mark(shared, "reflexion"))}
    of_alone = {r.episode.id: r.episode for r in alone.records.of("reflexion", mark(alone, "reflexion"))}
    assert of_shared == of_alone
    again = World(tmp_path / "c")
    evaluate(again, config, "one-shot")
    calls = again.guesser.calls
    evaluate(again, config, "one-shot", "retry")
    played = {r.episode.trial for r in again.records.of("retry", mark(again, "retry"))}
    assert played == {0, 1, 2} and again.guesser.calls < 3 * calls


def test_only_the_retries_of_retry_sampled_are_sampled(tmp_path: Path, config: RunConfig) -> None:
    world = World(tmp_path / "w")
    names = ("one-shot", "retry-sampled", "retry-all-sampled")
    evaluate(world, config, names[0])
    calls = world.guesser.calls
    evaluate(world, config, *names)
    played = {
        name: [r.episode for r in world.records.all() if r.arm == name and r.episode.trial == 0] for name in names
    }
    assert played["retry-sampled"] == played["one-shot"]  # the same episodes, not played again
    assert {e.id for e in played["retry-all-sampled"]}.isdisjoint(e.id for e in played["one-shot"])
    assert {sampling.temperature for sampling in world.guesser.samplings[:calls]} == {0.0}
    assert {sampling.temperature for sampling in world.guesser.samplings[calls:]} == {1.0}


def mark(world: World, arm: str) -> str:
    return next(r.fingerprint for r in world.records.all() if r.arm == arm)


def test_a_finished_evaluation_is_not_played_again(tmp_path: Path, config: RunConfig) -> None:
    names = ("retry-sampled", "shuffled", "reflexion", "oracle")
    first = World(tmp_path / "w")
    before = evaluate(first, config, *names)
    first.records.close()
    second = World(tmp_path / "w")
    assert evaluate(second, config, *names) == before
    assert second.guesser.calls == 0 and second.excluder.requests == []


def test_an_interrupted_arm_goes_on_to_the_same_outcomes(tmp_path: Path, config: RunConfig) -> None:
    whole, _ = evaluate(World(tmp_path / "whole"), config, "reflexion", "retry-sampled")
    broken = World(tmp_path / "w", Guesser(fails=frozenset({40})))
    with pytest.raises(ActorError, match=r"arm reflexion: the actor failed in 1 episodes \(the server is gone\)"):
        evaluate(broken, config, "reflexion", "retry-sampled")
    broken.records.close()
    resumed = World(tmp_path / "w")
    assert evaluate(resumed, config, "reflexion", "retry-sampled")[0] == whole
    ids = [r.episode.id for r in resumed.records.all() if r.arm == "reflexion"]
    assert len(ids) == len(set(ids))


def test_an_episode_too_long_to_reflect_on_counts_as_failed_and_is_said(tmp_path: Path, config: RunConfig) -> None:
    class Short(Excluder):
        async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
            if len(request.episode.trajectory.steps) == 3:
                raise PromptTooLongError("3 steps are too many")
            return await super().reflect(request)

    first = World(tmp_path / "w")
    first.excluder = Short()
    before = outcomes, notes = evaluate(first, config, "reflexion", "one-shot")
    skipped = [record for record in first.records.all() if record.unreflected]
    assert skipped and {record.unreflected for record in skipped} == {"3 steps are too many"}
    assert notes[0].startswith(f"reflexion: {len(skipped)} failed episodes could not be reflected on")
    for record in skipped:
        assert not outcomes["reflexion"][record.episode.task.id].success[-1]
    first.records.close()
    second = World(tmp_path / "w")
    assert evaluate(second, config, "reflexion", "one-shot") == before
    assert second.guesser.calls == 0 and second.excluder.requests == []
    assert latest(read_records(second.records.path)) == second.records.all()


def test_a_broken_environment_is_not_called_the_actors_failure(tmp_path: Path, config: RunConfig) -> None:
    class Breaking(Vaults):
        def make(self, task: Task) -> Vault:
            raise EnvironmentFailedError("the worker died")

    world = World(tmp_path / "w", tasks=2)
    world.player.taskset = Breaking()
    says = r"arm retry: the environment failed in 2 episodes \(the worker died\); what was played is kept"
    with pytest.raises(EnvironmentFailedError, match=says):
        evaluate(world, config, "retry")


def test_best_of_n_keeps_its_candidates(tmp_path: Path, config: RunConfig) -> None:
    world = World(tmp_path / "w")
    (arm,) = arms(config, "reflexion")
    best_of = replace(arm, sampler=BestOf.Options(n=4))
    records = asyncio.run(world.player.play(best_of, "mark"))
    retries = [record for record in records if record.episode.trial > 0]
    assert retries
    for record in retries:
        assert len(record.candidates) == 4
        assert record.episode.reflection is not None
        assert record.episode.reflection.score == max(c.score or 0.0 for c in record.candidates)


def test_an_arm_of_equal_parts_is_not_played_again_whatever_it_is_called(tmp_path: Path, config: RunConfig) -> None:
    world = World(tmp_path / "w")
    (arm,) = arms(config, "reflexion")
    first = asyncio.run(world.player.play(replace(arm, attempts=2), "mark"))
    calls = world.guesser.calls
    again = asyncio.run(world.player.play(replace(arm, name="twin", attempts=2), "mark"))
    assert [record.episode for record in again] == [record.episode for record in first]
    assert world.guesser.calls == calls
    longer = asyncio.run(world.player.play(replace(arm, name="longer"), "mark"))
    assert {record.episode.id for record in first} < {record.episode.id for record in longer}


def test_an_arm_with_advice_shares_no_first_plays_and_changes_no_other_arm(tmp_path: Path, config: RunConfig) -> None:
    class Asking(Guesser):
        def guess(self, prompt: Prompt, sampling: Sampling) -> Completion:
            asked = f"may also {ASK}" in prompt and "> try" in prompt and f"> {ASK}" not in prompt
            return Completion(ASK, "stop") if asked else super().guess(prompt, sampling)

    evaluate(plain := World(tmp_path / "plain"), config, "reflexion")
    both = World(tmp_path / "both", Asking())
    (arm,) = arms(config, "reflexion")
    outcomes, _ = asyncio.run(play_all(config, [arm, replace(arm, name="advised", advice=1)], both.player))
    of_arm = {name: [r.episode for r in both.records.all() if r.arm == name] for name in outcomes}
    assert of_arm["reflexion"] == [record.episode for record in plain.records.all()]
    assert any(episode.advice for episode in of_arm["advised"] if episode.trial == 0)
    assert mark(both, "advised") != mark(both, "reflexion") == mark(plain, "reflexion")


def test_fewer_attempts_use_what_was_recorded(tmp_path: Path, config: RunConfig) -> None:
    world = World(tmp_path / "w")
    three, _ = evaluate(world, config, "reflexion")
    calls = world.guesser.calls
    fewer = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"attempts": 2})})
    two, _ = evaluate(world, fewer, "reflexion")
    assert world.guesser.calls == calls
    assert {task: o.success for task, o in two["reflexion"].items()} == {
        task: o.success[:2] for task, o in three["reflexion"].items()
    }


def test_shuffled_is_left_out_where_there_is_nothing_to_shuffle(tmp_path: Path, config: RunConfig) -> None:
    outcomes, notes = evaluate(World(tmp_path / "w"), config, "retry", "shuffled")
    assert list(outcomes) == ["retry"] and "left out, no arm with a retrospective model" in notes[0]
    outcomes, notes = evaluate(World(tmp_path / "one", tasks=1), config, "reflexion", "shuffled")
    assert list(outcomes) == ["reflexion"] and "reflected on no other task" in notes[0]


def test_the_best_arm_is_the_best_trained_one(config: RunConfig) -> None:
    (base,) = arms(config, "reflexion")
    outcomes = {"reflexion": {"t": Outcome((True,), (1.0,), 1)}}
    assert best_arm([base], outcomes) == base
    assert best_arm(arms(config, "retry"), {"retry": outcomes["reflexion"]}) is None


def test_equal_returns_are_a_tie_whatever_the_order_of_their_sum(config: RunConfig) -> None:
    (first,) = arms(config, "reflexion")
    second = replace(first, name="other")
    sums = {"reflexion": (0.3, 0.2, 0.1), "other": (0.1, 0.2, 0.3)}
    assert sum(sums["reflexion"]) < sum(sums["other"])  # as floats
    outcomes = {
        name: {str(i): Outcome((False,), (value,), 1) for i, value in enumerate(values)}
        for name, values in sums.items()
    }
    assert best_arm([first, second], outcomes) == first  # the first of equal ones
