"""Each shipped environment through the whole pipeline by its config, with random models: the path, not a result."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from retro.buffer import ReplayBuffer
from retro.envs import ENVIRONMENTS
from retro.types import Split
from tests.pipeline.running import ROOT, retro

SHARED = Path(os.environ.get("RETRO_SHARED_DATA", ROOT.parent / "shared" / "data"))
OPTIONS = {
    "hotpotqa": {"data": SHARED / "hotpotqa" / "reflexion100.parquet", "steps": 2},
    "alfworld": {"data": SHARED / "alfworld" / "valid_seen.parquet", "steps": 2, "workers": 1},
    "webshop": {
        "data": SHARED / "webshop" / "products_1000.parquet",
        "steps": 2,
        "instructions": "synthetic",
        "splits": "hashed",
    },
    "scienceworld": {"steps": 2, "engines": 1},
    "textworld-express": {"steps": 2, "engines": 1},
}
TASKS = {"train": 2, "validation": 1, "test": 2}
ARMS = ["retry-sampled", "ppo-env", "oracle"]


def small(model: Path, runs: Path, *more: str) -> list[str]:
    """The overrides at the top of every shipped config, with fewer arms, attempts and tokens."""
    return [
        f"runs={runs}",
        "actor.kind=local",
        f"actor.model={model}",
        "actor.context_tokens=null",
        "actor.max_tokens=12",
        "actor.concurrency=16",
        f"model.base={model}",
        "model.dtype=float32",
        "model.quantization=none",
        "model.max_new_tokens=8",
        "sft.threshold=-1",
        "sft.max_steps=2",
        "sft.batch_size=4",
        "ppo.reward=environment",
        "ppo.steps=2",
        "ppo.contexts=2",
        "ppo.group=2",
        "ppo.validate_every=2",
        "ppo.validation_contexts=1",
        "evaluate.attempts=2",
        f"evaluate.arms={json.dumps(ARMS)}",
        "collect.attempts=2",
        "collect.group=2",
        f"environment.tasks={json.dumps(TASKS)}",
        *more,
    ]


def need(*names: str) -> None:
    for name in names:
        if ENVIRONMENTS[name].missing:
            pytest.skip(f"{name}: pip install 'retro[{name}]'")
        data = OPTIONS.get(name, {}).get("data")
        if isinstance(data, Path) and not data.exists():
            pytest.skip(f"{name}: no {data}; RETRO_SHARED_DATA names another folder")


@pytest.mark.parametrize("name", OPTIONS)
def test_a_config_runs_to_its_export_and_report(name: str, random_model: Path, tmp_path: Path) -> None:
    need(name)
    options = [f"environment.options.{key}={value}" for key, value in OPTIONS[name].items()]
    done = retro("run", f"configs/{name}.yaml", *small(random_model, tmp_path, *options))
    run = tmp_path / name
    results = json.loads((run / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert results["tasks"] == TASKS["test"]
    assert set(results["arms"]) == set(ARMS)
    assert all(arm["tokens_per_task"] > 0 for arm in results["arms"].values())
    assert any("2 tasks are too few" in note for note in results["notes"])
    assert "2 tasks are too few" in done.stdout
    record = json.loads((run / "export" / "retro.json").read_text(encoding="utf-8"))
    assert (record["prompts"], record["environments"]) == (name, [name])
    assert (run / "export" / "prompts" / name / "reflection.jinja").is_file()
    assert (run / "evaluation" / "report.html").is_file()
    with ReplayBuffer(f"sqlite:///{run / 'buffer.sqlite'}", create=False) as buffer:
        episodes = list(buffer.episodes())
    assert {episode.task.environment for episode in episodes} == {name}
    assert {split: len({e.task.id for e in episodes if e.task.split is split}) for split in Split} == TASKS
    for episode in episodes:
        assert episode.trajectory.opening
        assert episode.trajectory.steps
        assert 0 <= episode.return_ <= 1
        assert episode.usage.prompt_tokens == sum(step.usage.prompt_tokens for step in episode.trajectory.steps) > 0
    assert not list(tmp_path.glob("**/*.pkl"))


API = ["actor.kind=openai", "actor.model=MODEL", "actor.base_url=http://127.0.0.1:9/v1", "actor.max_tokens=100"]
SEVEN_B = ["model.base=Qwen/Qwen2.5-7B-Instruct", "model.dtype=bfloat16", "model.quantization=nf4"]


def test_alfworld_small_takes_other_models(random_model: Path, tmp_path: Path) -> None:
    """The overrides at the top of the config: an actor behind an API and a 7B base as a plan; random weights play."""
    need("alfworld")
    data = json.dumps(dict.fromkeys(map(str, Split), str(OPTIONS["alfworld"]["data"])))
    options = [f"environment.options.data={data}", "environment.prompts=alfworld", "runner.kind=local"]
    planned = retro("run", "configs/alfworld-small.yaml", f"runs={tmp_path}", *options, *API, *SEVEN_B, "--dry-run")
    assert "Qwen/Qwen2.5-7B-Instruct" in planned.stdout
    options += ["environment.options.steps=2", "environment.tasks={train: 3, validation: 3, test: 3}"]
    retro("run", "configs/alfworld-small.yaml", *small(random_model, tmp_path, *options), "--until", "collect")
    run = tmp_path / "alfworld-small"
    with ReplayBuffer(f"sqlite:///{run / 'buffer.sqlite'}", create=False) as buffer:
        rooms = {
            split: {e.task.id.partition("/")[0].rpartition("-")[2] for e in buffer.episodes() if e.task.split is split}
            for split in Split
        }
    assert all(rooms.values())
    assert not rooms[Split.TRAIN] & rooms[Split.TEST] and not rooms[Split.TRAIN] & rooms[Split.VALIDATION]


def test_one_adapter_for_three_environments(random_model: Path, tmp_path: Path) -> None:
    """A mixture is collected, trained on as a whole and in part, and reported by environment."""
    three = ["household", "hotpotqa", "alfworld"]
    need(*three)
    entries = [{"name": name, "options": OPTIONS.get(name, {})} for name in three]
    options = [
        "environment.name=mixture",
        f"environment.options={json.dumps({'environments': entries}, default=str)}",
        "environment.tasks={train: 3, validation: 3, test: 3}",
    ]
    overrides = small(random_model, tmp_path, *options, "name=three")
    retro("run", "configs/hotpotqa.yaml", *overrides)
    run = tmp_path / "three"
    results = json.loads((run / "evaluation" / "results.json").read_text(encoding="utf-8"))
    for arm in results["arms"].values():
        assert {name: part["tasks"] for name, part in arm["by_environment"].items()} == dict.fromkeys(three, 1)
    page = (run / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "By environment" in page
    record = json.loads((run / "export" / "retro.json").read_text(encoding="utf-8"))
    assert record["environments"] == sorted(three)
    with ReplayBuffer(f"sqlite:///{run / 'buffer.sqlite'}", create=False) as buffer:
        assert buffer.environments() == sorted(three)

    subset = [f"buffer.url=sqlite:///{run / 'buffer.sqlite'}", "buffer.environments=[household, hotpotqa]", "name=two"]
    subset += ["sft.max_steps=1", "ppo.steps=1", "ppo.validate_every=1"]
    retro("run", "configs/hotpotqa.yaml", *overrides, *subset, "--from", "sft", "--until", "export")
    two = json.loads((tmp_path / "two" / "export" / "retro.json").read_text(encoding="utf-8"))
    assert two["environments"] == ["hotpotqa", "household"]
    assert sorted(path.name for path in (tmp_path / "two" / "export" / "prompts").iterdir()) == [
        "hotpotqa",
        "household",
    ]
    wrong = retro(
        "sft", "configs/hotpotqa.yaml", *overrides, *subset, "buffer.environments=[attic]", "name=none", code=2
    )
    assert "has no episode of attic; it has: alfworld, hotpotqa, household" in wrong.stderr
