"""A run whose memory learns across tasks: collected without a bank, everything after plays with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from retro import RetrospectiveModel
from retro.agent.records import ExportError
from retro.buffer import ReplayBuffer
from retro.memory.bank import BankFacts
from retro.types import Split
from tests.learning_memory import Beginnings
from tests.pipeline.running import Run, retro


@pytest.fixture(scope="module")
def run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("learning")
    tree = yaml.safe_load(tiny_config.read_text(encoding="utf-8"))
    tree["memory"] = {"kind": "tests.learning_memory:Beginnings", "options": {"size": 2}}
    tree["ppo"] |= {"reward": "environment", "steps": 1}
    tree["evaluate"]["arms"] = ["retry-sampled", "ppo"]
    config = folder / "learning.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    run = Run(config, folder / "runs" / "tiny")
    (folder / "screen.txt").write_text(retro(*run.command()).stdout, encoding="utf-8")
    return run


def test_the_bank_is_folded_after_the_collection_and_names_what_plays_with_it(run: Run) -> None:
    screen = (run.config.parent / "screen.txt").read_text(encoding="utf-8")
    assert screen.index("collect") < screen.index("memory") < screen.index("sft")
    digest = BankFacts.read(run.folder / "memory").digest
    for stage in ("ppo", "export", "evaluate"):
        assert run.manifest(stage)["inputs"]["bank"] == digest
    assert all("bank" not in run.manifest(stage)["inputs"] for stage in ("collect", "sft", "reward"))
    assert "up to date" in retro(*run.command("--from", "memory", "--until", "memory")).stdout


def test_the_collection_recalls_no_other_task_and_the_evaluation_does(run: Run) -> None:
    with ReplayBuffer(f"sqlite:///{run.folder / 'buffer.sqlite'}") as buffer:
        collected = list(buffer.episodes())
    assert {id for episode in collected for id in episode.recalled.ids} == {"reflection-0"}
    train = sorted(e.id for e in collected if e.task.split is Split.TRAIN)
    lines = (run.folder / "evaluation" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    first = [e for e in (json.loads(line)["episode"] for line in lines) if e["trial"] == 0]
    assert first
    recalled = {tuple(episode["recalled"]["ids"]) for episode in first}
    assert len(recalled) == 1, "the bank does not change while tasks are played"
    assert set(recalled.pop()) <= set(train)


def test_the_export_carries_the_bank_and_its_code_runs_only_if_the_user_says_so(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    export = run.folder / "export"
    assert not isinstance(RetrospectiveModel.load(export).memory, Beginnings)
    assert "the memory tests.learning_memory:Beginnings is code of one's own" in caplog.text
    memory = RetrospectiveModel.load(export, trust_remote_code=True).memory
    assert isinstance(memory, Beginnings)
    assert memory.digest == BankFacts.read(run.folder / "memory").digest
    (export / "memory" / "content" / "beginnings.json").write_text('{"bank": []}')
    with pytest.raises(ExportError, match="damaged or was edited"):
        RetrospectiveModel.load(export, trust_remote_code=True)
