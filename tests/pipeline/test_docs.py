"""The pages: links that lead somewhere, and commands whose files and config keys exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retro.config import load_config
from tests.pipeline.running import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), ROOT / "docs" / "tutorial.ipynb"])
COMMAND = re.compile(r"(?:retro run|--config) (configs/[\w./-]+\.yaml)((?: +[\w.]+=\S+)*)")


def anchors(page: Path) -> set[str]:
    """What a link can name in a page: its headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name}: {target}"
        assert not heading or heading in anchors(path), f"{page.name}: {target}#{heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_configs_and_keys_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for config, overrides in COMMAND.findall(text):
        load_config(ROOT / config, overrides.split())
    for script in re.findall(r"(?:scripts|examples|benchmarks|configs)/\w+(?:/\w[\w-]*)*\.(?:py|yaml)", text):
        assert (ROOT / script).is_file(), f"{page.name}: {script}"
