"""DPO and GRPO by TRL's trainers in the policy stage, on a tiny random model: the same data, the same outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import log_softmax, logsigmoid

from retro.buffer.store import ReplayBuffer
from retro.config import ConfigError, RunConfig, parse_config
from retro.envs import make_taskset
from retro.models.loading import load_base, load_tokenizer
from retro.rollout.attempts import Attempt
from retro.stage import NothingToLearnError, plan_stage, run_stage
from retro.training.algorithms.dpo import Pair, read_pairs
from retro.training.algorithms.grpo import GrpoOptions, share
from retro.training.algorithms.trl import TRAINED, LentBase, StepLog
from retro.training.examples import encoder_of_run
from retro.training.policy.guard import load_state
from retro.training.policy.rollouts import Retries
from retro.training.policy.stage import STAGE as POLICY
from retro.training.trl import largest_divisor, require_kept
from retro.types import Episode, Split, StopReason
from tests.policy_stage import fresh_run, metrics, policy_config, prepare, rollouts
from tests.rated_groups import BAD, GOOD, fill, group_of

MakeConfig = Callable[..., RunConfig]
BETA = 0.2
MIX = [{"kind": "environment", "weight": 0.5}, {"kind": "model", "weight": 0.5}]


@pytest.fixture(scope="module")
def prepared(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the stages before leave it: rated groups, a supervised adapter, a reward model."""

    def fill_buffer(config: RunConfig) -> None:
        with ReplayBuffer(config.buffer_url) as buffer:
            fill(buffer)

    return prepare(tiny_model_dir, tmp_path_factory.mktemp("runs"), fill_buffer)


@pytest.fixture
def fresh(prepared: Path, tiny_model_dir: Path, tmp_path: Path) -> MakeConfig:
    """A run that is ready for the stage; keyword arguments are keys of ``ppo``."""

    def make(name: str = "run", **ppo: Any) -> RunConfig:
        return fresh_run(prepared, tiny_model_dir, tmp_path, name, **{"kl": {"coefficient": BETA}, **ppo})

    return make


def without_gap(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """TRL recomputes log-probabilities by itself and does not show them."""
    return [{key: value for key, value in row.items() if key != "sampler_gap"} for row in rows]


def weights(adapter: Path) -> dict[str, torch.Tensor]:
    return load_file(adapter / "adapter_model.safetensors")


def equal(left: Path, right: Path) -> bool:
    ours, theirs = weights(left), weights(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def log_prob(model: torch.nn.Module, prompt: list[int], response: list[int]) -> float:
    """log π(response | prompt) by the plain model: one sequence, no packing, no padding."""
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        scores = log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
    return float(scores.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum())


def dpo_loss(config: RunConfig, policy: Path, pairs: list[Pair]) -> float:
    """Rafailov et al. 2023, eq. 7, with the supervised adapter as the reference, each adapter loaded by plain PEFT."""
    differences = []
    for adapter in (policy, config.run_dir / "sft" / "adapter"):
        model = PeftModel.from_pretrained(load_base(config.model, "cpu"), adapter)
        differences.append(
            [
                log_prob(model, pair.prompt_ids, pair.chosen_ids) - log_prob(model, pair.prompt_ids, pair.rejected_ids)
                for pair in pairs
            ]
        )
    margins = torch.tensor(differences[0]) - torch.tensor(differences[1])
    return float(-logsigmoid(BETA * margins).mean())


def test_dpo_starts_at_the_supervised_adapter_and_learns_the_ratings(fresh: MakeConfig) -> None:
    config = fresh(algorithm="dpo")
    folder = run_stage(POLICY, config)
    lines = metrics(config)
    learnt = [line for line in lines if "loss" in line]
    assert [line["step"] for line in learnt] == [1, 2, 3, 4]
    validated = {line["step"]: line for line in lines if "validation_loss" in line}
    assert list(validated) == [0, 2, 4]
    # policy = reference: log 2, and no implicit reward
    assert validated[0]["validation_loss"] == pytest.approx(0.6931472, abs=1e-6)
    for reward in ("validation_chosen_reward", "validation_rejected_reward", "validation_margin"):
        assert validated[0][reward] == 0.0
    assert validated[4]["validation_loss"] < 0.4
    assert validated[4]["validation_accuracy"] == 1.0
    assert [line["step"] for line in lines if "validation_return" in line] == [0, 2, 4]

    encoder = encoder_of_run(load_tokenizer(config.model), config)
    pairs = read_pairs(config, encoder, Split.VALIDATION)
    assert dpo_loss(config, folder / "checkpoint-4", pairs) == pytest.approx(validated[4]["validation_loss"], abs=1e-4)
    sft = config.run_dir / "sft" / "adapter"
    assert equal(folder / "checkpoints" / "checkpoint-8" / "ref", sft)  # 4 steps of 2 updates
    assert not equal(folder / "checkpoint-4", sft)
    assert plan_stage(POLICY, config).action == "up to date"
    other = config.model_copy(update={"reward": config.reward.model_copy(update={"threshold": 0.1})})
    assert plan_stage(POLICY, other).why == "changed: config reward.threshold"


def test_the_pairs_are_the_reward_models_and_of_the_ids_that_the_model_writes(filled_config: MakeConfig) -> None:
    config = filled_config()
    tokenizer = load_tokenizer(config.model)
    train, validation = (
        read_pairs(config, encoder_of_run(tokenizer, config), s) for s in (Split.TRAIN, Split.VALIDATION)
    )
    assert (len(train), len(validation)) == (12 * 4, 6 * 4)  # two good and two bad reflections a group
    for pair in train:
        assert tokenizer.decode(pair.chosen_ids[:-1]) in GOOD
        assert tokenizer.decode(pair.rejected_ids[:-1]) in BAD
        assert pair.chosen_ids[-1] == pair.rejected_ids[-1] == tokenizer.eos_token_id
        assert pair.prompt_ids[0] == tokenizer.bos_token_id
        assert pair.tokens == 2 * (len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)))


