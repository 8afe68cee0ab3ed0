"""The reward model: what is saved is loaded from either layout, and how its passes are packed changes no score."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retro.config import RunConfig
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead
from retro.retrospective.reward_files import RewardFiles
from retro.retrospective.reward_model import ROLE, RewardModel

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
RESPONSES = [[[14, 15], [16]], [[17, 18, 19], [14], [20, 21]], [[15]]]


@pytest.fixture
def base(make_config: Callable[..., RunConfig]) -> SharedBase:
    config = make_config()
    shared = SharedBase.load(config.model, "cpu")
    shared.add_role(ROLE, config.model.lora, seed=1)
    with torch.no_grad():
        for parameter in shared.role_parameters(ROLE).values():
            parameter.add_(0.1)
    return shared


def test_what_was_saved_is_loaded_frozen_from_a_stage_and_from_an_export(base: SharedBase, tmp_path: Path) -> None:
    saved = RewardModel(base, ScalarHead(base.hidden_size, seed=3))
    scores = saved.scores(PROMPTS, RESPONSES)
    stage = RewardFiles.of_stage(tmp_path / "reward")
    assert not stage.exist
    saved.save(stage)
    assert stage.exist
    export = RewardFiles.of_export(tmp_path / "exported")
    shutil.copytree(stage.adapter, export.adapter)
    shutil.copyfile(stage.head, export.head)
    for files in (stage, export):
        base.remove_role(ROLE)
        assert RewardModel.load(base, files).scores(PROMPTS, RESPONSES) == scores
        assert not any(parameter.requires_grad for parameter in base.role_parameters(ROLE).values())


@pytest.mark.parametrize(("budget", "most"), [(1, None), (10, None), (None, 1), (None, 2)])
def test_how_passes_are_packed_changes_no_score_and_no_order(
    base: SharedBase, budget: int | None, most: int | None
) -> None:
    head = ScalarHead(base.hidden_size, seed=3)
    together = RewardModel(base, head).scores(PROMPTS, RESPONSES)
    assert [len(group) for group in together] == [2, 3, 1]
    packed = RewardModel(base, head, budget, most).scores(PROMPTS, RESPONSES)
    for left, right in zip(together, packed, strict=True):
        assert left == pytest.approx(right, abs=1e-5)
    assert len({score for group in together for score in group}) == 6


def test_there_may_be_nothing_to_score(base: SharedBase) -> None:
    assert RewardModel(base, ScalarHead(base.hidden_size)).scores([], []) == []
