import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retro.buffer.store import ReplayBuffer
from retro.config import RewardSection, RunConfig
from retro.envs import make_taskset
from retro.models.loading import load_tokenizer
from retro.stage import NothingToLearnError, plan_stage, run_stage
from retro.training import reward
from retro.training.examples import encoder_of_run
from retro.training.reward import STAGE as REWARD
from retro.training.reward import RewardTrainer, batches, group_loss, judge, terms
from retro.training.reward_data import RewardGroup, read_groups, to_learn_from
from retro.training.reward_metrics import ScoredGroup
from retro.types import Split
from tests.rated_groups import BAD, GOOD, fill, group_of

MakeConfig = Callable[..., RunConfig]
QUICK = {"epochs": 20, "batch_size": 4, "microbatch_size": 4, "learning_rate": 1e-2, "eval_every": 10}


def group(*ratings: float, used: tuple[bool, ...] | None = None) -> RewardGroup:
    responses = [[index] for index in range(len(ratings))]
    return RewardGroup("household/t", "household", [1], responses, ratings, used or (True,) * len(ratings))


def lines(config: RunConfig) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def test_the_pair_loss_is_bradley_terrys_over_unequal_pairs() -> None:
    section = RewardSection(loss="bradley_terry")
    scores = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)
    ratings = group(1.0, 0.0, 0.0)
    by_hand = math.log1p(math.exp(-(2.0 - 0.5))) + math.log1p(math.exp(-(2.0 + 1.0)))
    assert float(group_loss(scores, ratings, section)) == pytest.approx(by_hand)
    assert terms(ratings, section) == 2
    assert terms(ratings, RewardSection(threshold=1.0)) == 0


def test_the_label_loss_is_cross_entropy_over_the_used_reflections() -> None:
    section = RewardSection(loss="bce", threshold=0.25)
    scores = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)
    labelled = group(1.0, 0.25, 0.0, used=(True, True, False))
    by_hand = math.log1p(math.exp(-2.0)) + math.log1p(math.exp(0.5))
    assert float(group_loss(scores, labelled, section)) == pytest.approx(by_hand)
    assert terms(labelled, section) == 2


def test_every_group_is_learnt_once_an_epoch_up_to_the_last_step() -> None:
    section = RewardSection(epochs=3, batch_size=4)
    steps = batches(10, section, seed=0)
    assert [len(step) for step in steps] == [4, 4, 2] * 3
    for epoch in range(3):
        assert sorted(index for step in steps[3 * epoch : 3 * epoch + 3] for index in step) == list(range(10))
    assert steps[:3] != steps[3:6]
    assert batches(10, RewardSection(epochs=3, batch_size=4, max_steps=5), seed=0) == steps[:5]


def test_equal_texts_of_a_group_are_one_reflection_with_the_mean_rating(
    make_config: MakeConfig, tiny_model_dir: Path
) -> None:
    config = make_config()
    task = make_taskset("household").tasks(Split.TRAIN, 1)[0]
    with ReplayBuffer(config.buffer_url) as buffer:
        for episode in group_of(task, [GOOD[0], BAD[0], GOOD[0]]):
            buffer.add(episode)
        encoder = encoder_of_run(load_tokenizer(config.model), config)
        [found] = read_groups(buffer, config.reward, encoder, Split.TRAIN, ())
    assert found.ratings == (0.5, 0.0)
    assert len(found.responses) == 2


def test_balancing_keeps_as_many_rejected_as_accepted_and_drops_no_accepted_one() -> None:
    groups = [group(1.0, 0.0, 0.0, 0.0), group(0.0, 0.0), group(1.0)]
    chosen = to_learn_from(groups, RewardSection(loss="bce"), seed=0)
    kept = [rating for item in chosen for rating, used in zip(item.ratings, item.used, strict=True) if used]
    assert sorted(kept) == [0.0, 0.0, 1.0, 1.0]
    assert chosen == to_learn_from(groups, RewardSection(loss="bce"), seed=0)
    assert to_learn_from(groups, RewardSection(loss="bce", balance=False), seed=0) == groups


AVERAGE = (0.2 + 0.2 + 0.2) / 3
"""Of three equal ratings: as a float a little above .2."""