def test_an_average_of_equal_returns_makes_no_pair(make_config: MakeConfig) -> None:
    """One text thrice and another once, all rated .2: the average of the three is .2 only up to rounding."""
    assert fmean([0.2] * 3) != 0.2
    config = make_config()
    task = make_taskset("household").tasks(Split.TRAIN, 1)[0]
    parent, *retries = group_of(task, [GOOD[0], GOOD[0], GOOD[0], BAD[0]])
    with ReplayBuffer(config.buffer_url) as buffer:
        for episode in (parent, *(replace(retry, return_=0.2) for retry in retries)):
            buffer.add(episode)
    assert read_pairs(config, encoder_of_run(load_tokenizer(config.model), config), Split.TRAIN) == []


def test_a_trainer_that_changed_a_pair_is_refused() -> None:
    pairs = [Pair([1, 2], [3, 4], [5]), Pair([1], [6], [7, 8])]
    dataset = Dataset.from_list(list(map(asdict, pairs)))
    require_kept(SimpleNamespace(train_dataset=dataset), pairs)
    for other in (pairs[:1], [pairs[0], Pair([1], [6], [7])]):
        with pytest.raises(RuntimeError, match="other data than the 2 examples"):
            require_kept(SimpleNamespace(train_dataset=Dataset.from_list(list(map(asdict, other)))), pairs)
    with pytest.raises(RuntimeError, match="other data"):
        require_kept(SimpleNamespace(train_dataset=dataset.rename_column("prompt_ids", "ids")), pairs)


def test_dpo_without_a_guard_asks_no_actor_and_keeps_the_last(fresh: MakeConfig, tmp_path: Path) -> None:
    config = fresh(algorithm="dpo", validation_contexts=0, steps=2)
    config = config.model_copy(update={"actor": config.actor.model_copy(update={"model": str(tmp_path / "none")})})
    folder = run_stage(POLICY, config)
    assert equal(folder / "best", folder / "checkpoint-2")


def test_dpo_without_a_pair_is_refused(make_config: MakeConfig, prepared: Path) -> None:
    config = make_config(ppo={"algorithm": "dpo"})
    shutil.copytree(prepared / "sft", config.run_dir / "sft")
    with ReplayBuffer(config.buffer_url) as buffer:
        fill(buffer, good=False)
    with pytest.raises(NothingToLearnError, match=r"ppo\.algorithm=dpo: no two reflections.*collect groups"):
        run_stage(POLICY, config)


