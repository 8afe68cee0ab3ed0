"""PPO's benchmark at the smallest size: that its sides compute the same thing, and its counts. No time is asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from benchmarks import ppo_processes
from benchmarks.pipeline_shared_base import SharedBaseSide
from benchmarks.ppo import PEER_ENVIRONMENT, main
from benchmarks.ppo_device import find_device
from benchmarks.ppo_flops import Group, Shape, update_flops
from benchmarks.ppo_models import (
    TINY,
    Sizes,
    TokenModels,
    random_tokens,
    run_config,
    token_contexts,
    word_tokenizer,
    write_models,
)
from benchmarks.ppo_processes import PINS, Measured, ProcessError, agreement, peer_python
from benchmarks.ppo_worker import check
from retro.config import ConfigError

VOCABULARY = 64
SHAPE = Shape(hidden=4, intermediate=6, layers=3, heads=2, key_value_heads=1, head_size=2, vocabulary=10)


def installed() -> bool:
    done = PEER_ENVIRONMENT / "installed.txt"
    return done.is_file() and done.read_text() == PINS.read_text()


@pytest.mark.slow
def test_our_own_unshared_path_computes_the_same(tmp_path: Path) -> None:
    file = tmp_path / "unshared.json"
    assert main(["unshared", "--json", str(file), "--repeats", "1", "--group", "2", "--threads", "1", "--quick"]) == 0
    result = json.loads(file.read_text())
    assert len(result["checks"]) == 7 and all(check["holds"] for check in result["checks"])
    assert result["measures_nothing"] and len(result["lines"]) == 4
    sizes = result["sizes"]
    assert result["lengths"] == [24, 48]
    assert result["tokens_a_step"] == {"shared": 72 + 4 * 8, "unshared": 2 * 72 + 4 * 8}
    assert result["forward_tokens"]["ours"] < result["forward_tokens"]["naive"]
    for side in ("naive", "ours"):
        assert [step["samples"] for step in result["steps"][side]] == [4, 4]  # the warm-up and a lap
        assert all(step["response_tokens"] == 4 * sizes["response"] for step in result["steps"][side])
        memory = result["memory"][side]
        assert memory["peak_bytes"] > memory["bytes_before_models"] > 2**20
    assert result["command"].startswith("python benchmarks/ppo.py unshared --json")


@pytest.mark.skipif(not installed(), reason="TRL's environment is not there: python benchmarks/ppo.py trl makes it")
def test_trl_computes_the_same(tmp_path: Path) -> None:
    file = tmp_path / "trl.json"
    assert main(["trl", "--json", str(file), "--repeats", "1", "--group", "2", "--threads", "1", "--quick"]) == 0
    result = json.loads(file.read_text())
    assert len(result["checks"]) == 5 and len(result["targets"]) == 3
    assert result["versions_of_sides"]["naive"]["trl"] == "1.12.0"
    assert len(result["steps"]["naive"]) == 2


def test_the_peers_models_are_ours(tmp_path: Path) -> None:
    """Policy, value model and reward model as a peer loads them say what our roles say."""
    sizes = Sizes(contexts=2, group=2, shortest=5, longest=9, response=3, epochs=1)
    config = run_config(sizes, "device=cpu", f"model.base={tmp_path / 'base'}", "ppo.token_budget=32")
    write_models(config, TINY, VOCABULARY, tmp_path)
    prompts = random_tokens(VOCABULARY, sizes.lengths, 0)
    flat = random_tokens(VOCABULARY, [3] * 4, 1)
    side = SharedBaseSide.load(config, tmp_path, TokenModels)
    said = check(side, config, token_contexts(prompts), [flat[:2], flat[2:]])
    kinds = {"value": AutoModelForSequenceClassification, "reward_model": AutoModelForSequenceClassification}
    value, reward = (kind.from_pretrained(tmp_path / name) for name, kind in kinds.items())
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    for row, response in enumerate(flat):
        prompt = prompts[row // 2]
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            logs = reference(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
            values = value.score(value.model(ids).last_hidden_state)[0, len(prompt) - 1 : -1, 0]
            score = reward.score(reward.model(ids).last_hidden_state)[0, -1, 0]
        expected = logs.gather(1, torch.tensor(response)[:, None])[:, 0]
        assert said["reference_log_probs"][row] == pytest.approx(expected.tolist(), abs=1e-4)
        assert said["values"][row] == pytest.approx(values.tolist(), abs=1e-4)
        assert said["scores"][row] == pytest.approx(float(score), abs=1e-4)
    assert said["log_probs"] != said["reference_log_probs"]  # the policy's adapter changes something


def test_the_end_cannot_be_drawn_and_text_keeps_its_tokens() -> None:
    tokenizer = word_tokenizer(VOCABULARY)
    (ids,) = random_tokens(VOCABULARY, [200], 3)
    assert tokenizer.encode(tokenizer.decode(ids, skip_special_tokens=True), add_special_tokens=False) == ids
    assert tokenizer.eos_token_id == VOCABULARY and min(ids) > 0 and max(ids) < VOCABULARY
    assert tokenizer.convert_tokens_to_ids("<pad>") == VOCABULARY + 1


def test_a_difference_is_seen() -> None:
    said = {
        "log_probs": [[-1.0, -2.0]],
        "reference_log_probs": [[-1.0, -2.0]],
        "values": [[0.5, 0.5]],
        "scores": [0.1],
        "metrics": dict.fromkeys(("policy_loss", "value_loss", "entropy", "approx_kl", "grad_norm/policy"), 0.5),
    }
    assert all(check.holds for check in agreement(said, said)) and len(agreement(said, said)) == 6
    worse = {"log_probs": [[-1.0, -2.001]], "scores": [0.101], "metrics": {**said["metrics"], "grad_norm/policy": 0.51}}
    for name, value in worse.items():
        assert [check.holds for check in agreement(said, {**said, name: value})].count(False) == 1


@pytest.mark.parametrize("settings", [["bf16"], ["nf4"]])
def test_the_device_table_runs_on_a_cpu(settings: list[str], tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    sizes = ["--device", "cpu", "--tiny", "--repeats", "1", "--group", "2", "--settings", *settings]
    assert main(["gpu", "--json", str(file), *sizes]) == 0
    result = json.loads(file.read_text())
    assert [part["setting"] for part in result["settings"]] == settings
    (part,) = result["settings"]
    assert len(part["checks"]) == 2 and part["peak_bytes"] == {"shared": None, "unshared": None}
    shape = Shape.of(LlamaConfig(**TINY, vocab_size=256))
    flops = 2 * update_flops(shape, [Group(24, (8, 8)), Group(48, (8, 8))], rank=16)  # two epochs
    assert part["update"]["shared"]["flops"] == flops < part["update"]["unshared"]["flops"]
    assert part["config"]["model"]["quantization"] == ("nf4" if settings == ["nf4"] else "none")


def test_best_of_n_runs_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    assert main(["best-of-n", "--json", str(file), "--device", "cpu", "--tiny", "--repeats", "1", "--group", "3"]) == 0
    result = json.loads(file.read_text())
    assert set(result["latency_seconds"]) == {"1", "3"} and result["checks"][0]["holds"]
    assert result["targets"][0]["figure"] == pytest.approx(
        result["latency_seconds"]["3"] / result["latency_seconds"]["1"]
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_told() -> None:
    with pytest.raises(ConfigError, match=r"no CUDA device here.*one NVIDIA GPU.*--device cpu --tiny"):
        find_device("cuda")


def test_parameters_are_counted() -> None:
    # q 4→4, k and v 4→2, o 4→4, gate and up 4→6, down 6→4.
    assert SHAPE.linear_parameters == 3 * (16 + 8 + 8 + 16 + 24 + 24 + 24)
    assert SHAPE.lora_parameters(2) == 3 * 2 * (8 + 6 + 6 + 8 + 10 + 10 + 10)


def test_visible_pairs_are_those_of_the_mask() -> None:
    group = Group(3, (2, 1))
    # Prompt 1 + 2 + 3; first response 4 + 5; second 4.
    assert group.visible_pairs == 6 + 9 + 4 and group.tokens == 6
    assert [alone.visible_pairs for alone in group.alone()] == [15, 10]


def test_update_flops_by_hand() -> None:
    # 5 tokens, 2 of them written; pairs 1 + 2 + 3 + 4 + 5.
    base = 4 * (360 * 5 + 4 * 10 * 2)
    lora = 6 * 174 * 5  # rank 1
    attention = 12 * 3 * 4 * 15
    assert update_flops(SHAPE, [Group(3, (2,))], rank=1) == base + lora + attention


def test_a_process_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "talk.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ppo_processes.PEER.parent)!r})\n"
        "from protocol import Conversation, resident_bytes, started\n"
        "talk = Conversation()\n"
        "print('noise')\n"
        "talk.say({'hello': 1})\n"
        "lap = started()\n"
        "talk.say({**lap(), 'samples': 4, 'number': talk.hear()['number'], 'bytes': resident_bytes(peak=True)})\n"
        "raise SystemExit('out of paper')\n"
    )
    with Measured([sys.executable, str(script)], {}, tmp_path / "talk.log") as process:
        assert process.started == {"hello": 1}
        assert process.lap(7)["step"].amount == 4 and process.steps[0]["number"] == 7
        assert process.steps[0]["bytes"] > 2**20
        with pytest.raises(ProcessError, match=r"ended without an answer:\nnoise\nout of paper"):
            process.ask("step")


def test_an_environment_with_the_same_pins_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "installed.txt").write_text(PINS.read_text())
    assert peer_python(tmp_path) == tmp_path / "bin" / "python"


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    for wrong in (["--repeats", "0"], ["--shortest", "2000"]):
        with pytest.raises(SystemExit):
            main(["unshared", "--json", str(tmp_path / "f"), *wrong])
