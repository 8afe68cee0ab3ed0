"""Configs of earlier releases: refused with the command that rewrites them, and rewritten to mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from retro.cli.app import app
from retro.config import ConfigError, load_config, parse_config
from retro.config.migration import migrated
from retro.config.points import POINTS

EARLIER = Path(__file__).with_name("earlier_config.yaml")
"""What an earlier release wrote to a run folder: each section has the keys of every kind."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_bytes(EARLIER.read_bytes())
    return tmp_path


def earlier(**sections: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(EARLIER.read_text(encoding="utf-8"))
    for name, section in sections.items():
        tree[name] |= section
    return tree


def test_a_config_of_an_earlier_release_is_refused_in_one_line_that_names_the_command(run: Path) -> None:
    path = run / "config.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["seed=3"])
    assert str(caught.value) == f"config {path}: an earlier release wrote it; rewrite it with: retro migrate {path}"


def test_a_run_folder_is_migrated_and_its_old_config_kept(run: Path) -> None:
    done = CliRunner().invoke(app, ["migrate", str(run)])
    assert done.exit_code == 0
    assert "actor.base_url: None left out: local does not read it" in done.output
    assert (run / "config.yaml.before").read_bytes() == EARLIER.read_bytes()
    config = load_config(run / "config.yaml")
    assert (config.name, config.actor.temperature, config.ppo.steps) == ("mixed", 0.5, 7)
    assert [term.model_dump() for term in config.ppo.rewards] == [
        {"kind": "environment", "weight": 0.75},
        {"kind": "model", "weight": 0.25, "score": "sigmoid"},
    ]
    assert "is up to date" in CliRunner().invoke(app, ["migrate", str(run)]).output


def test_an_old_config_that_is_kept_is_never_replaced(run: Path) -> None:
    (run / "config.yaml.before").write_text("name: precious\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="is there already"):
        CliRunner().invoke(app, ["migrate", str(run)], catch_exceptions=False)
    assert (run / "config.yaml").read_bytes() == EARLIER.read_bytes()


@pytest.mark.parametrize("actor", ["local", "openai"])
@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "dpo"])
def test_what_an_earlier_release_wrote_is_valid_after_it_is_migrated(actor: str, algorithm: str) -> None:
    reward = "environment" if algorithm == "dpo" else "mix"
    tree = earlier(
        actor={"kind": actor, "model": "m"}, ppo={"algorithm": algorithm, "reward": reward, "score": "standardise"}
    )
    new, changes = migrated(tree)
    config = parse_config(new, "here")
    assert (config.actor.kind, config.actor.model, config.ppo.algorithm) == (actor, "m", algorithm)
    assert all(change.sure for change in changes)
    assert migrated(new) == (new, [])


def test_a_key_with_a_value_of_its_own_is_told_and_not_taken_for_an_earlier_release(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("actor: {model: m, base_url: http://x/v1}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "actor.base_url: unknown key; openai reads it, and this is local" in str(caught.value)
    assert f"if an earlier release wrote it: retro migrate {path}" in str(caught.value)
    done = CliRunner().invoke(app, ["migrate", str(path)])
    assert "actor.base_url: 'http://x/v1' left out: local does not read it" in done.output


def test_what_was_refused_before_stays_and_is_refused(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(earlier(ppo={"algorithm": "grpo", "nonsense": 1})), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"ppo\.nonsense: unknown key"):
        CliRunner().invoke(app, ["migrate", str(run)], catch_exceptions=False)
    assert path.read_bytes() == before
    assert not (run / "config.yaml.before").exists()


def test_every_kind_is_listed_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    alfworld = POINTS["environment"].kinds["alfworld"]
    monkeypatch.setattr(type(alfworld), "missing", property(lambda kind: list(kind.packages)))
    lines = CliRunner().invoke(app, ["list"]).output.splitlines()
    for name, point in POINTS.items():
        assert f"{name}: {point.summary}" in lines
        assert all(f"  {kind}: {built_in.summary}" in lines for kind, built_in in point.kinds.items())
    place = lines.index(f"  alfworld: {alfworld.summary}")
    assert lines[place + 1 : place + 3] == [
        "      not installed (alfworld, pyarrow, textworld): pip install 'retro[alfworld]'",
        f"      data: {alfworld.data}",
    ]
