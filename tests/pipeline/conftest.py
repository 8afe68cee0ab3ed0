"""A run of the real commands at the smallest size, shared by the tests of this folder."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from benchmarks.smollm2 import SHARES
from retro.buffer.splits import SplitRule
from retro.envs import make_taskset
from retro.types import Split
from scripts.make_random_model import build_model, build_tokenizer
from tests.builders import config_tree
from tests.pipeline import forks
from tests.pipeline.running import BIN, Run, retro, started


@pytest.fixture(scope="session")
def tiny_config(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage in a few seconds, with random models."""
    tree = config_tree(
        tiny_model_dir,
        name="tiny",
        environment={"tasks": {"train": 6, "validation": 3, "test": 4}},
        actor={"temperature": 1.0},
        model={"max_prompt_tokens": 700, "max_new_tokens": 8, "lora": {"r": 2, "alpha": 4}},
        collect={"attempts": 2, "group": 2, "controls": 1},
        sft={"threshold": -2, "batch_size": 4, "max_steps": 4, "checkpoint_every": 1, "learning_rate": 1e-2},
        reward={"batch_size": 4, "epochs": 6, "max_steps": 6, "eval_every": 2, "learning_rate": 1e-2},
        ppo={
            "reward": [{"kind": "environment", "weight": 0.5}, {"kind": "model", "weight": 0.5}],
            **{"steps": 4, "contexts": 5, "group": 2, "epochs": 2, "minibatches": 2},
            **{"learning_rate": 1e-2, "checkpoint_every": 1, "validate_every": 2, "validation_contexts": 2},
            "token_budget": 2048,
        },
        evaluate={
            "attempts": 2,
            "arms": ["retry-sampled", "shuffled", "reflexion", "sft", "ppo", "ppo-bon2", "oracle"],
            "best_of": [2],
            "bootstrap": 100,
            "permutations": 200,
        },
    )
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``python`` and ``retro``, each of which runs in a fork."""
    folder, python = tmp_path_factory.mktemp("tools"), forks.stand_in()
    (folder / "python").symlink_to(python)
    (folder / "retro").write_text(f'#!/bin/sh\nexec {python} {BIN / "retro"} "$@"\n', encoding="utf-8")
    (folder / "retro").chmod(0o700)
    return folder


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with random weights, a tokenizer for any text and a context for long prompts."""
    folder = tmp_path_factory.mktemp("random-model")
    tokenizer = build_tokenizer()
    build_model(tokenizer, context=16_384, seed=0, layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logged trials with ratings of every kind: a random actor alone earns nothing to learn from."""
    rng = random.Random(0)
    taskset = make_taskset("household")
    lines = []
    for split in Split:
        for task in taskset.tasks(split, 4, offset=50):
            world = taskset.make(task)
            opening, _ = world.reset()
            observation = world.step("look")[0]
            trajectory = {"opening": opening, "steps": [{"action": "look", "observation": observation}]}
            shared = {"environment": "household", "task": task.id, "split": split.value, "kind": task.kind}
            first = {**shared, "id": f"{task.id}-0", "trajectory": trajectory, "return": 0.3, "success": False}
            lines.append(first)
            for index, text in enumerate(["look in the drawer 1", "go to the desk 2", "take the book 1"]):
                value = [0.0, 0.3, 1.0][(index + rng.randrange(2)) % 3]
                lines.append(
                    {
                        **first,
                        **{"id": f"{task.id}-1-{index}", "trial": 1, "parent": first["id"]},
                        **{"return": value, "success": value == 1.0, "reflection": {"text": text, "index": index}},
                    }
                )
    path = tmp_path_factory.mktemp("trials") / "trials.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def whole_run(tiny_config: Path, trials: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One unbroken run of all stages; tests read it and leave it as it is."""
    run = Run(tiny_config, tmp_path_factory.mktemp("runs") / "tiny")
    retro("buffer", "import", "jsonl", str(trials), "--buffer", str(run.folder))
    done = started("-m", "retro.cli", *run.command())
    assert done.returncode == 0, done.stdout + done.stderr
    (run.folder.parent / "screen.txt").write_text(done.stdout, encoding="utf-8")
    return run


@pytest.fixture
def short_logs(shared_data: Path, tmp_path: Path) -> Path:
    """The first reflections on a few HotPotQA questions of each split, helpful ones and others, with short trials."""
    rows = pyarrow.parquet.read_table(shared_data / "logs" / "reflexion_tuples.parquet").to_pylist()
    firsts = [row for row in rows if row["env"] == "hotpotqa" and row["strategy"] == "reflexion" and row["trial"] == 1]
    firsts.sort(key=lambda row: len(row["trajectory"]) + len(row["context"] or "") + len(row["reflection"]))
    chosen: dict[tuple[Split, bool], dict[str, dict[str, Any]]] = {}
    for row in firsts:
        helped = row["F1_next"] - row["F1"] > 0.25
        of_kind = chosen.setdefault((SplitRule(**SHARES).split("hotpotqa", row["task_id"]), helped), {})
        if len(of_kind) < 2:
            of_kind.setdefault(row["task_id"], row)
    assert {(Split.TRAIN, True), (Split.TRAIN, False), (Split.TEST, True), (Split.TEST, False)} <= chosen.keys()
    path = tmp_path / "short.parquet"
    few = [row for of_kind in chosen.values() for row in of_kind.values()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(few), path)
    return path
