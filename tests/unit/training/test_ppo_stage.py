"""The PPO stage on a tiny random model in the household: outputs, exact resume, the guard."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from retro.cli.errors import is_for_the_user
from retro.config import ConfigError, RunConfig, parse_config
from retro.envs.household import HouseholdTasks
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead, save_head
from retro.stage import plan_stage, run_stage
from retro.training import ppo
from retro.training.collect import STAGE as COLLECT
from retro.training.ppo import STAGE as PPO
from retro.training.ppo_rewards import Response
from retro.training.ppo_rollouts import Rollouts
from retro.training.ppo_sampler import SamplerGapError
from tests.architectures import make

MIX = [{"kind": "environment", "weight": 0.5}, {"kind": "model", "weight": 0.5}]
SIGMOID_MIX = [{"kind": "environment", "weight": 0.5}, {"kind": "model", "weight": 0.5, "score": "sigmoid"}]


def make_config(model: Path, runs: Path, name: str, **changes: Any) -> RunConfig:
    section = {
        "steps": 4,
        "contexts": 4,
        "group": 2,
        "epochs": 2,
        "learning_rate": 1e-2,
        "checkpoint_every": 2,
        "validate_every": 2,
        "validation_contexts": 2,
        "kl": {"coefficient": 0.05, "adaptive": True, "horizon": 100},
    }
    tree = {
        "name": name,
        "runs": str(runs),
        "device": "cpu",
        "environment": {"name": "household", "tasks": {"train": 6, "validation": 2, "test": 0}},
        "actor": {"model": str(model), "max_tokens": 6},
        "model": {"base": str(model), "max_new_tokens": 6, "lora": {"r": 2, "alpha": 4.0}},
        "collect": {"attempts": 2, "group": 1, "controls": 0, "splits": ["train", "validation"]},
        "ppo": section | changes,
    }
    return parse_config(tree, "test")


@pytest.fixture(scope="module")
def prepared(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the stages before leave it: a buffer of failures, a supervised adapter, a reward model."""
    runs = tmp_path_factory.mktemp("runs")
    config = make_config(tiny_model_dir, runs, "prepared")
    run_stage(COLLECT, config)
    base = SharedBase.load(config.model, torch.device("cpu"))
    for role in ("sft", "reward"):
        base.add_role(role, config.model.lora, seed=1)
        with torch.no_grad():
            for parameter in base.role_parameters(role).values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        base.save_role(role, config.run_dir / role / "adapter")
    save_head(ScalarHead(base.hidden_size, seed=3), config.run_dir / "reward" / "head.safetensors")
    (config.run_dir / "reward" / "reward.json").write_text(json.dumps({"score_mean": 0.2, "score_std": 0.5}))
    return config.run_dir


def fresh(prepared: Path, model: Path, tmp_path: Path, name: str = "run", **changes: Any) -> RunConfig:
    shutil.copytree(prepared, tmp_path / name)
    return make_config(model, tmp_path, name, **changes)


def metrics(config: RunConfig) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "stage" and not key.startswith("seconds")}
        for line in lines
        if line["stage"] == "ppo"
    ]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name}/{key}": value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()
    }


