"""The pages: links that lead somewhere, and commands whose files and config keys exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retro.config import load_config
from tests.pipeline.running import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
COMMAND = re.compile(r"(?:retro run|--config) (configs/[\w./-]+\.yaml)((?: +[\w.]+=\S+)*)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_configs_and_keys_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for config, overrides in COMMAND.findall(text):
        load_config(ROOT / config, overrides.split())
    for script in re.findall(r"(?:scripts|examples|benchmarks|configs)/\w+(?:/\w[\w-]*)*\.(?:py|yaml)", text):
        assert (ROOT / script).is_file(), f"{page.name}: {script}"