def test_grpo_sees_ppos_reflections_and_pays_ppos_scores(fresh: MakeConfig) -> None:
    config = fresh("grpo", algorithm="grpo", reward=MIX, minibatches=2)
    folder = run_stage(POLICY, config)
    ppo = fresh("ppo", reward=MIX, steps=1)
    run_stage(POLICY, ppo)
    assert without_gap(rollouts(config, 1)) == without_gap(rollouts(ppo, 1))
    assert (folder / "samples.jsonl").read_text().startswith((ppo.run_dir / "ppo" / "samples.jsonl").read_text())
    lines = metrics(config)
    learnt = [line for line in lines if "loss" in line]
    assert [line["step"] for line in learnt] == [1, 2, 3, 4]
    first = next(line for line in metrics(ppo) if "policy_loss" in line)
    assert {key: learnt[0][key] for key in ("score", "model_score", "missing_end")} == pytest.approx(
        {key: first[key] for key in ("score", "model_score", "missing_end")}
    )
    assert learnt[-1]["kl_loss"] > 0
    assert learnt[0]["responses"] == 8
    sft = config.run_dir / "sft" / "adapter"
    reference = folder / "checkpoints" / "checkpoint-16" / "ref"  # 4 steps of 2 epochs of 2 minibatches
    assert equal(reference, sft)
    assert not equal(folder / "checkpoint-4", sft)
    PeftModel.from_pretrained(load_base(config.model, "cpu"), folder / "best")


def test_grpos_first_kl_is_zero(fresh: MakeConfig) -> None:
    config = fresh(algorithm="grpo", reward="model", steps=1, epochs=1, validation_contexts=0)
    adapter = config.run_dir / "sft" / "adapter" / "adapter_config.json"
    adapter.write_text(json.dumps(json.loads(adapter.read_text()) | {"lora_dropout": 0.5}))  # neither draws any
    run_stage(POLICY, config)
    (line,) = metrics(config)
    assert line["kl_loss"] == pytest.approx(0.0, abs=1e-6)  # the policy begins as the reference


