import json
from collections import Counter
from collections.abc import Callable

import pytest

from retro.buffer.store import ReplayBuffer
from retro.cli.estimate import most_episodes
from retro.config import ConfigError, RunConfig
from retro.envs import make_taskset
from retro.rollout.attempts import Attempt
from retro.rollout.runner import LocalRunner
from retro.stage import plan_stage, run_stage
from retro.training.collect import STAGE as COLLECT
from retro.training.collect import (
    ActorFailedError,
    collected_tasks,
    refuse_a_failing_actor,
)
from retro.training.sft import STAGE as SFT
from retro.types import Episode, Split, StopReason, Task, Trajectory

MakeConfig = Callable[..., RunConfig]
FEW = {"environment": {"tasks": {"train": 3, "validation": 1, "test": 1}}, "collect": {"attempts": 3, "group": 2}}


def episodes(config: RunConfig) -> list[Episode]:
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        return list(buffer.episodes())


def test_every_task_is_played_reflected_on_and_retried_and_the_stage_is_then_up_to_date(
    make_config: MakeConfig,
) -> None:
    config = make_config(**FEW)
    folder = run_stage(COLLECT, config)
    played = episodes(config)
    roots = [episode for episode in played if episode.parent is None]
    assert Counter(episode.task.split for episode in roots) == {Split.TRAIN: 3, Split.VALIDATION: 1, Split.TEST: 1}
    retries = Counter(episode.parent for episode in played if episode.parent is not None)
    failed = {episode.id for episode in played if episode.failed and episode.trial < 2}
    assert set(retries) <= failed
    assert set(retries.values()) == {2}  # one retry a reflection; an actor at temperature 0 plays no control
    assert all(episode.reflection is not None for episode in played if episode.parent is not None)
    assert all(episode.reflection.source == "base" for episode in played if episode.reflection)
    summary = json.loads((folder / "collect.json").read_text())
    assert summary["tasks"] == 5
    assert summary["episodes"] == len(played)
    assert summary["splits"]["train"]["first_attempts"] == 3
    assert plan_stage(COLLECT, config).action == "up to date"


def test_an_actor_that_samples_also_plays_controls(make_config: MakeConfig) -> None:
    config = make_config(**FEW | {"actor": {"temperature": 1.0}})
    run_stage(COLLECT, config)
    groups = [group for group in _groups(config) if group.retries]
    assert groups
    assert all(len(group.controls) == 1 for group in groups)


def _groups(config: RunConfig):  # type: ignore[no-untyped-def]
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        return list(buffer.groups())


class Killed(Exception):
    """Not a ``KeyboardInterrupt``, which Ctrl-C raises outside of tasks: raised in one, it leaves the others behind."""


