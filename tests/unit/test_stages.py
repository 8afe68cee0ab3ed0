"""Every stage of a run: what it may read of the config, and what makes it run anew."""

import json
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from retro.cli.stages import STAGES, ordered_stages, stage_named
from retro.config import RunConfig, Section
from retro.config.view import UndeclaredKeyError, leaves
from retro.stage import Stage, plan_stage, run_stage
from retro.training.episode_key import episode_key
from tests.builders import run_config

FIRST = json.loads(Path(__file__).with_name("first_manifests.json").read_text(encoding="utf-8"))
"""What the manifests of earlier releases, whose stages did not declare single keys, hold of two configs."""
CASES = [*((name, "ppo") for name in STAGES), ("ppo", "dpo")]


def config_in(folder: Path, tree: dict[str, Any]) -> RunConfig:
    return run_config(folder, **{**tree, "name": "run"})


def changed(config: Section, key: str) -> Any:
    """``config`` with another value of ``key``, which need not be a valid one."""
    name, _, rest = key.partition(".")
    value = getattr(config, name)
    if rest:
        return config.model_copy(update={name: changed(value, rest)})
    text = "grpo" if name == "algorithm" else f"{value}x"  # a stage asks the algorithm what it reads
    others = {bool: lambda: not value, int: lambda: value + 1, float: lambda: value + 0.5, str: lambda: text}
    others |= {
        tuple: lambda: value + value,
        list: lambda: [*value, "x"],
        dict: lambda: {**value, "x": 1},
        type(None): lambda: "x",
    }
    return config.model_copy(update={name: others[type(value)]()})


def lies_in(keys: Any, key: str, config: RunConfig) -> bool:
    listed: Sequence[str] = keys(config) if callable(keys) else keys
    return any(key == one or key.startswith(f"{one}.") for one in listed)


def finished(name: str, config: RunConfig) -> Stage:
    """The stage, which has run; its inputs are always the same, and it makes nothing."""
    stage = replace(stage_named(name), inputs=lambda view: {}, run=lambda view, work: None)
    run_stage(stage, config)
    assert plan_stage(stage, config).action == "up to date"
    return stage


@pytest.mark.parametrize(("name", "algorithm"), CASES)
def test_a_stage_reads_what_it_declared_or_what_is_marked_as_speed_and_nothing_else(
    name: str, algorithm: str, tmp_path: Path
) -> None:
    config, stage = config_in(tmp_path, {"ppo": {"algorithm": algorithm}}), stage_named(name)
    view, refused = stage.view(config), 0
    for leaf in leaves(config):
        declared = lies_in(stage.keys, leaf.key, config) or lies_in(stage.not_deciding, leaf.key, config)
        if declared or leaf.speed or leaf.key == "seed":
            assert attrgetter(leaf.key)(view) == attrgetter(leaf.key)(config)
        else:
            with pytest.raises(UndeclaredKeyError, match=f"stage {name} read {leaf.key} without declaring it"):
                attrgetter(leaf.key)(view)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(("name", "algorithm"), CASES)
def test_a_stage_runs_anew_when_a_declared_key_changes_and_at_no_other(
    name: str, algorithm: str, tmp_path: Path
) -> None:
    config = config_in(tmp_path, {"ppo": {"algorithm": algorithm}})
    stage, moved = finished(name, config), set()
    for leaf in leaves(config):
        if leaf.key in ("name", "runs") and name != "export":
            continue  # of another run folder
        plan = plan_stage(stage, changed(config, leaf.key).model_copy(update={"runs": config.runs}))
        if plan.action != "up to date" and leaf.key != "name":
            assert (plan.action, plan.why.split(", ")[0].startswith(f"changed: config {leaf.key}")) == ("run", True)
            moved.add(leaf.key)
    keys = {leaf.key for leaf in leaves(config) if not leaf.speed and lies_in(stage.keys, leaf.key, config)}
    assert moved == keys | {"seed"}


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_how_the_model_samples_does_not_train_it_anew(name: str, tmp_path: Path) -> None:
    config = config_in(tmp_path, {})
    assert plan_stage(finished(name, config), changed(config, "model.temperature")).action == "up to date"


def test_the_name_of_a_run_decides_its_export(tmp_path: Path) -> None:
    config = config_in(tmp_path, {})
    stage = finished("export", config)
    config.run_dir.rename(tmp_path / "renamed")
    plan = plan_stage(stage, config.model_copy(update={"name": "renamed"}))
    assert (plan.action, plan.why) == ("run", "changed: config name")


@pytest.mark.parametrize("name", [name for name in STAGES if name != "memory"])  # there was none
@pytest.mark.parametrize("actor", FIRST)
def test_what_an_earlier_release_finished_is_up_to_date(actor: str, name: str, tmp_path: Path) -> None:
    config = config_in(tmp_path, FIRST[actor]["config"])
    stage = replace(stage_named(name), inputs=lambda view: {"buffer": "a"})
    folder = config.run_dir / stage.folder
    folder.mkdir(parents=True)
    recorded = FIRST[actor]["manifests"][name]
    if name == "export":
        recorded["name"] = config.name
    manifest = {"status": "complete", "config_hash": "0", "config": recorded, "inputs": {"buffer": "a"}, "outputs": {}}
    (folder / "stage.json").write_text(json.dumps(manifest))
    assert plan_stage(stage, config).action == "up to date"
    other = plan_stage(stage, config.model_copy(update={"seed": 99}))
    assert (other.action, other.why) == ("run", "changed: config seed")
    templated = config.model.model_copy(update={"chat_template_kwargs": {"enable_thinking": False}})
    plan = plan_stage(stage, config.model_copy(update={"model": templated}))
    assert plan.why.startswith("changed: config model.chat_template_kwargs")


def test_dpos_pairs_were_an_input_once(tmp_path: Path) -> None:
    config = config_in(tmp_path, {"ppo": {"algorithm": "dpo"}, "reward": {"threshold": 0.25}})
    stage = finished("ppo", config)
    path = config.run_dir / "ppo" / "stage.json"
    manifest = json.loads(path.read_text())
    for key in ("reward.loss", "reward.rating", "reward.threshold"):
        del manifest["config"][key]
    path.write_text(json.dumps(manifest | {"inputs": {"pairs": "bradley_terry delta_return 0.25"}}))
    assert plan_stage(stage, config).action == "up to date"
    assert plan_stage(stage, changed(config, "reward.threshold")).why == "changed: config reward.threshold"


@pytest.mark.parametrize("actor", FIRST)
def test_episodes_keep_the_names_that_an_earlier_release_gave_them(actor: str, tmp_path: Path) -> None:
    config = config_in(tmp_path, FIRST[actor]["config"])
    key = FIRST[actor]["episode_key"]
    inputs = {"base": "b", "prompts": "p", "actor": "a"}
    assert episode_key(config, inputs) == key
    assert episode_key(changed(config, "actor.concurrency"), inputs) == key
    for named in ("seed", "actor.temperature", "memory.size", "model.chat_template_kwargs", "environment.options"):
        assert episode_key(changed(config, named), inputs) != key


def test_the_stages_are_in_the_order_of_what_they_read() -> None:
    names = [stage.name for stage in ordered_stages()]
    assert sorted(names) == sorted(STAGES)
    for stage in ordered_stages():
        assert set(stage.reads) <= set(names[: names.index(stage.name)])
