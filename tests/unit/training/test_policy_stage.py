"""The policy stage with ``ppo`` on a tiny random model in the household: outputs, rewards, exact resume, the guard."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
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
from retro.stage import plan_stage, run_stage
from retro.training.collect import STAGE as COLLECT
from retro.training.policy.batch import SamplerGapError
from retro.training.policy.groups import Group
from retro.training.policy.rollouts import Rollouts
from retro.training.policy.stage import STAGE as POLICY
from tests.architectures import make
from tests.policy_stage import fresh_run, interrupt, metrics, policy_config, prepare, rollouts, sampled_by_vllm
from tests.servers.vllm import vllm_server

MIX = [{"kind": "environment", "weight": 0.5}, {"kind": "model", "weight": 0.5}]
SIGMOID_MIX = [{"kind": "environment", "weight": 0.5}, {"kind": "model", "weight": 0.5, "score": "sigmoid"}]
ADAPTIVE = {"coefficient": 0.05, "adaptive": True, "horizon": 100}


@pytest.fixture(scope="module")
def prepared(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the stages before leave it: a buffer of failures, a supervised adapter, a reward model."""
    return prepare(tiny_model_dir, tmp_path_factory.mktemp("runs"), partial(run_stage, COLLECT))


def fresh(prepared: Path, model: Path, runs: Path, name: str = "run", **ppo: Any) -> RunConfig:
    return fresh_run(prepared, model, runs, name, **{"kl": ADAPTIVE, **ppo})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name}/{key}": value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()
    }