@pytest.mark.parametrize(
    "changes", [{"algorithm": "dpo"}, {"algorithm": "grpo", "reward": "model"}], ids=["dpo", "grpo"]
)
def test_the_adapter_of_a_four_bit_base_stays_in_float32(fresh: MakeConfig, changes: dict[str, Any]) -> None:
    """In bfloat16, which TRL makes of it, it would begin beside the reference, and lose small steps."""
    pytest.importorskip("bitsandbytes")
    config = fresh(**changes, steps=1, epochs=1, validation_contexts=0, learning_rate=1e-7)
    config = config.model_copy(update={"model": config.model.model_copy(update={"quantization": "nf4"})})
    folder = run_stage(POLICY, config)
    for line in metrics(config):
        if line["step"] == 1:
            assert line.get("kl_loss", 0.0) == pytest.approx(0.0, abs=1e-8)
        else:
            assert line["validation_margin"] == 0.0
    before, after = weights(config.run_dir / "sft" / "adapter"), weights(folder / "checkpoint-1")
    assert all(value.dtype == torch.float32 for value in after.values())
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert all((after[name] - before[name]).abs().max() < 1e-6 for name in before)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"algorithm": "dpo"}, marks=pytest.mark.slow, id="dpo"),
        pytest.param({"algorithm": "grpo", "reward": MIX}, id="grpo"),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    fresh: MakeConfig, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = fresh("whole", **changes), fresh("broken", **changes)
    run_stage(POLICY, whole)
    on_log = StepLog.on_log

    def killed(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        on_log(self, args, state, control, logs, **kwargs)
        if state.global_step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(StepLog, "on_log", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage(POLICY, broken)
    monkeypatch.setattr(StepLog, "on_log", on_log)
    # the kill also cut a checkpoint short: TRL's is there, ours is not
    shutil.copytree(broken.run_dir / "ppo/checkpoints/checkpoint-4", broken.run_dir / "ppo/checkpoints/checkpoint-6")
    run_stage(POLICY, broken)
    assert metrics(broken) == metrics(whole)
    for name in ("checkpoint-4", "best"):
        assert equal(broken.run_dir / "ppo" / name, whole.run_dir / "ppo" / name)
        states = [(run.run_dir / "ppo" / name / "state.json").read_text() for run in (broken, whole)]
        assert states[0] == states[1]


def test_a_lent_base_comes_back_as_it_was(prepared: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    config = policy_config(tiny_model_dir, tmp_path, "lent")
    base = LentBase.load(config.model, "cpu")
    assert isinstance(base, LentBase)
    base.load_role("policy", prepared / "sft" / "adapter", trainable=True)
    base.load_role("reward", prepared / "reward" / "adapter", trainable=False)
    ids = torch.tensor([[3, 4, 5]])
    base.lend(training=True)
    with torch.no_grad():
        lent = base.model(input_ids=ids).logits
        for role, same in (("policy", True), ("reward", False), (None, False)):
            with base.role(role) as model:
                assert not model.training
                assert torch.equal(model(input_ids=ids).logits, lent) is same
            assert base.model.training
            assert torch.equal(base.model(input_ids=ids).logits, lent)
    trained = {name for name, value in base.model.named_parameters() if value.requires_grad}
    assert trained and all(f".{TRAINED}." in name for name in trained)


@pytest.mark.parametrize(
    ("ppo", "says"),
    [
        ({"algorithm": "dpo", "kl": {"coefficient": 0}}, r"ppo\.kl\.coefficient: .* greater than 0"),
        ({"algorithm": "dpo", "reward": "model"}, r"ppo\.reward: unknown key; grpo and ppo read it, and this is dpo"),
        ({"algorithm": "grpo", "group": 1}, r"ppo\.group: .* greater than or equal to 2"),
        ({"algorithm": "grpo", "kl": {"adaptive": True}}, r"ppo\.kl\.adaptive: unknown key; known here: coefficient"),
        ({"algorithm": "dpo", "target_kl": 0.1}, r"ppo\.target_kl: unknown key; ppo reads it, and this is dpo"),
        ({"algorithm": "ppo2"}, "ppo.algorithm:"),
    ],
)
def test_a_contradiction_is_refused(ppo: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config({"ppo": ppo}, "test")


def test_a_step_is_shared_in_whole_groups_or_refused() -> None:
    section = GrpoOptions(contexts=6, group=4, minibatches=3)
    assert share(section, 1) == (24, 8)
    assert share(section, 2) == (12, 4)
    with pytest.raises(ConfigError, match=r"ppo\.contexts=6 cannot be shared by 4 processes"):
        share(section, 4)
    with pytest.raises(ConfigError, match=r"ppo\.minibatches=5 does not divide the 24 responses"):
        share(section.model_copy(update={"minibatches": 5}), 1)


def test_the_largest_divisor() -> None:
    assert [largest_divisor(12, limit) for limit in (0, 1, 5, 7, 12, 99)] == [1, 1, 4, 6, 12, 12]


@pytest.mark.parametrize(
    "algorithm", ["ppo", pytest.param("dpo", marks=pytest.mark.slow), pytest.param("grpo", marks=pytest.mark.slow)]
)
def test_a_flaky_server_does_not_choose_the_best(
    fresh: MakeConfig, algorithm: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The measurement after step 1 loses an episode each time that it is played, the one after step 2 loses it once."""
    play = Retries.play
    calls = 0

    def flaky(self: Retries, attempts: Sequence[Attempt]) -> list[Episode]:
        nonlocal calls
        episodes = play(self, attempts)
        if "validation" not in attempts[0].key:
            return episodes
        calls += 1
        episodes = [replace(episode, return_=0.1 * calls) for episode in episodes]
        if calls in (2, 3, 4, 5):
            episodes[0] = replace(episodes[0], stop=StopReason.ACTOR_ERROR, return_=0.0)
        return episodes

    monkeypatch.setattr(Retries, "play", flaky)
    config = fresh(algorithm=algorithm, steps=2, validate_every=1)
    folder = run_stage(POLICY, config)
    lines = [line for line in metrics(config) if "validation_return" in line]
    assert [(line["step"], line["validation_lost"]) for line in lines] == [(0, 0.0), (1, 1.0), (2, 0.0)]
    assert [line["best_step"] for line in lines] == [0, 0, 2]
    assert lines[-1]["validation_return_low"] == lines[-1]["best_return_low"] <= lines[-1]["best_return"]
    state = load_state(folder / "best")
    assert state.best_step == 2 and state.best_interval is not None
    assert "1 of 2 validation episodes were lost" in caplog.text


@pytest.mark.parametrize("algorithm", ["ppo", "dpo"])
def test_a_run_that_no_measurement_could_judge_keeps_its_last_policy(
    fresh: MakeConfig, algorithm: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    play = Retries.play

    def losing(self: Retries, attempts: Sequence[Attempt]) -> list[Episode]:
        episodes = play(self, attempts)
        if "validation" in attempts[0].key and attempts[-1].index == 1:
            episodes[-1] = replace(episodes[-1], stop=StopReason.ACTOR_ERROR)
        return episodes

    monkeypatch.setattr(Retries, "play", losing)
    config = fresh(algorithm=algorithm, steps=2)
    folder = run_stage(POLICY, config)
    assert equal(folder / "best", folder / "checkpoint-2")
    assert [line["validation_lost"] for line in metrics(config) if "validation_lost" in line] == [1.0, 1.0]
    assert "the last one, step 2, is used" in caplog.text
