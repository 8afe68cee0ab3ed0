"""The config: what is refused and in what words, overrides, and the way out and in again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retro.config import ConfigError, RunConfig, load_config, parse_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_runs_again_as_dumped(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert load_config(write(tmp_path, config.dump())) == config


def test_every_shipped_config_says_whether_it_whitens_advantages_of_groups() -> None:
    """The default differs from what its figures were measured with."""
    for path in [*CONFIGS, *sorted((ROOT / "examples" / "own_agent").glob("*.yaml"))]:
        section = load_config(path).ppo
        assert section.advantage == "gae" or section.whiten_advantages is True, path


@pytest.mark.parametrize(("advantage", "whitens"), [("gae", True), ("rloo", False), ("group", False)])
def test_whitening_goes_by_the_advantage_unless_the_config_says(advantage: str, whitens: bool) -> None:
    assert parse_config({"ppo": {"advantage": advantage}}, "here").ppo.whitens is whitens
    for said in (True, False):
        assert parse_config({"ppo": {"advantage": advantage, "whiten_advantages": said}}, "here").ppo.whitens is said


def test_an_empty_config_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == RunConfig()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ppo: {stpes: 3}", "ppo.stpes: unknown key; did you mean 'steps'?"),
        ("ppo: {kl: {coeficient: 1}}", "ppo.kl.coeficient: unknown key; did you mean 'coefficient'?"),
        ("environement: {}", "environement: unknown key; did you mean 'environment'?"),
        ("zzz: 1", "zzz: unknown key; known here: name, runs"),
        ("ppo: {steps: three}", "ppo.steps:"),
        ("ppo: {steps: 0}", "(got 0)"),
        ("ppo: {lam: 1.5}", "ppo.lam:"),
        ("ppo: {adam: {beta2: 1}}", "ppo.adam.beta2:"),
        ("sft: {adam: {epsilon: 0}}", "sft.adam.epsilon:"),
        ("ppo: {max_sampler_gap: 0}", "ppo.max_sampler_gap:"),
        ("ppo: {kl: {loss: k1}}", "k1 has no expected gradient"),
        ("ppo: {advantage: rloo, group: 1}", "it needs 2 or more"),
        ("actor: {kind: telepathy}", "actor.kind:"),
        ("collect: {attempts: 1}", "collect.attempts:"),
        ("- a list", "the top level must be a mapping"),
        ("a: [", "not YAML"),
        ("seed: 2024-99-99", "seed: Input should be a valid integer"),
        ("ppo: {lam: 2024-01-01}", "ppo.lam: Input should be a valid number"),
        (f"seed: {'9' * 5000}", "an integer beyond 64 bits"),
        ("seed: 9223372036854775808", "an integer beyond 64 bits"),
        ("ppo: {learning_rate: .inf}", "not a finite number"),
        ("[" * 20_000, "nested deeper"),
        ("environment: &e {options: {a: *e}}", "refers to itself"),
        (f"name: {'x' * 5000}\nseed: {'y' * 5000}", "yyy…"),
        (r'name: "\ud800"', "half of a surrogate pair"),
    ],
)
def test_a_bad_config_names_the_file_the_key_and_the_remedy(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_alias_bomb_costs_nothing(tmp_path: Path) -> None:
    levels = "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(30))
    with pytest.raises(ConfigError, match="aliases counted as what they stand for"):
        load_config(write(tmp_path, f"a0: &a0 [x]\n{levels}"))


def test_a_config_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("name: café".encode("latin-1"))
    with pytest.raises(ConfigError, match=f"config {path}: not UTF-8 at byte 9"):
        load_config(path)
    with pytest.raises(ConfigError, match=f"config {tmp_path}: a folder or a device, not a file"):
        load_config(tmp_path)


def test_a_missing_config_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_config("nowhere.yaml")


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"ppo": {"steps": 0, "grup": 2}}, "here")
    assert "ppo.steps" in str(caught.value)
    assert "did you mean 'group'?" in str(caught.value)


def test_overrides_are_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "ppo: {steps: 3, group: 2}")
    config = load_config(
        path, ["ppo.steps=7", "evaluate.arms=[sft, ppo-env]", "buffer.url=null", "model.lora.r=1", "name=a=b"]
    )
    assert (config.ppo.steps, config.ppo.group) == (7, 2)
    assert config.evaluate.arms == ["sft", "ppo-env"]
    assert config.buffer.url is None
    assert config.model.lora.r == 1
    assert config.name == "a=b"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("ppo.steps", "write it as key.sub=value"),
        ("=3", "write it as key.sub=value"),
        ("name.sub=3", "'name' is a value, not a section"),
        ("ppo.steps=[", "not YAML"),
        ("ppo.step=3", "did you mean 'steps'?"),
        ("seed=2024-99-99", "seed: Input should be a valid integer"),
        (f"seed={'9' * 5000}", "an integer beyond 64 bits"),
        ("environment.options.x=&a [*a]", "refers to itself"),
        ("name=\udcff", "not YAML"),
    ],
)
def test_a_bad_override_says_how_to_write_it(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "name: x"), [override])
    assert says in str(caught.value)


def test_the_buffer_is_in_the_run_folder_unless_the_config_says_otherwise() -> None:
    assert RunConfig(name="a", runs="r").buffer_url == "sqlite:///r/a/buffer.sqlite"
    config = parse_config({"buffer": {"url": "sqlite:///elsewhere.sqlite"}}, "here")
    assert config.buffer_url == "sqlite:///elsewhere.sqlite"


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("postgresql+psycopg://host/db", "postgresql+psycopg://host/db?schema=a%2Fb%20%C3%A4"),
        ("postgresql://me@/db?host=/tmp", "postgresql://me@/db?host=/tmp&schema=a%2Fb%20%C3%A4"),
        ("postgresql://host/db?schema=team&connect_timeout=5", "postgresql://host/db?schema=team&connect_timeout=5"),
        ("postgresql://host/db?schema=", "postgresql://host/db?schema="),
    ],
)
def test_a_run_has_a_namespace_in_postgresql(url: str, whole: str) -> None:
    assert parse_config({"name": "a/b ä", "buffer": {"url": url}}, "here").buffer_url == whole


@given(st.floats(min_value=1e-8, max_value=1.0), st.integers(min_value=1, max_value=10**6), st.text(max_size=20))
def test_what_is_dumped_reads_back_equal(rate: float, steps: int, name: str) -> None:
    config = parse_config({"name": name, "ppo": {"learning_rate": rate, "steps": steps}}, "here")
    assert parse_config(yaml.safe_load(config.dump()), "there") == config


def test_the_page_of_all_keys_is_current() -> None:
    script = [sys.executable, "scripts/write_config_docs.py", "--check"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"buffer": {"url": "postgresql://me:hunter2@host/retro"}}, "buffer.url"),
        ({"buffer": {"url": "postgresql://me:a/b?hunter2@host/retro"}}, "buffer.url"),
        ({"buffer": {"url": "postgresql://me@host/retro?sslmode=require&Password=hunter2"}}, "buffer.url"),
        ({"buffer": {"url": "postgresql://host/retro?passfile=hunter2"}}, "buffer.url"),
        ({"actor": {"kind": "openai", "base_url": "http://me:hunter2@host/v1"}}, "actor.base_url"),
    ],
)
def test_a_password_is_refused_before_it_is_written_and_is_not_told(tree: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=r"would be written to config\.yaml") as refused:
        parse_config(tree, "here")
    assert key in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_buffer_without_a_password_in_its_url_is_taken() -> None:
    for url in ("postgresql://me@host/retro", "sqlite:///some/buffer.sqlite", "no url"):
        assert parse_config({"buffer": {"url": url}}, "here").buffer.url == url
