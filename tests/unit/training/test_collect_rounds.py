"""A collection that learns online: its rounds, its banks, and the same bytes after a stop and at any concurrency."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from retro.buffer.store import ReplayBuffer
from retro.config import ConfigError, RunConfig
from retro.layout import RunFolder
from retro.memory.bank import FACTS, BankFacts, make_memory
from retro.stage import plan_stage, run_stage
from retro.training.collect import STAGE as COLLECT
from retro.training.memory import STAGE as MEMORY
from retro.training.rounds import ActorFailedError, collect_in_rounds
from retro.types import Episode, Split, StopReason, Task, Trajectory
from tests.unit.memory.plays import memory_section, play

MakeConfig = Callable[..., RunConfig]
OWN = {"kind": "tests.learning_memory:Beginnings", "options": {"size": 2}}
ONLINE: dict[str, Any] = {
    "memory": OWN,
    "environment": {"tasks": {"train": 3, "validation": 1, "test": 0}},
    "collect": {"attempts": 3, "group": 1, "round_tasks": 2},
}


def collected(config: RunConfig) -> tuple[list[Episode], dict[str, bytes]]:
    """What a collection leaves: its episodes, and the files of its banks."""
    folder = run_stage(COLLECT, config)
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        episodes = list(buffer.episodes())
    files = (file for name in ("rounds", "bank") for file in (folder / name).rglob("*") if file.is_file())
    return episodes, {str(file.relative_to(folder)): file.read_bytes() for file in files}


class Killed(Exception):
    pass


def test_later_rounds_see_what_the_earlier_ones_learnt_and_the_stage_memory_takes_the_last_bank(
    make_config: MakeConfig,
) -> None:
    config = make_config(**ONLINE)
    episodes, files = collected(config)
    by_task: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        by_task[episode.task.id].append(episode)
    rounds = [["train-0", "train-1"], ["train-2"], ["validation-0"]]
    earlier: set[str] = set()
    for names in rounds:
        own = [episode for name in names for episode in by_task[name]]
        shown = [{id for id in episode.recalled.ids if not id.startswith("reflection-")} for episode in own]
        assert all(ids <= earlier and len(ids) == min(2, len(earlier)) for ids in shown)
        assert len(set(map(frozenset, shown))) == 1, "the bank does not change within a round"
        earlier |= {episode.id for episode in own}
    assert {name.split("/")[1] for name in files if name.startswith("rounds")} == {"1", "2"}
    summary = json.loads((config.run_dir / "collect" / "collect.json").read_text())
    assert [played["tasks"] for played in summary["rounds"]] == [2, 1, 1]
    assert summary["rounds"][0]["bank"] is None
    last = BankFacts.read(RunFolder(config.run_dir).online_bank)
    assert summary["rounds"][-1]["bank"]["digest"] == last.digest
    assert last.episodes == sum(episode.task.split is Split.TRAIN for episode in episodes)
    folder = run_stage(MEMORY, config)
    assert BankFacts.read(folder) == last
    assert make_memory(config.memory, folder).bank[0][0] in {e.id for e in by_task["train-0"]}  # type: ignore[attr-defined]
    assert (plan_stage(COLLECT, config).action, plan_stage(MEMORY, config).action) == ("up to date", "up to date")
    once, _ = collected(make_config(name="once", **ONLINE | {"collect": {"attempts": 3, "group": 1}}))
    same = {episode.task.id for episode in once if episode in episodes}
    assert same == set(rounds[0]), "the first round is played as without rounds"
    assert {episode.task.id for episode in once if episode.id in {e.id for e in episodes}} == same


def test_a_stop_and_the_concurrency_change_no_byte(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collected(make_config(name="whole", **ONLINE))
    broken = make_config(name="broken", **ONLINE | {"actor": {"concurrency": 1}})
    add, added = ReplayBuffer.add, list[str]()
    banks = broken.run_dir / "collect" / "rounds"
    for stop in (2, 7):  # in the middle of round 1, and of round 2

        def killed(self: ReplayBuffer, episode: Episode, stop: int = stop) -> None:
            if len(added) == stop:
                raise Killed
            add(self, episode)
            added.append(episode.id)

        monkeypatch.setattr(ReplayBuffer, "add", killed)
        with pytest.raises(Killed):
            collected(broken)
        assert [bank.name for bank in banks.glob("*")] == ([] if stop == 2 else ["1"])
    (banks / "1" / FACTS).write_text("torn")
    monkeypatch.setattr(ReplayBuffer, "add", add)
    assert collected(broken) == whole
    assert set(added) < {episode.id for episode in whole[0]}


def test_a_bank_does_not_learn_from_steps_that_retries_repeat(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="a bank would count the steps that a retry keeps once more"):
        run_stage(COLLECT, make_config(memory=OWN, collect={"branch": "last_reward"}))


def test_rounds_need_a_memory_that_learns_and_train_tasks(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"memory\.kind=window does not learn across tasks"):
        run_stage(COLLECT, make_config(**ONLINE | {"memory": "window"}))
    with pytest.raises(ConfigError, match=r"learns from train tasks, and none are collected; see collect\.splits"):
        run_stage(COLLECT, make_config(**ONLINE | {"collect": {"round_tasks": 2, "splits": ["test"]}}))
    with pytest.raises(ConfigError, match="round_tasks: not together with episodes"):
        make_config(**ONLINE | {"collect": {"round_tasks": 2, "episodes": 5}})


def test_the_memory_learns_from_whole_rounds_alone(tmp_path: Path) -> None:
    tasks = [Task("household", name, Split.TRAIN, "heat") for name in "abc"]

    def played(wave: Sequence[Task], bank: Path | None, label: str) -> list[list[Episode]]:
        labels.append(label)
        broken = Episode("x", wave[0], 0, Trajectory(""), 0.0, False, StopReason.ACTOR_ERROR, info={"error": "gone"})
        return [[broken if task.id == breaks else play(task)] for task in wave]

    def collect(size: int) -> Path:
        labels.clear()
        return collect_in_rounds(size, tasks, memory_section("trajectories"), tmp_path, played)[1]

    labels, breaks = list[str](), "c"
    with pytest.raises(ActorFailedError, match="round 2: the actor failed in task c: gone; the memory"):
        collect(2)
    assert BankFacts.read(tmp_path / "1").episodes == 2
    assert not (tmp_path / "2").exists()
    breaks = ""
    online = BankFacts.read(collect(2))
    assert labels == ["collect, round 1 of 2", "collect, round 2 of 2"]
    assert (online.episodes, online.entries) == (3, 3)
    assert online == BankFacts.read(collect(10))
