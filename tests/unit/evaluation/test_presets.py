"""The page about the arms and the table of presets say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from retro.config import ArmSection, Section, parse_config
from retro.evaluation.presets import planned_arms, policy_name, presets

POLICIES = (
    *(
        {"algorithm": a, "reward": r}
        for a in ("ppo", "grpo")
        for r in ("environment", "model", ["environment", "model"])
    ),
    {"algorithm": "dpo"},
)
PAGE = Path(__file__).parents[3] / "docs" / "training.md"


def test_the_page_lists_every_preset_with_its_parts() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("| short name | parts |")[2].partition("\n\n")[0]
    listed: dict[str, str] = {}
    for row in table.splitlines()[2:-1]:  # the last row is Best-of-N
        names, parts, _ = row.strip("|").split("|")
        listed |= dict.fromkeys(re.findall(r"`(.+?)`", names), parts.strip())
    runs = [parse_config({"ppo": ppo}, "a run") for ppo in POLICIES]
    found = {name: parts for run in runs for name, parts in presets(run).items()}
    assert set(listed) == set(found)
    for name, parts in found.items():
        shown = yaml.safe_load(listed[name].strip("`… "))
        if "…" in listed[name]:
            assert parts.policy == name  # one row for all policies that name themselves
        else:
            assert ArmSection.model_validate({"name": name, **shown}) == parts


class Imitation:
    """An algorithm of one's own, as far as a config asks."""

    @classmethod
    def from_options(cls, options: Section, **parts: object) -> Imitation:
        return cls()


@pytest.mark.parametrize(
    ("reward", "name"), [("environment", "imitation-env"), (["environment", "model"], "imitation-mix")]
)
def test_a_policy_of_ones_own_algorithm_has_a_short_name(reward: object, name: str) -> None:
    ppo = {"algorithm": f"{__name__}:Imitation", "reward": reward}
    run = parse_config({"ppo": ppo, "evaluate": {"arms": ["imitation", name, f"{name}-bon8"]}}, "a run")
    assert policy_name(run.ppo) == name
    assert [arm.name for arm in planned_arms(run)] == run.evaluate.arms
    assert "ppo-env" not in presets(run)
