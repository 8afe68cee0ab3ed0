"""The whole stage on the real household with random tiny models: every kind of arm, resumed, and kept up to date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from retro.artifacts import write_json
from retro.config import EvaluateSection, LoraSection, ModelSection, RunConfig
from retro.evaluation.records import read_records
from retro.evaluation.report import Paths, rebuild_report
from retro.evaluation.stage import STAGE as EVALUATE
from retro.evaluation.stage import evaluate_into, with_checkpoints
from retro.layout import RunFolder
from retro.memory.bank import fold_bank
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead, save_head
from retro.rollout.attempts import Attempt
from retro.rollout.runner import LocalRunner
from retro.stage import run_stage
from retro.types import Episode, to_json
from tests.builders import run_config
from tests.unit.memory.plays import memory_section, play, task

ARMS = ["retry-sampled", "shuffled", "reflexion", "sft", "ppo-env", "ppo-env-bon2", "oracle"]


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Path) -> RunConfig:
    """A run whose training stages are done: random adapters, each other than the next."""
    config = run_config(
        tmp_path,
        tiny_model_dir,
        environment={"tasks": {"test": 5}},
        model={"max_prompt_tokens": 900, "max_new_tokens": 8},
        evaluate={"attempts": 2, "arms": ARMS, "bootstrap": 50, "permutations": 100},
    )
    base = SharedBase.load(ModelSection(base=str(tiny_model_dir)), "cpu")
    run = config.run_dir
    places = {"sft": run / "sft/adapter", "policy": run / "ppo/best", "reward": run / "reward/adapter"}
    for seed, (role, place) in enumerate(places.items()):
        base.add_role(role, LoraSection(r=2, alpha=4.0), seed)
        torch.manual_seed(seed)
        for parameter in base.role_parameters(role).values():
            torch.nn.init.normal_(parameter, std=0.3)
        base.save_role(role, place)
    save_head(ScalarHead(base.hidden_size), run / "reward" / "head.safetensors")
    base.save_role("policy", run / "ppo/checkpoint-3")
    for stage, outputs in (
        ("sft", {"adapter": {"path": "adapter"}}),
        ("ppo", {"best": {"path": "best"}}),
        ("reward", {}),
    ):
        write_json(run / stage / "stage.json", {"status": "complete", "outputs": outputs, "seconds": 2.5})
    return config


def test_every_arm_is_measured_once(config: RunConfig) -> None:
    folder = run_stage(EVALUATE, config)
    results = json.loads((folder / "results.json").read_text())
    assert list(results["arms"]) == ARMS
    assert results["tasks"] == 5 and results["attempts"] == 2
    for arm in results["arms"].values():
        assert len(arm["success_by_trial"]) == len(arm["ci95"]) == 2 and arm["seeds"] == 1
        assert arm["tokens_per_task"] > 0
    assert results["seconds"].keys() == {"sft", "reward", "ppo", "evaluate"}
    assert {c["test"] for c in results["comparisons"]} == {"sign-flip", "mcnemar-exact"}
    records = list(read_records(folder / "episodes.jsonl"))
    of_arm = {arm: [r for r in records if r.arm == arm] for arm in ARMS}
    assert all(len(r.candidates) == 2 for r in of_arm["ppo-env-bon2"] if r.episode.trial)
    texts = {arm: [r.episode.reflection.text for r in of_arm[arm] if r.episode.reflection] for arm in ARMS}
    assert texts["sft"] != texts["ppo-env"] != texts["reflexion"]  # each with its own adapter
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["arm"] for line in lines][-1] == "shuffled"

    before = (folder / "episodes.jsonl").read_bytes()
    run_stage(EVALUATE, config)
    assert (folder / "episodes.jsonl").read_bytes() == before and len(lines) == len(ARMS)

    (folder / "report.html").unlink()
    assert rebuild_report(config.run_dir).is_file()


def test_an_arm_with_a_bank_says_what_it_is_and_cost(config: RunConfig) -> None:
    memory = memory_section("playbook")
    config = config.model_copy(
        update={"memory": memory, "evaluate": EvaluateSection(attempts=1, arms=["retry-sampled"], bootstrap=50)}
    )
    facts = fold_bank(memory, [play(task("a"), "use the stove.")], RunFolder(config.run_dir).memory)
    results = json.loads((run_stage(EVALUATE, config) / "results.json").read_text())
    assert results["arms"]["retry-sampled"]["bank"] == to_json(facts)
    assert facts.entries == 1


def test_arms_with_equal_parts_play_equal_episodes(config: RunConfig) -> None:
    parts = {"policy": "ppo", "sampler": {"kind": "best_of", "n": 2}}
    twin, other = {"name": "twin", **parts}, {"name": "other", **parts, "actor": {"temperature": 1.0}, "attempts": 1}
    section = EvaluateSection.model_validate({**config.evaluate.model_dump(), "arms": ["ppo-env-bon2", twin, other]})
    folder = run_stage(EVALUATE, config.model_copy(update={"evaluate": section}))
    records = list(read_records(folder / "episodes.jsonl"))
    played = {arm: {r.episode.id: (r.fingerprint, r.candidates, r.episode) for r in records if r.arm == arm}
              for arm in ("ppo-env-bon2", "twin", "other")}  # fmt: skip
    assert played["twin"] == played["ppo-env-bon2"] and not played["twin"].keys() & played["other"].keys()
    results = json.loads((folder / "results.json").read_text())["arms"]
    assert results["twin"]["parts"] == results["ppo-env-bon2"]["parts"] and results["twin"]["role"] == "trained"
    assert results["other"]["parts"]["actor"]["temperature"] == 1.0 and results["other"]["parts"]["attempts"] == 1


def test_an_interrupted_evaluation_resumes_to_the_same_episodes(config: RunConfig) -> None:
    folder = run_stage(EVALUATE, config)
    whole = sorted((r.arm, r.episode.id, r.episode) for r in read_records(folder / "episodes.jsonl"))
    manifest = json.loads((folder / "stage.json").read_text())
    write_json(folder / "stage.json", {**manifest, "status": "running", "outputs": {}})
    lines = (folder / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "episodes.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:30])
    run_stage(EVALUATE, config)
    resumed = sorted((r.arm, r.episode.id, r.episode) for r in read_records(folder / "episodes.jsonl"))
    assert [r[:2] for r in resumed] == [r[:2] for r in whole]
    assert [(e.trajectory, e.reflection) for *_, e in resumed] == [(e.trajectory, e.reflection) for *_, e in whole]


def test_another_arm_fewer_tasks_or_attempts_replay_nothing(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated(arms: list[str], attempts: int, tasks: int) -> dict[str, set[tuple[str, int]]]:
        """Id and trial of every recorded episode, by arm."""
        section = config.evaluate.model_copy(update={"arms": arms, "attempts": attempts})
        counts = config.environment.tasks.model_copy(update={"test": tasks})
        environment = config.environment.model_copy(update={"tasks": counts})
        folder = run_stage(EVALUATE, config.model_copy(update={"evaluate": section, "environment": environment}))
        records = list(read_records(folder / "episodes.jsonl"))
        return {arm: {(r.episode.id, r.episode.trial) for r in records if r.arm == arm} for arm in arms}

    async def counted(self: LocalRunner, attempt: Attempt) -> Episode:
        trials.append(attempt.trial)
        return await play(self, attempt)

    trials: list[int] = []
    play = LocalRunner.play
    monkeypatch.setattr(LocalRunner, "play", counted)
    first = evaluated(["reflexion"], 2, 5)
    assert len(trials) == len(first["reflexion"]) > 5
    trials.clear()
    second = evaluated(["reflexion", "oracle"], 2, 4)
    assert second["reflexion"] < first["reflexion"]
    assert trials == [1] * len([trial for _, trial in second["oracle"] if trial == 1])  # first plays are shared
    trials.clear()
    assert {trial for _, trial in evaluated(["reflexion"], 1, 4)["reflexion"]} == {0}
    assert trials == []
    (config.run_dir / "evaluation" / "episodes.jsonl").write_text("of another time\n")
    assert evaluated(["reflexion"], 2, 4)["reflexion"] == second["reflexion"]
    assert len(trials) == len(second["reflexion"])


def test_checkpoints_of_any_kind_are_arms(config: RunConfig, tmp_path: Path) -> None:
    run = config.run_dir
    few = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"arms": ["one-shot"]})})
    paths = Paths(run, run / "evaluation-checkpoints")
    results = evaluate_into(with_checkpoints(few, [run, run / "sft", run / "ppo/checkpoint-3"], best_of=[2]), paths)
    assert {"run", "run/sft", "run/ppo@3", "run/ppo@3-bon2", "one-shot"} <= results["arms"].keys()
    assert results["outcomes"]["run"] == results["outcomes"]["run/ppo@3"]  # the run's best is this checkpoint
    assert paths.page.is_file()
