import asyncio
import json
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel

from retro.agent.loading import load_export
from retro.agent.records import ExportRecord
from retro.buffer.store import ReplayBuffer
from retro.config import ConfigError, RunConfig
from retro.models.limits import with_prompt_limit
from retro.models.loading import base_context, base_identity, load_base
from retro.retrospective.encoding import Encoder
from retro.stage import plan_stage, run_stage
from retro.training.export import STAGE as EXPORT
from retro.training.export import policy_folder
from retro.training.reward import STAGE as REWARD
from retro.training.reward import RewardTrainer
from retro.training.reward_checkpoint import restore
from retro.training.sft import STAGE as SFT
from retro.types import Reflection, ReflectionRequest, Split

FilledConfig = Callable[..., RunConfig]


@pytest.fixture
def trained(filled_config: FilledConfig) -> RunConfig:
    config = filled_config(
        sft={"epochs": 2, "learning_rate": 1e-2},
        reward={"epochs": 4, "learning_rate": 1e-2, "batch_size": 4, "eval_every": 4},
    )
    run_stage(SFT, config)
    run_stage(REWARD, config)
    return config


def test_the_export_loads_in_plain_peft_and_says_what_it_was_trained_on(trained: RunConfig) -> None:
    folder = run_stage(EXPORT, trained)
    base = load_base(trained.model, "cpu")
    ids = torch.tensor([[1, 5, 6, 7]])
    before = base(ids).logits
    exported = PeftModel.from_pretrained(base, folder / "adapter").eval()
    after = exported(ids).logits
    direct = PeftModel.from_pretrained(load_base(trained.model, "cpu"), trained.run_dir / "sft" / "adapter").eval()
    assert not torch.equal(before, after)
    assert torch.equal(after, direct(ids).logits)
    assert sorted(path.name for path in (folder / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]
    record = ExportRecord.read(folder)
    assert record.base.identity == base_identity(trained.model.base)
    assert record.prompts == "household"
    sampled = with_prompt_limit(trained.model, base_context(trained.model))
    assert record.model.model_dump() == sampled.model_dump(exclude={"generator"})
    assert record.reward is not None
    facts = json.loads((trained.run_dir / "reward" / "reward.json").read_text())
    assert (record.reward.mean, record.reward.std, record.reward.loss) == (
        facts["score_mean"],
        facts["score_std"],
        "bradley_terry",
    )
    assert plan_stage(EXPORT, trained).action == "up to date"


def test_scores_are_equal_before_and_after(trained: RunConfig) -> None:
    with ReplayBuffer(trained.buffer_url) as buffer:
        group = next(buffer.groups(splits=[Split.TRAIN]))
    reflections = [retry.reflection for retry in group.retries if retry.reflection]
    folder = run_stage(EXPORT, trained)
    exported = load_export(folder, None, "cpu", None)
    assert exported.scorer is not None
    request = ReflectionRequest(group.parent)
    after = asyncio.run(exported.scorer(request, reflections))
    before = _scores_in_training(trained, reflections)
    assert after == pytest.approx(before, abs=1e-5)
    assert len(set(after)) > 1


def _scores_in_training(config: RunConfig, reflections: list[Reflection]) -> list[float]:
    from retro.stage import Plan, Work

    folder = config.run_dir / "reward"
    trainer = RewardTrainer(config, Work("reward", folder, Plan("resume", ""), {}, False, config))
    restore(folder / "best", trainer.parameters, None)
    encoder: Encoder = trainer.encoder
    group = trainer.train_groups[0]
    scores = dict(zip(map(tuple, group.responses), trainer.scores([group])[0].scores, strict=True))
    return [scores[tuple(encoder.response(reflection))] for reflection in reflections]


def test_ppos_best_or_last_checkpoint_is_exported_before_the_sft_adapter(trained: RunConfig) -> None:
    assert policy_folder(trained) == trained.run_dir / "sft" / "adapter"
    ppo = trained.run_dir / "ppo"
    for name in ("best", "checkpoint-9", "checkpoint-10"):
        (ppo / name).mkdir(parents=True)
    assert policy_folder(trained) == ppo / "best"
    last = trained.model_copy(update={"export": trained.export.model_copy(update={"checkpoint": "last"})})
    assert policy_folder(last) == ppo / "checkpoint-10"
    (ppo / "best").rmdir()
    with pytest.raises(ConfigError, match="no best checkpoint yet"):
        policy_folder(trained)


def test_nothing_to_export_is_an_error_with_a_remedy(make_config: FilledConfig) -> None:
    with pytest.raises(ConfigError, match="run the stages sft and ppo first"):
        run_stage(EXPORT, make_config())