def test_an_average_of_equal_ratings_is_that_rating() -> None:
    tied, clear = group(AVERAGE, 0.2, 0.2), group(1.0, AVERAGE, 0.2)
    section = RewardSection(loss="bradley_terry")
    assert (terms(tied, section), terms(clear, section)) == (0, 2)
    assert to_learn_from([tied, clear], section, seed=0) == [clear]

    labels = RewardSection(loss="bce", threshold=0.2)
    scores = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)
    assert float(group_loss(scores, clear, labels)) == float(group_loss(scores, group(1.0, 0.2, 0.2), labels))
    (balanced,) = to_learn_from([clear], labels, seed=0)  # one accepted, one of the two rejected
    assert balanced.used[0] and sum(balanced.used) == 2
    with pytest.raises(NothingToLearnError, match="0 of the 3 reflections"):
        to_learn_from([tied], labels, seed=0)
    _, metrics = judge([ScoredGroup("t", "household", (2.0, 3.0, 1.0), clear.ratings)], [clear], labels, 0)
    assert metrics["validation_auc"] == 0.5  # one accepted between two rejected ones


@pytest.mark.parametrize(
    ("loss", "groups", "message"),
    [
        ("bradley_terry", [group(0.0, 0.0), group(1.0)], "no two of the 3 reflections"),
        ("bce", [group(0.0, 0.0)], "0 of the 2 reflections"),
        ("bce", [group(1.0)], "1 of the 1 reflections"),
    ],
)
def test_nothing_to_compare_is_an_error_with_a_remedy(loss: str, groups: list[RewardGroup], message: str) -> None:
    with pytest.raises(NothingToLearnError, match=message):
        to_learn_from(groups, RewardSection(loss=loss), seed=0)  # type: ignore[arg-type]


def test_a_checkpoint_is_judged_by_accuracy_within_groups_then_by_loss_or_auc_or_age() -> None:
    section = RewardSection()
    pairs, sure, unsure = [group(1.0, 0.0)], (3.0, 0.0), (1.0, 0.0)

    def quality(scores: tuple[float, ...], groups: list[RewardGroup], step: int = 0) -> tuple[float, float]:
        scored = [ScoredGroup("t", "household", scores[:1], item.ratings[:1]) for item in groups]
        if len(groups) == 1:
            scored = [ScoredGroup("t", "household", scores, groups[0].ratings)]
        return judge(scored, groups, section, step)[0]

    assert quality(sure, pairs) > quality(unsure, pairs) > quality((0.0, 1.0), pairs)
    assert judge([], [], section, 7)[0] > judge([], [], section, 6)[0]
    alone = [group(1.0), group(0.0)]
    scored = [ScoredGroup("t", "household", (2.0,), (1.0,)), ScoredGroup("t", "household", (1.0,), (0.0,))]
    (counts, _), metrics = judge(scored, alone, RewardSection(loss="bce"), 0)
    assert counts == metrics["validation_auc"] == 1.0


@pytest.mark.parametrize("loss", ["bradley_terry", "bce"])
def test_it_learns_which_reflections_help_and_says_how_well(filled_config: MakeConfig, loss: str) -> None:
    config = filled_config(reward={**QUICK, "loss": loss})
    folder = run_stage(REWARD, config)
    facts = json.loads((folder / "reward.json").read_text())
    assert facts["loss"] == loss
    assert facts["test"]["pairs"] == 24
    assert facts["test"]["accuracy"]["value"] > 0.9
    assert facts["test"]["auc"]["value"] > 0.9
    assert facts["test"]["accuracy"]["ci95"][0] > 0.7
    assert facts["score_std"] > 0
    if loss == "bce":
        labels = facts["test"]["labels"]
        assert labels["accuracy"]["value"] > 0.9 > labels["majority"]["value"]
    assert set(facts["test_by_environment"]) == {"household"}
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert load_file(folder / "head.safetensors")
    assert plan_stage(REWARD, config).action == "up to date"
    losses = [line["loss"] for line in lines(config)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_killed_training_resumes_to_the_same_metrics_and_weights(
    filled_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {**QUICK, "epochs": 4, "eval_every": 5}
    unbroken = filled_config(name="unbroken", reward=short)
    run_stage(REWARD, unbroken)
    broken = filled_config(name="broken", reward=short)
    step = RewardTrainer.step

    def killed(self: RewardTrainer, number: int) -> dict[str, float]:
        if number == 8:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(reward.RewardTrainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage(REWARD, broken)
    monkeypatch.setattr(reward.RewardTrainer, "step", step)
    assert plan_stage(REWARD, broken).action == "resume"
    run_stage(REWARD, broken)
    assert lines(broken) == lines(unbroken)
    for name in ("adapter/adapter_model.safetensors", "head.safetensors"):
        left, right = (load_file(config.run_dir / "reward" / name) for config in (broken, unbroken))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_buffer_without_pairs_is_refused(make_config: MakeConfig) -> None:
    config = make_config()
    with ReplayBuffer(config.buffer_url) as buffer:
        fill(buffer, good=False)
    with pytest.raises(NothingToLearnError, match=r"collect groups"):
        run_stage(REWARD, config)