def test_the_stage_leaves_what_it_promises(prepared: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    config = fresh(prepared, tiny_model_dir, tmp_path)
    folder = run_stage(POLICY, config)
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
    rows = rollouts(config, 1)
    assert [(row["place"], row["index"]) for row in rows] == [
        (place, index) for place in range(4) for index in range(2)
    ]
    for row in rows:
        expected = row["retry_return"] - row["return"] - (1.0 if row["finish_reason"] == "length" else 0.0)
        assert row["score"] == pytest.approx(expected)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [1, 1, 2, 2, 3, 3, 4, 4]
    before = (config.run_dir / "metrics.jsonl").read_text()
    run_stage(POLICY, config)
    assert (config.run_dir / "metrics.jsonl").read_text() == before  # up to date: nothing is done again


@pytest.mark.parametrize("lag", [0, 1])
def test_a_killed_run_goes_on_to_the_same_bits(prepared: Path, tiny_model_dir: Path, tmp_path: Path, lag: int) -> None:
    whole = fresh(prepared, tiny_model_dir, tmp_path, "whole", reward=MIX, lag=lag)
    run_stage(POLICY, whole)
    broken = fresh(prepared, tiny_model_dir, tmp_path, "broken", reward=MIX, lag=lag)
    run_stage(POLICY, broken)
    folder = broken.run_dir / "ppo"
    interrupt(broken, 2)
    with (broken.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "ppo", "st')
    run_stage(POLICY, broken)
    assert metrics(broken) == metrics(whole)
    for name in ("checkpoint-4", "best"):
        left, right = tensors(folder / name), tensors(whole.run_dir / "ppo" / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    for name in ("samples.jsonl", "rollouts/step-4.jsonl"):
        assert (folder / name).read_text() == (whole.run_dir / "ppo" / name).read_text()


def test_a_vllm_server_samples_also_when_the_run_is_resumed(
    prepared: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = fresh(prepared, tiny_model_dir, tmp_path, steps=2, checkpoint_every=1)
    with vllm_server(SharedBase.load(config.model, "cpu")) as server:
        config = sampled_by_vllm(config, server.url)
        run_stage(POLICY, config)
        whole, posted = metrics(config), list(server.posted)
        assert [re.sub("-[0-9a-f]{12}$", "", line) for line in posted] == [
            "+policy-step-0",
            "+policy-step-1",
            "+policy-step-2",
            "-policy-step-0",
        ]
        assert all(line["sampler_gap_max"] < 1e-4 for line in whole if "policy_loss" in line)
        server.restart()
        interrupt(config, 1)
        run_stage(POLICY, config)
        assert server.posted[len(posted) :] == posted[1:3]  # the adapter of the checkpoint first
    assert metrics(config) == whole


def test_an_interrupted_run_of_an_earlier_version_starts_anew_and_says_so(
    prepared: Path, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = fresh(prepared, tiny_model_dir, tmp_path, steps=2)
    folder = run_stage(POLICY, config)
    before = metrics(config)
    old = {"step": 2, "kl_coefficient": 0.05, "score_mean": 0.0, "score_std": 1.0}
    (folder / "checkpoint-2" / "state.json").write_text(json.dumps(old))
    manifest = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(manifest | {"status": "running", "outputs": {}}))
    run_stage(POLICY, config)
    assert "checkpoint-2 is of an earlier version and cannot be continued: starts anew" in caplog.text
    assert metrics(config) == before


def test_a_wrong_sampler_stops_the_run_before_it_learns(
    prepared: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fresh(prepared, tiny_model_dir, tmp_path, "whole")
    run_stage(POLICY, whole)
    config = fresh(prepared, tiny_model_dir, tmp_path, "broken")
    sample = Rollouts.sample

    def other_policy(self: Rollouts, contexts: Any, step: int) -> list[Group]:
        shift = 0.2 if step == 4 else 0.0
        return [
            replace(
                group,
                responses=tuple(
                    replace(drawn, log_probs=tuple(value - shift for value in drawn.log_probs))
                    for drawn in group.responses
                ),
            )
            for group in sample(self, contexts, step)
        ]

    monkeypatch.setattr(Rollouts, "sample", other_policy)
    with pytest.raises(SamplerGapError, match=r"in step 4 .*0\.2 nats a token.*model\.dtype.*adapter") as caught:
        run_stage(POLICY, config)
    assert "\n" not in str(caught.value) and is_for_the_user(caught.value)
    assert [line["step"] for line in metrics(config) if "policy_loss" in line] == [1, 2, 3]
    assert [path.name for path in (config.run_dir / "ppo").glob("checkpoint-*")] == ["checkpoint-2"]

    loose = parse_config({**config.model_dump(), "ppo": {**config.ppo.model_dump(), "max_sampler_gap": None}}, "test")
    assert plan_stage(POLICY, loose).action == "resume"
    monkeypatch.setattr(Rollouts, "sample", sample)
    run_stage(POLICY, config)
    assert metrics(config) == metrics(whole)
    left, right = (tensors(run.run_dir / "ppo" / "checkpoint-4") for run in (config, whole))
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("changes", [{"reward": "model"}, {"reward": SIGMOID_MIX, "advantage": "group"}])
def test_the_reward_model_scores(prepared: Path, tiny_model_dir: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = fresh(prepared, tiny_model_dir, tmp_path, steps=2, missing_end_penalty=0.0, **changes)
    run_stage(POLICY, config)
    rows = rollouts(config, 2)
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
    config = policy_config(tiny_model_dir, tmp_path, "run", **small)
    config = config.model_copy(update={"model": config.model.model_copy(update={"base": str(base)})})
    loaded = SharedBase.load(config.model, torch.device("cpu"))
    loaded.add_role("sft", config.model.lora, seed=1)
    loaded.save_role("sft", config.run_dir / "sft" / "adapter")
    run_stage(POLICY, config)
    [line] = metrics(config)
    assert line["approx_kl"] < 1e-8 and line["sampler_gap"] < 1e-4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_reflection_gives_beyond_trying_again(
    prepared: Path, tiny_model_dir: Path, tmp_path: Path, temperature: float
) -> None:
    """An actor at temperature 0 plays no controls: each would replay the failed episode, whose return stands for it."""
    reward = {"kind": "over_control", "controls": 2}
    changes = {"reward": reward, "steps": 2, "missing_end_penalty": 0.0, "actor": {"temperature": temperature}}
    config = fresh(prepared, tiny_model_dir, tmp_path, **changes)
    run_stage(POLICY, config)
    for row in rollouts(config, 2):
        baseline = row["control_return"] if temperature else row["return"]
        assert row["score"] == pytest.approx(row["retry_return"] - baseline)
        assert row["gain"] == pytest.approx(row["retry_return"] - row["return"])
        assert ("control_return" in row) == (temperature > 0)
    learnt = [line for line in metrics(config) if "policy_loss" in line]
    assert all(("control_return" in line) == (temperature > 0) for line in learnt)


def test_chains_reflect_on_failed_retries_too(prepared: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    changes = {"turns": 3, "advantage": "chain", "steps": 1, "validation_contexts": 0, "missing_end_penalty": 0.0}
    config = fresh(prepared, tiny_model_dir, tmp_path, **changes)
    run_stage(POLICY, config)
    rows, [line] = rollouts(config, 1), metrics(config)
    chains = [
        [row for row in rows if (row["place"], row["index"]) == (place, index)]
        for place in range(4)
        for index in range(2)
    ]
    assert sum(map(len, chains)) == len(rows) == line["responses"]
    for chain in chains:
        assert [row["turn"] for row in chain] == list(range(1, len(chain) + 1))
        assert [row["retry_success"] for row in chain[:-1]] == [False] * (len(chain) - 1)
        assert chain[-1]["retry_success"] or len(chain) == 3
        assert [row["return"] for row in chain[1:]] == [row["retry_return"] for row in chain[:-1]]
        assert sum(row["score"] for row in chain) == pytest.approx(chain[-1]["retry_return"] - chain[0]["return"])
    assert line["turns"] == len(rows) / len(chains) > 1
    assert line["chain_return"] == pytest.approx(sum(chain[-1]["retry_return"] for chain in chains) / len(chains))
    assert line["sampler_gap_max"] < 1e-4  # packed in groups of several sizes, as sampled


def test_without_a_guard_the_last_is_the_best(prepared: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    config = fresh(prepared, tiny_model_dir, tmp_path, steps=2, validation_contexts=0, reward="model")
    folder = run_stage(POLICY, config)
    best, last = tensors(folder / "best"), tensors(folder / "checkpoint-2")
    assert all(torch.equal(value, last[key]) for key, value in best.items())
    assert not any("validation_return" in line for line in metrics(config))


def test_what_is_missing_is_named(tiny_model_dir: Path, prepared: Path, tmp_path: Path) -> None:
    config = fresh(prepared, tiny_model_dir, tmp_path, reward="model")
    shutil.rmtree(config.run_dir / "reward")
    with pytest.raises(ConfigError, match="run the stage reward"):
        run_stage(POLICY, config)
    shutil.rmtree(config.run_dir / "sft")
    with pytest.raises(ConfigError, match="run the stage sft"):
        run_stage(POLICY, config)


def test_the_environments_of_the_retries_are_closed(
    prepared: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def close(self: HouseholdTasks) -> None:
        closed.append(self)

    monkeypatch.setattr(HouseholdTasks, "close", close)
    run_stage(POLICY, fresh(prepared, tiny_model_dir, tmp_path, steps=1))
    assert len(closed) == 1