def test_a_killed_collection_resumes_to_the_same_buffer_and_plays_nothing_twice(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = make_config(name="unbroken", **FEW)
    run_stage(COLLECT, unbroken)
    broken = make_config(name="broken", **FEW)
    add, play = ReplayBuffer.add, LocalRunner.play
    added: list[str] = []

    def killed(self: ReplayBuffer, episode: Episode) -> None:
        if len(added) == 7:
            raise Killed
        add(self, episode)
        added.append(episode.id)

    monkeypatch.setattr(ReplayBuffer, "add", killed)
    with pytest.raises(Killed):
        run_stage(COLLECT, broken)
    assert {episode.id for episode in episodes(broken)} == set(added)
    monkeypatch.setattr(ReplayBuffer, "add", add)
    plays = []

    async def counted(self: LocalRunner, attempt: Attempt) -> Episode:
        episode = await play(self, attempt)  # type: ignore[arg-type]
        plays.append(episode.id)
        return episode

    monkeypatch.setattr(LocalRunner, "play", counted)
    seen: list[list[Episode]] = []
    monkeypatch.setattr("retro.training.collect.refuse_a_failing_actor", seen.extend)
    run_stage(COLLECT, broken)
    assert not any(e.trajectory.steps or (e.reflection and e.reflection.text) for tree in seen for e in tree)
    assert sorted(e.id for tree in seen for e in tree) == sorted(e.id for e in episodes(unbroken))
    assert episodes(broken) == episodes(unbroken)
    assert sorted([*added, *plays]) == sorted(episode.id for episode in episodes(unbroken))


def test_a_larger_collection_keeps_what_was_played(make_config: MakeConfig) -> None:
    run_stage(COLLECT, make_config(**FEW))
    before = episodes(make_config(**FEW))
    larger = make_config(environment={"tasks": {"train": 4, "validation": 1, "test": 1}}, collect=FEW["collect"])
    run_stage(COLLECT, larger)
    after = episodes(larger)
    assert len(after) > len(before)
    assert all(episode in after for episode in before)


def test_episodes_that_cannot_be_reflected_on_are_recorded_and_a_higher_limit_reflects_on_those_alone(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make_config(name="whole", model={"max_prompt_tokens": 900}, **FEW)
    run_stage(COLLECT, whole)
    short = make_config(model={"max_prompt_tokens": 20}, **FEW)
    summary = json.loads((run_stage(COLLECT, short) / "collect.json").read_text())
    roots = [episode for episode in episodes(whole) if episode.parent is None]
    assert episodes(short) == roots
    assert summary["unreflected"] == sum(episode.failed for episode in roots) > 0
    first = summary["first_unreflected"][0]
    assert first["episode"] in {episode.id for episode in roots} and "model.max_prompt_tokens" in first["reason"]
    assert "raise model.max_prompt_tokens and run the same command again" in caplog.text

    plays, play = [], LocalRunner.play

    async def counted(self: LocalRunner, attempt: Attempt) -> Episode:
        plays.append(await play(self, attempt))  # type: ignore[arg-type]
        return plays[-1]

    monkeypatch.setattr(LocalRunner, "play", counted)
    folder = run_stage(COLLECT, make_config(model={"max_prompt_tokens": 900}, **FEW))
    assert json.loads((folder / "collect.json").read_text())["unreflected"] == 0
    assert episodes(short) == episodes(whole)
    assert {episode.id for episode in plays} == {e.id for e in episodes(whole)} - {e.id for e in roots}


def test_a_second_round_by_the_sft_adapter_goes_to_the_same_buffer_under_other_draws(filled_config: MakeConfig) -> None:
    few = {"environment": {"tasks": {"train": 2, "validation": 0, "test": 0}}}
    first = filled_config(**few, collect={"attempts": 2, "group": 2}, sft={"epochs": 1, "batch_size": 8})
    second = first.model_copy(update={"collect": first.collect.model_copy(update={"source": "sft"})})
    with pytest.raises(ConfigError, match=r"collect\.source is 'sft'"):
        run_stage(COLLECT, second)
    held = len(episodes(first))
    run_stage(COLLECT, first)
    run_stage(SFT, first)
    base = len(episodes(first)) - held
    run_stage(COLLECT, second)
    sources = Counter(episode.reflection.source for episode in episodes(second)[:] if episode.reflection)
    assert sources["sft"] > 0
    summary = json.loads((second.run_dir / "collect" / "collect.json").read_text())
    assert summary["other_episodes"] == held + base


def test_a_second_round_by_another_runs_adapter_plays_as_many_episodes_as_it_may(filled_config: MakeConfig) -> None:
    few = {"environment": {"tasks": {"train": 2, "validation": 0, "test": 0}}}
    first = filled_config(**few, collect={"attempts": 2, "group": 2}, sft={"epochs": 1, "batch_size": 8})
    run_stage(COLLECT, first)
    run_stage(SFT, first)
    source = str(first.run_dir / "sft")

    def second(name: str, **collect: object) -> RunConfig:
        counts = first.environment.tasks.model_copy(update={"train": 12, "offset": 2})
        return first.model_copy(
            update={
                "name": name,
                "environment": first.environment.model_copy(update={"tasks": counts}),
                "collect": first.collect.model_copy(update={"source": source, "splits": ["train"], **collect}),
            }
        )

    whole, within, wrong = second("whole"), second("within", episodes=7), second("wrong", source="bse")
    with pytest.raises(ConfigError, match=r"collect\.source is not base, sft or an adapter's path: checkpoint bse"):
        run_stage(COLLECT, wrong)
    for config in (whole, within):
        run_stage(COLLECT, config)
    played = episodes(within)
    assert 7 <= len(played) < 7 + 3  # a task has three episodes at most
    assert {episode.id for episode in played} < {episode.id for episode in episodes(whole)}
    assert {e.reflection.source for e in played if e.reflection} == {f"{first.name}/sft"}
    assert {episode.task.id for episode in played} == {"train-2", "train-3", "train-4"}  # tasks that first did not play
    assert most_episodes(within)["collect"] == 7 + 2 and most_episodes(whole)["collect"] == 12 * 3


def test_too_few_tasks_is_an_error_that_names_the_key(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"environment\.tasks\.train"):
        config = make_config(environment={"tasks": {"train": 10, "offset": 999_999_995}})
        collected_tasks(config, make_taskset("household"))


def test_an_actor_that_fails_in_many_tasks_stops_the_stage() -> None:
    def tree(number: int, stop: StopReason) -> list[Episode]:
        task = Task("household", f"train-{number}", Split.TRAIN)
        return [Episode(str(number), task, 0, Trajectory(""), 0.0, False, stop, info={"error": "503"})]

    ends = [StopReason.HORIZON] * 95 + [StopReason.ACTOR_ERROR] * 5
    refuse_a_failing_actor([tree(number, stop) for number, stop in enumerate(ends)])
    with pytest.raises(ActorFailedError, match=r"in 6 of 101 tasks, first in train-95: 503; what was played is kept"):
        refuse_a_failing_actor([tree(number, stop) for number, stop in enumerate([*ends, StopReason.ACTOR_ERROR])])


def test_an_environment_that_fails_is_called_by_its_name() -> None:
    task = Task("household", "train-1", Split.TRAIN)
    stop, info = StopReason.ENVIRONMENT_ERROR, {"error": "the worker died"}
    with pytest.raises(ActorFailedError, match=r"^the environment failed in 1 of 1 tasks, .*: the worker died"):
        refuse_a_failing_actor([[Episode("1", task, 0, Trajectory(""), 0.0, False, stop, info=info)]])