def test_the_stage_leaves_what_it_promises(prepared: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    config = fresh(prepared, tiny_model_dir, tmp_path)
    folder = run_stage(PPO, config)
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    for name in ("best", "checkpoint-4"):
        assert {"adapter_config.json", "adapter_model.safetensors", "value_head.safetensors", "state.json"} <= {
            path.name for path in (folder / name).iterdir()
        }
    lines = metrics(config)
    learnt = [line for line in lines if "policy_loss" in line]
    guarded = [line["step"] for line in lines if "validation_return" in line]
    assert [line["step"] for line in learnt] == [1, 2, 3, 4]
    assert guarded == [0, 2, 4]
    assert all(line["sampler_gap_max"] < 1e-4 for line in learnt)
    assert all(line["updates"] == 2 for line in learnt)
    assert learnt[0]["kl"] == pytest.approx(0.0, abs=1e-4)  # the policy begins as the reference
    assert learnt[-1]["kl"] != 0.0
    rows = [json.loads(line) for line in (folder / "rollouts" / "step-1.jsonl").read_text().splitlines()]
    assert [(row["place"], row["index"]) for row in rows] == [
        (place, index) for place in range(4) for index in range(2)
    ]
    for row in rows:
        expected = row["retry_return"] - row["return"] - (1.0 if row["finish_reason"] == "length" else 0.0)
        assert row["score"] == pytest.approx(expected)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [1, 1, 2, 2, 3, 3, 4, 4]
    before = (config.run_dir / "metrics.jsonl").read_text()
    run_stage(PPO, config)
    assert (config.run_dir / "metrics.jsonl").read_text() == before  # up to date: nothing is done again


def test_a_killed_run_goes_on_to_the_same_bits(prepared: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = fresh(prepared, tiny_model_dir, tmp_path, "whole", reward=MIX)
    run_stage(PPO, whole)
    broken = fresh(prepared, tiny_model_dir, tmp_path, "broken", reward=MIX)
    run_stage(PPO, broken)
    folder = broken.run_dir / "ppo"
    shutil.rmtree(folder / "checkpoint-4")  # as a kill between steps 3 and 4 would leave it
    manifest = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(manifest | {"status": "running", "outputs": {}}))
    with (broken.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "ppo", "st')
    run_stage(PPO, broken)
    assert metrics(broken) == metrics(whole)
    for name in ("checkpoint-4", "best"):
        left, right = tensors(folder / name), tensors(whole.run_dir / "ppo" / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    for name in ("samples.jsonl", "rollouts/step-4.jsonl"):
        assert (folder / name).read_text() == (whole.run_dir / "ppo" / name).read_text()


def test_a_wrong_sampler_stops_the_run_before_it_learns(
    prepared: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fresh(prepared, tiny_model_dir, tmp_path, "whole")
    run_stage(PPO, whole)
    config = fresh(prepared, tiny_model_dir, tmp_path, "broken")
    sample, learn = Rollouts.sample, ppo.update
    updates = []

    def other_policy(self: Rollouts, mine: Any, number: int) -> list[Response]:
        shift = 0.2 if number == 4 else 0.0
        return [
            replace(drawn, log_probs=tuple(value - shift for value in drawn.log_probs))
            for drawn in sample(self, mine, number)
        ]

    def counted(*arguments: Any) -> dict[str, float]:
        updates.append(1)
        return learn(*arguments)

    monkeypatch.setattr(Rollouts, "sample", other_policy)
    monkeypatch.setattr(ppo, "update", counted)
    with pytest.raises(SamplerGapError, match=r"in step 4 .*0\.2 nats a token.*model\.dtype.*adapter") as caught:
        run_stage(PPO, config)
    assert "\n" not in str(caught.value) and is_for_the_user(caught.value)
    assert len(updates) == 3  # nothing was learnt from step 4
    assert [path.name for path in (config.run_dir / "ppo").glob("checkpoint-*")] == ["checkpoint-2"]

    loose = parse_config({**config.model_dump(), "ppo": {**config.ppo.model_dump(), "max_sampler_gap": None}}, "test")
    assert plan_stage(PPO, loose).action == "resume"
    monkeypatch.setattr(Rollouts, "sample", sample)
    run_stage(PPO, config)
    assert metrics(config) == metrics(whole)
    left, right = (tensors(run.run_dir / "ppo" / "checkpoint-4") for run in (config, whole))
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("changes", [{"reward": "model"}, {"reward": SIGMOID_MIX, "advantage": "group"}])
def test_the_reward_model_scores(prepared: Path, tiny_model_dir: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = fresh(prepared, tiny_model_dir, tmp_path, steps=2, missing_end_penalty=0.0, **changes)
    folder = run_stage(PPO, config)
    rows = [json.loads(line) for line in (folder / "rollouts" / "step-2.jsonl").read_text().splitlines()]
    for row in rows:
        if changes["reward"] == "model":
            assert row["gain"] is None
            assert row["score"] == pytest.approx((row["model_score"] - 0.2) / 0.5, abs=1e-5)
        else:
            learnt = 1 / (1 + torch.tensor(-row["model_score"]).exp().item())
            assert row["score"] == pytest.approx(0.5 * row["gain"] + 0.5 * learnt, abs=1e-5)
    assert len({row["model_score"] for row in rows}) > 1


@pytest.mark.parametrize("kind", ["opt", "seed_oss"])
def test_the_first_update_finds_the_policy_that_sampled(
    kind: str, prepared: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Of a base that keeps its dropout as a number, too: before the first step policy and sampler are one."""
    base = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    make(kind, vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(base)
    tokenizer.save_pretrained(base)
    shutil.copytree(prepared, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "sft")
    small = {"steps": 1, "epochs": 1, "reward": "environment", "validation_contexts": 0}
    config = make_config(tiny_model_dir, tmp_path, "run", **small)
    config = config.model_copy(update={"model": config.model.model_copy(update={"base": str(base)})})
    loaded = SharedBase.load(config.model, torch.device("cpu"))
    loaded.add_role("sft", config.model.lora, seed=1)
    loaded.save_role("sft", config.run_dir / "sft" / "adapter")
    run_stage(PPO, config)
    [line] = metrics(config)
    assert line["approx_kl"] < 1e-8 and line["sampler_gap"] < 1e-4


def test_without_a_guard_the_last_is_the_best(prepared: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    config = fresh(prepared, tiny_model_dir, tmp_path, steps=2, validation_contexts=0, reward="model")
    folder = run_stage(PPO, config)
    best, last = tensors(folder / "best"), tensors(folder / "checkpoint-2")
    assert all(torch.equal(value, last[key]) for key, value in best.items())
    assert not any("validation_return" in line for line in metrics(config))


def test_what_is_missing_is_named(tiny_model_dir: Path, prepared: Path, tmp_path: Path) -> None:
    config = fresh(prepared, tiny_model_dir, tmp_path, reward="model")
    shutil.rmtree(config.run_dir / "reward")
    with pytest.raises(ConfigError, match="run the stage reward"):
        run_stage(PPO, config)
    shutil.rmtree(config.run_dir / "sft")
    with pytest.raises(ConfigError, match="run the stage sft"):
        run_stage(PPO, config)


def test_the_environments_of_the_retries_are_closed(
    prepared: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def close(self: HouseholdTasks) -> None:
        closed.append(self)

    monkeypatch.setattr(HouseholdTasks, "close", close)
    run_stage(PPO, fresh(prepared, tiny_model_dir, tmp_path, steps=1))
    assert len(closed) == 1
