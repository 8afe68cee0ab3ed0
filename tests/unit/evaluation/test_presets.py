"""The page about the arms and the table of presets say the same."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from retro.config import ArmSection, RunConfig
from retro.evaluation.presets import presets

PAGE = Path(__file__).parents[3] / "docs" / "training.md"


def test_the_page_lists_every_preset_with_its_parts() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("| short name | parts |")[2].partition("\n\n")[0]
    listed: dict[str, str] = {}
    for row in table.splitlines()[2:-1]:  # the last row is Best-of-N
        names, parts, _ = row.strip("|").split("|")
        listed |= dict.fromkeys(re.findall(r"`(.+?)`", names), parts.strip())
    found = presets(RunConfig())
    assert set(listed) == set(found)
    for name, preset in found.items():
        shown = yaml.safe_load(listed[name].strip("`… "))
        if "…" in listed[name]:
            assert preset.parts.policy == name  # one row for all policies that name themselves
        else:
            assert ArmSection.model_validate({"name": name, **shown}) == preset.parts
